//! What is saved of the registers that only virtio-mmio has.

use iovirt_core::state::SavedState;
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct MmioState {
    pub(super) device_features_sel: u32,
    pub(super) driver_features_sel: u32,
    pub(super) queue_sel: u32,
    pub(super) interrupt_status: u32,
    pub(super) config_generation: u32,
}

impl SavedState for MmioState {
    const KIND: &'static str = "virtio-mmio";
    const VERSION: u16 = 1;
}
