//! The pins of one device queue.

use std::sync::Arc;

use super::{IovaSpans, PinBoard, Slots};

/// The pins of one device queue, held by the worker that serves it. Slots are indexed by a tag below their number: of a
/// virtio queue that is the head of the chain.
///
/// All use of memory behind a translation happens between [`enter`](PinTable::enter) and [`leave`](PinTable::leave), or in a
/// request whose ranges were [pinned](PinTable::pin) between the two.
///
/// A table that is dropped while slots are held leaves them held for good: the requests may be with a kernel or a thread
/// that still works on them, and nobody is left who would hear of their end. Drain a queue before dropping it.
#[derive(Debug)]
pub struct PinTable {
    slots: Arc<Slots>,
    board: Arc<PinBoard>,
    /// The generation that this turn translates by, or a newer one.
    generation: u64,
    /// How often each slot was pinned and not released.
    holders: Box<[u32]>,
}

impl PinTable {
    /// A table of `slots` empty slots on that board.
    pub fn new(board: &Arc<PinBoard>, slots: usize) -> Self {
        let shared = Arc::new(Slots::new(slots));
        board.add(&shared);
        Self {
            slots: shared,
            board: board.clone(),
            generation: board.generation(),
            holders: vec![0; slots].into(),
        }
    }

    /// Begins a turn: from here to [`leave`](PinTable::leave), every invalidation waits for this queue. Whatever was
    /// translated in an earlier turn and not pinned must be translated again where the
    /// [generation](PinBoard::generation) changed. Nothing inside a turn.
    #[inline]
    pub fn enter(&mut self) {
        if !self.slots.is_inside() {
            self.slots.enter();
            self.generation = self.board.generation();
        }
    }

    /// Ends a turn, and wakes whoever waits for it or for a slot that was released in it. Nothing outside a turn.
    #[inline]
    pub fn leave(&mut self) {
        if self.slots.is_inside() {
            self.slots.leave();
            self.board.wake_waiting();
        }
    }

    /// Holds `spans` in a slot beyond this turn. A slot that is held already holds these too, and needs one release more.
    ///
    /// # Panics
    /// Where there is no such slot. Outside a turn, in a debug build: nobody could see the pin in time.
    #[inline]
    pub fn pin(&mut self, slot: usize, spans: &IovaSpans) {
        debug_assert!(self.slots.is_inside(), "a pin outside a turn");
        let holders = &mut self.holders[slot];
        *holders += 1;
        if *holders == 1 {
            self.slots.pin(slot, self.generation, spans);
        } else {
            self.slots.widen(slot, spans);
        }
    }

    /// The request of a slot came home: nobody below touches its memory any more. Whoever waits for it is woken at the
    /// end of the turn. Nothing where the slot is not held.
    ///
    /// # Panics
    /// Where there is no such slot.
    #[inline]
    pub fn unpin(&mut self, slot: usize) {
        let holders = &mut self.holders[slot];
        if *holders == 1 {
            self.slots.unpin(slot);
        }
        *holders = holders.saturating_sub(1);
    }

    /// Releases the slots for which `keep` is false, whoever pinned them.
    pub fn retain(&mut self, mut keep: impl FnMut(usize) -> bool) {
        for (slot, holders) in self.holders.iter_mut().enumerate() {
            if *holders > 0 && !keep(slot) {
                *holders = 0;
                self.slots.unpin(slot);
            }
        }
    }

    /// How many slots are held.
    pub fn held(&self) -> usize {
        self.holders.iter().filter(|holders| **holders > 0).count()
    }
}

impl Drop for PinTable {
    fn drop(&mut self) {
        self.leave();
        if self.held() == 0 {
            self.board.remove(&self.slots);
        }
    }
}
