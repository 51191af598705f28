//! Force unit access where the back-end lacks it: a write, and then a flush.

use super::hook::{Flow, Hook, HookStage, HookedQueue, Return};
use super::slots::SlotTable;
use crate::backend::Backend;
use crate::error::{AttachError, BackendError};
use crate::pipeline::{BoxBackend, BoxQueue};
use crate::request::block::{BlockCaps, BlockFlags, BlockOp, BlockOutput, BlockRequest};
use crate::request::{Completion, Depth, Request};
use crate::worker::WorkerContext;

/// Does what [`BlockFlags::FUA`] asks for by a flush after the write. The request keeps its tag over both steps and
/// completes once the flush has.
#[derive(Clone, Copy, Debug)]
pub struct EmulateFua;

/// The data plane of [`EmulateFua`].
#[derive(Debug)]
pub struct FuaHook {
    /// The operation that was asked for, of each request that has come to its second step or will.
    pending: SlotTable<Step>,
}

#[derive(Clone, Copy, Debug)]
struct Step {
    op: BlockOp,
    flags: BlockFlags,
    flushing: bool,
}

impl HookStage<BlockRequest> for EmulateFua {
    type Hook = FuaHook;

    fn name(&self) -> &'static str {
        "emulate-fua"
    }

    fn caps(&self, below: &BlockCaps) -> Result<BlockCaps, AttachError> {
        Ok(BlockCaps { fua: true, ..below.clone() })
    }

    fn hook(&self, _: &mut WorkerContext<'_>, depth: Depth) -> FuaHook {
        FuaHook { pending: SlotTable::new(depth) }
    }
}

impl Hook<BlockRequest> for FuaHook {
    fn on_submit(&mut self, _: &mut WorkerContext<'_>, request: &mut BlockRequest) -> Flow<BlockOutput> {
        if request.flags().contains(BlockFlags::FUA) {
            let step = Step { op: request.op(), flags: request.flags(), flushing: false };
            self.pending.insert(request.tag(), step);
            request.set_op(step.op, step.flags - BlockFlags::FUA);
        } else if !self.pending.is_empty() {
            // A stage below lost the former request of that name.
            self.pending.take(request.tag());
        }
        Flow::Pass
    }

    fn on_complete(
        &mut self,
        _: &mut WorkerContext<'_>,
        completion: &mut Completion<BlockRequest>,
    ) -> Return {
        if self.pending.is_empty() {
            return Return::Pass;
        }
        let tag = completion.request.tag();
        let Some(mut step) = self.pending.take(tag) else { return Return::Pass };
        if step.flushing || BlockRequest::is_failure(&completion.output) {
            completion.request.set_op(step.op, step.flags);
            return Return::Pass;
        }
        step.flushing = true;
        self.pending.insert(tag, step);
        completion.request.set_op(BlockOp::Flush, BlockFlags::empty());
        Return::Again
    }
}

/// Opens a block back-end so that [`BlockFlags::FUA`] is honoured whatever is below: what every block front-end calls.
///
/// # Errors
/// As [`Backend::open`].
pub fn open_with_fua(
    backend: &BoxBackend<BlockRequest>,
    cx: &mut WorkerContext<'_>,
    depth: Depth,
) -> Result<BoxQueue<BlockRequest>, BackendError> {
    let caps = backend.caps();
    let below = backend.open(cx, depth)?;
    if !caps.needs_fua_emulated() {
        return Ok(below);
    }
    Ok(Box::new(HookedQueue::new(EmulateFua.hook(cx, depth), below, depth)))
}
