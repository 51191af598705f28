//! The data plane.

use crate::block::finished::Finished;
use iovirt_core::request::block::{BlockCaps, BlockError, BlockOp, BlockRequest};
use iovirt_core::{Completions, Depth, Mode, Queue, WorkerContext};
use std::sync::Arc;

/// The data plane of a [`NullBackend`](super::NullBackend).
#[derive(Debug)]
pub struct NullQueue {
    caps: Arc<BlockCaps>,
    fill: bool,
    finished: Finished,
}

impl NullQueue {
    pub(super) fn new(caps: Arc<BlockCaps>, fill: bool, depth: Depth) -> Self {
        Self { caps, fill, finished: Finished::new(depth) }
    }

    #[inline]
    fn serve(&self, request: &mut BlockRequest) -> Result<(), BlockError> {
        self.caps.check(request)?;
        if self.fill && request.op() == BlockOp::Read {
            let len = request.len();
            // Refused where the list is shorter than the request or may not be written.
            request.sg_mut().fill(0, len, 0).map_err(|_| BlockError::Io)?;
        }
        Ok(())
    }
}

impl Queue<BlockRequest> for NullQueue {
    #[inline]
    fn submit(&mut self, _: &mut WorkerContext<'_>, mut request: BlockRequest) {
        let result = self.serve(&mut request);
        self.finished.push(request, result);
    }

    #[inline]
    fn kick(&mut self, _: &mut WorkerContext<'_>) {}

    #[inline]
    fn poll(&mut self, _: &mut WorkerContext<'_>, done: &mut Completions<BlockRequest>) {
        self.finished.bring_up(done);
    }

    fn drain(&mut self, _: &mut WorkerContext<'_>) {
        self.finished.drain();
    }

    fn resume(&mut self, _: &mut WorkerContext<'_>) {
        self.finished.resume();
    }

    fn mode(&self) -> Mode {
        self.finished.mode()
    }

    fn in_flight(&self) -> usize {
        self.finished.len()
    }
}
