//! Who goes next when several pipelines share a back-end.

use crate::request::Cost;
use crate::worker::Time;

/// A party to a scheduler: one pipeline, or one queue of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FlowId(pub u32);

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
pub trait IoScheduler: Send {
    /// A flow asks for leave to submit one request of that cost.
    fn ask(&mut self, flow: FlowId, cost: Cost, token: u64, now: Time);

    /// Appends to `granted` those who may go now, at most `budget` of them, in the order in which they may go.
    fn dispatch(&mut self, now: Time, budget: usize, granted: &mut Vec<Grant>);

    /// A granted request completed.
    fn complete(&mut self, flow: FlowId, cost: Cost, now: Time);

    /// A flow leaves: its outstanding asks are forgotten, and what it was granted counts as completed.
    fn leave(&mut self, flow: FlowId);

    /// When `dispatch` has something to say without being asked or told anything before, if ever.
    fn next_deadline(&self) -> Option<Time>;
}
