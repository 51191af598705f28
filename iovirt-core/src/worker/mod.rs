//! Who runs it all: a worker owns the data planes of one or more device queues on one thread.
//!
//! ```text
//!   doorbells, sockets ──┐
//!   timers ──────────────┤   ┌──────────┐  turn   ┌──────┐
//!   io_uring ────────────┼──►│ one fd   ├────────►│ Lane │  a device queue and the stack below it
//!   other threads ───────┘   └──────────┘         └──────┘
//!                              Worker: AsFd       WorkerContext: time, wakers, watches, io_uring
//! ```
//!
//! A [`Worker`] is driven either by a thread of its own ([`WorkerThread`]) or by the embedder's event loop: watch
//! its descriptor (a worker is `AsFd`) for readability and call [`Worker::run`]. It never blocks in `run`, and one call does a bounded amount of
//! work.
//!
//! What it runs are [`Lane`]s; each is woken by what it asked its [`WorkerContext`] for.

mod bridge;
mod clock;
mod context;
pub(crate) mod fd;
mod lane;
mod polling;
mod reactor;
mod run;
mod thread;
mod uring;

#[cfg(all(test, loom))]
mod model;

pub use bridge::{Bridge, BridgeQueue};
pub use clock::{Clock, MonotonicClock, Time};
pub use context::{Watch, WorkerContext};
pub use lane::{Lane, LaneWaker, Turn};
pub use reactor::Trigger;
pub use run::{Worker, WorkerConfig, WorkerHandle};
pub use thread::WorkerThread;
pub use uring::{FixedFile, Reaped, UringClient, UringPolicy};

/// The io_uring entries that [`UringClient::push`] takes.
pub use io_uring;
