//! The hook tier: a stage that looks at requests on their way down and at completions on their way up.
//!
//! One generic wrapper does the rest: queues, tags, drain, forwarding, held requests. An author writes two functions:
//!
//! ```
//! use iovirt_core::prelude::*;
//! use iovirt_core::request::block::{BlockCaps, BlockError, BlockOp, BlockOutput, BlockRequest};
//! use iovirt_core::stage::{Flow, Hook, HookStage};
//!
//! /// Refuses every write, whatever is below.
//! #[derive(Debug)]
//! struct WriteProtect;
//!
//! impl HookStage<BlockRequest> for WriteProtect {
//!     type Hook = WriteProtect;
//!     fn name(&self) -> &str { "write-protect" }
//!     fn caps(&self, below: &BlockCaps) -> Result<BlockCaps, AttachError> {
//!         Ok(BlockCaps { read_only: true, ..below.clone() })
//!     }
//!     fn hook(&self, _: &mut WorkerContext<'_>, _: Depth) -> WriteProtect { WriteProtect }
//! }
//!
//! impl Hook<BlockRequest> for WriteProtect {
//!     fn on_submit(&mut self, _: &mut WorkerContext<'_>, request: &mut BlockRequest) -> Flow<BlockOutput> {
//!         match request.op() {
//!             BlockOp::Read | BlockOp::Flush => Flow::Pass,
//!             _ => Flow::Complete(BlockOutput::Failed(BlockError::ReadOnly)),
//!         }
//!     }
//! }
//! ```

use super::slots::SlotTable;
use crate::backend::{Backend, Mode, Queue};
use crate::error::{AttachError, BackendError};
use crate::interposer::Interposer;
use crate::log::LogLimiter;
use crate::pipeline::{EventListener, Stages};
use crate::request::{Completion, Completions, Depth, Request, Tag};
use crate::state::{StageStates, StateError};
use crate::sync::{Arc, Mutex, MutexGuard, PoisonError};
use crate::worker::WorkerContext;
use std::any::Any;
use std::fmt;

/// What happens to a request that came down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow<O> {
    /// It goes on.
    Pass,
    /// It waits here until [`Held::release`] or [`Held::complete`]. While the queue drains, nothing is held: the request
    /// goes on.
    Hold,
    /// It waits here as with [`Flow::Hold`], and a drain does not let it go: the queue does not come to rest before
    /// [`Held::release`] or [`Held::complete`]. For what stands in for something that is stuck.
    Keep,
    /// It goes no further: this is its output.
    Complete(O),
}

/// What happens to a completion that came up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Return {
    /// It goes on.
    Pass,
    /// The request goes down once more, as the hook has changed it.
    Again,
}

/// The data plane of a hook stage: one for each queue, on that queue's worker.
pub trait Hook<R: Request>: 'static {
    /// A request on its way down. The tag must stay as it is.
    fn on_submit(&mut self, cx: &mut WorkerContext<'_>, request: &mut R) -> Flow<R::Output>;

    /// A completion on its way up, of a request that this hook let pass.
    #[inline]
    fn on_complete(&mut self, cx: &mut WorkerContext<'_>, completion: &mut Completion<R>) -> Return {
        let _ = (cx, completion);
        Return::Pass
    }

    /// Called in every poll: time to release what is held. A hook that waits for a time asks for it again here, by
    /// [`WorkerContext::wake_at`].
    #[inline]
    fn on_poll(&mut self, cx: &mut WorkerContext<'_>, held: &mut Held<'_, R>) {
        let _ = (cx, held);
    }
}

/// The control plane of a hook stage.
pub trait HookStage<R: Request>: Send + Sync + fmt::Debug + 'static {
    /// The data plane.
    type Hook: Hook<R>;

    /// The stage's name, as in a description.
    fn name(&self) -> &str;

    /// The capabilities of the stack with this stage on top; asked again whenever those below change.
    ///
    /// # Errors
    /// Where the stack below lacks what the stage needs.
    fn caps(&self, below: &R::Caps) -> Result<R::Caps, AttachError>;

    /// A data plane for one queue.
    fn hook(&self, cx: &mut WorkerContext<'_>, depth: Depth) -> Self::Hook;

    /// The stage's control handle.
    fn control(&self) -> Option<Arc<dyn Any + Send + Sync>> {
        None
    }

    /// Saves what must outlive the process.
    ///
    /// # Errors
    /// Where it cannot be saved now.
    fn save(&self, states: &mut StageStates) -> Result<(), StateError> {
        let _ = states;
        Ok(())
    }

    /// Takes back what [`HookStage::save`] pushed.
    ///
    /// # Errors
    /// Where the state does not fit.
    fn restore(&self, states: &mut StageStates) -> Result<(), StateError> {
        let _ = states;
        Ok(())
    }
}

/// Makes a [`HookStage`] an [`Interposer`].
#[derive(Clone, Debug)]
pub struct HookLayer<S> {
    stage: S,
}

