//! The data plane.

use super::store::Window;
use crate::block::at_once::{AtOnceQueue, Serve};
use iovirt_core::request::block::{BlockCaps, BlockError, BlockFlags, BlockOp, BlockRequest};
use std::sync::Arc;

/// The data plane of a [`MemoryBackend`](super::MemoryBackend).
pub type MemoryQueue = AtOnceQueue<Copying>;

/// Copies between a request and the store.
#[derive(Debug)]
pub struct Copying {
    pub(super) caps: Arc<BlockCaps>,
    pub(super) window: Window,
}

impl Serve for Copying {
    const TAKES_TIME: bool = true;

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
