//! What is saved of a virtio-net device beside its registers and rings: what the driver said on the control queue.

use super::filter::ReceiveMode;
use iovirt_core::state::SavedState;
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct NetState {
    pub(super) mode: ReceiveMode,
    pub(super) active_pairs: u16,
    /// The bits of [`Offloads`](iovirt_core::request::net::Offloads).
    pub(super) guest_offloads: u8,
}

impl SavedState for NetState {
    const KIND: &'static str = "virtio-net";
    const VERSION: u16 = 2;
}
