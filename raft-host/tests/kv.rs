//! The `kv` example as an operator meets it: a process, its exit code, and what it left on disk.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

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

/// What each command answers, or how its refusal begins.
#[test]
fn every_command_answers_and_every_refusal_says_why() {
    let dir = tempfile::tempdir().expect("a directory");
    Authority::in_dir(dir.path()).certify(1, "h1.solo.raft");
    let kv = Kv::start(dir.path());
    let mut client = kv.client();
    for group in ["1", "2"] {
        client.ask_until(&["RAFT", "LEADER", group], |answer| answer != "$-1\r\n");
    }
    let long = "v".repeat((256 << 10) + 1);
    let answers: &[(&[&str], &str)] = &[
        (&["PING"], "+PONG\r\n"),
        (&["COMMAND", "DOCS"], "*0\r\n"),
        (&["READONLY"], "+OK\r\n"),
        (&["READWRITE"], "+OK\r\n"),
        (&["CLUSTER", "KEYSLOT", "boat"], ":"),
        (&["GET", "nothing"], "$-1\r\n"),
        (&["INCR", "count"], ":1\r\n"),
        (&["INCR", "count"], ":2\r\n"),
        (&["GET", "count"], "$1\r\n2\r\n"),
        (&["SET", "text", "boat"], "+OK\r\n"),
        (&["INCR", "text"], "-ERR value is not an integer"),
        (&["DEL", "{t}a", "{t}b"], ":0\r\n"),
        (&["DEL", "a", "b"], "-CROSSSLOT "),
        (&["GET"], "-ERR wrong number of arguments for 'get'"),
        (&["SET", "a", "b", "EX", "1"], "-ERR options of SET"),
        (&["SET", "a", &long], "-ERR a key or value is longer"),
        (&["SAIL"], "-ERR unknown command 'SAIL'"),
        (&["RAFT", "SAIL"], "-ERR RAFT knows STATUS"),
        (&["RAFT", "LEADER", "1"], "$1\r\n1\r\n"),
        (
            &["RAFT", "LEADER", "3"],
            "-ERR no such group; there are 1 to 2",
        ),
        (&["RAFT", "STATUS", "1"], "$"),
        (&["RAFT", "TRANSFER", "1", "1"], "+OK\r\n"),
        (
            &["RAFT", "TRANSFER", "1", "9"],
            "-ERR refused: replica 9 is no voter",
        ),
        (&["RAFT", "PROMOTE", "1", "9"], "-ERR refused: "),
        (&["RAFT", "REMOVE", "1", "9"], "-ERR refused: "),
        (
            &["RAFT", "HOST", "1", "127.0.0.1:1"],
            "-ERR that is this host",
        ),
        (&["RAFT", "HOST", "2", "nowhere"], "-ERR not an address"),
        (&["RAFT", "HOST", "2", "127.0.0.1:1"], "+OK\r\n"),
        (&["RAFT", "SCRUB"], "+OK\r\n"),
        (&["RAFT", "SNAPSHOT", "1"], ":"),
        (&["RAFT", "SNAPSHOT", "1"], "+NOTHINGNEW\r\n"),
        (&["RAFT", "SNAPSHOT", "1", "EXPORT", "/nowhere"], "-ERR "),
    ];
    for (words, answer) in answers {
        let got = client.ask(words);
        assert!(
            got.starts_with(answer),
            "{:?}: {got}",
            &words[..2.min(words.len())]
        );
        assert!(
            !got.contains('{') || got.starts_with('$'),
            "no text for people: {got}"
        );
    }
    let scrubbed = client.ask_until(&["INFO"], |info| !info.contains("scrub_passes:0"));
    for counter in ["moved_bytes:0", "scrub_damaged:0"] {
        assert!(scrubbed.contains(counter), "{scrubbed}");
    }
}

