//! Pins: what a device still uses of a translation that is being taken away.
//!
//! | type | what it is | who holds it |
//! |---|---|---|
//! | [`PinBoard`] | all pins of one device, and the generation of its translation | its [`Translate`](super::Translate) |
//! | [`PinTable`] | the pins of one device queue | the queue, on its worker |
//! | [`Lease`] | one pin from any thread, for a copy | whoever copies |
//! | [`InvalidateTicket`] | what an unmap waits for | whoever unmapped |
//!
//! # The order of events
//!
//! ```text
//!  queue's worker, once per turn                 whoever unmaps, any thread
//!  1 enter: announce the turn                    1 take the mapping out of the table
//!    ── fence ──                                 2 PinBoard::invalidate: next generation
//!  2 read generation and table, translate          ── fence ──
//!  3 pin what outlives the turn, in a slot         note which queues are inside a turn
//!  4 leave: the turn is over                     3 InvalidateTicket::poll, as often as it takes:
//!    ── fence ──                                   a those turns are over, and
//!    wake whoever waits                            b no slot of an older generation overlaps
//! ```
//!
//! Either the worker sees the table without the mapping, or whoever unmaps sees the worker's turn: the two fences leave no
//! third. A slot is filled inside a turn, so it is seen by whoever has seen that turn end.
//!
//! What a request holds beyond its turn are hazard pointers (M. Michael, "Hazard Pointers: Safe Memory Reclamation for
//! Lock-Free Objects", IEEE TPDS 15(6), 2004: publish, then check that what was published is still there), with ranges
//! of addresses in place of pointers. The turn around them is what quiescent states are to RCU (McKenney and Slingwine,
//! "Read-Copy Update", PDCS 1998): it makes the fence of each hazard pointer one fence for a batch, and covers the rings,
//! which a queue uses only inside its turns.
//!
//! # What is waited for
//!
//! Only turns that were under way, which end by themselves, and requests that hold part of what was unmapped. A
//! request that holds more than four separate ranges counts as holding some of what lies between them.

mod board;
mod slots;
mod table;
mod ticket;

#[cfg(all(test, loom))]
mod model;
#[cfg(all(test, not(loom)))]
mod tests;

pub use board::{Lease, PinBoard, PinWaker, StuckListener, StuckPolicy, StuckReport};
pub use table::PinTable;
pub use ticket::{InvalidateStatus, InvalidateTicket};

use slots::Slots;

/// A range of I/O virtual addresses, never empty. The last one is included, so that it can reach the end of the space.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct IovaRange {
    first: u64,
    last: u64,
}

impl IovaRange {
    /// The whole address space.
    pub const ALL: Self = Self { first: 0, last: u64::MAX };

    /// `len` bytes at `iova`; `None` for no bytes and for a range that ends beyond 64 bits.
    #[inline]
    pub const fn new(iova: u64, len: u64) -> Option<Self> {
        if len == 0 {
            return None;
        }
        match iova.checked_add(len - 1) {
            Some(last) => Some(Self { first: iova, last }),
            None => None,
        }
    }

    /// The first address.
    #[inline]
    pub const fn first(self) -> u64 {
        self.first
    }

    /// The last address.
    #[inline]
    pub const fn last(self) -> u64 {
        self.last
    }

    /// Whether they share an address.
    #[inline]
    pub const fn overlaps(self, other: Self) -> bool {
        self.first <= other.last && other.first <= self.last
    }

    /// Whether they overlap or one begins where the other ends.
    #[inline]
    const fn touches(self, other: Self) -> bool {
        self.first <= other.last.saturating_add(1) && other.first <= self.last.saturating_add(1)
    }

    /// The smallest range that holds both.
    #[inline]
    fn hull(self, other: Self) -> Self {
        Self { first: self.first.min(other.first), last: self.last.max(other.last) }
    }
}

/// Ranges of one request: up to [`IovaSpans::MAX`] of them, which together hold every range that was added, and may hold
/// more where those were too many.
#[derive(Debug, Clone, Copy)]
pub struct IovaSpans {
    ranges: [IovaRange; IovaSpans::MAX],
    len: usize,
}

impl Default for IovaSpans {
    fn default() -> Self {
        Self::EMPTY
    }
}

impl IovaSpans {
    /// Ranges that are kept apart: a request of Linux has a table of descriptors, a header, data and a status.
    pub const MAX: usize = 4;
    /// No ranges.
    pub const EMPTY: Self = Self { ranges: [IovaRange::ALL; Self::MAX], len: 0 };

    /// The ranges, in no particular order.
    #[inline]
    pub fn ranges(&self) -> &[IovaRange] {
        &self.ranges[..self.len]
    }

    /// Forgets all.
    #[inline]
    pub fn clear(&mut self) {
        self.len = 0;
    }

    /// Adds a range. Where there is no place for one more, those that overlap or adjoin are joined first, and then, if need
    /// be, it is joined to the one that grows least by it.
    #[inline]
    pub fn add(&mut self, range: IovaRange) {
        // Most requests have no more ranges than there are places: looking for what adjoins would cost more than it saves.
        if let Some(free) = self.ranges.get_mut(self.len) {
            *free = range;
            self.len += 1;
        } else {
            self.add_to_full(range);
        }
    }

    #[inline(never)]
    fn add_to_full(&mut self, range: IovaRange) {
        if let Some(held) = self.ranges.iter_mut().find(|held| held.touches(range)) {
            *held = held.hull(range);
            return;
        }
        self.join_touching();
        match self.ranges.get_mut(self.len) {
            Some(free) => {
                *free = range;
                self.len += 1;
            }
            None => self.join_nearest(range),
        }
    }

    /// Joins ranges that overlap or adjoin.
    fn join_touching(&mut self) {
        for at in (1..self.len).rev() {
            let range = self.ranges[at];
            if let Some(held) = self.ranges[..at].iter_mut().find(|held| held.touches(range)) {
                *held = held.hull(range);
                self.len -= 1;
                self.ranges[at] = self.ranges[self.len];
            }
        }
    }

    #[cold]
    fn join_nearest(&mut self, range: IovaRange) {
        let growth = |held: &IovaRange| {
            let hull = held.hull(range);
            (hull.last - hull.first) - (held.last - held.first)
        };
        if let Some(held) = self.ranges.iter_mut().min_by_key(|held| growth(held)) {
            *held = held.hull(range);
        }
    }

    /// One range that holds all of them.
    fn hull(&self) -> Option<IovaRange> {
        self.ranges().iter().copied().reduce(IovaRange::hull)
    }
}
