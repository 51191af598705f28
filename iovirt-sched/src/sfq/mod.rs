//! Start-time fair queueing with a depth.

#[cfg(test)]
mod tests;

use crate::CostModel;
use iovirt_core::scheduler::{FlowId, Grant, IoScheduler, Weight};
use iovirt_core::{Cost, Time};
use std::cmp::Reverse;
use std::collections::binary_heap::PeekMut;
use std::collections::{BinaryHeap, VecDeque};
use std::num::NonZeroUsize;
use std::ops::Range;

/// How an [`Sfq`] is set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SfqConfig {
    /// Requests under way at once. More lets a device work on more at a time; fewer keeps the queue here, where it is fair.
    pub depth: NonZeroUsize,
    /// What a request costs.
    pub cost: CostModel,
}

impl Default for SfqConfig {
    /// 32 requests under way.
    fn default() -> Self {
        Self { depth: NonZeroUsize::new(32).unwrap_or(NonZeroUsize::MIN), cost: CostModel::default() }
    }
}

/// Start-time fair queueing with a depth, SFQ(D): each flow gets of what there is in proportion to its weight, measured in
/// the cost of its requests, with at most D requests under way.
///
/// From Jin, Chase, Kaur: "Interposed proportional sharing for a storage service utility", SIGMETRICS 2004, which extends Goyal,
/// Vin, Cheng: "Start-time fair queueing", SIGCOMM 1996. A request's *start tag* is the greater of the virtual time when it was
/// asked for and the *finish tag* of the flow's request before it; its finish tag is later by its cost divided by the
/// flow's weight. The least start tag goes first, and is the virtual time from then on.
///
/// * **Shares.** Of two flows that both wait all the time, what they were granted, each divided by its weight, differs by
///   no more than one request of each: `c_f/w_f + c_g/w_g` with the largest costs (SIGCOMM 1996, theorem 1). What was completed
///   differs by `(D + 1)` times that at most (SIGMETRICS 2004, theorem 1).
/// * **Idle.** A flow that asked for nothing saves up nothing: it begins at the virtual time.
/// * **Work.** Nobody waits while fewer than D requests are under way.
/// * **Cost.** An operation takes time in the logarithm of the number of flows, and allocates nothing once queues have grown to
///   the size of what waits.
#[derive(Clone, Debug)]
pub struct Sfq {
    config: SfqConfig,
    flows: Vec<Option<Flow>>,
    /// Flows with requests that wait, the least start tag first. An entry counts where its number is the flow's.
    heads: BinaryHeap<Reverse<Head>>,
    virtual_time: Tag,
    /// The greatest finish tag of what was granted.
    finished: Tag,
    numbers: u64,
    waiting: usize,
    under_way: usize,
}

/// Virtual time, in cost by weight with 32 binary places. It does not overflow: a request adds less than 2^64.
type Tag = u128;

/// The start tag of a flow's first request that waits, a number that breaks ties in the order in which it came to be the
/// first, and the flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Head {
    start: Tag,
    number: u64,
    flow: u32,
}

#[derive(Clone, Debug)]
struct Flow {
    /// What a unit of cost adds to a tag.
    step: u64,
    /// The finish tag of the last request that was granted.
    finish: Tag,
    /// The start tag of the first that waits. Those behind it need none: each starts where the one before it finishes.
    start: Tag,
    /// The number of its entry among the heads; zero where nothing waits.
    number: u64,
    asks: VecDeque<Ask>,
    under_way: usize,
}

#[derive(Clone, Copy, Debug)]
struct Ask {
    token: u64,
    units: u32,
}

impl Flow {
    fn new() -> Self {
        Self {
            step: step(Weight::DEFAULT),
            finish: 0,
            start: 0,
            number: 0,
            asks: VecDeque::new(),
            under_way: 0,
        }
    }

    fn length(&self, ask: Ask) -> Tag {
        // Below 2^32 times 2^32.
        Tag::from(u64::from(ask.units) * self.step)
    }
}

/// Off by less than a part in 2^18, as weights are below 2^14.
fn step(weight: Weight) -> u64 {
    (u64::from(u32::MAX) + 1) / u64::from(weight.get())
}

impl Sfq {
    /// A scheduler without flows.
    pub fn new(config: SfqConfig) -> Self {
        Self {
            config,
            flows: Vec::new(),
            heads: BinaryHeap::new(),
            virtual_time: 0,
            finished: 0,
            numbers: 0,
            waiting: 0,
            under_way: 0,
        }
    }

    /// How many asks wait to be granted.
    pub fn waiting(&self) -> usize {
        self.waiting
    }

    /// How many requests were granted and have not completed.
    pub fn under_way(&self) -> usize {
        self.under_way
    }

    fn flow(&mut self, flow: FlowId) -> &mut Flow {
        let index = flow.0 as usize;
        if index >= self.flows.len() {
            self.flows.resize_with(index + 1, || None);
        }
        self.flows[index].get_or_insert_with(Flow::new)
    }

    fn known(&mut self, flow: FlowId) -> Option<&mut Flow> {
        self.flows.get_mut(flow.0 as usize)?.as_mut()
    }

