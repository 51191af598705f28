//! Requests of one queue that wait until a range of bytes is theirs.

use super::ranges::{Hold, RangeClient, RangeLocks, RangeTicket};
use super::slots::SlotTable;
use crate::request::{Depth, Request, Tag};
use crate::worker::LaneWaker;
use std::ops::Range;
use std::sync::Arc;

/// The waiting half of a stage that keeps requests apart by [`RangeLocks`]: a request is parked when it comes, asks with its
/// batch, and is handed out once its range is its own. The lock is taken once in [`Parked::ask`] and once in
/// [`Parked::exchange`].
#[derive(Debug)]
pub struct Parked<R> {
    waiting: SlotTable<(R, Option<RangeTicket>)>,
    /// Those of them that have not asked yet.
    asking: Vec<Tag>,
    /// Those of them whose range is theirs now, of which `next` is handed out next.
    granted: Vec<Tag>,
    next: usize,
    releases: Vec<RangeTicket>,
    locks: RangeClient,
}

impl<R: Request> Parked<R> {
    /// A queue's part in these locks; its lane is woken when it is granted a range.
    pub fn new(locks: &Arc<RangeLocks>, waker: LaneWaker, depth: Depth) -> Self {
        let room = depth.get();
        Self {
            waiting: SlotTable::new(depth),
            asking: Vec::with_capacity(room),
            granted: Vec::with_capacity(room),
            next: 0,
            releases: Vec::with_capacity(room),
            locks: locks.client(waker, room),
        }
    }

    /// A request waits; it asks with the next batch.
    #[inline]
    pub fn park(&mut self, request: R) {
        let tag = request.tag();
        self.waiting.insert(tag, (request, None));
        self.asking.push(tag);
    }

    /// Whether a request of that name waits.
    #[inline]
    pub fn holds(&self, tag: Tag) -> bool {
        self.waiting.get(tag).is_some()
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Asks for the ranges of this batch, each as `of` says; false where there is nothing to ask for.
    #[inline]
    pub fn ask(&mut self, mut of: impl FnMut(&R) -> (Range<u64>, Hold)) -> bool {
        if self.asking.is_empty() {
            return false;
        }
        let Self { waiting, asking, granted, locks, .. } = self;
        let mut table = locks.batch();
        for tag in asking.drain(..) {
            let Some((request, ticket)) = waiting.get_mut(tag) else { continue };
            let (range, hold) = of(request);
            let (asked, is_granted) = locks.ask(&mut table, range, hold, tag);
            *ticket = Some(asked);
            if is_granted {
                granted.push(tag);
            }
        }
        true
    }

    /// A range is let go with the next [`Parked::exchange`].
    #[inline]
    pub fn release(&mut self, ticket: RangeTicket) {
        self.releases.push(ticket);
    }

    /// Whether ranges are yet to be let go.
    #[inline]
    pub fn has_releases(&self) -> bool {
        !self.releases.is_empty()
    }

    /// Lets go of what is done with, and takes what that or others gave free; false where there is neither.
    #[inline]
    pub fn exchange(&mut self) -> bool {
        let Self { releases, granted, locks, .. } = self;
        if releases.is_empty() && !locks.has_granted() {
            return false;
        }
        let mut table = locks.batch();
        for ticket in releases.drain(..) {
            table.release(ticket);
        }
        locks.granted(&mut table, granted);
        true
    }

    /// Hands out a request whose range is its own, in the order in which they were granted.
    #[inline]
    pub fn next_granted(&mut self) -> Option<(R, Option<RangeTicket>)> {
        while let Some(&tag) = self.granted.get(self.next) {
            self.next += 1;
            if let Some(granted) = self.waiting.take(tag) {
                return Some(granted);
            }
        }
        self.granted.clear();
        self.next = 0;
        None
    }

    /// The queue goes: takes back what it waits for, and lets go of what was released.
    pub fn close(&mut self) {
        self.releases.extend(self.waiting.drain().filter_map(|(_, (_, ticket))| ticket));
        self.exchange();
    }

    /// The locks.
    pub fn locks(&self) -> &Arc<RangeLocks> {
        self.locks.locks()
    }
}
