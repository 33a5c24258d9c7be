//! Progress and outcomes: bars on a terminal, else one line a step on standard error; tables.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use anyhow::Result;
use comfy_table::{Table, presets};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

/// A step that is going on.
pub(crate) struct Step {
    name: &'static str,
    begin: Instant,
    bar: ProgressBar,
}

impl Step {
    /// Begins a step of `total` units of work.
    pub(crate) fn begin(name: &'static str, total: u64) -> Self {
        let bar = if std::io::stderr().is_terminal() {
            let style = ProgressStyle::with_template(
                "{spinner} {prefix:<28} {bar:30} {human_pos:>9}/{human_len} {elapsed}",
            )
            .expect("the template is well formed");
            let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
            bar.set_style(style);
            bar.set_prefix(name);
            bar.enable_steady_tick(Duration::from_millis(100));
            bar
        } else {
            ProgressBar::hidden()
        };
        Self {
            name,
            begin: Instant::now(),
            bar,
        }
    }

    /// Says how much of the work is done.
    pub(crate) fn set(&self, done: u64) {
        self.bar.set_position(done);
    }

    /// Says that some more of the work is done.
    pub(crate) fn add(&self, more: u64) {
        self.bar.inc(more);
    }

    /// Ends the step with a line that says what it came to.
    pub(crate) fn end(self, outcome: &str) {
        self.bar.finish_and_clear();
        eprintln!(
            "{}: {outcome} ({:.1} s)",
            self.name,
            self.begin.elapsed().as_secs_f64()
        );
    }
}

/// A table of a flat value's fields.
pub(crate) fn table(value: &impl Serialize) -> Result<Table> {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    if let serde_json::Value::Object(fields) = serde_json::to_value(value)? {
        for (name, value) in fields {
            table.add_row([name, value.to_string()]);
        }
    }
    Ok(table)
}
