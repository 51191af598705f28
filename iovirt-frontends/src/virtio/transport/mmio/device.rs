//! The register file.

use super::notify::MmioNotify;
#[allow(clippy::wildcard_imports, reason = "the registers of one table")]
use super::registers::*;
use super::state::MmioState;
use crate::virtio::queue::QueueConfig;
use crate::virtio::transport::common::{Common, TransportError, TransportKind, TransportState};
use crate::virtio::{ConfigListener, QueueCounters, VirtioDevice, VirtioNotify};
use iovirt_core::WorkerHandle;
use iovirt_core::dma::DmaSpace;
use iovirt_core::doorbell::DoorbellSpec;
use iovirt_core::frontend::{Access, Frontend, RegionKind, RegionSpec, Ticket};
use iovirt_core::irq::Interrupt;
use iovirt_core::pipeline::Stages;
use iovirt_core::state::{SavedState, StateError};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// A virtio device behind memory-mapped registers.
#[derive(Debug)]
pub struct MmioDevice {
    common: Common,
    notify: Arc<MmioNotify>,
    selectors: Selectors,
}

/// Registers that select what other registers show. A guest that races with itself over them gets what it deserves.
#[derive(Debug, Default)]
struct Selectors {
    device_features: AtomicU32,
    driver_features: AtomicU32,
    queue: AtomicU32,
}

impl MmioDevice {
    /// Puts a device behind memory-mapped registers. Its queues are spread over `workers`, which open the pipeline in
    /// their next turn; a queue that cannot be opened leaves a line in the log and a device that needs a reset.
    ///
    /// # Errors
    /// Where there is no worker, or the host has no descriptor left.
    pub fn new(
        device: Arc<dyn VirtioDevice>,
        space: &DmaSpace,
        interrupt: Arc<dyn Interrupt>,
        workers: &[WorkerHandle],
    ) -> Result<Self, TransportError> {
        let notify = Arc::new(MmioNotify::new(interrupt));
        device.set_config_listener(notify.clone());
        let shared: Arc<dyn VirtioNotify> = notify.clone();
        let common = Common::start(device, space, shared, workers, TransportKind::Mmio)?;
        Ok(Self { common, notify, selectors: Selectors::default() })
    }

    /// Counters of each queue.
    pub fn counters(&self) -> Vec<QueueCounters> {
        self.common.counters()
    }

    fn selected(&self) -> u32 {
        self.selectors.queue.load(Ordering::Relaxed)
    }

    fn read_register(&self, offset: u64) -> u32 {
        let queue = |value: fn(&QueueConfig) -> u32| {
            self.common.queue(self.selected()).map_or(0, |queue| value(&queue.config))
        };
        match offset {
            MAGIC => MAGIC_VALUE,
            VERSION => VERSION_VALUE,
            DEVICE_ID => self.common.device.device_id(),
            VENDOR_ID => VENDOR_VALUE,
            DEVICE_FEATURES => match self.selectors.device_features.load(Ordering::Relaxed) {
                0 => self.common.features() as u32,
                1 => (self.common.features() >> 32) as u32,
                _ => 0,
            },
            QUEUE_NUM_MAX => queue(|config| config.max_size.into()),
            QUEUE_READY => queue(|config| config.ready.into()),
            INTERRUPT_STATUS => {
                self.common.catch_up();
                self.notify.status()
            }
            STATUS => self.common.status().into(),
            SHM_LEN_LOW | SHM_LEN_HIGH | SHM_BASE_LOW | SHM_BASE_HIGH => u32::MAX,
            CONFIG_GENERATION => self.notify.generation.of(&self.common),
            // The rest is write-only or not there.
            _ => 0,
        }
    }

