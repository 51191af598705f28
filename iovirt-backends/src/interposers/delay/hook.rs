//! The data plane: a heap of deadlines.

use super::control::{DelayControl, Settings};
use crate::interposers::chance::Chance;
use crate::interposers::live::LiveQueue;
use iovirt_core::stage::{Flow, Held, Hook};
use iovirt_core::{Depth, Request, Tag, Time, WorkerContext};
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// The data plane of a [`Delay`](super::Delay) stage.
#[derive(Debug)]
pub struct DelayHook {
    live: LiveQueue<Settings>,
    chance: Chance,
    waiting: Waiting,
    /// By kind: the latest time that one waits for; zero where none waits.
    latest: Box<[Time]>,
}

/// Who waits for which time. A drain lets requests go without asking the hook, so the heap may hold entries of requests that
/// are gone; an entry counts only with the number that its tag was last held under.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) heap: BinaryHeap<Reverse<(Time, u64, Tag)>>,
    numbers: Box<[u64]>,
    next: u64,
}

impl Waiting {
    pub(super) fn new(depth: Depth) -> Self {
        let heap = BinaryHeap::with_capacity(2 * depth.get());
        Self { heap, numbers: vec![0; depth.get()].into(), next: 0 }
    }

    /// False where the tag is beyond the depth, which is the client's breach.
    pub(super) fn insert(&mut self, tag: Tag, deadline: Time) -> bool {
        let Some(number) = self.numbers.get_mut(tag.index()) else { return false };
        self.next += 1;
        *number = self.next;
        if self.heap.len() == 2 * self.numbers.len() {
            // No tag has more than one entry that counts, so this makes room for as many entries as there are tags.
            let numbers = &self.numbers;
            self.heap.retain(|Reverse((_, number, tag))| numbers[tag.index()] == *number);
        }
        self.heap.push(Reverse((deadline, self.next, tag)));
        true
    }

    /// Takes out the next whose time has come; otherwise says when there will be one.
    fn due(&mut self, now: Time, held: impl Fn(Tag) -> bool) -> Due {
        while let Some(&Reverse((deadline, number, tag))) = self.heap.peek() {
            let counts = self.numbers[tag.index()] == number && held(tag);
            if counts && deadline > now {
                return Due::Later(deadline);
            }
            self.heap.pop();
            if counts {
                return Due::Now(tag);
            }
        }
        Due::Never
    }
}

enum Due {
    Now(Tag),
    Later(Time),
    Never,
}

impl DelayHook {
    pub(super) fn new<R: Request>(control: &DelayControl, cx: &WorkerContext<'_>, depth: Depth) -> Self {
        let live = control.live.open(cx);
        let chance = Chance::new(live.settings().config.seed, live.number());
        let latest = vec![Time::ZERO; R::KINDS.len()].into();
        Self { live, chance, waiting: Waiting::new(depth), latest }
    }

    /// Requests that must keep their order wait at least as long as those before them, also where the settings have changed.
    fn behind_others(&mut self, kind: usize, deadline: Option<Time>) -> Option<Time> {
        let latest = &mut self.latest[kind];
        let deadline = deadline.max(Some(*latest).filter(|latest| *latest > Time::ZERO));
        *latest = deadline.unwrap_or(Time::ZERO);
        deadline
    }
}

impl<R: Request> Hook<R> for DelayHook {
    #[inline]
    fn on_submit(&mut self, cx: &mut WorkerContext<'_>, request: &mut R) -> Flow<R::Output> {
        self.live.refresh();
        let Settings { config, mask } = self.live.settings();
        let waits = mask.has(request.kind()) && !(config.time.is_zero() && config.jitter.is_zero());
        let mut deadline = waits.then(|| {
            let jitter = u64::try_from(config.jitter.as_nanos()).unwrap_or(u64::MAX);
            let more = self.chance.below(jitter.saturating_add(1));
            cx.now() + config.time + std::time::Duration::from_nanos(more)
        });
        if R::IN_ORDER {
            deadline = self.behind_others(request.kind(), deadline);
        }
        match deadline {
            Some(deadline) if self.waiting.insert(request.tag(), deadline) => Flow::Hold,
            _ => Flow::Pass,
        }
    }

    fn on_poll(&mut self, cx: &mut WorkerContext<'_>, held: &mut Held<'_, R>) {
        if self.live.take_release() {
            held.release_all();
        }
        loop {
            match self.waiting.due(cx.now(), |tag| held.contains(tag)) {
                Due::Now(tag) => held.release(tag),
                Due::Later(deadline) => return cx.wake_at(deadline),
                Due::Never => break,
            }
        }
        // Nobody waits any more, also where it was a drain that let all go.
        self.latest.fill(Time::ZERO);
    }
}
