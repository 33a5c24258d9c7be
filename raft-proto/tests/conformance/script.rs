//! The script files: their grammar, how an answer is compared, and how a family of them is run.
//!
//! ```text
//! # a comment
//! command arg key=value key=(v1, v2) \
//!     continued
//! input lines
//! ----
//! expected lines, up to a blank one
//! ```
//!
//! After `----` comes `----` once more where the expected text holds blank lines; it then ends
//! with both lines again.

use std::env;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use libtest_mimic::{Arguments, Failed, Trial};

/// `key`, `key=value` or `key=(v1, v2)`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Arg {
    pub(crate) key: String,
    pub(crate) values: Vec<String>,
}

#[derive(Clone, Debug)]
pub(crate) struct Directive {
    pub(crate) line: usize,
    pub(crate) command: String,
    pub(crate) args: Vec<Arg>,
    pub(crate) input: String,
    pub(crate) expected: String,
    /// The lines of the expected text with what ends it, counted from 0.
    expected_lines: Range<usize>,
}

impl Directive {
    /// Arguments without a value that are numbers.
    pub(crate) fn ids(&self) -> Vec<u64> {
        self.args
            .iter()
            .filter(|arg| arg.values.is_empty())
            .filter_map(|arg| arg.key.parse().ok())
            .collect()
    }

    pub(crate) fn values(&self, key: &str) -> &[String] {
        self.args
            .iter()
            .find(|arg| arg.key == key)
            .map_or(&[], |arg| &arg.values)
    }

    pub(crate) fn value(&self, key: &str) -> Option<&str> {
        self.values(key).first().map(String::as_str)
    }

    pub(crate) fn numbers(&self, key: &str) -> Vec<u64> {
        self.values(key)
            .iter()
            .map(|value| self.number(value))
            .collect()
    }

    #[allow(dead_code, reason = "not every family has flags")]
    pub(crate) fn flag(&self, key: &str) -> Option<bool> {
        self.value(key).map(|value| {
            parse_bool(value).unwrap_or_else(|error| panic!("line {}: {error}", self.line))
        })
    }

    fn number(&self, text: &str) -> u64 {
        text.parse()
            .unwrap_or_else(|_| panic!("line {}: {text} is no number", self.line))
    }
}

/// As Go's `strconv.ParseBool` reads them, and what it says of the rest.
pub(crate) fn parse_bool(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Ok(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Ok(false),
        _ => Err(format!(
            "strconv.ParseBool: parsing {text:?}: invalid syntax"
        )),
    }
}

/// Reads a script.
pub(crate) fn parse(text: &str) -> Vec<Directive> {
    let mut lines = text.lines().enumerate().peekable();
    let mut directives = Vec::new();
    while let Some((at, line)) = lines.next() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let mut head = line.to_owned();
        while head.ends_with('\\') {
            head.pop();
            let (_, next) = lines.next().expect("a continued line is followed by one");
            head.push(' ');
            head.push_str(next.trim());
        }
        let (command, args) = parse_head(&head);
        let mut input = String::new();
        let mut start = at + 1;
        for (at, line) in lines.by_ref() {
            start = at + 1;
            if line == "----" {
                break;
            }
            input.push_str(line);
            input.push('\n');
        }
        let has_blank_lines = lines.next_if(|(_, line)| *line == "----").is_some();
        let mut expected = String::new();
        let mut end = start;
        while let Some((at, line)) = lines.next() {
            end = at + 1;
            if has_blank_lines {
                if line == "----" && lines.next_if(|(_, line)| *line == "----").is_some() {
                    end += 1;
                    if lines.next_if(|(_, line)| line.is_empty()).is_some() {
                        end += 1;
                    }
                    break;
                }
            } else if line.trim().is_empty() {
                break;
            }
            expected.push_str(line);
            expected.push('\n');
        }
        directives.push(Directive {
            line: at + 1,
            command,
            args,
            input: input.trim().to_owned(),
            expected,
            expected_lines: start..end,
        });
    }
    directives
}

