//! A virtio driver over vhost-user, for the tests and benchmarks of iovirt.
//!
//! It plays the guest and the VMM at once: memory from a memfd that both sides map, split rings in it, the messages of the
//! front-end's side of the protocol, and a driver of a disk ([`blk`]) or of a network interface ([`net`]) on top. It is
//! written for measuring, so what a request costs on this side is small: each slot has its descriptors, its header and its
//! buffer for good, and nothing is allocated once a queue is there.
//!
//! | file | holds |
//! |---|---|
//! | [`options`] | what to ask for |
//! | [`session`] | the connection: negotiation, memory table, rings up and down, reconnecting |
//! | [`queue`] | a ring with its doorbell and its interrupt, sleeping or polling |
//! | [`ring`] | the driver's side of a split ring |
//! | [`blk`], [`net`] | the two drivers |
//! | [`exercise`] | checks of a disk's server, whoever wrote it |
//! | [`layout`] | where everything is in the memory |
//! | [`memory`], [`sys`] | the shared memory; processors and their clocks: all `unsafe` code is in these two |
//!
//! The server is not trusted: what it writes into the used ring is checked, and a queue that it broke says so.

pub mod blk;
pub mod exercise;
pub mod layout;
pub mod memory;
pub mod net;
pub mod options;
pub mod queue;
pub mod ring;
pub mod session;
pub mod sys;

use std::io;

use thiserror::Error;

pub use blk::{BlkDriver, BlkQueue, BlkRequest, Operation};
pub use options::{MemoryMap, Options};
pub use queue::{Client, Queue, Wait};
pub use session::Session;

/// Result with [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// Why the driver could not go on.
#[derive(Debug, Error)]
pub enum Error {
    /// A call of the host failed.
    #[error("{what}: {source}")]
    Host {
        /// What was being done.
        what: &'static str,
        /// What the host said.
        source: io::Error,
    },
    /// A message of the protocol failed, or was refused.
    #[error("{message}: {source}")]
    Protocol {
        /// The message.
        message: &'static str,
        /// What the other side, or the connection, said.
        source: vhost::Error,
    },
    /// The server does not offer what is needed.
    #[error("the server does not offer {0}")]
    NotOffered(String),
    /// The options do not fit together.
    #[error("options: {0}")]
    Options(String),
    /// The server wrote what the standard does not allow.
    #[error("the server broke queue {queue}: {what}")]
    Broken {
        /// The queue's number.
        queue: u16,
        /// What it wrote.
        what: String,
    },
    /// The device answered a request with this status.
    #[error("the device answered with status {0}")]
    Status(u8),
    /// Nothing came in time.
    #[error("no completion in time")]
    TimedOut,
    /// The server closed the connection.
    #[error("the server is gone")]
    Gone,
}

/// Adds what was being done to an error of the host.
pub(crate) trait HostContext<T> {
    /// Puts `what` before it.
    fn while_doing(self, what: &'static str) -> Result<T>;
}

impl<T> HostContext<T> for io::Result<T> {
    fn while_doing(self, what: &'static str) -> Result<T> {
        self.map_err(|source| Error::Host { what, source })
    }
}

/// Adds the message to an error of the protocol.
pub(crate) trait MessageContext<T> {
    /// Names the message.
    fn message(self, message: &'static str) -> Result<T>;
}

impl<T> MessageContext<T> for vhost::Result<T> {
    fn message(self, message: &'static str) -> Result<T> {
        self.map_err(|source| Error::Protocol { message, source })
    }
}
