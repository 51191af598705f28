//! The contract of iovirt: what flows between a virtual device and the thing that does its work.
//!
//! ```text
//!  guest driver
//!      │ registers, rings, doorbells                    ▲ interrupts
//!  ┌───▼──────────────┐
//!  │ Frontend         │  iovirt-frontends
//!  └───┬──────────────┘
//!      │ Request (operation + scatter-gather list that owns its memory)
//!  ┌───▼──────────────┐
//!  │ Interposer  × n  │  iovirt-backends          ◄── this crate is every line
//!  └───┬──────────────┘                               between the boxes
//!  ┌───▼──────────────┐
//!  │ Backend          │  iovirt-backends
//!  └──────────────────┘
//! ```
//!
//! | module | holds |
//! |---|---|
//! | [`request`] | what flows: [`Request`], [`Completion`], [`block`](request::block) and [`net`](request::net) requests |
//! | [`backend`] | [`Backend`] (control plane) and [`Queue`] (data plane), with the promises between them |
//! | [`interposer`], [`stage`] | what sits between, and the smallest ways to write it |
//! | [`frontend`] | what an embedder sees of an emulated device |
//! | [`scheduler`] | who goes next when several pipelines share a back-end |
//! | [`dma`] | guest memory: the only way to touch it |
//! | [`worker`] | who runs it all: one thread, one pollable file descriptor |
//! | [`pipeline`] | putting stages together, static or boxed; events and control handles |
//! | [`socket`] | descriptors over Unix sockets |
//! | [`irq`], [`doorbell`], [`state`], [`error`], [`log`] | interrupts, doorbells, saved state, errors, a limit on log lines |
//!
//! # Example
//!
//! A back-end that answers every request at once, driven by hand:
//!
//! ```
//! use iovirt_core::prelude::*;
//! use iovirt_core::request::block::{BlockCaps, BlockOutput, BlockRequest};
//!
//! struct Instant { ready: Vec<BlockRequest>, mode: Mode }
//!
//! impl Queue<BlockRequest> for Instant {
//!     fn submit(&mut self, _: &mut WorkerContext<'_>, request: BlockRequest) { self.ready.push(request) }
//!     fn kick(&mut self, _: &mut WorkerContext<'_>) {}
//!     fn poll(&mut self, _: &mut WorkerContext<'_>, done: &mut Completions<BlockRequest>) {
//!         for request in self.ready.drain(..) { done.push(request, BlockOutput::Done); }
//!     }
//!     fn drain(&mut self, _: &mut WorkerContext<'_>) { self.mode = Mode::Quiesced }
//!     fn resume(&mut self, _: &mut WorkerContext<'_>) { self.mode = Mode::Running }
//!     fn mode(&self) -> Mode { self.mode }
//!     fn in_flight(&self) -> usize { self.ready.len() }
//! }
//!
//! let mut worker = Worker::new(WorkerConfig::default())?;
//! let mut pool = iovirt_core::dma::SgPool::new(1, iovirt_core::dma::SgLimits::default());
//! let mut queue = Instant { ready: Vec::new(), mode: Mode::Running };
//! worker.with_context(|cx| {
//!     queue.submit(cx, BlockRequest::flush(Tag::new(0), pool.take()));
//!     queue.kick(cx);
//!     let mut done = Completions::with_depth(Depth::new(1).unwrap());
//!     queue.poll(cx, &mut done);
//!     assert_eq!(done.len(), 1);
//! });
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod backend;
pub mod dma;
pub mod doorbell;
pub mod error;
pub mod frontend;
pub mod interposer;
pub mod irq;
pub mod log;
#[cfg(loom)]
pub mod model;
pub mod pipeline;
pub mod request;
pub mod scheduler;
pub mod socket;
pub mod stage;
pub mod state;
pub mod sync;
#[cfg(feature = "test-utils")]
pub mod test_utils;
pub mod worker;

pub use backend::{Backend, Mode, Queue};
pub use error::{AttachError, BackendError, BackendErrorKind};
pub use frontend::{Access, Frontend, Ticket};
pub use interposer::Interposer;
pub use request::{Completion, Completions, Cost, Depth, Request, Tag};
pub use scheduler::IoScheduler;
pub use worker::{Clock, Time, Worker, WorkerConfig, WorkerContext, WorkerHandle, WorkerThread};

/// The names that nearly every stage needs.
pub mod prelude {
    pub use crate::{
        AttachError, Backend, BackendError, BackendErrorKind, Completion, Completions, Cost, Depth,
        Interposer, Mode, Queue, Request, Tag, Time, Worker, WorkerConfig, WorkerContext,
    };
}
