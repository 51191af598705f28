//! Requests that slots have below: by the tag they have there.

use super::StandIn;
use super::ready::ReadySet;
use super::sync::remember;
use crate::dma::{SgLimits, SgList, SgPool};
use crate::request::{Completion, Request, Tag};
use crate::worker::LaneWaker;
use std::sync::Arc;
use std::task::{Poll, Waker};

/// What became of a request that a slot sent down.
#[derive(Debug, Default)]
pub(super) enum Call<R: Request> {
    /// Nothing is below.
    #[default]
    None,
    /// It is below, and somebody waits for it.
    Waiting(Waker),
    /// It is below, and nobody waits for it any more.
    Abandoned,
    /// It came home.
    Home(Completion<R>),
    /// A stage below dropped it.
    Lost,
}

/// The calls of all slots. Slot `s` sends its own request down with the tag `s`; its children have the tags
/// `depth + s * children ..`.
pub(super) struct Calls<R: Request> {
    calls: Vec<Call<R>>,
    depth: usize,
    children: u32,
    slots: Vec<SlotCalls<R>>,
    pool: SgPool,
    lost: Vec<u32>,
    submissions: Vec<R>,
    ready: Arc<ReadySet>,
}

struct SlotCalls<R> {
    /// Stands in for the slot's request while that is below.
    stand_in: Option<R>,
    /// The children that are not in use, as bits.
    free: u64,
    /// Requests that are below.
    below: u32,
}

impl<R: StandIn> Calls<R> {
    /// For `slots` slots of which the first `depth` have requests of their own.
    pub(super) fn new(
        depth: usize,
        slots: usize,
        children: u32,
        ready: Arc<ReadySet>,
        lane: LaneWaker,
    ) -> Self {
        let total = depth + slots * children as usize;
        let mut calls = Vec::new();
        calls.resize_with(total, Call::default);
        let stand_in =
            |slot: usize| (slot < depth).then(|| R::stand_in(Tag::new(slot as u32), Box::default()));
        let free = 1u64.checked_shl(children).map_or(u64::MAX, |bit| bit - 1);
        let slots = (0..slots).map(|slot| SlotCalls { stand_in: stand_in(slot), free, below: 0 }).collect();
        let mut pool = SgPool::new(total - depth, SgLimits::default());
        pool.set_lost_waker(Some(Arc::new(move || lane.wake())));
        let submissions = Vec::with_capacity(total);
        Self { calls, depth, children, slots, pool, lost: Vec::new(), submissions, ready }
    }

    fn slot_of(&self, tag: Tag) -> Option<usize> {
        match tag.index().checked_sub(self.depth) {
            None => Some(tag.index()),
            Some(child) => child.checked_div(self.children as usize),
        }
    }

    /// Tag and memory for a child of that slot.
    pub(super) fn child(&mut self, slot: usize) -> Option<(Tag, Box<SgList>)> {
        let free = &mut self.slots[slot].free;
        if *free == 0 {
            return None;
        }
        let bit = free.trailing_zeros();
        *free &= *free - 1;
        let child = slot as u32 * self.children + bit;
        let mut sg = self.pool.take();
        sg.arm(child);
        Some((Tag::new(self.depth as u32 + child), sg))
    }

    /// Takes back the memory of a child.
    pub(super) fn put_memory(&mut self, sg: Box<SgList>) {
        self.pool.put(sg);
    }

    /// Takes back the tag of a child.
    pub(super) fn free_child(&mut self, tag: Tag) {
        if let Some(slot) = self.slot_of(tag) {
            let child = tag.get() - self.depth as u32 - slot as u32 * self.children;
            self.slots[slot].free |= 1 << child;
        }
    }

    pub(super) fn take_stand_in(&mut self, slot: usize) -> Option<R> {
        self.slots[slot].stand_in.take()
    }

    pub(super) fn put_stand_in(&mut self, slot: usize, stand_in: R) {
        self.slots[slot].stand_in = Some(stand_in);
    }

    pub(super) fn submit(&mut self, request: R, waker: &Waker) {
        let tag = request.tag();
        if let Some(slot) = self.slot_of(tag) {
            self.slots[slot].below += 1;
            self.calls[tag.index()] = Call::Waiting(waker.clone());
            self.submissions.push(request);
        }
    }

