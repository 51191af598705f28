//! Putting another stack in the place of one that a device uses, without the device noticing more than a pause; or taking it away,
//! and putting one back later.
//!
//! A [`Swappable`] stands where the exchange is to be possible. [`SwapControl::swap`] checks the newcomer's capabilities and
//! starts the exchange; from then on it is the workers that carry it through, each its own queues, step by step:
//!
//! ```text
//!            swap()            every queue at rest      every queue open        every queue gone from the old
//!   Idle ──────────► Draining ─────────────────► Opening ───────────────► Closing ───────────► Idle (new)
//!                       │                           │
//!                       └──────── cancel, or a queue that cannot be opened ──► Idle (old)
//! ```
//!
//! [`SwapControl::remove`] is an exchange for a vacancy: its requests fail ([`Request::failed`]), its tokens wait, and what it
//! states is what the guest was told ([`Request::vacant`]), so that [`SwapControl::insert`] can check who may come.
//!
//! While it is under way, requests that come down are parked and go to whichever stack is in place at the end; none fails
//! and none is lost. So are tokens ([`Request::is_token`]) that the old stack gives back as it comes to rest: their client
//! does not see them, unless it asks for a drain itself. A stack that does not come to rest is no dead end:
//! [`SwapControl::cancel`] goes back to it.
//!
//! Locks: one per exchange and step; a request takes none. A poll costs one relaxed load of a shared number.

mod queue;
mod vacancy;

use queue::Membership;
pub use queue::SwappableQueue;
use vacancy::Vacancy;

use super::{BoxBackend, Event, EventListener, Listeners, Stages};
use crate::backend::Backend;
use crate::error::{AttachError, BackendError};
use crate::frontend::{Completer, Ticket};
use crate::interposer::Interposer;
use crate::request::{Depth, Request};
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
    occupancy: Occupancy,
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
    Draining {
        newcomer: Newcomer<R>,
        completer: Completer,
    },
    Opening {
        newcomer: Newcomer<R>,
        completer: Completer,
    },
    /// The newcomer is in place and serves; queues let go of the old stack.
    Closing {
        completer: Completer,
    },
}

/// What is to come into the place.
struct Newcomer<R: Request> {
    stack: BoxBackend<R>,
    occupancy: Occupancy,
}

/// What is in a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Occupancy {
    /// Somebody's stack.
    Stack,
    /// A [`Vacancy`].
    Vacancy,
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
    /// There is no stack to exchange or to take away.
    #[error("the place is vacant: a stack can be put into it")]
    Vacant,
    /// There is a stack where one was to be put into a vacancy.
    #[error("there is a stack in the place: it can be exchanged, or taken away first")]
    Occupied,
}

impl<R: Request> State<R> {
    /// One more queue, which has done nothing yet.
    fn admit(&mut self, waker: LaneWaker) -> u64 {
        let id = self.next_member;
        self.next_member += 1;
        self.queues.push(Member { id, waker, done: false });
        id
    }
}

impl<R: Request> Shared<R> {
    fn state(&self) -> MutexGuard<'_, State<R>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
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
    ///
    /// No step is passed before each queue has done its part, so none misses the end of an exchange by more than one step.
    fn advance(self: &Arc<Self>, state: &mut State<R>) {
        while state.queues.iter().all(|member| member.done) {
            match std::mem::replace(&mut state.phase, Phase::Idle) {
                Phase::Idle => return,
                Phase::Draining { newcomer, completer } => {
                    state.phase = Phase::Opening { newcomer, completer };
                    self.announce(state);
                }
                Phase::Opening { newcomer, completer } => {
                    state.current = newcomer.stack;
                    state.occupancy = newcomer.occupancy;
                    state.generation += 1;
                    state.phase = Phase::Closing { completer };
                    self.announce(state);
                    self.listen(&state.current);
                }
                Phase::Closing { completer } => {
                    completer.done();
                    return;
                }
            }
        }
    }

    /// Goes back to the stack in place, unless the newcomer is there already; the ticket counts as cancelled, as its completer is
    /// dropped.
    fn back_out(&self, state: &mut State<R>) {
        if matches!(state.phase, Phase::Draining { .. } | Phase::Opening { .. }) {
            state.phase = Phase::Idle;
            self.announce(state);
        }
    }

