//! The data directory: its lock, its identity, and what it has seen of other hosts.
//!
//! ```text
//!   LOCK                        held by the process that has the directory open
//!   IDENTITY                    deployment, host, uuid, open count, format version
//!   PEERS                       the highest (uuid, open count) seen of each other host
//!   votes, log/<lane>/...       of raft-log
//!   snapshots/<group>/<replica> of raft-snapshot
//! ```
//!
//! `IDENTITY` and `PEERS` are text, a `key value` pair or a host a line, with a checksum in the
//! last line. Each is replaced as a whole: written beside, synced, renamed, directory synced.

mod peers;

use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use raft_proto::{HostId, crc32c_append};
use rustix::fs::FlockOperation;

pub(crate) use peers::{PeerRefused, Peers};

/// The format of the directory that this build writes and reads.
const FORMAT_VERSION: u64 = 1;
/// `IDENTITY` is some 200 bytes.
const IDENTITY_BYTES_MAX: u64 = 4 << 10;

/// Why a data directory cannot be opened. Nothing of it was changed, except where said.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataDirError {
    /// Another process has it open. End that one first; the lock goes with it.
    #[error("{path:?} is open in another process")]
    Locked {
        /// The directory.
        path: PathBuf,
    },
    /// It belongs to another host or deployment: give this host its own directory.
    #[error("{path:?} belongs to {field} {found}, not {configured}")]
    OtherIdentity {
        /// The directory.
        path: PathBuf,
        /// What differs.
        field: &'static str,
        /// What the directory says.
        found: String,
        /// What the configuration says.
        configured: String,
    },
    /// It holds a log and no `IDENTITY`. Restore the file, or remove the host from its groups and
    /// start with an empty directory and another host id.
    #[error("{path:?} holds data but no IDENTITY file")]
    IdentityMissing {
        /// The directory.
        path: PathBuf,
    },
    /// It was written by a newer version of the library: use that one.
    #[error("{path:?} has format version {found}; this build reads up to {supported}")]
    NewerFormat {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u64,
        /// What this build reads.
        supported: u64,
    },
    /// A file is not what was written. Restore it from a backup of the same host, taken while it
    /// was closed, or replace the host.
    #[error("{path:?} is damaged: {reason}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: &'static str,
    },
    /// The file system refused. The open count may have been raised; that does no harm.
    #[error("cannot {op} {path:?}")]
    Io {
        /// What was tried.
        op: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

impl DataDirError {
    fn io(op: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { op, path, source }
    }
}

/// Who the directory is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The deployment.
    pub deployment: String,
    /// The host.
    pub host: HostId,
    /// Drawn at random when the directory was made.
    pub uuid: [u8; 16],
    /// How often it was opened, this time included.
    pub open_count: u64,
}

/// An open data directory. Dropped, it gives the lock back.
#[derive(Debug)]
pub(crate) struct DataDir {
    pub(crate) identity: Identity,
    pub(crate) peers: Peers,
    /// Held until it is taken.
    lock: Mutex<Option<File>>,
}

impl DataDir {
    /// Locks the directory, makes or checks its identity, and raises its open count, durably.
    ///
    /// # Errors
    ///
    /// [`DataDirError`]. Before the lock is held nothing but an empty directory and an empty `LOCK`
    /// file is made.
    pub(crate) fn open(path: &Path, host: HostId, deployment: &str) -> Result<Self, DataDirError> {
        fs::create_dir_all(path).map_err(DataDirError::io("create", path))?;
        let lock = lock(path)?;
        let file = path.join("IDENTITY");
        let identity = match read_checked(&file, IDENTITY_BYTES_MAX)? {
            Some(text) => {
                let mut identity = Identity::parse(&file, &text)?;
                identity.check(path, host, deployment)?;
                identity.open_count += 1;
                identity
            }
            None if path.join("log").exists() || path.join("PEERS").exists() => {
                return Err(DataDirError::IdentityMissing {
                    path: path.to_owned(),
                });
            }
            None => Identity {
                deployment: deployment.to_owned(),
                host,
                uuid: random().map_err(DataDirError::io("draw a uuid for", path))?,
                open_count: 1,
            },
        };
        write_checked(&file, identity.to_text())?;
        if let Some(above) = path.parent().filter(|above| !above.as_os_str().is_empty()) {
            sync_dir(above)?;
        }
        Ok(Self {
            identity,
            peers: Peers::open(path)?,
            lock: Mutex::new(Some(lock)),
        })
    }
}

