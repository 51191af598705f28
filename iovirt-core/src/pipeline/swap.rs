//! Putting another stack in the place of one that a device uses, without the device noticing more than a pause.
//!
//! A [`Swappable`] stands where the exchange is to be possible. [`SwapControl::swap`] checks the newcomer's capabilities and
//! starts the exchange; from then on it is the workers that carry it through, each its own queues, step by step:
//!
//! ```text
//!            swap()            every queue at rest      every queue open
//!   Idle ──────────► Draining ─────────────────► Opening ───────────────► Idle (new)
//!                       │                           │
//!                       └──────── cancel, or a queue that cannot be opened ──► Idle (old)
//! ```
//!
//! While it is under way, requests that come down are parked and go to whichever stack is in place at the end; none fails
//! and none is lost. A stack that does not come to rest is no dead end: [`SwapControl::cancel`] goes back to it.
//!
//! Locks: one per exchange and step; a request takes none. A poll costs one relaxed load of a shared number.

use super::{BoxBackend, BoxQueue, Event, EventListener, Listeners, Stages};
use crate::backend::{Backend, Mode, Queue};
use crate::error::{AttachError, BackendError};
use crate::frontend::{Completer, Ticket};
use crate::interposer::Interposer;
use crate::request::{Completions, Depth, Request};
use crate::state::{StageStates, StateError};
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use crate::worker::{LaneWaker, WorkerContext};
use std::fmt;
use thiserror::Error;

/// A place in a pipeline where the stack below can be exchanged while devices use it.
pub struct Swappable<R: Request> {
    shared: Arc<Shared<R>>,
}

/// Exchanges the stack below a [`Swappable`]; found in a pipeline by the name `swappable`.
pub struct SwapControl<R: Request> {
    shared: Arc<Shared<R>>,
}

/// Whether a newcomer may take the place of a stack whose capabilities a guest has been told.
///
/// The argument is the capabilities in place, then the newcomer's; the error is one sentence.
pub type Compatible<R> = fn(&<R as Request>::Caps, &<R as Request>::Caps) -> Result<(), String>;

struct Shared<R: Request> {
    compatible: Compatible<R>,
    /// Counts steps: a queue that sees another number looks at the state.
    step: AtomicU64,
    state: Mutex<State<R>>,
    listeners: Listeners,
    /// Passes on the events of the stack in place.
    relay: Mutex<Option<Arc<dyn EventListener>>>,
}

struct State<R: Request> {
    current: BoxBackend<R>,
    /// How many exchanges came to their end.
    generation: u64,
    phase: Phase<R>,
    queues: Vec<Member>,
    next_member: u64,
}

struct Member {
    id: u64,
    waker: LaneWaker,
    /// Whether this queue has done what the phase asks for.
    done: bool,
}

enum Phase<R: Request> {
    Idle,
    Draining { newcomer: BoxBackend<R>, completer: Completer },
    Opening { newcomer: BoxBackend<R>, completer: Completer },
}

/// Why an exchange cannot begin.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SwapError {
    /// Another one is under way.
    #[error("another exchange is under way: wait for it, or cancel it")]
    Busy,
    /// The newcomer lacks what the guest was told.
    #[error("{0}")]
    Incompatible(String),
}

impl<R: Request> Shared<R> {
    fn state(&self) -> MutexGuard<'_, State<R>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One more queue: its number, and the stack in place with its generation.
    fn join(&self, waker: LaneWaker) -> (u64, u64, BoxBackend<R>) {
        let mut state = self.state();
        let id = state.next_member;
        state.next_member += 1;
        state.queues.push(Member { id, waker, done: false });
        (id, state.generation, state.current.clone())
    }

    /// A queue is gone, and nobody waits for it.
    fn leave(self: &Arc<Self>, id: u64) {
        let mut state = self.state();
        state.queues.retain(|member| member.id != id);
        self.advance(&mut state);
    }

    /// Begins the next step and has every queue look.
    fn announce(&self, state: &mut State<R>) {
        self.step.fetch_add(1, Ordering::SeqCst);
        for member in &mut state.queues {
            member.done = false;
            member.waker.wake();
        }
    }