/// The script with these answers for what it expects; with double lines where they hold blank ones.
fn rewritten(text: &str, directives: &[Directive], answers: &[String]) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let mut out = String::new();
    let mut put = |line: &str| {
        out.push_str(line);
        out.push('\n');
    };
    let mut from = 0;
    for (directive, answer) in directives.iter().zip(answers) {
        let answer = answer.trim_end_matches('\n');
        let has_blank_lines = answer.lines().any(|line| line.trim().is_empty());
        for line in &lines[from..directive.expected_lines.start] {
            put(line);
        }
        if has_blank_lines {
            put("----");
        }
        answer.lines().for_each(&mut put);
        if has_blank_lines {
            put("----");
            put("----");
        }
        put("");
        from = directive.expected_lines.end;
    }
    lines[from..].iter().for_each(|line| put(line));
    let end = out.trim_end().len();
    out.truncate(end);
    out.push('\n');
    out
}

/// Splits at spaces outside parentheses.
fn parse_head(head: &str) -> (String, Vec<Arg>) {
    let mut words = vec![String::new()];
    let mut depth = 0_u32;
    for c in head.chars() {
        match c {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if c.is_whitespace() && depth == 0 {
            words.push(String::new());
        } else {
            words.last_mut().expect("there is one").push(c);
        }
    }
    let mut words = words.into_iter().filter(|word| !word.is_empty());
    let command = words.next().expect("a directive has a command");
    (command, words.map(|word| parse_arg(&word)).collect())
}

fn parse_arg(word: &str) -> Arg {
    let Some((key, value)) = word.split_once('=') else {
        return Arg {
            key: word.to_owned(),
            values: Vec::new(),
        };
    };
    let values = match value.strip_prefix('(').and_then(|v| v.strip_suffix(')')) {
        None => vec![value.to_owned()],
        Some(list) => split_list(list),
    };
    Arg {
        key: key.to_owned(),
        values,
    }
}

/// Splits at commas outside nested parentheses.
fn split_list(list: &str) -> Vec<String> {
    let mut values = vec![String::new()];
    let mut depth = 0_u32;
    for c in list.chars() {
        match c {
            ',' if depth == 0 => {
                values.push(String::new());
                continue;
            }
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            _ => {}
        }
        values.last_mut().expect("there is one").push(c);
    }
    values.iter().map(|v| v.trim().to_owned()).collect()
}

/// Whether an answer is what is expected, but for log lines, which our core does not write.
pub(crate) fn is_same(actual: &str, expected: &str) -> bool {
    essence(actual) == essence(expected)
}

/// The text without log lines; `ok` stands for nothing.
fn essence(text: &str) -> String {
    let mut kept = String::new();
    for line in text.lines().filter(|line| !is_log_line(line)) {
        kept.push_str(line);
        kept.push('\n');
    }
    if kept == "ok\n" { String::new() } else { kept }
}

pub(crate) fn is_log_line(line: &str) -> bool {
    let line = line.trim_start();
    ["DEBUG ", "INFO ", "WARN ", "ERROR "]
        .iter()
        .any(|level| line.starts_with(level))
}

/// Answers directives; each script gets a new one.
pub(crate) trait Interpreter {
    fn answer(&mut self, directive: &Directive) -> String;
}

/// Runs one script and returns how many directives it has.
fn run_script(
    path: &Path,
    interpreter: &mut dyn Interpreter,
    rewrites: bool,
) -> Result<usize, Failed> {
    let problem = |error| format!("{}: {error}", path.display());
    let text = fs::read_to_string(path).map_err(problem)?;
    let directives = parse(&text);
    if directives.is_empty() {
        return Err("no directive at all".into());
    }
    if rewrites {
        let answers: Vec<String> = directives
            .iter()
            .map(|directive| interpreter.answer(directive))
            .collect();
        fs::write(path, rewritten(&text, &directives, &answers)).map_err(problem)?;
        return Ok(directives.len());
    }
    for directive in &directives {
        let answer = interpreter.answer(directive);
        if !is_same(&answer, &directive.expected) {
            return Err(format!(
                "{}:{}: {}\nexpected:\n{}\nfound:\n{}",
                path.display(),
                directive.line,
                directive.command,
                essence(&directive.expected),
                essence(&answer),
            )
            .into());
        }
        if let Some(change) = unnoticed_change(&answer, &directive.expected) {
            return Err(format!(
                "{}:{}: the comparison takes {change:?} for the expected text",
                path.display(),
                directive.line
            )
            .into());
        }
    }
    Ok(directives.len())
}

/// The runner tests itself on every script: one changed character in an expected line that is no
/// log line must make it fail. Returns a change that did not.
pub(crate) fn unnoticed_change(answer: &str, expected: &str) -> Option<String> {
    let mut start = 0;
    for line in expected.split_inclusive('\n') {
        let text = line.trim_end_matches('\n');
        if !is_log_line(text) {
            for (at, c) in text.char_indices() {
                let other = if c == '~' { "^" } else { "~" };
                let mut changed = expected.to_owned();
                let at = start + at;
                changed.replace_range(at..at + c.len_utf8(), other);
                if is_same(answer, &changed) {
                    return Some(changed);
                }
            }
        }
        start += line.len();
    }
    None
}

pub(crate) fn scripts_in(dir: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = fs::read_dir(dir)
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.is_file())
        .collect();
    paths.sort();
    paths
}