    /// A queue cannot do its part of that step, unless the step is over.
    fn refuse(&self, step: u64) {
        let mut state = self.state();
        if self.step.load(Ordering::SeqCst) == step {
            self.back_out(&mut state);
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
    /// Begins to put `newcomer` in the place of the stack in use. The ticket is done when every queue works on it and none holds
    /// the old stack any more, and cancelled where one could not be opened or [`SwapControl::cancel`] came first; then the old
    /// stack goes on.
    ///
    /// With no queue open the exchange is over when this returns. Listeners hear that capabilities and size may have changed.
    ///
    /// # Errors
    /// Where another exchange is under way, the place is vacant, or the newcomer lacks what the guest was told.
    pub fn swap(&self, newcomer: BoxBackend<R>) -> Result<Ticket, SwapError> {
        self.begin(Occupancy::Stack, |told| self.checked(told, newcomer))
    }

    /// Begins to take the stack in use away: its requests in flight finish, it comes to rest, and its queues are closed. Until
    /// another is put in its place, requests fail, and the guest is told what it was told before, but for a link, which is
    /// down. The ticket is done when no queue holds the stack any more: what it has open is closed then, unless somebody else
    /// holds the stack or a handle of its stages. It is cancelled by [`SwapControl::cancel`]; then the stack goes on.
    ///
    /// A place that is vacant saves nothing, and a device that is saved so is restored into one that has a stack in this place;
    /// it may be taken away before the device goes on.
    ///
    /// # Errors
    /// Where another exchange is under way, or the place is vacant.
    pub fn remove(&self) -> Result<Ticket, SwapError> {
        let vacancy = |told: &R::Caps| {
            Ok(Newcomer { stack: BoxBackend::new(Vacancy::of(told)), occupancy: Occupancy::Vacancy })
        };
        self.begin(Occupancy::Stack, vacancy)
    }

    /// Begins to put `newcomer` into a place that [`SwapControl::remove`] has made vacant. The ticket is done when every queue
    /// works on it, and cancelled where one could not be opened or [`SwapControl::cancel`] came first; then the place stays
    /// vacant.
    ///
    /// # Errors
    /// Where another exchange is under way, there is a stack in the place, or the newcomer lacks what the guest was told.
    pub fn insert(&self, newcomer: BoxBackend<R>) -> Result<Ticket, SwapError> {
        self.begin(Occupancy::Vacancy, |told| self.checked(told, newcomer))
    }

    /// Whether the stack was taken away, and no other is in its place.
    pub fn is_vacant(&self) -> bool {
        self.shared.state().occupancy == Occupancy::Vacancy
    }

    fn checked(&self, told: &R::Caps, stack: BoxBackend<R>) -> Result<Newcomer<R>, SwapError> {
        (self.shared.compatible)(told, &stack.caps()).map_err(SwapError::Incompatible)?;
        Ok(Newcomer { stack, occupancy: Occupancy::Stack })
    }

    /// Begins an exchange for what `choose` makes of the capabilities in place, where the place is as expected.
    fn begin(
        &self,
        expected: Occupancy,
        choose: impl FnOnce(&R::Caps) -> Result<Newcomer<R>, SwapError>,
    ) -> Result<Ticket, SwapError> {
        let ticket = {
            let mut state = self.shared.state();
            if !matches!(state.phase, Phase::Idle) {
                return Err(SwapError::Busy);
            }
            match (expected, state.occupancy) {
                (Occupancy::Stack, Occupancy::Vacancy) => return Err(SwapError::Vacant),
                (Occupancy::Vacancy, Occupancy::Stack) => return Err(SwapError::Occupied),
                _ => {}
            }
            let newcomer = choose(&state.current.caps())?;
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

    /// The stack in use; of a place that is vacant, what has requests fail.
    pub fn current(&self) -> BoxBackend<R> {
        self.shared.state().current.clone()
    }
}

impl<R: Request> Swappable<R> {
    /// A place that holds `stack` at first. `compatible` decides who may take its place.
    pub fn new(stack: BoxBackend<R>, compatible: Compatible<R>) -> Self {
        let state = State {
            current: stack,
            occupancy: Occupancy::Stack,
            generation: 0,
            phase: Phase::Idle,
            queues: Vec::new(),
            next_member: 0,
        };
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
        loop {
            let (current, generation) = {
                let state = self.shared.state();
                (state.current.clone(), state.generation)
            };
            let below = current.open(cx, depth)?;
            let mut state = self.shared.state();
            // An exchange may have come to its end meanwhile, and this queue would belong to the stack that went.
            if state.generation == generation {
                let id = state.admit(cx.waker());
                drop(state);
                // Whatever is under way, this queue finds it in its first poll.
                cx.run_again();
                let member = Membership { shared: self.shared.clone(), id };
                return Ok(SwappableQueue::new(member, depth, below, generation));
            }
        }
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
