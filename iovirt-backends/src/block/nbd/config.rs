//! How an NBD disk is set up.
#![forbid(unsafe_code)]

use super::proto::MAX_STRING;
use iovirt_core::BackendError;
use std::fmt;
use std::path::PathBuf;

/// Where the server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NbdAddress {
    /// A Unix domain socket.
    Unix(PathBuf),
    /// A host by name or address, and a TCP port.
    Tcp {
        /// The host.
        host: String,
        /// The port.
        port: u16,
    },
}

impl NbdAddress {
    /// The port that is registered for NBD.
    pub const PORT: u16 = 10809;
}

impl fmt::Display for NbdAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "{}", path.display()),
            Self::Tcp { host, port } => write!(f, "{host}:{port}"),
        }
    }
}

/// Whether the disk may be changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NbdAccess {
    /// As far as the server lets it.
    #[default]
    ReadWrite,
    /// It may not.
    ReadOnly,
}

/// What to make of a server that offers neither flush nor FUA.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WithoutFlush {
    /// It promises nothing, and the disk neither: [`Durability::Unsafe`](iovirt_core::request::block::Durability::Unsafe).
    #[default]
    Unsafe,
    /// Whoever configures this knows that the server makes each write durable before it answers.
    AssumeWriteThrough,
}

/// How an NBD disk is set up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NbdConfig {
    /// Where the server listens.
    pub address: NbdAddress,
    /// The export's name, 4096 bytes at most; empty for the server's default.
    pub export: String,
    /// Most connections at a time: one for each queue. More than one only where the server lets several see the same disk.
    pub connections: usize,
    /// Whether the disk may be changed.
    pub access: NbdAccess,
    /// What to make of a server that offers neither flush nor FUA.
    pub without_flush: WithoutFlush,
}

impl NbdConfig {
    /// Most [`connections`](NbdConfig::connections).
    pub const MAX_CONNECTIONS: usize = 256;

    /// The defaults for that address: the server's default export, 16 connections, writable.
    pub fn new(address: NbdAddress) -> Self {
        Self {
            address,
            export: String::new(),
            connections: 16,
            access: NbdAccess::default(),
            without_flush: WithoutFlush::default(),
        }
    }

    pub(super) fn validate(&self) -> Result<(), BackendError> {
        if self.export.len() > MAX_STRING {
            let len = self.export.len();
            return Err(BackendError::config(format!(
                "an export's name cannot have {len} bytes: {MAX_STRING} is the most"
            )));
        }
        if !(1..=Self::MAX_CONNECTIONS).contains(&self.connections) {
            let (given, max) = (self.connections, Self::MAX_CONNECTIONS);
            return Err(BackendError::config(format!("connections={given} is not allowed: 1 to {max} are")));
        }
        Ok(())
    }
}
