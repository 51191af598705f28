//! First come, first served.

use iovirt_core::scheduler::{FlowId, Grant, IoScheduler, Weight};
use iovirt_core::{Cost, Time};
use std::collections::{BTreeMap, VecDeque};
use std::num::NonZeroUsize;
use std::ops::Range;

/// Grants in the order in which was asked, with at most a given number of requests under way.
///
/// The limit keeps the queue here, where it is in order, and not in the device. It is fair to requests, not to flows: a flow
/// that asks more often gets more. Cost and time do not matter to it.
///
/// It holds an entry for each outstanding ask, which is bounded by the depths of its flows' queues, and a number for each
/// flow that has requests under way. Once these have grown to their size it allocates for a flow's first request under way
/// only.
#[derive(Clone, Debug)]
pub struct Fifo {
    limit: NonZeroUsize,
    waiting: VecDeque<Grant>,
    /// Granted and not completed, by flow; no entry is zero.
    under_way: BTreeMap<FlowId, usize>,
    total: usize,
}

impl Fifo {
    /// A scheduler that has at most `limit` requests under way.
    pub fn new(limit: NonZeroUsize) -> Self {
        Self { limit, waiting: VecDeque::new(), under_way: BTreeMap::new(), total: 0 }
    }

    /// How many asks wait to be granted.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// How many requests were granted and have not completed.
    pub fn under_way(&self) -> usize {
        self.total
    }
}

impl IoScheduler for Fifo {
    /// Ignored.
    fn set_weight(&mut self, _: FlowId, _: Weight) {}

    fn ask(&mut self, flow: FlowId, _: Cost, token: u64, _: Time) {
        self.waiting.push_back(Grant { flow, token });
    }

    fn dispatch(&mut self, _: Time, budget: usize, granted: &mut Vec<Grant>) {
        let room = self.limit.get().saturating_sub(self.total);
        let count = room.min(budget).min(self.waiting.len());
        self.total += count;
        for grant in self.waiting.drain(..count) {
            *self.under_way.entry(grant.flow).or_default() += 1;
            granted.push(grant);
        }
    }

    fn release(&mut self, flow: FlowId, tokens: Range<u64>, _: Time, granted: &mut Vec<Grant>) {
        let before = granted.len();
        self.waiting.retain(|ask| {
            let released = ask.flow == flow && tokens.contains(&ask.token);
            if released {
                granted.push(*ask);
            }
            !released
        });
        let count = granted.len() - before;
        if count > 0 {
            *self.under_way.entry(flow).or_default() += count;
            self.total += count;
        }
    }

    fn withdraw(&mut self, flow: FlowId, tokens: Range<u64>) {
        self.waiting.retain(|ask| ask.flow != flow || !tokens.contains(&ask.token));
    }

    /// A completion of a flow that has nothing under way, because it left, is ignored.
    fn complete(&mut self, flow: FlowId, _: Cost, _: Time) {
        let Some(count) = self.under_way.get_mut(&flow) else { return };
        *count -= 1;
        if *count == 0 {
            self.under_way.remove(&flow);
        }
        self.total -= 1;
    }

    fn leave(&mut self, flow: FlowId) {
        self.waiting.retain(|ask| ask.flow != flow);
        self.total -= self.under_way.remove(&flow).unwrap_or(0);
    }

    /// Never: nothing here waits for a time.
    fn next_deadline(&self) -> Option<Time> {
        None
    }
}
