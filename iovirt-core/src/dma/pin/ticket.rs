//! What an unmap waits for.

use std::fmt;
use std::sync::Arc;

use super::IovaRange;
use super::board::{PinBoard, PinWaker, StuckPolicy, StuckReport};
use super::slots::{Scan, Slots};
use crate::worker::Time;

/// Where an invalidation stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InvalidateStatus {
    /// Nobody uses what was invalidated: the memory may be used for something else.
    Done,
    /// Somebody still does.
    Waiting,
    /// Somebody still does, and was reported as the [`StuckPolicy`] says. It may still end.
    Stuck,
}

/// What an unmap waits for: that nobody uses what was translated before it.
///
/// It is polled and never blocks; [`set_waker`](InvalidateTicket::set_waker) tells when to poll again. Dropping it gives
/// the waiting up, and then nobody knows when the memory is free.
#[must_use = "until it is done, the device may still use the memory"]
pub struct InvalidateTicket {
    parts: Vec<Part>,
    since: Option<Time>,
}

/// The wait for one device.
struct Part {
    board: Arc<PinBoard>,
    range: IovaRange,
    generation: u64,
    queues: Vec<(Arc<Slots>, Scan)>,
    leases: Vec<u64>,
    waker: Option<u64>,
    reported: bool,
}

impl InvalidateTicket {
    pub(super) fn new(
        board: Arc<PinBoard>,
        (range, generation): (IovaRange, u64),
        queues: Vec<(Arc<Slots>, Scan)>,
        leases: Vec<u64>,
    ) -> Self {
        let part = Part { board, range, generation, queues, leases, waker: None, reported: false };
        Self { parts: vec![part], since: None }
    }

    /// One that is done.
    pub fn done() -> Self {
        Self { parts: Vec::new(), since: None }
    }

    /// Waits for the other too. Before the first poll and the waker.
    pub fn join(&mut self, mut other: Self) {
        self.parts.append(&mut other.parts);
    }

    /// Looks where it stands. The time of the first poll is what a [`StuckPolicy`] counts from.
    pub fn poll(&mut self, now: Time) -> InvalidateStatus {
        let since = *self.since.get_or_insert(now);
        self.parts.retain_mut(|part| !part.is_clear());
        if self.parts.is_empty() {
            return InvalidateStatus::Done;
        }
        let mut status = InvalidateStatus::Waiting;
        for part in &mut self.parts {
            if part.report_if_stuck(since, now) {
                status = InvalidateStatus::Stuck;
            }
        }
        status
    }

    /// When it must be polled, whatever wakes it: the earliest report that is due. `None` where none is, and before the
    /// first poll.
    pub fn deadline(&self) -> Option<Time> {
        let since = self.since?;
        let due = |part: &Part| match part.board.stuck_policy() {
            StuckPolicy::ReportAfter(limit) if !part.reported => Some(since + limit),
            _ => None,
        };
        self.parts.iter().filter_map(due).min()
    }

    /// Calls `waker` whenever it may be worth a poll, until the ticket is done or dropped. Poll once after this.
    pub fn set_waker(&mut self, waker: &PinWaker) {
        for part in &mut self.parts {
            part.forget_waker();
            part.waker = Some(part.board.add_waker(waker.clone()));
        }
    }
}

impl Part {
    fn is_clear(&mut self) -> bool {
        let Self { board, range, generation, queues, leases, .. } = self;
        queues.retain_mut(|(slots, scan)| !slots.is_clear(scan, *range, *generation));
        leases.retain(|id| board.holds_lease(*id));
        queues.is_empty() && leases.is_empty()
    }

    /// Whether the policy calls this stuck; reports it the first time.
    fn report_if_stuck(&mut self, since: Time, now: Time) -> bool {
        let StuckPolicy::ReportAfter(limit) = self.board.stuck_policy() else { return false };
        let waited = now.since(since);
        if waited < limit {
            return false;
        }
        if !self.reported {
            self.reported = true;
            let count = |(slots, _): &(Arc<Slots>, Scan)| slots.count(self.range, self.generation);
            let requests = self.queues.iter().map(count).sum();
            self.board.report(&StuckReport { range: self.range, waited, requests });
        }
        true
    }

    fn forget_waker(&mut self) {
        if let Some(id) = self.waker.take() {
            self.board.remove_waker(id);
        }
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        self.forget_waker();
    }
}

impl fmt::Debug for InvalidateTicket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ranges: Vec<IovaRange> = self.parts.iter().map(|part| part.range).collect();
        f.debug_struct("InvalidateTicket").field("waits_for", &ranges).field("since", &self.since).finish()
    }
}