impl DataDir {
    /// Lets another process have it. Nothing of this one may write to it any more.
    pub(crate) fn unlock(&self) {
        drop(
            self.lock
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take(),
        );
    }
}

impl Identity {
    fn check(&self, path: &Path, host: HostId, deployment: &str) -> Result<(), DataDirError> {
        let other = |field, found: &dyn ToString, configured: &dyn ToString| {
            Err(DataDirError::OtherIdentity {
                path: path.to_owned(),
                field,
                found: found.to_string(),
                configured: configured.to_string(),
            })
        };
        if self.deployment != deployment {
            return other("deployment", &self.deployment, &deployment);
        }
        if self.host != host {
            return other("host", &self.host, &host);
        }
        Ok(())
    }

    fn to_text(&self) -> String {
        format!(
            "version {FORMAT_VERSION}\ndeployment {}\nhost {}\nuuid {}\nopen_count {}\n",
            self.deployment,
            self.host,
            hex(&self.uuid),
            self.open_count
        )
    }

    fn parse(path: &Path, text: &str) -> Result<Self, DataDirError> {
        let damaged = |reason| DataDirError::Damaged {
            path: path.to_owned(),
            reason,
        };
        let mut lines = text.lines();
        let mut value = |key: &str| {
            lines
                .next()
                .and_then(|line| line.strip_prefix(key)?.strip_prefix(' '))
        };
        let version = value("version").and_then(|version| version.parse().ok());
        let version: u64 = version.ok_or_else(|| damaged("no version"))?;
        if version > FORMAT_VERSION {
            return Err(DataDirError::NewerFormat {
                path: path.to_owned(),
                found: version,
                supported: FORMAT_VERSION,
            });
        }
        Ok(Self {
            deployment: value("deployment")
                .ok_or_else(|| damaged("no deployment"))?
                .to_owned(),
            host: value("host")
                .and_then(|host| HostId::new(host.parse().ok()?))
                .ok_or_else(|| damaged("no host"))?,
            uuid: value("uuid")
                .and_then(parse_hex)
                .ok_or_else(|| damaged("no uuid"))?,
            open_count: value("open_count")
                .and_then(|count| count.parse().ok())
                .filter(|count| *count < u64::MAX)
                .ok_or_else(|| damaged("no open count"))?,
        })
    }
}

/// Takes the lock, or says who has it. The system gives it back when the process ends.
fn lock(dir: &Path) -> Result<File, DataDirError> {
    let path = dir.join("LOCK");
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(DataDirError::io("open", &path))?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(DataDirError::Locked {
            path: dir.to_owned(),
        }),
        Err(error) => Err(DataDirError::io("lock", &path)(error.into())),
    }
}

/// Reads a file whose last line is the checksum of all before it; `None` if there is none.
fn read_checked(path: &Path, bytes_max: u64) -> Result<Option<String>, DataDirError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(DataDirError::io("open", path)(error)),
    };
    let damaged = |reason| DataDirError::Damaged {
        path: path.to_owned(),
        reason,
    };
    let mut bytes = Vec::new();
    file.take(bytes_max + 1)
        .read_to_end(&mut bytes)
        .map_err(DataDirError::io("read", path))?;
    if u64::try_from(bytes.len()).is_ok_and(|length| length > bytes_max) {
        return Err(damaged("too long"));
    }
    let mut text = String::from_utf8(bytes).map_err(|_| damaged("not text"))?;
    let body = text
        .trim_end_matches('\n')
        .rfind('\n')
        .map(|at| at + 1)
        .ok_or_else(|| damaged("no checksum"))?;
    if text[body..] != checksum_line(&text[..body]) {
        return Err(damaged("its checksum differs"));
    }
    text.truncate(body);
    Ok(Some(text))
}

/// Replaces a file as a whole, durably.
fn write_checked(path: &Path, mut text: String) -> Result<(), DataDirError> {
    let line = checksum_line(&text);
    text.push_str(&line);
    let beside = path.with_extension("new");
    let mut file = File::create(&beside).map_err(DataDirError::io("create", &beside))?;
    file.write_all(text.as_bytes())
        .and_then(|()| file.sync_all())
        .map_err(DataDirError::io("write", &beside))?;
    fs::rename(&beside, path).map_err(DataDirError::io("rename to", path))?;
    sync_dir(path.parent().unwrap_or(path))
}