/// Clients are sent to the leader, read locally where they ask for it, and are told apart what
/// may have happened from what has not.
#[test]
fn clients_are_sent_to_the_leader_and_told_what_is_unknown() {
    let dir = tempfile::tempdir().expect("a directory");
    let authority = Authority::in_dir(dir.path());
    let held: Vec<UdpSocket> = (1..=3)
        .map(|_| UdpSocket::bind("127.0.0.1:0").expect("a port"))
        .collect();
    let mut peers = BTreeMap::new();
    for (host, socket) in (1..).zip(&held) {
        authority.certify(host, &format!("h{host}.solo.raft"));
        peers.insert(host, socket.local_addr().expect("bound"));
    }
    drop(held);
    let mut fleet: BTreeMap<u64, Kv> = (1..=3)
        .map(|host| (host, Kv::start_one(dir.path(), host, &peers)))
        .collect();
    // The keys below are of the second of two groups.
    let told = fleet[&1]
        .client()
        .ask_until(&["RAFT", "LEADER", "2"], |answer| answer != "$-1\r\n");
    let lead: u64 = told["$1\r\n".len()..].trim().parse().expect("a host");
    let other = if lead == 1 { 2 } else { 1 };
    let moved = format!(" {}\r\n", fleet[&lead].redis);
    let mut at_leader = fleet[&lead].client();
    assert_eq!(at_leader.ask(&["SET", "{a}boat", "1"]), "+OK\r\n");
    let mut elsewhere = fleet[&other].client();
    for words in [&["GET", "{a}boat"][..], &["SET", "{a}boat", "2"]] {
        let answer = elsewhere.ask(words);
        assert!(
            answer.starts_with("-MOVED ") && answer.ends_with(&moved),
            "{answer}"
        );
    }
    assert_eq!(elsewhere.ask(&["READONLY"]), "+OK\r\n");
    elsewhere.ask_until(&["GET", "{a}boat"], |answer| answer == "$1\r\n1\r\n");
    assert_eq!(elsewhere.ask(&["READWRITE"]), "+OK\r\n");
    assert!(elsewhere.ask(&["GET", "{a}boat"]).starts_with("-MOVED "));

    // The leadership goes where it is sent, and a host goes.
    let third = 6 - lead - other;
    let sent = at_leader.ask(&["RAFT", "TRANSFER", "2", &other.to_string()]);
    assert_eq!(sent, "+OK\r\n");
    let mut at_leader = elsewhere;
    assert_eq!(at_leader.ask(&["GET", "{a}boat"]), "$1\r\n1\r\n");
    let removed = at_leader.ask(&["RAFT", "REMOVE", "2", &third.to_string()]);
    assert_eq!(removed, "+OK\r\n");

    // Alone, the leader cannot say what becomes of a write; the next one it does not take.
    fleet.retain(|host, _| *host == other);
    let outcome = at_leader
        .try_ask(&["SET", "{a}boat", "3"])
        .expect("an answer");
    assert!(outcome.starts_with("-TIMEOUT "), "{outcome}");
    let refused = at_leader
        .try_ask(&["SET", "{a}boat", "4"])
        .expect("an answer");
    assert!(refused.starts_with("-CLUSTERDOWN "), "{refused}");
}

/// A host: alone the founder and only voter of its groups.
struct Kv {
    child: Child,
    out: BufReader<ChildStdout>,
    redis: SocketAddr,
}

impl Kv {
    fn start(dir: &Path) -> Self {
        Self::start_one(
            dir,
            1,
            &BTreeMap::from([(1, SocketAddr::from(([127, 0, 0, 1], 0)))]),
        )
    }

    /// Host `id` of those in `peers`, who found the groups together.
    fn start_one(dir: &Path, id: u64, peers: &BTreeMap<u64, SocketAddr>) -> Self {
        let voters: Vec<String> = peers.keys().map(u64::to_string).collect();
        let addresses: Vec<String> = peers
            .iter()
            .map(|(host, address)| format!("{host}={address}"))
            .collect();
        // A signal that the shell ignores is ignored by the program it becomes: a write past the
        // limit then fails, and the process lives to tell.
        let mut child = Command::new("sh")
            .args(["-c", r#"trap '' XFSZ; exec "$0" "$@""#])
            .arg(program())
            .args(["--host", &id.to_string(), "--deployment", "solo"])
            .args([
                "--voters",
                &voters.join(","),
                "--peers",
                &addresses.join(","),
            ])
            .args(["--raft", &peers[&id].to_string(), "--redis", "127.0.0.1:0"])
            .args(["--groups", "2", "--exit-with-stdin", "--data"])
            .arg(dir.join(format!("data-{id}")))
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
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            let answer = self.try_ask(words).expect("an answer");
            if !answer.starts_with("-CLUSTERDOWN") && !answer.starts_with("-TRYAGAIN") {
                return answer;
            }
        }
        panic!("no leader answers {words:?}");
    }

    /// Asks until the answer is as wanted.
    fn ask_until(&mut self, words: &[&str], is_wanted: impl Fn(&str) -> bool) -> String {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            let answer = self.ask(words);
            if is_wanted(&answer) {
                return answer;
            }
        }
        panic!("{words:?} is not answered as wanted");
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
            if read == 0 {
                return None;
            }
            if is_whole(&answer) {
                return String::from_utf8(answer).ok();
            }
        }
    }
}

/// Whether an answer has come to its end: a bulk string is as long as it says, all else is a line.
fn is_whole(answer: &[u8]) -> bool {
    let Some(line_len) = answer.iter().position(|&byte| byte == b'\n') else {
        return false;
    };
    let line = String::from_utf8_lossy(&answer[..line_len]);
    let bulk_len = line
        .trim_end()
        .strip_prefix('$')
        .and_then(|len| len.parse().ok());
    bulk_len.is_none_or(|len: usize| answer.len() == line_len + 1 + len + 2)
}

/// The example, built in this test's own profile: cargo builds an example that has tests only as
/// these tests.
fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let own = std::env::current_exe().expect("this program");
        let built = own.parent().and_then(Path::parent).expect("two folders up");
        let profile = match built.file_name().and_then(|name| name.to_str()) {
            Some("debug") => "dev",
            Some(name) => name,
            None => panic!("{} names no profile", built.display()),
        };
        let status = Command::new(env!("CARGO"))
            .args(["build", "--quiet", "--locked", "--package", "raft-host"])
            .args(["--example", "kv", "--profile", profile, "--target-dir"])
            .arg(built.parent().expect("the target folder"))
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .status();
        assert!(status.expect("cargo runs").success(), "kv does not build");
        built.join("examples").join("kv")
    })
}
