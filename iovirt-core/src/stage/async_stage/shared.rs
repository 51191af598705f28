//! What the futures of one queue and the queue itself share. One thread, so cells and no locks; no borrow is ever held
//! while a future runs.

use super::calls::Calls;
use super::ready::ReadySet;
use super::source::Sources;
use super::timers::Timers;
use crate::request::{Completion, Request};
use crate::worker::Time;
use std::cell::{Cell, RefCell};
use std::sync::Arc;

/// Operations on descriptors that the futures of one queue do in one poll before the others get their turn.
const OPERATIONS: u32 = 256;

pub(super) struct Shared<R: Request> {
    pub(super) now: Cell<Time>,
    pub(super) draining: Cell<bool>,
    pub(super) ready: Arc<ReadySet>,
    pub(super) timers: RefCell<Timers>,
    pub(super) sources: RefCell<Sources>,
    pub(super) calls: RefCell<Calls<R>>,
    /// The request that waits for its slot to take it.
    pub(super) incoming: RefCell<Vec<Option<R>>>,
    /// Whether a slot has a request, waiting or in its handler's hands.
    busy: RefCell<Vec<bool>>,
    pub(super) done: RefCell<Vec<Completion<R>>>,
    pub(super) in_flight: Cell<usize>,
    pub(super) rest: Cell<Rest>,
    operations: Cell<u32>,
}

/// How far the handler is with coming to rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rest {
    /// Nobody asked.
    Idle,
    /// Asked for.
    Wanted,
    /// The handler is at it.
    Under,
    /// The handler is at it, and a request came meanwhile.
    Stale,
    /// Nothing is left to make durable.
    Reached,
    /// The handler could not make everything durable.
    Failed,
}

impl<R: Request> Shared<R> {
    pub(super) fn new(ready: Arc<ReadySet>, calls: Calls<R>, slots: usize, now: Time) -> Self {
        let mut incoming = Vec::new();
        incoming.resize_with(slots, || None);
        Self {
            now: Cell::new(now),
            draining: Cell::new(false),
            ready,
            timers: RefCell::new(Timers::with_capacity(slots)),
            sources: RefCell::default(),
            calls: RefCell::new(calls),
            incoming: RefCell::new(incoming),
            busy: RefCell::new(vec![false; slots]),
            done: RefCell::new(Vec::with_capacity(slots)),
            in_flight: Cell::new(0),
            rest: Cell::new(Rest::Idle),
            operations: Cell::new(OPERATIONS),
        }
    }

    #[inline]
    pub(super) fn is_free(&self, slot: usize) -> bool {
        !self.busy.borrow()[slot]
    }

    /// Gives a free slot a request.
    #[inline]
    pub(super) fn give(&self, slot: usize, request: R) {
        self.busy.borrow_mut()[slot] = true;
        self.incoming.borrow_mut()[slot] = Some(request);
        self.ready.insert(slot);
    }

    /// A slot is done with its request; it may have the next one already.
    #[inline]
    pub(super) fn release(&self, slot: usize) {
        self.busy.borrow_mut()[slot] = self.incoming.borrow()[slot].is_some();
    }

    /// A poll begins.
    pub(super) fn refill(&self) {
        self.operations.set(OPERATIONS);
    }

    /// Whether one more operation on a descriptor may be done in this poll.
    pub(super) fn may_operate(&self) -> bool {
        let left = self.operations.get();
        self.operations.set(left.saturating_sub(1));
        left > 0
    }

    /// A request is there: whatever rest was reached is over.
    pub(super) fn stir(&self) {
        self.rest.set(match self.rest.get() {
            Rest::Under | Rest::Stale => Rest::Stale,
            Rest::Idle | Rest::Wanted | Rest::Reached | Rest::Failed => Rest::Idle,
        });
    }
}