    /// The last queue that has done its part of a step brings the next one.
    fn advance(self: &Arc<Self>, state: &mut State<R>) {
        while state.queues.iter().all(|member| member.done) {
            match std::mem::replace(&mut state.phase, Phase::Idle) {
                Phase::Idle => return,
                Phase::Draining { newcomer, completer } => {
                    state.phase = Phase::Opening { newcomer, completer };
                    self.announce(state);
                }
                Phase::Opening { newcomer, completer } => {
                    state.current = newcomer;
                    state.generation += 1;
                    self.announce(state);
                    self.listen(&state.current);
                    completer.done();
                    return;
                }
            }
        }
    }

    /// Goes back to the stack in place; the ticket counts as cancelled, as its completer is dropped.
    fn back_out(&self, state: &mut State<R>) {
        if !matches!(std::mem::replace(&mut state.phase, Phase::Idle), Phase::Idle) {
            self.announce(state);
        }
    }

    /// Passes on the events of `stack`, and of no other any more.
    fn listen(self: &Arc<Self>, stack: &BoxBackend<R>) {
        let relay: Arc<dyn EventListener> = Arc::new(Relay { shared: Arc::downgrade(self) });
        stack.subscribe(&relay);
        *self.relay.lock().unwrap_or_else(PoisonError::into_inner) = Some(relay);
    }

    /// A queue has done its part of that step, unless the step is over.
    fn done(self: &Arc<Self>, id: u64, step: u64) {
        let mut state = self.state();
        if self.step.load(Ordering::SeqCst) == step {
            state.queues.iter_mut().filter(|member| member.id == id).for_each(|member| member.done = true);
            self.advance(&mut state);
        }
    }
}

struct Relay<R: Request> {
    shared: Weak<Shared<R>>,
}

impl<R: Request> EventListener for Relay<R> {
    fn event(&self, event: Event) {
        if let Some(shared) = self.shared.upgrade() {
            shared.listeners.announce(event);
        }
    }
}

impl<R: Request> SwapControl<R> {
    /// Begins to put `newcomer` in the place of the stack in use. The ticket is done when every queue works on it, and
    /// cancelled where one could not be opened or [`SwapControl::cancel`] came first; then the old stack goes on.
    ///
    /// With no queue open the exchange is over when this returns. Listeners hear that capabilities and size may have changed.
    ///
    /// # Errors
    /// Where another exchange is under way, or the newcomer lacks what the guest was told.
    pub fn swap(&self, newcomer: BoxBackend<R>) -> Result<Ticket, SwapError> {
        let ticket = {
            let mut state = self.shared.state();
            if !matches!(state.phase, Phase::Idle) {
                return Err(SwapError::Busy);
            }
            let (old, new) = (state.current.caps(), newcomer.caps());
            (self.shared.compatible)(&old, &new).map_err(SwapError::Incompatible)?;
            let (ticket, completer) = Ticket::new();
            state.phase = Phase::Draining { newcomer, completer };
            self.shared.announce(&mut state);
            self.shared.advance(&mut state);
            ticket
        };
        // Outside the lock, as a listener may ask for the capabilities.
        self.announce_if_done(&ticket);
        Ok(ticket)
    }

    fn announce_if_done(&self, ticket: &Ticket) {
        if ticket.is_done() {
            self.shared.listeners.announce(Event::CapsChanged);
        }
    }

    /// Gives an exchange up that is under way: the old stack goes on. Too late where it is over.
    pub fn cancel(&self) {
        let mut state = self.shared.state();
        self.shared.back_out(&mut state);
    }

    /// The stack in use.
    pub fn current(&self) -> BoxBackend<R> {
        self.shared.state().current.clone()
    }
}

impl<R: Request> Swappable<R> {
    /// A place that holds `stack` at first. `compatible` decides who may take its place.
    pub fn new(stack: BoxBackend<R>, compatible: Compatible<R>) -> Self {
        let state =
            State { current: stack, generation: 0, phase: Phase::Idle, queues: Vec::new(), next_member: 0 };
        let shared = Arc::new(Shared {
            compatible,
            step: AtomicU64::new(0),
            state: Mutex::new(state),
            listeners: Listeners::default(),
            relay: Mutex::default(),
        });
        let current = shared.state().current.clone();
        shared.listen(&current);
        Self { shared }
    }