impl<S> HookLayer<S> {
    /// The stage as a layer of a [`Pipeline`](crate::pipeline::Pipeline).
    pub fn new(stage: S) -> Self {
        Self { stage }
    }
}

impl<R: Request, B: Backend<R>, S: HookStage<R>> Interposer<R, B> for HookLayer<S> {
    type Stacked = Hooked<R, S, B>;

    fn attach(self, below: B) -> Result<Hooked<R, S, B>, AttachError> {
        let accepted = Mutex::new(Arc::new(self.stage.caps(&below.caps())?));
        Ok(Hooked { stage: self.stage, below, accepted, complaints: LogLimiter::default() })
    }
}

/// A hook stage above a back-end.
#[derive(Debug)]
pub struct Hooked<R: Request, S, B> {
    stage: S,
    below: B,
    /// The capabilities that the stage made of those below when it last accepted them.
    accepted: Mutex<Arc<R::Caps>>,
    complaints: LogLimiter,
}

impl<R: Request, S, B> Hooked<R, S, B> {
    fn accepted(&self) -> MutexGuard<'_, Arc<R::Caps>> {
        self.accepted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<R: Request, B: Backend<R>, S: HookStage<R>> Backend<R> for Hooked<R, S, B> {
    type Queue = HookedQueue<R, S::Hook, B::Queue>;

    fn caps(&self) -> Arc<R::Caps> {
        let below = self.below.caps();
        let caps = match self.stage.caps(&below) {
            Ok(caps) if caps == *below => below,
            Ok(caps) => Arc::new(caps),
            Err(error) => {
                // The stack was acceptable when it was put together and has changed since. What the stage promised then
                // stands: the capabilities below would be weaker than what this stage makes of them.
                if let Some(suppressed) = self.complaints.admit() {
                    tracing::warn!(%error, suppressed, "a stage no longer accepts what is below it");
                }
                return self.accepted().clone();
            }
        };
        *self.accepted() = caps.clone();
        caps
    }

    fn open(&self, cx: &mut WorkerContext<'_>, depth: Depth) -> Result<Self::Queue, BackendError> {
        let below = self.below.open(cx, depth)?;
        Ok(HookedQueue::new(self.stage.hook(cx, depth), below, depth))
    }

    fn stages(&self, stages: &mut Stages) {
        match self.stage.control() {
            Some(control) => stages.push_controlled(self.stage.name(), control),
            None => stages.push(self.stage.name()),
        }
        self.below.stages(stages);
    }

    fn subscribe(&self, listener: &Arc<dyn EventListener>) {
        self.below.subscribe(listener);
    }

    fn save(&self, states: &mut StageStates) -> Result<(), StateError> {
        self.stage.save(states)?;
        self.below.save(states)
    }

    fn restore(&self, states: &mut StageStates) -> Result<(), StateError> {
        self.stage.restore(states)?;
        self.below.restore(states)
    }
}

/// A held request and its place in the order of their coming.
#[derive(Debug)]
struct Holding<R> {
    arrival: u64,
    request: R,
    until: Until,
}

/// What lets a held request go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Until {
    /// The hook, or a drain.
    Drain,
    /// The hook alone.
    Release,
}

/// Releases all held requests as they came, which tags do not tell: frames of one queue must not overtake each other.
fn release_in_order<R: Request>(held: &mut SlotTable<Holding<R>>, released: &mut Vec<R>) {
    let mut all: Vec<_> = held.drain().map(|(_, holding)| holding).collect();
    all.sort_unstable_by_key(|holding| holding.arrival);
    released.extend(all.into_iter().map(|holding| holding.request));
}

/// Releases those that a drain lets go, in the same order.
fn release_for_drain<R: Request>(held: &mut SlotTable<Holding<R>>, released: &mut Vec<R>) {
    let (mut gone, kept): (Vec<_>, Vec<_>) =
        held.drain().map(|(_, holding)| holding).partition(|holding| holding.until == Until::Drain);
    gone.sort_unstable_by_key(|holding| holding.arrival);
    released.extend(gone.into_iter().map(|holding| holding.request));
    for holding in kept {
        held.insert(holding.request.tag(), holding);
    }
}

/// A hook above a queue.
#[derive(Debug)]
pub struct HookedQueue<R: Request, H, Q> {
    hook: H,
    below: Q,
    held: SlotTable<Holding<R>>,
    /// Requests held so far: what the next one's place is.
    arrivals: u64,
    released: Vec<R>,
    ready: Vec<Completion<R>>,
    draining: bool,
}

impl<R: Request, H: Hook<R>, Q: Queue<R>> HookedQueue<R, H, Q> {
    /// That hook above that queue.
    pub fn new(hook: H, below: Q, depth: Depth) -> Self {
        Self {
            hook,
            below,
            held: SlotTable::new(depth),
            arrivals: 0,
            released: Vec::with_capacity(depth.get()),
            ready: Vec::with_capacity(depth.get()),
            draining: false,
        }
    }