fn checksum_line(text: &str) -> String {
    format!("crc32c {:08x}\n", crc32c_append(0, text.as_bytes()))
}

fn sync_dir(path: &Path) -> Result<(), DataDirError> {
    File::open(path)
        .and_then(|dir| dir.sync_all())
        .map_err(DataDirError::io("sync", path))
}

fn random() -> io::Result<[u8; 16]> {
    let mut bytes = [0; 16];
    let mut filled = 0;
    while filled < bytes.len() {
        match rustix::rand::getrandom(&mut bytes[filled..], rustix::rand::GetRandomFlags::empty()) {
            Ok(count) => filled += count,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(bytes)
}

fn hex(bytes: &[u8; 16]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn parse_hex(text: &str) -> Option<[u8; 16]> {
    if text.len() != 32 || !text.is_ascii() {
        return None;
    }
    let mut bytes = [0; 16];
    for (at, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * at..2 * at + 2], 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(id: u64) -> HostId {
        HostId::new(id).expect("an id")
    }

    fn open(path: &Path) -> Result<DataDir, DataDirError> {
        DataDir::open(path, host(1), "demo")
    }

    #[test]
    fn an_identity_is_made_once_and_its_count_rises_with_each_open() {
        let dir = tempfile::tempdir().expect("a directory");
        let first = open(dir.path()).expect("it opens").identity;
        assert_eq!(first.open_count, 1);
        let second = open(dir.path()).expect("it opens").identity;
        assert_eq!((second.uuid, second.open_count), (first.uuid, 2));
        let other = tempfile::tempdir().expect("a directory");
        let other = open(other.path()).expect("it opens").identity;
        assert_ne!(other.uuid, first.uuid);
    }

    #[test]
    fn fault_23_a_second_open_is_refused_and_writes_nothing() {
        let dir = tempfile::tempdir().expect("a directory");
        let first = open(dir.path()).expect("it opens");
        let before = fs::read(dir.path().join("IDENTITY")).expect("a file");
        assert!(matches!(open(dir.path()), Err(DataDirError::Locked { .. })));
        let after = fs::read(dir.path().join("IDENTITY")).expect("a file");
        assert_eq!(before, after);
        drop(first);
        assert_eq!(open(dir.path()).expect("it opens").identity.open_count, 2);
    }

    #[test]
    fn another_host_or_deployment_is_refused_and_the_count_stays() {
        let dir = tempfile::tempdir().expect("a directory");
        drop(open(dir.path()).expect("it opens"));
        for (id, deployment, field) in [(2, "demo", "host"), (1, "prod", "deployment")] {
            match DataDir::open(dir.path(), host(id), deployment) {
                Err(DataDirError::OtherIdentity { field: found, .. }) => assert_eq!(found, field),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(open(dir.path()).expect("it opens").identity.open_count, 2);
    }

    #[test]
    fn a_log_without_an_identity_is_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        fs::create_dir(dir.path().join("log")).expect("a directory");
        assert!(matches!(
            open(dir.path()),
            Err(DataDirError::IdentityMissing { .. })
        ));
    }

    #[test]
    fn every_flipped_bit_and_every_cut_of_an_identity_is_found() {
        let dir = tempfile::tempdir().expect("a directory");
        drop(open(dir.path()).expect("it opens"));
        let path = dir.path().join("IDENTITY");
        let sound = fs::read(&path).expect("a file");
        for bit in 0..sound.len() * 8 {
            let mut damaged = sound.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            fs::write(&path, &damaged).expect("written");
            assert!(open(dir.path()).is_err(), "bit {bit}");
        }
        for length in 0..sound.len() {
            fs::write(&path, &sound[..length]).expect("written");
            assert!(open(dir.path()).is_err(), "cut at {length}");
        }
        fs::write(&path, vec![b'a'; 1 << 20]).expect("written");
        assert!(open(dir.path()).is_err(), "too long");
    }

    #[test]
    fn a_newer_format_is_told_from_damage() {
        let dir = tempfile::tempdir().expect("a directory");
        drop(open(dir.path()).expect("it opens"));
        write_checked(&dir.path().join("IDENTITY"), "version 2\nother\n".into()).expect("written");
        assert!(matches!(
            open(dir.path()),
            Err(DataDirError::NewerFormat { found: 2, .. })
        ));
    }
}
