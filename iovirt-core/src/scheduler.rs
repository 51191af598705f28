//! Who goes next when several pipelines share a back-end.

use crate::request::Cost;
use crate::worker::Time;
use std::num::NonZeroU32;
use std::ops::Range;

/// A party to a scheduler: one pipeline, whatever number of queues it has. Whoever runs the scheduler chooses the numbers,
/// small and dense, so that a scheduler can keep what it knows of a flow in an array.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FlowId(pub u32);

/// How much of what is shared a flow gets, in proportion to the others: 1 to [`Weight::MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Weight(NonZeroU32);

impl Weight {
    /// The largest weight.
    pub const MAX: u32 = 10_000;
    /// What a flow has that was given none.
    pub const DEFAULT: Self = Self(NonZeroU32::new(100).expect("not zero"));

    /// A weight; `None` where it is zero or above [`Weight::MAX`].
    pub const fn new(weight: u32) -> Option<Self> {
        match NonZeroU32::new(weight) {
            Some(weight) if weight.get() <= Self::MAX => Some(Self(weight)),
            _ => None,
        }
    }

    /// The weight as a number.
    pub const fn get(self) -> u32 {
        self.0.get()
    }
}

impl Default for Weight {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// Permission for one request to go down now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grant {
    /// Whose request.
    pub flow: FlowId,
    /// Which request: the number its owner gave to [`IoScheduler::ask`].
    pub token: u64,
}

/// Decides who goes next. It **grants**: the request itself never leaves its worker, so a scheduler is not generic over
/// the family of requests and needs no memory of theirs.
///
/// A scheduler is a pure algorithm: it has no thread, no clock and no lock of its own. Whoever runs it injects the time.
///
/// A flow is known from the first call that names it until it [leaves](IoScheduler::leave). A flow may have several queues;
/// each then gives its tokens from a range of its own, by which it is let go or taken back alone.
pub trait IoScheduler: Send {
    /// A flow's share from now on; a scheduler that knows no shares ignores it.
    fn set_weight(&mut self, flow: FlowId, weight: Weight);

    /// A flow asks for leave to submit one request of that cost.
    fn ask(&mut self, flow: FlowId, cost: Cost, token: u64, now: Time);

    /// Appends to `granted` those who may go now, at most `budget` of them, in the order in which they may go.
    fn dispatch(&mut self, now: Time, budget: usize, granted: &mut Vec<Grant>);

    /// Grants all that the flow asked for with these tokens, past every limit: a queue that drains lets its requests go. They
    /// are under way like any other, and are charged to the flow.
    fn release(&mut self, flow: FlowId, tokens: Range<u64>, now: Time, granted: &mut Vec<Grant>);

    /// Forgets what the flow asked for with these tokens and was not granted: a queue is gone.
    fn withdraw(&mut self, flow: FlowId, tokens: Range<u64>);

    /// A granted request completed. Its cost is as it was asked for, or nothing where it is not known any more, as of a
    /// request that was lost.
    fn complete(&mut self, flow: FlowId, cost: Cost, now: Time);

    /// A flow leaves: its outstanding asks are forgotten, and what it was granted counts as completed.
    fn leave(&mut self, flow: FlowId);

    /// When `dispatch` has something to say without being asked or told anything before, if ever.
    fn next_deadline(&self) -> Option<Time>;
}