    /// What became of a call, `None` where it was lost; where it is below still, `waker` is woken once it is not.
    pub(super) fn ask(&mut self, tag: Tag, waker: &Waker) -> Poll<Option<Completion<R>>> {
        let call = &mut self.calls[tag.index()];
        match std::mem::take(call) {
            Call::Home(completion) => Poll::Ready(Some(completion)),
            Call::Lost | Call::None => Poll::Ready(None),
            Call::Waiting(known) => {
                let mut place = Some(known);
                remember(&mut place, waker);
                *call = place.map_or(Call::Abandoned, Call::Waiting);
                Poll::Pending
            }
            Call::Abandoned => {
                *call = Call::Waiting(waker.clone());
                Poll::Pending
            }
        }
    }

    /// Nobody waits for the call any more. A child that is home already is put away.
    pub(super) fn abandon(&mut self, tag: Tag) {
        let is_child = tag.index() >= self.depth;
        let call = &mut self.calls[tag.index()];
        match std::mem::take(call) {
            Call::Waiting(_) => *call = Call::Abandoned,
            Call::Home(completion) if is_child => {
                self.free_child(tag);
                if let Some(sg) = completion.request.into_memory() {
                    self.pool.put(sg);
                }
            }
            Call::Lost if is_child => self.free_child(tag),
            // A forwarded request waits for its slot to take it.
            other => *call = other,
        }
    }

    /// Whether nothing of that slot is below.
    pub(super) fn is_settled(&self, slot: usize) -> bool {
        self.slots[slot].below == 0
    }

    /// The slot's own request, where it came home with nobody waiting for it; [`Call::Lost`] where it never will.
    pub(super) fn take_forwarded(&mut self, slot: usize) -> Call<R> {
        std::mem::take(&mut self.calls[slot])
    }

    /// Keeps in mind that the slot's own request is gone.
    pub(super) fn mark_lost(&mut self, slot: usize) {
        self.calls[slot] = Call::Lost;
    }

    /// Whether the slot's own request is below.
    pub(super) fn is_forwarded(&self, slot: usize) -> bool {
        matches!(self.calls.get(slot), Some(Call::Waiting(_) | Call::Abandoned))
    }

    pub(super) fn came_home(&mut self, completion: Completion<R>) {
        let tag = completion.request.tag();
        self.settle(tag, Call::Home(completion));
    }

    /// The slot's own request will not come home: a stage below dropped it.
    pub(super) fn lose_forwarded(&mut self, slot: usize) {
        self.settle(Tag::new(slot as u32), Call::Lost);
    }

    fn settle(&mut self, tag: Tag, outcome: Call<R>) {
        let is_child = tag.index() >= self.depth;
        let (Some(slot), Some(call)) = (self.slot_of(tag), self.calls.get_mut(tag.index())) else { return };
        match std::mem::take(call) {
            Call::Waiting(waker) => {
                *call = outcome;
                waker.wake();
            }
            Call::Abandoned => {
                *call = outcome;
                self.abandon(tag);
            }
            // It came home twice, which no safe stage can make it do.
            other => {
                *call = other;
                debug_assert!(is_child, "a request that was not below came home");
                return;
            }
        }
        self.slots[slot].below -= 1;
        if self.slots[slot].below == 0 {
            self.ready.insert(slot);
        }
    }

    /// Children that stages below dropped count as given up.
    pub(super) fn collect_lost(&mut self) {
        let mut lost = std::mem::take(&mut self.lost);
        if self.pool.take_lost(&mut lost) > 0 {
            for child in lost.drain(..) {
                self.settle(Tag::new(self.depth as u32 + child), Call::Lost);
            }
        }
        self.lost = lost;
    }

    /// Own requests that are below while nothing is in flight there were dropped.
    pub(super) fn lose_all_forwarded(&mut self) {
        for slot in 0..self.depth {
            if self.is_forwarded(slot) {
                self.lose_forwarded(slot);
            }
        }
    }

    /// Takes out what is to be submitted; [`Calls::put_submissions`] gives the emptied list back.
    pub(super) fn take_submissions(&mut self) -> Vec<R> {
        std::mem::take(&mut self.submissions)
    }

    pub(super) fn put_submissions(&mut self, mut list: Vec<R>) {
        list.append(&mut self.submissions);
        self.submissions = list;
    }
}
