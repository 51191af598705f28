//! The function: configuration space, registers and life cycle.

use super::common_registers::Selectors;
use super::config_space::{PIN, Space};
use super::notify::{PciNotify, Pin};
#[allow(clippy::wildcard_imports, reason = "the registers of one table")]
use super::registers::*;
use super::state::PciState;
use crate::pci::{InterruptStatus, IntxPin, LineInput, Msix, PciFunction};
use crate::virtio::transport::common::{BusMaster, Common, TransportError, TransportKind, TransportState};
use crate::virtio::{ConfigListener, QueueCounters, VirtioDevice, VirtioNotify};
use iovirt_core::WorkerHandle;
use iovirt_core::dma::DmaSpace;
use iovirt_core::doorbell::{Doorbell, DoorbellSpec};
use iovirt_core::frontend::{Access, Frontend, RegionSpec, Ticket};
use iovirt_core::irq::MsiSink;
use iovirt_core::pipeline::Stages;
use iovirt_core::state::{SavedState, StateError};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A virtio device behind a PCI function.
#[derive(Debug)]
pub struct PciDevice {
    pub(super) common: Common,
    pub(super) notify: Arc<PciNotify>,
    pub(super) selectors: Selectors,
    space: Mutex<Space>,
}

impl PciDevice {
    /// Puts a device behind a PCI function, with a vector for each queue and one for changes of its configuration. Its queues
    /// are spread over `workers`, which open the pipeline in their next turn; a queue that cannot be opened leaves a line
    /// in the log and a device that needs a reset.
    ///
    /// # Errors
    /// Where there is no worker, or the host has no descriptor left.
    pub fn new(
        device: Arc<dyn VirtioDevice>,
        space: &DmaSpace,
        messages: Arc<dyn MsiSink>,
        workers: &[WorkerHandle],
    ) -> Result<Self, TransportError> {
        let queues = device.queue_max_sizes().len();
        let msix = Msix::new(queues + 1, messages)?;
        let config_space = Space::new(device.device_id(), &msix)?;
        let notify = Arc::new(PciNotify::new(msix, queues));
        device.set_config_listener(notify.clone());
        let shared: Arc<dyn VirtioNotify> = notify.clone();
        let common = Common::start(device, space, shared, workers, TransportKind::Pci)?;
        Ok(Self { common, notify, selectors: Selectors::default(), space: Mutex::new(config_space) })
    }

    /// Counters of each queue.
    pub fn counters(&self) -> Vec<QueueCounters> {
        self.common.counters()
    }

    fn space(&self) -> MutexGuard<'_, Space> {
        self.space.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has everything that depends on the configuration space follow it.
    fn follow(&self, space: &Space) -> Access {
        let command = space.space.command();
        self.notify.msix.follow(&space.space, space.msix);
        self.notify.set_pin(if command.intx_disable() { Pin::Disabled } else { Pin::Enabled });
        self.common.set_bus_master(if command.bus_master() {
            BusMaster::Allowed
        } else {
            BusMaster::Forbidden
        })
    }

    fn read_registers(&self, offset: u64, data: &mut [u8]) {
        match offset {
            COMMON..ISR => self.read_common(offset, data),
            ISR => {
                // A reset that is over has cleared it.
                self.common.catch_up();
                data[0] = self.notify.take_status();
            }
            DEVICE..NOTIFY => {
                self.common.device.read_config(self.common.driver_features(), offset - DEVICE, data);
            }
            _ => {}
        }
    }

    fn write_registers(&self, offset: u64, data: &[u8]) -> Access {
        match offset {
            COMMON..ISR => return self.write_common(offset, data),
            DEVICE..NOTIFY => {
                self.common.device.write_config(self.common.driver_features(), offset - DEVICE, data);
            }
            // The value is the queue's number, which the place says already.
            NOTIFY..REGION_SIZE if offset.is_multiple_of(NOTIFY_MULTIPLIER.into()) => {
                self.common.ring(((offset - NOTIFY) / u64::from(NOTIFY_MULTIPLIER)) as u32);
            }
            _ => {}
        }
        Access::Done
    }
}

/// Whether an access is one that a driver may make: a power of two, at most eight bytes, aligned.
fn is_plain(offset: u64, len: usize) -> bool {
    matches!(len, 1 | 2 | 4 | 8) && offset.is_multiple_of(len as u64)
}

impl Frontend for PciDevice {
    fn name(&self) -> &str {
        self.common.device.name()
    }

    fn regions(&self) -> Vec<RegionSpec> {
        let spec = |(_, bar): (usize, crate::pci::Bar)| RegionSpec { kind: bar.kind(), size: bar.size() };
        self.space().space.bars().map(spec).collect()
    }