    /// The control handle.
    pub fn control(&self) -> Arc<SwapControl<R>> {
        Arc::new(SwapControl { shared: self.shared.clone() })
    }
}

/// Makes the place for an exchange a layer of a [`Pipeline`](super::Pipeline).
#[derive(Clone, Copy, Debug)]
pub struct SwapLayer<R: Request> {
    compatible: Compatible<R>,
}

impl<R: Request> SwapLayer<R> {
    /// `compatible` decides who may take the place of the stack below.
    pub fn new(compatible: Compatible<R>) -> Self {
        Self { compatible }
    }
}

impl<R: Request> Interposer<R, BoxBackend<R>> for SwapLayer<R> {
    type Stacked = Swappable<R>;

    fn attach(self, below: BoxBackend<R>) -> Result<Swappable<R>, AttachError> {
        Ok(Swappable::new(below, self.compatible))
    }
}

impl<R: Request> Backend<R> for Swappable<R> {
    type Queue = SwappableQueue<R>;

    fn caps(&self) -> Arc<R::Caps> {
        self.shared.state().current.caps()
    }

    fn open(&self, cx: &mut WorkerContext<'_>, depth: Depth) -> Result<SwappableQueue<R>, BackendError> {
        // A member before it is open: no exchange comes to its end in between, without this queue.
        let (id, generation, current) = self.shared.join(cx.waker());
        let below = current.open(cx, depth).inspect_err(|_| self.shared.leave(id))?;
        // Whatever is under way, this queue finds it in its first poll.
        cx.run_again();
        Ok(SwappableQueue {
            shared: self.shared.clone(),
            id,
            depth,
            below,
            generation,
            opened: None,
            part: Part::Serving,
            seen: u64::MAX,
            parked: Vec::with_capacity(depth.get()),
            draining: false,
        })
    }

    fn stages(&self, stages: &mut Stages) {
        stages.push_controlled("swappable", self.control());
        self.shared.state().current.stages(stages);
    }

    fn subscribe(&self, listener: &Arc<dyn EventListener>) {
        self.shared.listeners.add(listener);
    }

    fn save(&self, states: &mut StageStates) -> Result<(), StateError> {
        self.shared.state().current.save(states)
    }

    fn restore(&self, states: &mut StageStates) -> Result<(), StateError> {
        self.shared.state().current.restore(states)
    }
}

/// The data plane of a [`Swappable`].
pub struct SwappableQueue<R: Request> {
    shared: Arc<Shared<R>>,
    id: u64,
    depth: Depth,
    below: BoxQueue<R>,
    /// Of the stack that `below` belongs to.
    generation: u64,
    /// The newcomer's queue, until the exchange is over.
    opened: Option<BoxQueue<R>>,
    part: Part,
    /// The step that this queue knows of.
    seen: u64,
    parked: Vec<R>,
    draining: bool,
}

/// What a queue does for the exchange under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    /// Nothing: it serves.
    Serving,
    /// It comes to rest.
    Resting,
    /// It has done its part and waits for the others.
    Waiting,
}

/// What the coordinator wants of a queue.
enum Wanted<R: Request> {
    Serve,
    Rest,
    Open(BoxBackend<R>),
}

impl<R: Request> SwappableQueue<R> {
    /// Takes up the step that the coordinator has announced.
    #[cold]
    fn look(&mut self, cx: &mut WorkerContext<'_>) {
        let (generation, wanted) = {
            let state = self.shared.state();
            self.seen = self.shared.step.load(Ordering::SeqCst);
            let wanted = match &state.phase {
                Phase::Idle => Wanted::Serve,
                Phase::Draining { .. } => Wanted::Rest,
                Phase::Opening { newcomer, .. } => Wanted::Open(newcomer.clone()),
            };
            (state.generation, wanted)
        };
        let adopted = self.adopt(generation);
        match wanted {
            Wanted::Serve => self.serve(cx, adopted),
            Wanted::Rest => {
                self.below.drain(cx);
                self.part = Part::Resting;
            }
            Wanted::Open(newcomer) => self.open_newcomer(cx, &newcomer),
        }
    }

