//! Which slots want to be polled: a set that any thread may add to.

use crate::sync::Arc;
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::worker::LaneWaker;
use std::task::{Wake, Waker};

const BITS: usize = 64;

/// A set of slots as bits, with a bit above for each word that has some, so that sweeping a deep queue costs what is in it.
#[derive(Debug)]
pub(super) struct ReadySet {
    words: Box<[AtomicU64]>,
    summary: Box<[AtomicU64]>,
    /// Whether the owner is sweeping, or will look again before it rests: nobody needs to wake its lane then.
    awake: AtomicBool,
    lane: LaneWaker,
}

fn zeroes(count: usize) -> Box<[AtomicU64]> {
    (0..count).map(|_| AtomicU64::new(0)).collect()
}

impl ReadySet {
    /// An empty set for that many slots, whose owner runs in the lane that `lane` wakes.
    pub(super) fn new(slots: usize, lane: LaneWaker) -> Arc<Self> {
        let words = zeroes(slots.div_ceil(BITS));
        let summary = zeroes(words.len().div_ceil(BITS));
        Arc::new(Self { words, summary, awake: AtomicBool::new(false), lane })
    }

    /// Adds a slot, without waking the lane.
    #[inline]
    pub(super) fn insert(&self, slot: usize) {
        let word = slot / BITS;
        // The word first: a sweep that finds the bit above finds this one too.
        self.words[word].fetch_or(1 << (slot % BITS), Ordering::SeqCst);
        self.summary[word / BITS].fetch_or(1 << (word % BITS), Ordering::SeqCst);
    }

    /// Takes out all slots; `poll` may add to the set meanwhile.
    #[inline]
    pub(super) fn sweep(&self, mut poll: impl FnMut(usize)) {
        for (above, summary) in self.summary.iter().enumerate() {
            if summary.load(Ordering::SeqCst) == 0 {
                continue;
            }
            for word in bits(summary.swap(0, Ordering::SeqCst)) {
                let word = above * BITS + word;
                bits(self.words[word].swap(0, Ordering::SeqCst)).for_each(|bit| poll(word * BITS + bit));
            }
        }
    }

    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.summary.iter().all(|summary| summary.load(Ordering::SeqCst) == 0)
    }

    /// The owner sweeps from now on.
    #[inline]
    pub(super) fn wake_up(&self) {
        self.awake.store(true, Ordering::SeqCst);
    }

    /// The owner goes to rest; false where it has to look again.
    #[inline]
    pub(super) fn go_to_rest(&self) -> bool {
        self.awake.store(false, Ordering::SeqCst);
        // Read and written in one: who adds after this sees that the owner rests, whoever added before is seen here.
        self.summary.iter().all(|summary| summary.fetch_or(0, Ordering::SeqCst) == 0)
    }

    /// The waker of a slot: the one allocation that a slot's wake-ups cost.
    pub(super) fn waker(self: &Arc<Self>, slot: usize) -> Waker {
        Arc::new(SlotWaker { set: self.clone(), slot }).into()
    }
}

fn bits(mut word: u64) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        if word == 0 {
            return None;
        }
        let bit = word.trailing_zeros() as usize;
        word &= word - 1;
        Some(bit)
    })
}

struct SlotWaker {
    set: Arc<ReadySet>,
    slot: usize,
}

impl Wake for SlotWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    #[inline]
    fn wake_by_ref(self: &Arc<Self>) {
        self.set.insert(self.slot);
        if !self.set.awake.load(Ordering::SeqCst) {
            self.set.lane.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::worker::{Worker, WorkerConfig};

    fn set(slots: usize) -> Arc<ReadySet> {
        let mut worker = Worker::new(WorkerConfig::default()).unwrap();
        worker.with_context(|cx| ReadySet::new(slots, cx.waker()))
    }

    #[test]
    fn every_slot_is_found_once() {
        let set = set(5000);
        let slots = [0, 1, 63, 64, 4095, 4096, 4999];
        for slot in slots {
            set.insert(slot);
            set.insert(slot);
        }
        let mut found = Vec::new();
        set.sweep(|slot| found.push(slot));
        assert_eq!(found, slots);
        assert!(set.is_empty());
        set.sweep(|slot| panic!("{slot} is found again"));
    }

    #[test]
    fn what_is_added_during_a_sweep_is_not_forgotten() {
        let set = set(200);
        let waker = set.waker(3);
        set.wake_up();
        set.insert(100);
        set.sweep(|_| waker.wake_by_ref());
        assert!(!set.go_to_rest(), "slot 3 was woken while its owner was awake");
    }
}
