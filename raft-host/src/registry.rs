//! Where hosts listen. Addresses come from the operator, never from a peer's messages.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, PoisonError, RwLock};

use raft_proto::HostId;
use raft_transport::Addresses;

use crate::adapter::Way;

/// The address book of a host, changeable at run time. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Registry {
    book: Arc<Book>,
    way: Arc<Way>,
}

impl Registry {
    pub(crate) const fn new(book: Arc<Book>, way: Arc<Way>) -> Self {
        Self { book, way }
    }

    /// Where `host` listens, if known.
    #[must_use]
    pub fn address(&self, host: HostId) -> Option<SocketAddr> {
        self.book.address(host)
    }

    /// All that are known, by host.
    #[must_use]
    pub fn all(&self) -> BTreeMap<HostId, SocketAddr> {
        self.book.read(Clone::clone)
    }

    /// Sets where `host` listens, and connects to it there. A connection to another address of it
    /// is given up. Not durable: name the host in the next start's configuration, too.
    pub fn set(&self, host: HostId, address: SocketAddr) {
        let before = self.book.write(|book| book.insert(host, address));
        if before.is_some_and(|before| before != address) {
            self.way.disconnect(host);
        }
        self.way.connect(host);
    }

    /// Forgets where `host` listens, and gives up the connection to it.
    pub fn remove(&self, host: HostId) {
        if self.book.write(|book| book.remove(&host)).is_some() {
            self.way.disconnect(host);
        }
    }
}

/// What the transport reads.
#[derive(Debug, Default)]
pub(crate) struct Book(RwLock<BTreeMap<HostId, SocketAddr>>);

impl Book {
    pub(crate) fn new(addresses: BTreeMap<HostId, SocketAddr>) -> Self {
        Self(RwLock::new(addresses))
    }

    fn read<T>(&self, use_it: impl FnOnce(&BTreeMap<HostId, SocketAddr>) -> T) -> T {
        use_it(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn write<T>(&self, use_it: impl FnOnce(&mut BTreeMap<HostId, SocketAddr>) -> T) -> T {
        use_it(&mut self.0.write().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Addresses for Book {
    fn address(&self, host: HostId) -> Option<SocketAddr> {
        self.read(|book| book.get(&host).copied())
    }
}
