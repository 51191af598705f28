//! The data plane.

use super::store::Window;
use crate::block::finished::Finished;
use iovirt_core::request::block::{BlockCaps, BlockError, BlockFlags, BlockOp, BlockRequest};
use iovirt_core::{Completions, Depth, Mode, Queue, WorkerContext};
use std::sync::Arc;

/// The data plane of a [`MemoryBackend`](super::MemoryBackend).
#[derive(Debug)]
pub struct MemoryQueue {
    caps: Arc<BlockCaps>,
    window: Window,
    finished: Finished,
}

impl MemoryQueue {
    pub(super) fn new(caps: Arc<BlockCaps>, window: Window, depth: Depth) -> Self {
        Self { caps, window, finished: Finished::new(depth) }
    }

    #[inline]
    fn serve(&mut self, request: &mut BlockRequest) -> Result<(), BlockError> {
        self.caps.check(request)?;
        let (offset, len) = (request.offset(), request.len());
        let result = match request.op() {
            BlockOp::Read => self.window.read(offset, len, request.sg_mut()),
            BlockOp::Write => self.window.write(offset, len, request.sg()),
            BlockOp::Flush => Ok(()),
            BlockOp::WriteZeroes if !request.flags().contains(BlockFlags::UNMAP) => {
                self.window.zero(offset, len)
            }
            BlockOp::Discard | BlockOp::WriteZeroes => self.window.release(offset, len),
        };
        // The range is within the disk; what is left is a list that is shorter than the request or may not be written.
        result.map_err(|_| BlockError::Io)
    }
}

impl Queue<BlockRequest> for MemoryQueue {
    #[inline]
    fn submit(&mut self, _: &mut WorkerContext<'_>, mut request: BlockRequest) {
        let result = self.serve(&mut request);
        self.finished.push(request, result);
    }

    #[inline]
    fn kick(&mut self, cx: &mut WorkerContext<'_>) {
        if self.finished.len() > 0 {
            // The copies took their time inside this turn; whoever measures above sees it.
            cx.tick();
        }
    }

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
