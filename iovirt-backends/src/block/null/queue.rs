//! The data plane.

use crate::block::at_once::{AtOnceQueue, Serve};
use iovirt_core::request::block::{BlockCaps, BlockError, BlockOp, BlockRequest};
use std::sync::Arc;

/// The data plane of a [`NullBackend`](super::NullBackend).
pub type NullQueue = AtOnceQueue<Nothing>;

/// Does nothing with a request, but for the zeroes that it may fill reads with.
#[derive(Debug)]
pub struct Nothing {
    pub(super) caps: Arc<BlockCaps>,
    pub(super) fill: bool,
}

impl Serve for Nothing {
    const TAKES_TIME: bool = false;

    #[inline]
    fn serve(&mut self, request: &mut BlockRequest) -> Result<(), BlockError> {
        self.caps.check(request)?;
        if self.fill && request.op() == BlockOp::Read {
            let len = request.len();
            // Refused where the list is shorter than the request or may not be written.
            request.sg_mut().fill(0, len, 0).map_err(|_| BlockError::Io)?;
        }
        Ok(())
    }
}
