//! The two halves of everything below a device: [`Backend`], its control plane, and [`Queue`], its data plane.
//!
//! # Who may call what, when
//!
//! A [`Backend`] is shared and thread-safe; its methods run on any thread and may block for as long as opening a
//! file takes. A [`Queue`] belongs to one worker thread from [`Backend::open`] until it is dropped there, need not be
//! [`Send`], and none of its methods blocks or calls back into its client.
//!
//! ```text
//!              open                        resume
//!                │   ┌───────────────────────────────────────────────┐
//!                ▼   ▼                                               │
//!             ┌─────────┐   drain   ┌──────────┐  in_flight = 0  ┌───┴──────┐
//!             │ Running ├──────────►│ Draining ├────────────────►│ Quiesced │
//!             └─────────┘           └────┬─────┘   and durable   └──────────┘
//!                  ▲        resume       │
//!                  └─────────────────────┘
//! ```
//!
//! A turn of the client is: `submit` as often as there is work, `kick` once, `poll` once. Completions come out of
//! `poll` and nowhere else, so a queue never runs its client's code inside `submit`.
//!
//! # What is promised
//!
//! * **Once.** Each submitted request comes back exactly once, out of `poll`, with the tag it had.
//! * **Depth.** Within the depth given at `open`, `submit` cannot fail. A client that submits more breaks the
//!   contract; the queue may panic.
//! * **Memory.** While a request is in flight the queue owns its memory. A queue that is dropped with requests in
//!   flight keeps their memory until the host is done with it.
//! * **Order.** Completions come in any order, and so may effects: a client that needs one write before another waits
//!   for the first, or flushes.
//! * **Durability.** As [`BlockCaps::durability`](crate::request::block::BlockCaps) says, no less.

use crate::error::BackendError;
use crate::pipeline::{EventListener, Stages};
use crate::request::{Completions, Depth, Request};
use crate::state::{StageStates, StateError};
use crate::worker::WorkerContext;
use std::sync::Arc;

/// The control plane of whatever does the work: a file, a tap, or a stack of stages above one.
///
/// No method has a default body, so no stage can swallow a call by forgetting it; the tiers of
/// [`stage`](crate::stage) forward for their authors.
pub trait Backend<R: Request>: Send + Sync + 'static {
    /// The data plane that [`Backend::open`] makes.
    type Queue: Queue<R>;

    /// What the stack can do now. A snapshot: a change is announced as an event to the listeners of
    /// [`Backend::subscribe`], and whoever hears it asks again.
    fn caps(&self) -> Arc<R::Caps>;

    /// Opens a data plane on the calling worker, for at most `depth` requests in flight. A stage opens what is below
    /// with the depth it needs there.
    ///
    /// # Errors
    /// Where the host or the configuration does not allow one more queue.
    fn open(&self, cx: &mut WorkerContext<'_>, depth: Depth) -> Result<Self::Queue, BackendError>;

    /// Names this stage and those below, from the top down, with their control handles.
    fn stages(&self, stages: &mut Stages);

    /// Tells `listener` of every later event of this stack. Kept for the stack's life; held weakly.
    fn subscribe(&self, listener: &Arc<dyn EventListener>);

    /// Saves what must outlive the process, of this stage and those below. Called once quiesced.
    ///
    /// # Errors
    /// Where a stage has state that cannot be saved now; the message says why.
    fn save(&self, states: &mut StageStates) -> Result<(), StateError>;

    /// Takes back what [`Backend::save`] gave. Called before the first `open`.
    ///
    /// # Errors
    /// Where the state is missing, broken, or of a version this build does not know.
    fn restore(&self, states: &mut StageStates) -> Result<(), StateError>;
}

/// The data plane of a [`Backend`] on one worker. See the [module](self) for who calls what when.
pub trait Queue<R: Request>: 'static {
    /// Takes a request. Errors are completions.
    fn submit(&mut self, cx: &mut WorkerContext<'_>, request: R);

    /// Ends a batch of submissions: whatever was put off for the sake of batching starts now.
    fn kick(&mut self, cx: &mut WorkerContext<'_>);

    /// Appends what completed. Called after every `kick`, and whenever this queue's worker was woken for it.
    fn poll(&mut self, cx: &mut WorkerContext<'_>, done: &mut Completions<R>);

    /// Asks the queue to come to rest: requests held by a stage are let go, those in flight finish, and then what the
    /// durability contract covers is made durable. Polled by [`Queue::mode`]: the queue sees to it that its lane gets a
    /// turn when it is at rest. Requests submitted meanwhile are still served, also by a queue that is at rest already (a
    /// stage above may do a request in two steps): it is [`Mode::Draining`] again until they are done.
    fn drain(&mut self, cx: &mut WorkerContext<'_>);

    /// The way back, out of either mode.
    fn resume(&mut self, cx: &mut WorkerContext<'_>);

    /// Where the queue stands. [`Mode::Quiesced`] implies `in_flight() == 0` and that metadata is durable.
    fn mode(&self) -> Mode;

    /// Requests submitted and not yet returned by `poll`.
    fn in_flight(&self) -> usize;
}

/// Where a queue stands between running and at rest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// Serving requests.
    #[default]
    Running,
    /// On the way to rest.
    Draining,
    /// At rest: nothing in flight, metadata durable.
    Quiesced,
}

impl<R: Request> Queue<R> for Box<dyn Queue<R>> {
    #[inline]
    fn submit(&mut self, cx: &mut WorkerContext<'_>, request: R) {
        (**self).submit(cx, request);
    }

    #[inline]
    fn kick(&mut self, cx: &mut WorkerContext<'_>) {
        (**self).kick(cx);
    }

    #[inline]
    fn poll(&mut self, cx: &mut WorkerContext<'_>, done: &mut Completions<R>) {
        (**self).poll(cx, done);
    }

    fn drain(&mut self, cx: &mut WorkerContext<'_>) {
        (**self).drain(cx);
    }

    fn resume(&mut self, cx: &mut WorkerContext<'_>) {
        (**self).resume(cx);
    }

    fn mode(&self) -> Mode {
        (**self).mode()
    }

    fn in_flight(&self) -> usize {
        (**self).in_flight()
    }
}
