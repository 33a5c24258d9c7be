//! The `kv` example as an operator meets it: a process, its exit code, and what it left on disk.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Resource, Rlimit, prlimit};

use crate::authority::Authority;

#[path = "common/authority.rs"]
mod authority;

/// Nothing here takes long: a wait that lasts this long has failed.
const PATIENCE: Duration = Duration::from_secs(30);

/// A write that fails for a reason other than space is final: the process says so and ends with 70,
/// and what it had acknowledged is there when it starts again.
///
/// The kernel refuses to write past `RLIMIT_FSIZE`, which another process may set at any time.
#[test]
fn fault_14_kv_ends_with_70_when_its_log_cannot_be_written() {
    let dir = tempfile::tempdir().expect("a directory");
    Authority::in_dir(dir.path()).certify(1, "h1.solo.raft");
    let mut kv = Kv::start(dir.path());
    let mut client = kv.client();
    assert_eq!(client.ask(&["SET", "boat", "1"]), "+OK\r\n");

    kv.forbid_writes();
    let answer = client.try_ask(&["SET", "boat", "2"]);
    assert!(
        answer.is_none_or(|answer| answer.starts_with('-')),
        "a write was acknowledged that no disk has"
    );
    let said = kv.next_line();
    assert!(said.contains(r#""event":"failed""#), "{said}");
    assert_eq!(kv.child.wait().expect("it has ended").code(), Some(70));

    let mut kv = Kv::start(dir.path());
    let mut client = kv.client();
    let value = client.ask(&["GET", "boat"]);
    // The second write was refused, so its fate is open.
    assert!(["$1\r\n1\r\n", "$1\r\n2\r\n"].contains(&&*value), "{value}");
    drop(kv.child.stdin.take());
    assert!(kv.child.wait().expect("it has ended").success());
}

/// A host alone: founder and only voter of its groups.
struct Kv {
    child: Child,
    out: BufReader<ChildStdout>,
    redis: SocketAddr,
}

impl Kv {
    fn start(dir: &Path) -> Self {
        // A signal that the shell ignores is ignored by the program it becomes: a write past the
        // limit then fails, and the process lives to tell.
        let mut child = Command::new("sh")
            .args(["-c", r#"trap '' XFSZ; exec "$0" "$@""#])
            .arg(program())
            .args(["--host", "1", "--deployment", "solo", "--voters", "1"])
            .args(["--raft", "127.0.0.1:0", "--redis", "127.0.0.1:0"])
            .args(["--groups", "2", "--exit-with-stdin", "--data"])
            .arg(dir.join("data"))
            .arg("--certs")
            .arg(dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // It may be a file, and that cannot be written any more either.
            .stderr(Stdio::null())
            .spawn()
            .expect("a process");
        let mut kv = Self {
            out: BufReader::new(child.stdout.take().expect("piped")),
            child,
            redis: SocketAddr::from(([0, 0, 0, 0], 0)),
        };
        let ready: serde_json::Value = serde_json::from_str(&kv.next_line()).expect("JSON");
        assert_eq!(ready["event"], "ready");
        let redis = ready["redis"].as_str().expect("an address");
        kv.redis = redis.parse().expect("an address");
        kv
    }

    fn next_line(&mut self) -> String {
        let mut line = String::new();
        self.out.read_line(&mut line).expect("it says something");
        line
    }

    fn client(&self) -> Client {
        let stream = TcpStream::connect(self.redis).expect("it listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        Client(stream)
    }

    /// From now on no file of the process can be written past its first byte.
    fn forbid_writes(&self) {
        let id = i32::try_from(self.child.id()).expect("a process id");
        let limit = Rlimit {
            current: Some(1),
            maximum: Some(1),
        };
        prlimit(Pid::from_raw(id), Resource::Fsize, limit).expect("a limit");
    }
}

impl Drop for Kv {
    fn drop(&mut self) {
        // It has ended already, unless the test fails.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

struct Client(TcpStream);

impl Client {
    /// Asks until there is a leader that answers.
    fn ask(&mut self, words: &[&str]) -> String {
        loop {
            let answer = self.try_ask(words).expect("an answer");
            if !answer.starts_with("-CLUSTERDOWN") && !answer.starts_with("-TRYAGAIN") {
                return answer;
            }
        }
    }

    /// The answer, or none if the process ended instead.
    fn try_ask(&mut self, words: &[&str]) -> Option<String> {
        let mut request = format!("*{}\r\n", words.len());
        for word in words {
            request += &format!("${}\r\n{word}\r\n", word.len());
        }
        self.0.write_all(request.as_bytes()).ok()?;
        let mut answer = Vec::new();
        let mut chunk = [0; 512];
        loop {
            let read = self.0.read(&mut chunk).ok()?;
            answer.extend_from_slice(&chunk[..read]);
            let lines = answer.iter().filter(|&&byte| byte == b'\n').count();
            if read == 0 {
                return None;
            }
            // A bulk string that is there has two lines, everything else one.
            let is_bulk = answer[0] == b'$' && !answer.starts_with(b"$-");
            if lines == if is_bulk { 2 } else { 1 } {
                return String::from_utf8(answer).ok();
            }
        }
    }
}

/// The example beside this test's own program: cargo builds it for `cargo test -p raft-host`.
fn program() -> PathBuf {
    let own = std::env::current_exe().expect("this program");
    let program = own.parent().and_then(Path::parent).expect("two folders up");
    let program = program.join("examples").join("kv");
    assert!(
        fs::exists(&program).unwrap_or(false),
        "{} is not there: cargo build -p raft-host --example kv, in the same profile",
        program.display()
    );
    program
}
