//! What is saved of a virtio-blk device beside its registers and rings: the cache mode that the driver chose.

use iovirt_core::state::SavedState;
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct BlkState {
    pub(super) writeback: bool,
}

impl SavedState for BlkState {
    const KIND: &'static str = "virtio-blk";
    const VERSION: u16 = 1;
}