    /// Goes over to the queue that was opened, if its stack is in place by now; forgets it otherwise. Also where the next
    /// exchange has begun already: what it opens must not be taken for this one. Whether it went over.
    fn adopt(&mut self, generation: u64) -> bool {
        let Some(opened) = self.opened.take() else { return false };
        let is_in_place = generation != self.generation;
        if is_in_place {
            self.generation = generation;
            self.below = opened;
            // Once for each queue: a late or doubled event does no harm.
            self.shared.listeners.announce(Event::CapsChanged);
        }
        is_in_place
    }

    fn open_newcomer(&mut self, cx: &mut WorkerContext<'_>, newcomer: &BoxBackend<R>) {
        self.part = Part::Waiting;
        match newcomer.open(cx, self.depth) {
            Ok(queue) => {
                self.opened = Some(queue);
                self.shared.done(self.id, self.seen);
                // Where this queue was the last one, the exchange is over.
                cx.run_again();
            }
            Err(error) => {
                tracing::warn!(%error, "a stack could not be put in the place of another; the other goes on");
                let mut state = self.shared.state();
                self.shared.back_out(&mut state);
            }
        }
    }

    /// The exchange is over, one way or the other: goes on with the stack in place.
    fn serve(&mut self, cx: &mut WorkerContext<'_>, adopted: bool) {
        if self.part == Part::Serving {
            return;
        }
        self.part = Part::Serving;
        if !adopted {
            self.below.resume(cx);
        }
        for request in self.parked.drain(..) {
            self.below.submit(cx, request);
        }
        self.below.kick(cx);
        if self.draining {
            self.below.drain(cx);
        }
        cx.run_again();
    }
}

impl<R: Request> Queue<R> for SwappableQueue<R> {
    #[inline]
    fn submit(&mut self, cx: &mut WorkerContext<'_>, request: R) {
        if self.part == Part::Serving {
            self.below.submit(cx, request);
        } else {
            self.parked.push(request);
        }
    }

    #[inline]
    fn kick(&mut self, cx: &mut WorkerContext<'_>) {
        if self.part == Part::Serving {
            self.below.kick(cx);
        }
    }

    #[inline]
    fn poll(&mut self, cx: &mut WorkerContext<'_>, done: &mut Completions<R>) {
        if self.shared.step.load(Ordering::Relaxed) != self.seen {
            self.look(cx);
        }
        self.below.poll(cx, done);
        if self.part == Part::Resting && self.below.mode() == Mode::Quiesced {
            self.part = Part::Waiting;
            self.shared.done(self.id, self.seen);
            cx.run_again();
        }
    }

    fn drain(&mut self, cx: &mut WorkerContext<'_>) {
        self.draining = true;
        if self.part == Part::Serving {
            self.below.drain(cx);
        }
    }

    fn resume(&mut self, cx: &mut WorkerContext<'_>) {
        self.draining = false;
        if self.part == Part::Serving {
            self.below.resume(cx);
        }
    }

    fn mode(&self) -> Mode {
        match (self.part, self.draining) {
            (Part::Serving, _) => self.below.mode(),
            (_, false) => Mode::Running,
            (_, true) => Mode::Draining,
        }
    }

    fn in_flight(&self) -> usize {
        self.below.in_flight() + self.parked.len()
    }
}

impl<R: Request> Drop for SwappableQueue<R> {
    fn drop(&mut self) {
        self.shared.leave(self.id);
    }
}

impl<R: Request> fmt::Debug for Swappable<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Swappable").field("current", &self.shared.state().current).finish_non_exhaustive()
    }
}

impl<R: Request> fmt::Debug for SwapControl<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SwapControl").field("current", &self.shared.state().current).finish_non_exhaustive()
    }
}

impl<R: Request> fmt::Debug for SwappableQueue<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SwappableQueue")
            .field("part", &self.part)
            .field("parked", &self.parked.len())
            .finish_non_exhaustive()
    }
}
