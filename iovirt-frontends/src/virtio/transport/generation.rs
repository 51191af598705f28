//! The configuration space's generation (VIRTIO 1.2, section 2.5.1).

use super::common::Common;
use iovirt_core::sync::{Mutex, PoisonError};
use std::sync::atomic::{AtomicU32, Ordering};

/// As much of the configuration space as the generation covers, and as is saved: no device class has more.
pub(super) const CONFIG_LEN: usize = 256;

/// Counts changes of the configuration space.
#[derive(Debug, Default)]
pub(super) struct Generation {
    value: AtomicU32,
    /// The configuration space when the generation was last read.
    seen: Mutex<Option<[u8; CONFIG_LEN]>>,
}

impl Generation {
    /// The generation, one more than before where the space is not what it was: a change is in the registers before it is
    /// announced, and a driver that reads in between must not take two halves for one.
    pub(super) fn of(&self, common: &Common) -> u32 {
        let mut space = [0; CONFIG_LEN];
        common.device.read_config(common.driver_features(), 0, &mut space);
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.replace(space).is_some_and(|before| before != space) {
            self.advance();
        }
        self.value()
    }

    /// A change was announced.
    pub(super) fn advance(&self) {
        self.value.fetch_add(1, Ordering::SeqCst);
    }

    pub(super) fn value(&self) -> u32 {
        self.value.load(Ordering::SeqCst)
    }

    pub(super) fn restore(&self, value: u32) {
        self.value.store(value, Ordering::SeqCst);
    }
}