    #[cold]
    fn divert(&mut self, cx: &mut WorkerContext<'_>, request: R, flow: Flow<R::Output>) {
        match flow {
            Flow::Complete(output) => {
                self.ready.push(Completion { request, output });
                cx.run_again();
            }
            Flow::Keep => self.hold(request, Until::Release),
            Flow::Hold if !self.draining => self.hold(request, Until::Drain),
            Flow::Hold | Flow::Pass => self.below.submit(cx, request),
        }
    }

    fn hold(&mut self, request: R, until: Until) {
        let holding = Holding { arrival: self.arrivals, request, until };
        self.arrivals += 1;
        if let Some(twin) = self.held.insert(holding.request.tag(), holding) {
            // A client used a tag twice. The first request is not lost: it comes home as given up.
            self.ready.push(Completion { request: twin.request, output: R::aborted() });
        }
    }

    fn let_go(&mut self, cx: &mut WorkerContext<'_>) {
        if self.released.is_empty() {
            return;
        }
        for request in self.released.drain(..) {
            self.below.submit(cx, request);
        }
        self.below.kick(cx);
    }

    /// Brings up what is below, past the hook. Requests that the hook sends down again are polled for in the same turn.
    #[inline]
    fn pass_up(&mut self, cx: &mut WorkerContext<'_>, done: &mut Completions<R>) {
        let mark = done.len();
        self.below.poll(cx, done);
        let Self { hook, released, .. } = self;
        done.retain_since(
            mark,
            |completion| hook.on_complete(cx, completion) == Return::Pass,
            |request| released.push(request),
        );
        if !self.released.is_empty() {
            self.let_go(cx);
            cx.run_again();
        }
    }
}

impl<R: Request, H: Hook<R>, Q: Queue<R>> Queue<R> for HookedQueue<R, H, Q> {
    #[inline]
    fn submit(&mut self, cx: &mut WorkerContext<'_>, mut request: R) {
        match self.hook.on_submit(cx, &mut request) {
            Flow::Pass => self.below.submit(cx, request),
            flow => self.divert(cx, request, flow),
        }
    }

    #[inline]
    fn kick(&mut self, cx: &mut WorkerContext<'_>) {
        self.below.kick(cx);
    }

    #[inline]
    fn poll(&mut self, cx: &mut WorkerContext<'_>, done: &mut Completions<R>) {
        let Self { hook, held, released, ready, .. } = self;
        hook.on_poll(cx, &mut Held { held, released, ready });
        self.let_go(cx);
        self.pass_up(cx, done);
        if !self.ready.is_empty() {
            done.append(&mut self.ready);
        }
    }

    fn drain(&mut self, cx: &mut WorkerContext<'_>) {
        self.draining = true;
        release_for_drain(&mut self.held, &mut self.released);
        self.let_go(cx);
        self.below.drain(cx);
    }

    fn resume(&mut self, cx: &mut WorkerContext<'_>) {
        self.draining = false;
        self.below.resume(cx);
    }

    fn mode(&self) -> Mode {
        match self.below.mode() {
            Mode::Quiesced if !self.held.is_empty() || !self.ready.is_empty() => Mode::Draining,
            mode => mode,
        }
    }

    fn in_flight(&self) -> usize {
        self.below.in_flight() + self.held.len() + self.ready.len()
    }
}

/// The requests that a hook holds.
#[derive(Debug)]
pub struct Held<'a, R: Request> {
    held: &'a mut SlotTable<Holding<R>>,
    released: &'a mut Vec<R>,
    ready: &'a mut Vec<Completion<R>>,
}

impl<R: Request> Held<'_, R> {
    /// Lets a held request go on; nothing happens where it is not held (any more: a drain lets those go that
    /// [`Flow::Hold`] holds).
    pub fn release(&mut self, tag: Tag) {
        self.released.extend(self.held.take(tag).map(|holding| holding.request));
    }

    /// Completes a held request here.
    pub fn complete(&mut self, tag: Tag, output: R::Output) {
        self.ready.extend(self.held.take(tag).map(|holding| Completion { request: holding.request, output }));
    }

    /// Takes a held request out, to be dropped: what a broken stage does. Its client learns of it by the memory that was
    /// dropped with it, if at all.
    pub fn take(&mut self, tag: Tag) -> Option<R> {
        self.held.take(tag).map(|holding| holding.request)
    }

    /// Lets all held requests go on, in the order in which they came.
    pub fn release_all(&mut self) {
        release_in_order(self.held, self.released);
    }

    /// Whether that request is held.
    pub fn contains(&self, tag: Tag) -> bool {
        self.held.get(tag).is_some()
    }

    /// How many are held.
    pub fn len(&self) -> usize {
        self.held.len()
    }

    /// Whether none is held.
    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }
}