    fn read(&self, region: usize, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if !is_plain(offset, data.len()) {
            return;
        }
        match region {
            0 => self.read_registers(offset, data),
            1 => self.notify.msix.read(offset, data),
            _ => {}
        }
    }

    fn write(&self, region: usize, offset: u64, data: &[u8]) -> Access {
        if !is_plain(offset, data.len()) {
            return Access::Done;
        }
        match region {
            0 => return self.write_registers(offset, data),
            1 => self.notify.msix.write(offset, data),
            _ => {}
        }
        Access::Done
    }

    fn doorbells(&self) -> Vec<DoorbellSpec> {
        let spec = |(index, doorbell): (u64, &Doorbell)| DoorbellSpec {
            region: 0,
            offset: NOTIFY + index * u64::from(NOTIFY_MULTIPLIER),
            width: 2,
            value: None,
            doorbell: doorbell.clone(),
        };
        (0..).zip(self.common.doorbells()).map(spec).collect()
    }

    fn drain(&self) -> Ticket {
        self.common.drain()
    }

    fn resume(&self) -> Ticket {
        self.common.resume()
    }

    /// As after power-on: the configuration space too, so that the bus is to be refreshed.
    fn reset(&self) -> Ticket {
        let ticket = self.common.reset();
        let mut space = self.space();
        space.space.reset();
        self.notify.msix.reset();
        // What is in flight is waited for by the ticket of the reset.
        let _ = self.follow(&space);
        ticket
    }

    fn save(&self) -> Result<Vec<u8>, StateError> {
        let mut state = self.common.save()?;
        let selectors = &self.selectors;
        let registers = PciState {
            device_features_sel: selectors.device_features.load(Ordering::Relaxed),
            driver_features_sel: selectors.driver_features.load(Ordering::Relaxed),
            queue_sel: selectors.queue.load(Ordering::Relaxed),
            config_generation: self.notify.generation.value(),
            interrupt_status: self.notify.status(),
            config_vector: self.notify.config_vector(),
            queue_vectors: self.notify.queue_vectors(),
            config_space: self.space().space.save(),
            msix: self.notify.msix.save(),
        };
        state.registers = registers.to_envelope();
        Ok(state.to_envelope())
    }

    fn restore(&self, saved: &[u8]) -> Result<(), StateError> {
        let state = TransportState::from_envelope(saved)?;
        let registers = PciState::from_envelope(&state.registers)?;
        let vectors = self.notify.msix.len();
        if !registers.msix.fits(vectors) {
            let reason = format!("it has not {vectors} MSI-X vectors as this device");
            return Err(StateError::Mismatch { kind: self.name().into(), reason });
        }
        self.common.restore(&state)?;
        let selectors = &self.selectors;
        selectors.device_features.store(registers.device_features_sel, Ordering::Relaxed);
        selectors.driver_features.store(registers.driver_features_sel, Ordering::Relaxed);
        selectors.queue.store(registers.queue_sel, Ordering::Relaxed);
        self.notify.generation.restore(registers.config_generation);
        self.notify.set_config_vector(registers.config_vector);
        for (queue, vector) in registers.queue_vectors.iter().enumerate() {
            self.notify.set_queue_vector(queue, *vector);
        }
        self.notify.msix.restore(&registers.msix);
        let mut space = self.space();
        space.space.restore(&registers.config_space);
        // At rest until it is resumed, so nothing is waited for.
        let _ = self.follow(&space);
        drop(space);
        self.notify.restore_status(registers.interrupt_status);
        if self.common.has_news_since(&state) {
            self.notify.config_changed();
        }
        Ok(())
    }

    fn stages(&self) -> Stages {
        self.common.device.stages()
    }
}

impl PciFunction for PciDevice {
    fn read_config(&self, offset: u16, data: &mut [u8]) {
        let mut space = self.space();
        if let Some(indirect) = space.indirect(offset, data.len()) {
            drop(space);
            return self.read(0, indirect.offset, data);
        }
        let asks = if self.notify.status() != 0 { InterruptStatus::Asserted } else { InterruptStatus::Quiet };
        space.space.set_interrupt_status(asks);
        space.space.read(offset, data);
    }

    fn write_config(&self, offset: u16, data: &[u8]) -> Access {
        let mut space = self.space();
        space.space.write(offset, data);
        if let Some(indirect) = space.indirect(offset, data.len()) {
            drop(space);
            return self.write(0, indirect.offset, data);
        }
        self.follow(&space)
    }

    fn decoded(&self) -> Vec<Option<u64>> {
        let space = self.space();
        space.space.bars().map(|(index, _)| space.space.decoded(index)).collect()
    }

    fn interrupt_pin(&self) -> Option<IntxPin> {
        Some(PIN)
    }

    fn connect_line(&self, line: LineInput) {
        self.notify.connect(line);
    }
}
