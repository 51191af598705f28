//! The shared words of one queue's pins: written by its worker, read by whoever unmaps.
//!
//! Only what must be right about memory ordering is here, on atomics that `model.rs` replaces by those of a model checker.

use super::{IovaRange, IovaSpans};
use crate::sync::atomic::{AtomicU64, Ordering, fence};

/// The turn counter and the slots of one queue.
#[derive(Debug)]
pub(super) struct Slots {
    /// Odd inside a turn.
    turn: AtomicU64,
    slots: Box<[Slot]>,
}

/// What one request holds.
#[derive(Debug)]
struct Slot {
    /// Zero where nothing is held, else one more than the generation it was translated by.
    held: AtomicU64,
    /// First and last address of each range; the first one with these reversed ends them.
    ranges: [[AtomicU64; 2]; IovaSpans::MAX],
}

/// How far the wait for one queue has come.
#[derive(Debug, Clone, Copy)]
pub(super) struct Scan {
    /// The turn that was under way at the beginning, until it is over.
    turn: Option<u64>,
    /// Slots below it are clear for good: only later generations get into slots from now on.
    next: usize,
}

impl Slot {
    fn new() -> Self {
        let empty = || [AtomicU64::new(u64::MAX), AtomicU64::new(0)];
        Self { held: AtomicU64::new(0), ranges: std::array::from_fn(|_| empty()) }
    }

    /// Whether it holds part of `range` by a translation older than `generation`.
    fn blocks(&self, range: IovaRange, generation: u64) -> bool {
        // Acquire: who sees a slot cleared sees all that was done with its memory.
        let held = self.held.load(Ordering::Acquire);
        if held == 0 || held > generation {
            return false;
        }
        for words in &self.ranges {
            let (first, last) = (words[0].load(Ordering::Relaxed), words[1].load(Ordering::Relaxed));
            if first > last {
                break;
            }
            if range.overlaps(IovaRange { first, last }) {
                return true;
            }
        }
        // Ranges of the slot's next owner may have been among these. Then the slot was cleared, and this is what makes the
        // acquire of it, with the release in `pin`.
        fence(Ordering::Acquire);
        false
    }
}

impl Slots {
    pub(super) fn new(slots: usize) -> Self {
        Self { turn: AtomicU64::new(0), slots: (0..slots).map(|_| Slot::new()).collect() }
    }

    // The worker's side.

    /// Begins a turn. The generation and the table are to be read after it.
    #[inline]
    pub(super) fn enter(&self) {
        let turn = self.turn.load(Ordering::Relaxed);
        self.turn.store(turn + 1, Ordering::Release);
        fence(Ordering::SeqCst);
    }

    /// Ends a turn. Whether somebody waits is to be read after it.
    #[inline]
    pub(super) fn leave(&self) {
        let turn = self.turn.load(Ordering::Relaxed);
        self.turn.store(turn + 1, Ordering::Release);
        fence(Ordering::SeqCst);
    }

    #[inline]
    pub(super) fn is_inside(&self) -> bool {
        self.turn.load(Ordering::Relaxed) % 2 == 1
    }

    /// Fills an empty slot, inside a turn that has read `generation`.
    #[inline]
    pub(super) fn pin(&self, index: usize, generation: u64, spans: &IovaSpans) {
        let slot = &self.slots[index];
        // Between the clearing of the slot and its new ranges, for who still reads it: see `Slot::blocks`.
        fence(Ordering::Release);
        for (at, words) in slot.ranges.iter().enumerate() {
            let range = spans.ranges().get(at);
            words[0].store(range.map_or(u64::MAX, |range| range.first), Ordering::Relaxed);
            words[1].store(range.map_or(0, |range| range.last), Ordering::Relaxed);
            if range.is_none() {
                break;
            }
        }
        slot.held.store(generation + 1, Ordering::Release);
    }

    /// Lets a filled slot hold more. Its first range grows to hold all; at every moment it holds no less than before.
    #[cold]
    pub(super) fn widen(&self, index: usize, spans: &IovaSpans) {
        let [first, last] = &self.slots[index].ranges[0];
        if let Some(hull) = spans.hull() {
            first.store(first.load(Ordering::Relaxed).min(hull.first), Ordering::Relaxed);
            last.store(last.load(Ordering::Relaxed).max(hull.last), Ordering::Relaxed);
        }
    }

    /// Clears a slot, when nobody will touch its memory any more.
    #[inline]
    pub(super) fn unpin(&self, index: usize) {
        self.slots[index].held.store(0, Ordering::Release);
    }

    // The side of whoever unmaps.

    /// Begins to wait. The table was changed and the generation raised before.
    pub(super) fn begin_scan(&self) -> Scan {
        let turn = self.turn.load(Ordering::Acquire);
        Scan { turn: (turn % 2 == 1).then_some(turn), next: 0 }
    }

    /// Whether nobody uses `range` any more by a translation older than `generation`.
    pub(super) fn is_clear(&self, scan: &mut Scan, range: IovaRange, generation: u64) -> bool {
        if let Some(turn) = scan.turn {
            if self.turn.load(Ordering::Acquire) == turn {
                return false;
            }
            scan.turn = None;
        }
        while let Some(slot) = self.slots.get(scan.next) {
            if slot.blocks(range, generation) {
                return false;
            }
            scan.next += 1;
        }
        true
    }

    /// Slots that hold part of `range` by a translation older than `generation`.
    pub(super) fn count(&self, range: IovaRange, generation: u64) -> usize {
        self.slots.iter().filter(|slot| slot.blocks(range, generation)).count()
    }
}
