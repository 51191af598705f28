//! Who waits for a time: a heap that forgets who no longer waits, so that time-outs which never come cost nothing later.

use crate::worker::Time;
use std::task::Waker;

/// Waits for no time at all, only for the drain.
pub(super) const NEVER: Time = Time::from_nanos(u64::MAX);

/// The name of a timer among those of a queue.
pub(super) type TimerId = u32;

/// Timers, the earliest first.
#[derive(Debug, Default)]
pub(super) struct Timers {
    /// A binary heap of names.
    heap: Vec<TimerId>,
    entries: Vec<Entry>,
    free: Vec<TimerId>,
}

#[derive(Debug)]
struct Entry {
    deadline: Time,
    /// Where the heap has it; [`FIRED`] where it does not any more.
    at: usize,
    waker: Option<Waker>,
}

const FIRED: usize = usize::MAX;

impl Timers {
    pub(super) fn with_capacity(timers: usize) -> Self {
        Self {
            heap: Vec::with_capacity(timers),
            entries: Vec::with_capacity(timers),
            free: Vec::with_capacity(timers),
        }
    }

    pub(super) fn insert(&mut self, deadline: Time, waker: &Waker) -> TimerId {
        let entry = Entry { deadline, at: self.heap.len(), waker: Some(waker.clone()) };
        let id = if let Some(id) = self.free.pop() {
            self.entries[id as usize] = entry;
            id
        } else {
            self.entries.push(entry);
            (self.entries.len() - 1) as TimerId
        };
        self.heap.push(id);
        self.rise(self.heap.len() - 1);
        id
    }

    /// Whom to wake from now on.
    pub(super) fn set_waker(&mut self, id: TimerId, waker: &Waker) {
        match &mut self.entries[id as usize].waker {
            Some(known) => known.clone_from(waker),
            none => *none = Some(waker.clone()),
        }
    }

    pub(super) fn remove(&mut self, id: TimerId) {
        let at = self.entries[id as usize].at;
        if at != FIRED {
            self.take_out(at);
        }
        self.entries[id as usize].waker = None;
        self.free.push(id);
    }

    /// The earliest time that anybody waits for.
    pub(super) fn next(&self) -> Option<Time> {
        let deadline = self.entries[*self.heap.first()? as usize].deadline;
        (deadline < NEVER).then_some(deadline)
    }

    /// Wakes those whose time has come.
    pub(super) fn expire(&mut self, now: Time) {
        while let Some(&id) = self.heap.first() {
            if self.entries[id as usize].deadline > now || self.entries[id as usize].deadline == NEVER {
                return;
            }
            self.take_out(0);
            self.entries[id as usize].at = FIRED;
            if let Some(waker) = self.entries[id as usize].waker.take() {
                waker.wake();
            }
        }
    }

    /// Wakes all, to look around: they go on waiting.
    pub(super) fn nudge(&self) {
        for entry in &self.entries {
            if let Some(waker) = &entry.waker {
                waker.wake_by_ref();
            }
        }
    }

    fn take_out(&mut self, at: usize) {
        self.heap.swap_remove(at);
        if at < self.heap.len() {
            self.entries[self.heap[at] as usize].at = at;
            self.sink(at);
            self.rise(at);
        }
    }

    fn deadline(&self, at: usize) -> Time {
        self.entries[self.heap[at] as usize].deadline
    }

    fn swap(&mut self, a: usize, b: usize) {
        self.heap.swap(a, b);
        self.entries[self.heap[a] as usize].at = a;
        self.entries[self.heap[b] as usize].at = b;
    }

    fn rise(&mut self, mut at: usize) {
        while at > 0 && self.deadline(at) < self.deadline((at - 1) / 2) {
            self.swap(at, (at - 1) / 2);
            at = (at - 1) / 2;
        }
    }

    fn sink(&mut self, mut at: usize) {
        loop {
            let children = [2 * at + 1, 2 * at + 2].into_iter().filter(|&child| child < self.heap.len());
            let Some(least) = children.min_by_key(|&child| self.deadline(child)) else { return };
            if self.deadline(at) <= self.deadline(least) {
                return;
            }
            self.swap(at, least);
            at = least;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    proptest! {
        #[test]
        fn the_earliest_is_known_and_each_fires_once(steps in prop::collection::vec((0u8..3, 0u64..50), 1..200)) {
            let count = Arc::new(Count::default());
            let waker = Waker::from(count.clone());
            let (mut timers, mut model) = (Timers::with_capacity(4), BTreeMap::new());
            let mut fired = Vec::new();
            for (step, value) in steps {
                match step {
                    0 => {
                        let id = timers.insert(Time::from_nanos(value), &waker);
                        prop_assert_eq!(model.insert(id, value), None);
                    }
                    1 => {
                        if let Some(&id) = model.keys().nth(value as usize % model.len().max(1)) {
                            model.remove(&id);
                            timers.remove(id);
                        } else if let Some(id) = fired.pop() {
                            timers.remove(id);
                        }
                    }
                    _ => {
                        let before = count.0.load(Ordering::SeqCst);
                        timers.expire(Time::from_nanos(value));
                        let late: Vec<_> = model.extract_if(.., |_, deadline| *deadline <= value).collect();
                        prop_assert_eq!(count.0.load(Ordering::SeqCst) - before, late.len());
                        fired.extend(late.into_iter().map(|(id, _)| id));
                    }
                }
                prop_assert_eq!(timers.next().map(Time::as_nanos), model.values().min().copied());
            }
        }
    }
}
