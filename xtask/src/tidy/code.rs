//! Rust source with comments and literals blanked out, and words in it.

/// Replaces comments and the contents of string and character literals by spaces.
///
/// Lines and columns (in bytes) stay where they were.
pub(super) fn code_only(source: &str) -> String {
    let bytes = source.as_bytes();
    let mut out = bytes.to_vec();
    let mut at = 0;
    while at < bytes.len() {
        let end = match bytes[at] {
            b'/' if bytes[at..].starts_with(b"//") => line_end(bytes, at),
            b'/' if bytes[at..].starts_with(b"/*") => block_comment_end(bytes, at),
            b'"' => string_end(bytes, at),
            b'r' | b'b' | b'c' if !follows_word(bytes, at) => match raw_string_end(bytes, at) {
                Some(end) => end,
                None => {
                    at += 1;
                    continue;
                }
            },
            b'\'' => match character_end(bytes, at) {
                Some(end) => end,
                None => {
                    at += 1;
                    continue;
                }
            },
            _ => {
                at += 1;
                continue;
            }
        };
        for byte in &mut out[at..end] {
            if *byte != b'\n' {
                *byte = b' ';
            }
        }
        at = end;
    }
    String::from_utf8(out).expect("only whole literals and comments were replaced, by ASCII")
}

/// Line numbers (from 1) at which `word` stands in `code`, not as a part of a longer word.
pub(super) fn lines_with_word(code: &str, word: &str) -> Vec<usize> {
    let mut lines = Vec::new();
    for (number, line) in code.lines().enumerate() {
        let mut from = 0;
        while let Some(found) = line[from..].find(word) {
            let (start, end) = (from + found, from + found + word.len());
            let before = line[..start].chars().next_back();
            let after = line[end..].chars().next();
            let joins = |edge: Option<char>, neighbour: Option<char>| {
                edge.is_some_and(is_word) && neighbour.is_some_and(is_word)
            };
            if !joins(word.chars().next(), before) && !joins(word.chars().next_back(), after) {
                lines.push(number + 1);
                break;
            }
            from = start + word.chars().next().map_or(1, char::len_utf8);
        }
    }
    lines
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

fn follows_word(bytes: &[u8], at: usize) -> bool {
    at > 0 && (bytes[at - 1].is_ascii_alphanumeric() || bytes[at - 1] == b'_')
}

fn line_end(bytes: &[u8], at: usize) -> usize {
    bytes[at..]
        .iter()
        .position(|byte| *byte == b'\n')
        .map_or(bytes.len(), |length| at + length)
}

fn block_comment_end(bytes: &[u8], start: usize) -> usize {
    let (mut at, mut depth) = (start, 0);
    while at < bytes.len() {
        if bytes[at..].starts_with(b"/*") {
            depth += 1;
            at += 2;
        } else if bytes[at..].starts_with(b"*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += 1;
        }
    }
    bytes.len()
}

/// The end of a string with escapes whose opening quote is at `start`.
fn string_end(bytes: &[u8], start: usize) -> usize {
    let mut at = start + 1;
    while at < bytes.len() {
        match bytes[at] {
            b'\\' => at += 2,
            b'"' => return at + 1,
            _ => at += 1,
        }
    }
    bytes.len()
}

/// The end of `r".."`, `br#".."#`, `cr".."`; nothing if no raw string starts here.
fn raw_string_end(bytes: &[u8], start: usize) -> Option<usize> {
    let mut at = start;
    if matches!(bytes[at], b'b' | b'c') {
        at += 1;
    }
    if bytes.get(at) != Some(&b'r') {
        return None;
    }
    at += 1;
    let hashes = bytes[at..].iter().take_while(|byte| **byte == b'#').count();
    at += hashes;
    if bytes.get(at) != Some(&b'"') {
        return None;
    }
    at += 1;
    while at < bytes.len() {
        if bytes[at] == b'"'
            && bytes
                .get(at + 1..at + 1 + hashes)
                .is_some_and(|run| run.iter().all(|b| *b == b'#'))
        {
            return Some(at + 1 + hashes);
        }
        at += 1;
    }
    Some(bytes.len())
}

/// The end of a character literal; nothing if the quote starts a lifetime.
fn character_end(bytes: &[u8], start: usize) -> Option<usize> {
    if bytes.get(start + 1) == Some(&b'\\') {
        let closing = bytes[start + 3..].iter().position(|byte| *byte == b'\'')?;
        return Some(start + 3 + closing + 1);
    }
    // One character of up to four bytes, then the closing quote.
    let length = (1..=4).find(|length| bytes.get(start + 1 + length) == Some(&b'\''))?;
    let inside = std::str::from_utf8(&bytes[start + 1..start + 1 + length]).ok()?;
    (inside.chars().count() == 1).then_some(start + length + 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_literals_are_blanked_and_code_stays() {
        for (source, left) in [
            ("a // unsafe\nb", "a          \nb"),
            ("a /* x /* y */ z */ b", "a                   b"),
            ("f(\"unsafe \\\" {\") + g", "f(             ) + g"),
            ("r#\"a \" b\"# + x", "           + x"),
            ("br\"un\" x", "       x"),
            ("'\"' + unsafe", "    + unsafe"),
            ("'\\'' + unsafe", "     + unsafe"),
            ("fn f<'a>(x: &'a str) {}", "fn f<'a>(x: &'a str) {}"),
            ("for r in 0..2 {}", "for r in 0..2 {}"),
            ("'\u{e4}' x", "     x"),
        ] {
            assert_eq!(code_only(source), left, "{source}");
        }
    }

    #[test]
    fn words_are_found_whole() {
        assert_eq!(lines_with_word("a\nunsafe {", "unsafe"), vec![2]);
        assert_eq!(
            lines_with_word("unsafe_code not_unsafe", "unsafe"),
            Vec::<usize>::new()
        );
        assert_eq!(lines_with_word("unsafe_code unsafe", "unsafe"), vec![1]);
        assert_eq!(lines_with_word("use std::fs::File;", "std::fs"), vec![1]);
        assert_eq!(
            lines_with_word("use std::fsx;", "std::fs"),
            Vec::<usize>::new()
        );
        assert_eq!(lines_with_word("#[ignore]", "#[ignore"), vec![1]);
        assert_eq!(
            lines_with_word("#[ignored]", "#[ignore"),
            Vec::<usize>::new()
        );
    }
}
