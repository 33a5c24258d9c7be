//! The processes of a cluster on this machine.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::workspace;

const READY_PATIENCE: Duration = Duration::from_secs(60);
const STOP_PATIENCE: Duration = Duration::from_secs(10);

/// A folder for what a run leaves behind: removed by [`RunDir::remove`], else kept.
pub(crate) struct RunDir(PathBuf);

impl RunDir {
    /// Makes a new folder below `target/<kind>/`.
    pub(crate) fn new(kind: &str) -> Result<Self> {
        let dir = workspace::target_dir()
            .join(kind)
            .join(std::process::id().to_string());
        if dir.exists() {
            fs::remove_dir_all(&dir)?;
        }
        fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        Ok(Self(dir))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    pub(crate) fn remove(self) -> Result<()> {
        fs::remove_dir_all(&self.0).with_context(|| format!("cannot remove {}", self.0.display()))
    }
}

/// Free UDP and TCP addresses of the loopback interface, one pair per host.
///
/// All are held until all are found, so that no two are the same.
pub(crate) fn free_addresses(hosts: usize) -> Result<Vec<(SocketAddr, SocketAddr)>> {
    let held: Vec<(UdpSocket, TcpListener)> = (0..hosts)
        .map(|_| {
            Ok((
                UdpSocket::bind("127.0.0.1:0")?,
                TcpListener::bind("127.0.0.1:0")?,
            ))
        })
        .collect::<std::io::Result<_>>()
        .context("no free local port")?;
    held.iter()
        .map(|(udp, tcp)| Ok((udp.local_addr()?, tcp.local_addr()?)))
        .collect()
}

/// A host's process. It ends when its standard input closes, so dropping this ends it.
pub(crate) struct Process {
    host: u64,
    child: Child,
    /// Taken when the process is told to end.
    stdin: Option<ChildStdin>,
    lines: Receiver<String>,
    log: PathBuf,
}

impl Process {
    /// Starts a program; its standard error is appended to `log`.
    pub(crate) fn start(
        host: u64,
        program: &Path,
        arguments: &[String],
        log: PathBuf,
    ) -> Result<Self> {
        let stderr: File = OpenOptions::new().create(true).append(true).open(&log)?;
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(stderr)
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        let stdin = child.stdin.take();
        let stdout = child
            .stdout
            .take()
            .context("the child has no standard output")?;
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines() {
                let Ok(line) = line else { return };
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Ok(Self {
            host,
            child,
            stdin,
            lines,
            log,
        })
    }

    pub(crate) fn host(&self) -> u64 {
        self.host
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for the line that says that the host serves.
    pub(crate) fn wait_ready(&mut self) -> Result<serde_json::Value> {
        self.wait_event("ready", READY_PATIENCE)
    }

    /// Waits for the JSON line of an event; other lines are passed over.
    pub(crate) fn wait_event(
        &mut self,
        event: &str,
        patience: Duration,
    ) -> Result<serde_json::Value> {
        let deadline = Instant::now() + patience;
        loop {
            match self
                .lines
                .recv_timeout(deadline.saturating_duration_since(Instant::now()))
            {
                Ok(line) => {
                    if let Ok(value) = serde_json::from_str::<serde_json::Value>(&line)
                        && value.get("event").is_some_and(|found| found == event)
                    {
                        return Ok(value);
                    }
                }
                Err(RecvTimeoutError::Timeout) => {
                    bail!(
                        "host {} was not {event} in time{}",
                        self.host,
                        self.last_words()
                    );
                }
                Err(RecvTimeoutError::Disconnected) => {
                    let status = self.child.wait()?;
                    bail!(
                        "host {} ended before {event}, {status}{}",
                        self.host,
                        self.last_words()
                    );
                }
            }
        }
    }

    /// Sends a line to the process.
    pub(crate) fn send_line(&mut self, line: &str) -> Result<()> {
        let stdin = self.stdin.as_mut().context("the process was told to end")?;
        writeln!(stdin, "{line}")
            .and_then(|()| stdin.flush())
            .context("the process does not listen")
    }

    /// Ends the process at once, by SIGKILL.
    pub(crate) fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Fails if the process has ended.
    pub(crate) fn check_alive(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => bail!("host {} ended, {status}{}", self.host, self.last_words()),
        }
    }

    /// Closes the standard input and waits; whether the process ended by itself and well.
    pub(crate) fn stop(&mut self) -> Result<bool> {
        self.stdin = None;
        let deadline = Instant::now() + STOP_PATIENCE;
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status.success());
            }
            thread::sleep(Duration::from_millis(20));
        }
        self.kill()?;
        Ok(false)
    }

    /// The end of what the process wrote to its log.
    fn last_words(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        let last = &lines[lines.len().saturating_sub(10)..];
        if last.is_empty() {
            String::new()
        } else {
            format!("; it said:\n{}", last.join("\n"))
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            // Nothing more can be done about a process that cannot be ended.
            let _ = self.stop();
        }
    }
}
