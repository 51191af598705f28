//! Interrupts: which vector belongs to what, and the line where there are no vectors.

use super::registers::{INT_CONFIG, INT_USED, NO_VECTOR};
use crate::pci::{LineInput, Msix};
use crate::virtio::transport::generation::Generation;
use crate::virtio::{ConfigListener, VirtioNotify};
use iovirt_core::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::sync::atomic::{AtomicU16, Ordering};

/// What workers and vCPUs share. With MSI-X an interrupt takes its vector's lock; without, the lock of the line.
#[derive(Debug)]
pub(super) struct PciNotify {
    pub(super) msix: Arc<Msix>,
    pub(super) generation: Generation,
    config_vector: AtomicU16,
    queue_vectors: Box<[AtomicU16]>,
    line: Mutex<Line>,
}

/// The interrupt that is not a message.
#[derive(Debug, Default)]
struct Line {
    input: Option<LineInput>,
    status: u8,
    /// The guest has switched the pin off.
    disabled: bool,
}

impl Line {
    fn settle(&self, msix: &Msix) {
        let Some(input) = &self.input else { return };
        if self.status != 0 && !self.disabled && !msix.is_enabled() {
            input.assert();
        } else {
            input.deassert();
        }
    }
}

impl PciNotify {
    pub(super) fn new(msix: Msix, queues: usize) -> Self {
        Self {
            msix: Arc::new(msix),
            generation: Generation::default(),
            config_vector: AtomicU16::new(NO_VECTOR),
            queue_vectors: (0..queues).map(|_| AtomicU16::new(NO_VECTOR)).collect(),
            line: Mutex::default(),
        }
    }

    fn line(&self) -> MutexGuard<'_, Line> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn connect(&self, input: LineInput) {
        let mut line = self.line();
        line.input = Some(input);
        line.settle(&self.msix);
    }

    /// The guest may have switched the pin, or messages.
    pub(super) fn set_pin(&self, pin: Pin) {
        let mut line = self.line();
        line.disabled = pin == Pin::Disabled;
        line.settle(&self.msix);
    }

    pub(super) fn status(&self) -> u8 {
        self.line().status
    }

    /// Reading the status clears it and lets go of the line (VIRTIO 1.2, section 4.1.4.5.1).
    pub(super) fn take_status(&self) -> u8 {
        let mut line = self.line();
        let status = std::mem::take(&mut line.status);
        line.settle(&self.msix);
        status
    }

    pub(super) fn config_vector(&self) -> u16 {
        self.config_vector.load(Ordering::Relaxed)
    }

    pub(super) fn set_config_vector(&self, vector: u16) {
        self.config_vector.store(self.possible(vector), Ordering::Relaxed);
    }

    pub(super) fn queue_vector(&self, queue: usize) -> u16 {
        self.queue_vectors.get(queue).map_or(NO_VECTOR, |vector| vector.load(Ordering::Relaxed))
    }

    pub(super) fn set_queue_vector(&self, queue: usize, vector: u16) {
        if let Some(own) = self.queue_vectors.get(queue) {
            own.store(self.possible(vector), Ordering::Relaxed);
        }
    }

    /// A vector that does not exist reads back as none (section 4.1.5.1.2.1).
    fn possible(&self, vector: u16) -> u16 {
        if usize::from(vector) < self.msix.len() { vector } else { NO_VECTOR }
    }

    pub(super) fn queue_vectors(&self) -> Vec<u16> {
        (0..self.queue_vectors.len()).map(|queue| self.queue_vector(queue)).collect()
    }

    pub(super) fn restore_status(&self, status: u8) {
        let mut line = self.line();
        line.status = status;
        line.settle(&self.msix);
    }

    fn raise(&self, vector: u16, bit: u8) {
        if self.msix.is_enabled() {
            // None is no vector of the table's either.
            self.msix.trigger(vector);
        } else {
            let mut line = self.line();
            line.status |= bit;
            line.settle(&self.msix);
        }
    }
}

/// Whether a function may use its pin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pin {
    Enabled,
    Disabled,
}

impl VirtioNotify for PciNotify {
    fn used(&self, queue: u16) {
        self.raise(self.queue_vector(queue.into()), INT_USED);
    }

    fn config(&self) {
        self.raise(self.config_vector(), INT_CONFIG);
    }

    fn reset(&self) {
        self.config_vector.store(NO_VECTOR, Ordering::Relaxed);
        self.queue_vectors.iter().for_each(|vector| vector.store(NO_VECTOR, Ordering::Relaxed));
        self.take_status();
    }
}

impl ConfigListener for PciNotify {
    fn config_changed(&self) {
        self.generation.advance();
        self.config();
    }
}
