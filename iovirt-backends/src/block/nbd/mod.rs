//! The `nbd` back-end: a disk on a server that speaks the NBD protocol.
//!
//! The protocol is that of `doc/proto.md` of the NBD project; section names in this module are its. This client does the fixed
//! newstyle handshake with `NBD_OPT_GO` and simple replies; no TLS, no structured replies.
//!
//! | file | what it is |
//! |---|---|
//! | `proto.rs` | the bytes, as pure functions |
//! | `handshake.rs` | connecting; blocks, up to a deadline |
//! | `export.rs` | what the server's flags and sizes mean for the disk |
//! | `connection.rs` | the data plane, an [async](iovirt_core::stage::async_stage) handler |
//! | `sys.rs` | the system calls |
//!
//! # Durability
//!
//! | the server offers | writes | the disk is |
//! |---|---|---|
//! | flush | with FUA where the guest asks for it; by a flush after the write where the server has no FUA | write-back |
//! | FUA alone | all with FUA | write-through |
//! | neither | as they are | [`Unsafe`](iovirt_core::request::block::Durability::Unsafe), or write-through where [`WithoutFlush::AssumeWriteThrough`] says so |
//!
//! # When the connection is lost
//!
//! Where the server closes the connection, or says what it may not say, what is in flight fails with
//! [`BlockError::Io`](iovirt_core::request::block::BlockError::Io), and so does everything later on that queue; a line in the
//! log says why. A drain does not come to rest where writes were not flushed. A queue that is opened anew connects anew.
//!
//! # Threads and locks
//!
//! One connection for each queue, on the queue's worker; queues share nothing but counters. Data goes between the request's
//! memory and the socket without a copy of our own. Nothing is allocated per request.

mod backend;
mod config;
mod connection;
mod export;
mod handshake;
mod proto;
mod sys;

#[cfg(test)]
mod tests;

pub use backend::NbdBackend;
pub use config::{NbdAccess, NbdAddress, NbdConfig, WithoutFlush};