/// Where a family's scripts lie, and whether they are etcd-raft's.
pub(crate) fn dir_of(family: &str) -> (PathBuf, bool) {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let own = here.join("tests/data").join(family);
    if let Some(dir) = env::var_os("RAFT_CONFORMANCE_DIR") {
        return (PathBuf::from(dir).join(family), true);
    }
    let shared = here.join("../../shared/conformance/etcd-raft").join(family);
    if shared.is_dir() {
        (shared, true)
    } else {
        println!("{family}: no scripts of etcd-raft here, our own are run");
        (own, false)
    }
}

/// With this variable set, our own scripts get the answers that are found for those expected: to
/// be looked at before they are kept. Those of etcd-raft are never written to.
const REWRITE: &str = "RAFT_SCRIPTS_REWRITE";

struct Counts {
    passed: AtomicUsize,
    directives: AtomicUsize,
}

#[allow(dead_code, reason = "only conversations have a cache")]
/// A test more for each script of a family, ours and etcd-raft's, with another interpreter.
pub(crate) fn again(
    family: &str,
    how: &str,
    interpreter: fn() -> Box<dyn Interpreter>,
) -> Vec<Trial> {
    if env::var_os(REWRITE).is_some() {
        return Vec::new();
    }
    let own = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/data")
        .join(family);
    let (dir, is_theirs) = dir_of(family);
    let mut scripts = scripts_in(&dir);
    if is_theirs {
        scripts.extend(scripts_in(&own));
    }
    scripts
        .into_iter()
        .map(|path| {
            let name = path.file_stem().unwrap_or_default().to_string_lossy();
            Trial::test(format!("{how}::{name}"), move || {
                run_script(&path, interpreter().as_mut(), false).map(drop)
            })
        })
        .collect()
}

/// Runs all scripts of a family, one test each, and prints `family: 2 of 2 scripts, 55 directives`.
pub(crate) fn run_family(
    family: &'static str,
    interpreter: fn() -> Box<dyn Interpreter>,
    more: Vec<Trial>,
) -> ExitCode {
    let arguments = Arguments::from_args();
    let is_listing = arguments.list;
    let (dir, is_theirs) = dir_of(family);
    let scripts = scripts_in(&dir);
    let own = scripts_in(
        &Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/data")
            .join(family),
    );
    let rewrites = env::var_os(REWRITE).is_some();
    let counts = |paths: &[PathBuf], prefix: &str, rewrites: bool, trials: &mut Vec<Trial>| {
        let counts = Arc::new(Counts {
            passed: AtomicUsize::new(0),
            directives: AtomicUsize::new(0),
        });
        for path in paths {
            let (path, counts) = (path.clone(), Arc::clone(&counts));
            let name = path.file_stem().unwrap_or_default().to_string_lossy();
            trials.push(Trial::test(format!("{prefix}{name}"), move || {
                let directives = run_script(&path, interpreter().as_mut(), rewrites)?;
                counts.directives.fetch_add(directives, Ordering::SeqCst);
                counts.passed.fetch_add(1, Ordering::SeqCst);
                Ok(())
            }));
        }
        counts
    };
    let mut trials = more;
    let theirs = counts(&scripts, "", rewrites && !is_theirs, &mut trials);
    let ours = if is_theirs {
        counts(&own, "own::", rewrites, &mut trials)
    } else {
        Arc::clone(&theirs)
    };
    let is_filtered = arguments.filter.is_some();
    let conclusion = libtest_mimic::run(&arguments, trials);
    if is_listing {
        return conclusion.exit_code();
    }
    if is_theirs && !own.is_empty() {
        println!(
            "own {family}: {} of {} scripts, {} directives",
            ours.passed.load(Ordering::SeqCst),
            own.len(),
            ours.directives.load(Ordering::SeqCst)
        );
    }
    let passed = theirs.passed.load(Ordering::SeqCst);
    let directives = theirs.directives.load(Ordering::SeqCst);
    println!(
        "{family}: {passed} of {} scripts, {directives} directives",
        scripts.len()
    );
    if !is_filtered {
        let all = if is_theirs {
            passed + ours.passed.load(Ordering::SeqCst)
        } else {
            passed
        };
        record(&serde_json::json!({
            "suite": format!("conformance {family}"), "scripts": all, "directives": directives,
        }));
    }
    if scripts.is_empty() {
        println!("{family}: no scripts in {}", dir.display());
        return ExitCode::FAILURE;
    }
    conclusion.exit_code()
}

