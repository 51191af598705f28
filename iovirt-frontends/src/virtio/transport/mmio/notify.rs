//! Interrupt status and configuration generation: what workers and vCPUs share without a lock.

use super::registers::{INT_CONFIG, INT_USED};
use crate::virtio::transport::generation::Generation;
use crate::virtio::{ConfigListener, VirtioNotify};
use iovirt_core::irq::Interrupt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

#[derive(Debug)]
pub(super) struct MmioNotify {
    status: AtomicU32,
    pub(super) generation: Generation,
    interrupt: Arc<dyn Interrupt>,
}

impl MmioNotify {
    pub(super) fn new(interrupt: Arc<dyn Interrupt>) -> Self {
        Self { status: AtomicU32::new(0), generation: Generation::default(), interrupt }
    }

    pub(super) fn status(&self) -> u32 {
        self.status.load(Ordering::SeqCst)
    }

    pub(super) fn acknowledge(&self, bits: u32) {
        self.status.fetch_and(!bits, Ordering::SeqCst);
    }

    pub(super) fn restore(&self, status: u32, generation: u32) {
        self.status.store(status, Ordering::SeqCst);
        self.generation.restore(generation);
        // An interrupt that was on its way when the state was saved may have been lost with it.
        if status != 0 {
            self.interrupt.trigger();
        }
    }

    fn raise(&self, bit: u32) {
        self.status.fetch_or(bit, Ordering::SeqCst);
        self.interrupt.trigger();
    }
}

impl VirtioNotify for MmioNotify {
    fn used(&self, _: u16) {
        self.raise(INT_USED);
    }

    fn config(&self) {
        self.raise(INT_CONFIG);
    }

    fn reset(&self) {
        self.status.store(0, Ordering::SeqCst);
    }
}

impl ConfigListener for MmioNotify {
    fn config_changed(&self) {
        self.generation.advance();
        self.config();
    }
}