    /// Enters a flow's first request among the heads, with its start tag.
    fn enter(&mut self, flow: FlowId, start: Tag) {
        self.numbers += 1;
        let number = self.numbers;
        let state = self.flow(flow);
        (state.start, state.number) = (start, number);
        if self.heads.len() > 2 * self.flows.len() + 8 {
            let flows = &self.flows;
            self.heads.retain(|Reverse(head)| is_current(flows, head));
        }
        self.heads.push(Reverse(Head { start, number, flow: flow.0 }));
    }

    /// Grants the first request of the flow that is first; `None` where nobody waits.
    fn grant(&mut self) -> Option<Grant> {
        loop {
            let mut top = self.heads.peek_mut()?;
            let Head { start, number, flow } = top.0;
            let state = self.flows.get_mut(flow as usize).and_then(Option::as_mut);
            let first = state.filter(|state| state.number == number).and_then(|state| {
                let ask = state.asks.pop_front()?;
                Some((state, ask))
            });
            let Some((state, ask)) = first else {
                PeekMut::pop(top);
                continue;
            };
            let finish = start + state.length(ask);
            state.finish = finish;
            state.under_way += 1;
            if state.asks.is_empty() {
                state.number = 0;
                PeekMut::pop(top);
            } else {
                self.numbers += 1;
                (state.start, state.number) = (finish, self.numbers);
                // In place: one way down the heap instead of one down and one up.
                *top = Reverse(Head { start: finish, number: self.numbers, flow });
            }
            self.virtual_time = start;
            self.finished = self.finished.max(finish);
            self.waiting -= 1;
            self.under_way += 1;
            return Some(Grant { flow: FlowId(flow), token: ask.token });
        }
    }

    /// Where nothing is left to do, virtual time goes on to the end of what was done: nobody begins with a debt.
    fn settle(&mut self) {
        if self.waiting == 0 && self.under_way == 0 {
            self.virtual_time = self.finished;
        }
    }
}

fn is_current(flows: &[Option<Flow>], head: &Head) -> bool {
    flows.get(head.flow as usize).and_then(Option::as_ref).is_some_and(|flow| flow.number == head.number)
}

impl IoScheduler for Sfq {
    /// Holds for requests that are granted from now on, also for those that wait already.
    fn set_weight(&mut self, flow: FlowId, weight: Weight) {
        self.flow(flow).step = step(weight);
    }

    fn ask(&mut self, flow: FlowId, cost: Cost, token: u64, _: Time) {
        let units = self.config.cost.units(cost);
        let virtual_time = self.virtual_time;
        self.waiting += 1;
        let state = self.flow(flow);
        state.asks.push_back(Ask { token, units });
        if state.asks.len() == 1 {
            let start = state.finish.max(virtual_time);
            self.enter(flow, start);
        }
    }

    fn dispatch(&mut self, _: Time, budget: usize, granted: &mut Vec<Grant>) {
        let room = self.config.depth.get().saturating_sub(self.under_way).min(budget);
        for _ in 0..room {
            match self.grant() {
                Some(grant) => granted.push(grant),
                None => break,
            }
        }
    }

    fn release(&mut self, flow: FlowId, tokens: Range<u64>, _: Time, granted: &mut Vec<Grant>) {
        let before = granted.len();
        let Some(state) = self.known(flow) else { return };
        let (step, mut at) = (state.step, state.start);
        state.asks.retain(|ask| {
            let released = tokens.contains(&ask.token);
            if released {
                at += Tag::from(u64::from(ask.units) * step);
                granted.push(Grant { flow, token: ask.token });
            }
            !released
        });
        let count = granted.len() - before;
        if count == 0 {
            return;
        }
        // Virtual time stays: these went out of turn, and others must not be made to wait for what they cost.
        state.finish = at;
        state.under_way += count;
        state.number = 0;
        let waits = !state.asks.is_empty();
        self.finished = self.finished.max(at);
        self.waiting -= count;
        self.under_way += count;
        if waits {
            self.enter(flow, at);
        }
    }

    fn withdraw(&mut self, flow: FlowId, tokens: Range<u64>) {
        let Some(state) = self.known(flow) else { return };
        let before = state.asks.len();
        state.asks.retain(|ask| !tokens.contains(&ask.token));
        let gone = before - state.asks.len();
        // Who is first now starts where the one that is gone would have: its flow was charged nothing.
        if state.asks.is_empty() {
            state.number = 0;
        }
        self.waiting -= gone;
        self.settle();
    }

    /// A completion of a flow that has nothing under way, because it left, is ignored.
    fn complete(&mut self, flow: FlowId, _: Cost, _: Time) {
        let Some(state) = self.known(flow).filter(|state| state.under_way > 0) else { return };
        state.under_way -= 1;
        self.under_way -= 1;
        self.settle();
    }

    fn leave(&mut self, flow: FlowId) {
        let Some(state) = self.flows.get_mut(flow.0 as usize).and_then(Option::take) else { return };
        self.waiting -= state.asks.len();
        self.under_way -= state.under_way;
        self.settle();
    }

    /// Never: nothing here waits for a time.
    fn next_deadline(&self) -> Option<Time> {
        None
    }
}