pub(crate) fn record(line: &serde_json::Value) {
    use std::io::Write;
    if let Some(path) = env::var_os("RAFT_TEST_REPORT") {
        let mut file = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .expect("the report file opens");
        writeln!(file, "{line}").expect("the report file is written");
    }
}

/// Tests of the grammar and of the comparison.
pub(crate) fn own_tests() -> Vec<Trial> {
    vec![
        Trial::test("runner::grammar", || {
            let text = "# words\n\ndo 1 a=b c=(2, 3) d=((4,5),6)\\\n  7\n in\n----\nout\n\n\
                        two\n----\n----\nx\n\ny\n----\n----\n";
            let found = parse(text);
            assert_eq!(found.len(), 2);
            assert_eq!(found[0].command, "do");
            assert_eq!(found[0].ids(), [1, 7]);
            assert_eq!(found[0].value("a"), Some("b"));
            assert_eq!(found[0].numbers("c"), [2, 3]);
            assert_eq!(found[0].values("d"), ["(4,5)", "6"]);
            assert_eq!(found[0].input, "in");
            assert_eq!(found[0].expected, "out\n");
            assert_eq!(found[1].expected, "x\n\ny\n");
            Ok(())
        }),
        Trial::test("runner::rewriting_keeps_all_but_the_expected_text", || {
            let text = "# words\n\ndo 1\nin\n----\nold\n\n# more\ntwo\n----\n----\nx\n\ny\n----\n----\n\n\
                        three\n----\n";
            let new = "# words\n\ndo 1\nin\n----\n----\na\n\nb\n----\n----\n\n# more\ntwo\n----\nok\n\n\
                       three\n----\nend\n";
            let answers = ["a\n\nb".to_owned(), "ok".to_owned(), "end\n".to_owned()];
            assert_eq!(rewritten(text, &parse(text), &answers), new);
            assert_eq!(rewritten(new, &parse(new), &answers), new);
            Ok(())
        }),
        Trial::test("runner::numbers_and_flags_are_read_as_in_go", || {
            for text in ["t", "TRUE", "1"] {
                assert_eq!(parse_bool(text), Ok(true));
            }
            let error = "strconv.ParseBool: parsing \"yes\": invalid syntax".to_owned();
            assert_eq!(parse_bool("yes"), Err(error));
            Ok(())
        }),
        Trial::test("runner::one_changed_character_fails", || {
            let expected = "> 1 handling Ready\n  INFO 1 became leader at term 1\n  x\n";
            let answer = "> 1 handling Ready\n  x\n";
            assert!(is_same(answer, expected));
            assert_eq!(unnoticed_change(answer, expected), None);
            assert!(is_same("ok", "DEBUG nothing else\n"));
            assert!(!is_same("ok", "no\n"));
            assert!(!is_same("", "okay\n"));
            Ok(())
        }),
    ]
}
