//! The control plane.
#![forbid(unsafe_code)]

use super::config::NbdConfig;
use super::connection::Connection;
use super::export::Facts;
use super::handshake::{self, Connected};
use super::sys;
use iovirt_core::log::LogLimiter;
use iovirt_core::pipeline::{EventListener, Stages};
use iovirt_core::request::block::{BlockCaps, BlockRequest};
use iovirt_core::stage::async_stage::AsyncQueue;
use iovirt_core::state::{StageStates, StateError};
use iovirt_core::{Backend, BackendError, BackendErrorKind, Depth, WorkerContext};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

/// What the queues share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) config: NbdConfig,
    pub(super) facts: Facts,
    /// Connections that queues have.
    pub(super) open: AtomicUsize,
    pub(super) log: LogLimiter,
}

/// A disk on an NBD server; see [`nbd`](super).
#[derive(Debug)]
pub struct NbdBackend {
    shared: Arc<Shared>,
    caps: Arc<BlockCaps>,
    /// The connection that asked what the export is like: the first queue's.
    first: Mutex<Option<OwnedFd>>,
}

impl NbdBackend {
    /// Connects to the server and asks what the export is like; the first queue uses this connection. Blocks for ten seconds
    /// at most, and for as long as the host takes to look up a name.
    ///
    /// # Errors
    /// Where the configuration is not allowed, the server is not reached or refuses, or the export makes no disk.
    pub fn connect(config: NbdConfig) -> Result<Self, BackendError> {
        config.validate()?;
        let connected = handshake::connect(&config)?;
        Self::of(config, connected)
    }

    /// The same over a connection that is there already: a stream socket that somebody else has connected, for a process that
    /// may not connect. Further queues, where the server lets them see the same disk, connect to the configured address.
    ///
    /// # Errors
    /// As [`NbdBackend::connect`].
    pub fn over(socket: OwnedFd, config: NbdConfig) -> Result<Self, BackendError> {
        config.validate()?;
        let connected = handshake::agree(socket, &config, Instant::now() + handshake::PATIENCE)?;
        Self::of(config, connected)
    }

    fn of(config: NbdConfig, Connected { socket, export }: Connected) -> Result<Self, BackendError> {
        let facts = Facts::new(&export, &config)?;
        let caps = Arc::new(facts.caps.clone());
        let shared = Shared { config, facts, open: AtomicUsize::new(0), log: LogLimiter::default() };
        Ok(Self { shared: Arc::new(shared), caps, first: Mutex::new(Some(socket)) })
    }

    /// The configuration.
    pub fn config(&self) -> &NbdConfig {
        &self.shared.config
    }

    fn socket(&self) -> Result<OwnedFd, BackendError> {
        let first = self.first.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(socket) = first.filter(sys::is_quiet) {
            return Ok(socket);
        }
        let Connected { socket, export } = handshake::connect(&self.shared.config)?;
        if Facts::new(&export, &self.shared.config)? != self.shared.facts {
            return Err(BackendError::config(format!(
                "the export of the NBD server at {} is not what it was when it was first asked",
                self.shared.config.address
            )));
        }
        Ok(socket)
    }

    /// Takes a place among the connections.
    fn admit(&self) -> Result<(), BackendError> {
        let (config, multi) = (&self.shared.config, self.shared.facts.multi);
        let most = if multi { config.connections } else { 1 };
        let take = |open| (open < most).then_some(open + 1);
        if self.shared.open.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take).is_ok() {
            return Ok(());
        }
        let message = if multi {
            format!("connections={most} is the most that is configured, and each queue takes one")
        } else {
            format!(
                "the NBD server at {} does not let several connections see the same disk (NBD_FLAG_CAN_MULTI_CONN), so \
                 that one queue is the most",
                config.address
            )
        };
        Err(BackendError::new(BackendErrorKind::Config, message))
    }
}

impl Backend<BlockRequest> for NbdBackend {
    type Queue = AsyncQueue<BlockRequest>;

    fn caps(&self) -> Arc<BlockCaps> {
        self.caps.clone()
    }

    fn open(&self, cx: &mut WorkerContext<'_>, depth: Depth) -> Result<Self::Queue, BackendError> {
        self.admit()?;
        let socket = self.socket().inspect_err(|_| {
            self.shared.open.fetch_sub(1, Ordering::SeqCst);
        })?;
        Ok(AsyncQueue::new(cx, Connection::new(self.shared.clone(), socket, depth), depth))
    }

    fn stages(&self, stages: &mut Stages) {
        stages.push("nbd");
    }

    fn subscribe(&self, _: &Arc<dyn EventListener>) {
        // Nothing changes: the protocol does not tell of a change of size.
    }

    fn save(&self, _: &mut StageStates) -> Result<(), StateError> {
        // All state is at the server.
        Ok(())
    }

    fn restore(&self, _: &mut StageStates) -> Result<(), StateError> {
        Ok(())
    }
}
