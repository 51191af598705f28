//! How the stage is set up.

use crate::interposers::Kinds;

/// How a [`Fault`](super::Fault) stage is set up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FaultConfig {
    /// The requests that it may strike.
    pub fail: Kinds,
    /// What becomes of a request that is struck.
    pub kind: FaultKind,
    /// Strikes every so-many-th of these requests, counted on each queue; 0 for none.
    pub every: u64,
    /// Strikes each of these requests with this probability in thousandths, 0 to 1000.
    pub permille: u32,
    /// Where chance begins.
    pub seed: u64,
}

impl Default for FaultConfig {
    /// Strikes nothing.
    fn default() -> Self {
        Self { fail: Kinds::all(), kind: FaultKind::Error, every: 0, permille: 0, seed: 1 }
    }
}

/// What becomes of a request that is struck.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// It fails as by the medium ([`Request::failed`](iovirt_core::Request::failed)), and does not reach what is below.
    Error,
    /// It stays unanswered until the queue drains or the control handle lets it go; then it goes on.
    Stall,
    /// It stays unanswered until the control handle lets it go; a drain does not, so the queue does not come to rest before: what a
    /// back-end looks like that is stuck.
    Hang,
    /// It is dropped without an answer, which **breaks the contract**: for tests of whoever stands above.
    Drop,
}
