//! Development, test and release commands.
fn main() {}