    fn write_register(&self, offset: u64, value: u32) -> Access {
        let selectors = &self.selectors;
        let configure = |change: fn(&mut QueueConfig, u32)| {
            self.common.configure_queue(self.selected(), |config| change(config, value));
        };
        match offset {
            DEVICE_FEATURES_SEL => selectors.device_features.store(value, Ordering::Relaxed),
            DRIVER_FEATURES_SEL => selectors.driver_features.store(value, Ordering::Relaxed),
            DRIVER_FEATURES => {
                self.common.set_driver_features(selectors.driver_features.load(Ordering::Relaxed), value);
            }
            QUEUE_SEL => selectors.queue.store(value, Ordering::Relaxed),
            // What does not fit is no valid size either, and refused as such when the queue is set up.
            QUEUE_NUM => configure(|config, value| config.size = u16::try_from(value).unwrap_or(0)),
            QUEUE_READY if value & 1 == 0 => return self.common.disable_queue(self.selected()),
            QUEUE_READY => return self.common.enable_queue(self.selected()),
            QUEUE_NOTIFY => self.common.ring(value),
            INTERRUPT_ACK => self.notify.acknowledge(value),
            STATUS => return self.common.set_status(value as u8),
            QUEUE_DESC_LOW => configure(|config, value| set_low(&mut config.desc, value)),
            QUEUE_DESC_HIGH => configure(|config, value| set_high(&mut config.desc, value)),
            QUEUE_DRIVER_LOW => configure(|config, value| set_low(&mut config.avail, value)),
            QUEUE_DRIVER_HIGH => configure(|config, value| set_high(&mut config.avail, value)),
            QUEUE_DEVICE_LOW => configure(|config, value| set_low(&mut config.used, value)),
            QUEUE_DEVICE_HIGH => configure(|config, value| set_high(&mut config.used, value)),
            // The rest is read-only or not there.
            _ => {}
        }
        Access::Done
    }
}

fn set_low(address: &mut u64, value: u32) {
    *address = *address & !0xffff_ffff | u64::from(value);
}

fn set_high(address: &mut u64, value: u32) {
    *address = *address & 0xffff_ffff | u64::from(value) << 32;
}

impl Frontend for MmioDevice {
    fn name(&self) -> &str {
        self.common.device.name()
    }

    fn regions(&self) -> Vec<RegionSpec> {
        vec![RegionSpec { kind: RegionKind::Mmio, size: REGION_SIZE }]
    }

    fn read(&self, region: usize, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if region != 0 {
            return;
        }
        if let Some(offset) = offset.checked_sub(CONFIG) {
            self.common.device.read_config(self.common.driver_features(), offset, data);
        } else if let Ok(word) = <&mut [u8; 4]>::try_from(data)
            && offset.is_multiple_of(4)
        {
            // Only aligned accesses of 32 bits (section 4.2.2.2).
            *word = self.read_register(offset).to_le_bytes();
        }
    }

    fn write(&self, region: usize, offset: u64, data: &[u8]) -> Access {
        if region != 0 {
            return Access::Done;
        }
        if let Some(offset) = offset.checked_sub(CONFIG) {
            self.common.device.write_config(self.common.driver_features(), offset, data);
            return Access::Done;
        }
        match <[u8; 4]>::try_from(data) {
            Ok(word) if offset.is_multiple_of(4) => self.write_register(offset, u32::from_le_bytes(word)),
            _ => Access::Done,
        }
    }

    fn doorbells(&self) -> Vec<DoorbellSpec> {
        let spec = |(index, doorbell): (u64, &iovirt_core::doorbell::Doorbell)| DoorbellSpec {
            region: 0,
            offset: QUEUE_NOTIFY,
            width: 4,
            value: Some(index),
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

    fn reset(&self) -> Ticket {
        self.common.reset()
    }

    fn save(&self) -> Result<Vec<u8>, StateError> {
        let mut state = self.common.save()?;
        let load = |selector: &AtomicU32| selector.load(Ordering::Relaxed);
        let registers = MmioState {
            device_features_sel: load(&self.selectors.device_features),
            driver_features_sel: load(&self.selectors.driver_features),
            queue_sel: load(&self.selectors.queue),
            interrupt_status: self.notify.status(),
            config_generation: self.notify.generation.value(),
        };
        state.registers = registers.to_envelope();
        Ok(state.to_envelope())
    }

    fn restore(&self, saved: &[u8]) -> Result<(), StateError> {
        let state = TransportState::from_envelope(saved)?;
        let registers = MmioState::from_envelope(&state.registers)?;
        self.common.restore(&state)?;
        self.selectors.device_features.store(registers.device_features_sel, Ordering::Relaxed);
        self.selectors.driver_features.store(registers.driver_features_sel, Ordering::Relaxed);
        self.selectors.queue.store(registers.queue_sel, Ordering::Relaxed);
        self.notify.restore(registers.interrupt_status, registers.config_generation);
        if self.common.has_news_since(&state) {
            self.notify.config_changed();
        }
        Ok(())
    }

    fn stages(&self) -> Stages {
        self.common.device.stages()
    }
}
