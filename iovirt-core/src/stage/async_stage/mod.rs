//! Stages and back-ends written as `async fn`, presented as a [`Queue`](crate::Queue) without an allocation per request.
//!
//! ```
//! use iovirt_core::prelude::*;
//! use iovirt_core::request::block::{BlockCaps, BlockOutput, BlockRequest};
//! use iovirt_core::stage::async_stage::{AsyncLayer, AsyncStage, Handler, Io};
//! use std::time::Duration;
//!
//! /// Holds each request back, before it goes down and again before it comes home.
//! #[derive(Clone, Copy, Debug)]
//! struct Delay(Duration);
//!
//! impl Handler<BlockRequest> for Delay {
//!     async fn handle(&self, io: &Io<BlockRequest>, request: &mut BlockRequest) -> BlockOutput {
//!         io.sleep(self.0).await;
//!         let output = io.forward(request).await;
//!         io.sleep(self.0).await;
//!         output
//!     }
//! }
//!
//! impl AsyncStage<BlockRequest> for Delay {
//!     type Handler = Self;
//!
//!     fn name(&self) -> &str {
//!         "delay"
//!     }
//!
//!     fn caps(&self, below: &BlockCaps) -> Result<BlockCaps, AttachError> {
//!         Ok(below.clone())
//!     }
//!
//!     fn handler(&self, _: &mut WorkerContext<'_>, _: Depth) -> Result<Self, BackendError> {
//!         Ok(*self)
//!     }
//! }
//!
//! let layer = AsyncLayer::new(Delay(Duration::from_millis(5)));
//! # let _ = layer;
//! ```
//!
//! # How it works
//!
//! ```text
//!   submit ──► slot 0 ┌─ loop ──────────────────────────┐
//!   (tag 0)           │ wait for a request              │   one future for each tag, made when the queue is
//!                     │ handler.handle(&io, &mut it)    │   opened and polled on its worker
//!                     │ wait until nothing of it is below│
//!                     │ complete it                     │
//!                     └─────────────────────────────────┘
//!              slot 1 …            tasks: handler.task(&io, 0) …
//! ```
//!
//! A waker marks its slot in a set of bits, from any thread, and wakes the lane; the next [`kick`](crate::Queue::kick) or
//! [`poll`](crate::Queue::poll) polls what is marked. All that the futures send down in one round is submitted together and
//! kicked once.
//!
//! # What a future may wait for
//!
//! | call | waits for |
//! |---|---|
//! | [`Io::forward`] | the handler's own request, sent down as it is |
//! | [`Io::child`], then [`Child::transfer`] and its like | requests of its own below, with their own tags and lists |
//! | [`Io::sleep`], [`Io::sleep_until`], [`Io::draining`] | a time or a drain, on the worker's clock |
//! | [`Io::deadline`] | a time, also during a drain |
//! | [`Io::source`], then [`Source::when`] | a descriptor that does not block |
//! | [`Mailbox`], [`Semaphore`] | another future of the same queue |
//! | any other future | whoever wakes its waker, from any thread |
//!
//! [`race`] waits for the first of two.
//!
//! # Rules for authors
//!
//! * **Never block.** A future runs on the worker that also runs other devices.
//! * **No `RefCell` borrow across an `await`**: another future of the queue runs meanwhile and would find it borrowed. What is
//!   held across an `await` stands behind a [`Semaphore`].
//! * **Every request ends.** A handler that waits for a peer has a [deadline](Io::deadline) or hears of the peer's end. What
//!   is only held back ends early when the queue drains, as [`Io::sleep`] does.
//! * **The request keeps its tag**: it is not exchanged for another one.
//! * **Two handlers run at the same time**, on one thread: what is true before an `await` may not be after it.
//!
//! # What is promised
//!
//! * The request and its memory stay in the slot until the handler has returned **and** nothing that it sent down is below,
//!   also where it dropped the future that waited for it. So a time-out may drop a [`ChildCall`]: the memory that it shares
//!   with the request is not given back under the device's hands.
//! * A queue that is dropped drops its futures with the requests they hold, and then what is below, which keeps the memory
//!   of what it still has.
//! * In a drain requests finish, sleepers are let go, [`Handler::rest`] makes durable what has to be, and then what is below
//!   has come to rest too.
//! * Nothing is allocated per request, by this adapter; lists grow to the largest number of timers, children and waiters that
//!   there were at one time.
//! * Futures that are always ready do not keep the worker: a call makes 16 rounds at most, and [`Source::when`] lets others go
//!   first after 256 operations.

mod calls;
mod child;
mod handler;
mod io;
#[cfg(all(test, loom))]
mod model;
mod queue;
mod ready;
mod shared;
mod source;
mod stage;
mod sync;
mod timers;

pub use child::{Answer, Child, ChildCall};
pub use handler::{AsyncStage, Handler, StandIn};
pub use io::{Forward, Io, Sleep, Slept};
pub use queue::{AsyncQueue, Nothing};
pub use source::{Interest, Source};
pub use stage::{AsyncLayer, Asynced};
pub use sync::{Acquire, Mailbox, Permit, Race, Semaphore, race};
