//! The fan-out tier: a stage above several back-ends, of which one request becomes several.
//!
//! One generic wrapper does queues, child requests and their memory, joins, drain, events, saved state and forwarding. An
//! author says how a request becomes children ([`FanOut::on_submit`]), what a child's completion changes
//! ([`FanOut::on_child`]), and what the request comes home with ([`FanOut::finish`]).
//!
//! # What holds by construction
//!
//! * **Depth.** A request has at most one child in flight on each branch, under the request's own tag, and each branch is
//!   opened with the depth of the whole. So a submission cannot fail half way. An author who has more for a branch starts
//!   the next child when the one before came home.
//! * **Memory.** Children have lists of their own, which share the request's memory and keep it. All the same a request
//!   comes home only when its last child has: what a quorum decided is kept until then. Otherwise a guest could use memory
//!   again that a slow branch still reads or writes. The price: a branch that never answers holds up the requests that went
//!   to it, as it would alone.
//! * **Once.** A child that a branch dropped counts as given up, and the request goes on with the others.
//! * **Order.** Requests whose [ranges exclude each other](FanOut::excludes) are done one after another, over all queues.
//!
//! # Example
//!
//! ```
//! use iovirt_core::prelude::*;
//! use iovirt_core::request::block::{BlockCaps, BlockError, BlockOutput, BlockRequest};
//! use iovirt_core::stage::{Child, Children, FanOut, FanOutStage};
//! use std::sync::Arc;
//!
//! /// Two ways to the same disk: what fails on the first is tried on the second.
//! #[derive(Debug)]
//! struct TwoWays;
//!
//! impl FanOutStage<BlockRequest> for TwoWays {
//!     type FanOut = TwoWays;
//!     fn name(&self) -> &str { "two-ways" }
//!     fn caps(&self, ways: &[Arc<BlockCaps>]) -> Result<BlockCaps, AttachError> {
//!         match ways {
//!             [one, two] if one == two => Ok((**one).clone()),
//!             _ => Err(AttachError::new("two-ways", "both ways lead to the same disk")),
//!         }
//!     }
//!     fn fan_out(&self, _: &mut WorkerContext<'_>, _: Depth) -> TwoWays { TwoWays }
//! }
//!
//! impl FanOut<BlockRequest> for TwoWays {
//!     type Parent = BlockOutput;
//!     fn on_submit(
//!         &mut self, _: &mut WorkerContext<'_>, request: &mut BlockRequest, children: &mut Children<'_, BlockRequest>,
//!     ) -> Result<BlockOutput, BlockOutput> {
//!         children.start_same(0, request).map_err(BlockOutput::Failed)?;
//!         Ok(BlockOutput::Done)
//!     }
//!     fn on_child(
//!         &mut self, _: &mut WorkerContext<'_>, outcome: &mut BlockOutput, request: &mut BlockRequest,
//!         child: Child<'_, BlockRequest>, children: &mut Children<'_, BlockRequest>,
//!     ) {
//!         *outcome = child.output;
//!         if child.output == BlockOutput::Failed(BlockError::Io) && child.branch == 0 {
//!             // Refused only where the memory cannot be cut so; then the first answer stands.
//!             let _ = children.start_same(1, request);
//!         }
//!     }
//!     fn finish(&mut self, outcome: BlockOutput, _: &mut BlockRequest) -> BlockOutput { outcome }
//! }
//! ```

mod backend;
mod block;
mod children;
mod orphans;
mod queue;

pub use backend::FannedOut;
pub use block::{admit, common_caps};
pub use children::{Child, Children};
pub use queue::FanOutQueue;

use crate::error::AttachError;
use crate::pipeline::Listeners;
use crate::request::{Depth, Request};
use crate::state::{StageStates, StateError};
use crate::worker::WorkerContext;
use std::any::Any;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

/// Most branches of a fan-out.
pub const MAX_BRANCHES: usize = 64;

/// The data plane of a fan-out stage: one for each queue, on that queue's worker.
pub trait FanOut<R: Request>: 'static {
    /// What is kept of each request until it comes home.
    type Parent: 'static;

    /// The range that the request must have for itself: it waits until no request of this stage that excludes others, on
    /// any queue, is at work in that range, and keeps others out until it comes home. Such requests take a lock once per
    /// batch; the others take none.
    fn excludes(&self, caps: &R::Caps, request: &R) -> Option<Range<u64>> {
        let _ = (caps, request);
        None
    }

    /// A request came down: starts its first children. It comes home when none of its children is in flight any more, which
    /// is at once where none is started.
    ///
    /// # Errors
    /// The output of a request that goes no further; children that were started do not go down.
    fn on_submit(
        &mut self,
        cx: &mut WorkerContext<'_>,
        request: &mut R,
        children: &mut Children<'_, R>,
    ) -> Result<Self::Parent, R::Output>;

    /// A child came home; more may be started.
    fn on_child(
        &mut self,
        cx: &mut WorkerContext<'_>,
        parent: &mut Self::Parent,
        request: &mut R,
        child: Child<'_, R>,
        children: &mut Children<'_, R>,
    );

    /// The request has no child in flight: what it comes home with. It goes up as it came down.
    fn finish(&mut self, parent: Self::Parent, request: &mut R) -> R::Output;
}

/// The control plane of a fan-out stage.
pub trait FanOutStage<R: Request>: Send + Sync + fmt::Debug + 'static {
    /// The data plane.
    type FanOut: FanOut<R>;

    /// The stage's name, as in a description.
    fn name(&self) -> &str;

    /// The capabilities of the whole, from those of the branches in their order; asked again whenever one of them changes.
    ///
    /// # Errors
    /// Where the branches, or their number, are not what the stage needs.
    fn caps(&self, branches: &[Arc<R::Caps>]) -> Result<R::Caps, AttachError>;

    /// A data plane for one queue.
    fn fan_out(&self, cx: &mut WorkerContext<'_>, depth: Depth) -> Self::FanOut;

    /// The stage's control handle.
    fn control(&self) -> Option<Arc<dyn Any + Send + Sync>> {
        None
    }

    /// Who is told of events that the stage itself announces; a stage that announces none has none.
    fn listeners(&self) -> Option<&Listeners> {
        None
    }

    /// Saves what must outlive the process, of the stage itself.
    ///
    /// # Errors
    /// Where it cannot be saved now.
    fn save(&self, states: &mut StageStates) -> Result<(), StateError> {
        let _ = states;
        Ok(())
    }

    /// Takes back what [`FanOutStage::save`] pushed.
    ///
    /// # Errors
    /// Where the state does not fit.
    fn restore(&self, states: &mut StageStates) -> Result<(), StateError> {
        let _ = states;
        Ok(())
    }
}
