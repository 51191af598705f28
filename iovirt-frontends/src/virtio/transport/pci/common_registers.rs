//! The common structure (VIRTIO 1.2, section 4.1.4.3).

use super::device::PciDevice;
#[allow(clippy::wildcard_imports, reason = "the registers of one table")]
use super::registers::*;
use crate::virtio::queue::QueueConfig;
use iovirt_core::frontend::Access;
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering};

/// Registers that select what other registers show. A guest that races with itself over them gets what it deserves.
#[derive(Debug, Default)]
pub(super) struct Selectors {
    pub(super) device_features: AtomicU32,
    pub(super) driver_features: AtomicU32,
    pub(super) queue: AtomicU16,
}

/// One field at its place.
fn put<const N: usize>(image: &mut [u8; COMMON_LEN], at: u64, value: [u8; N]) {
    image[at as usize..at as usize + N].copy_from_slice(&value);
}

impl PciDevice {
    /// Reads of any width, out of all registers as they are now.
    pub(super) fn read_common(&self, offset: u64, data: &mut [u8]) {
        let mut image = [0; COMMON_LEN];
        self.fill_device(&mut image);
        self.fill_queue(&mut image);
        let there = usize::try_from(offset).ok().and_then(|from| image.get(from..)).unwrap_or_default();
        data.iter_mut().zip(there).for_each(|(to, from)| *to = *from);
    }

    fn fill_device(&self, image: &mut [u8; COMMON_LEN]) {
        let page = |sel: u32, features: u64| match sel {
            0 => features as u32,
            1 => (features >> 32) as u32,
            _ => 0,
        };
        let offered = self.selectors.device_features.load(Ordering::Relaxed);
        let chosen = self.selectors.driver_features.load(Ordering::Relaxed);
        // First the status: a reset that is over clears the rest.
        let status = self.common.status();
        put(image, DEVICE_FEATURES_SEL, offered.to_le_bytes());
        put(image, DEVICE_FEATURES, page(offered, self.common.features()).to_le_bytes());
        put(image, DRIVER_FEATURES_SEL, chosen.to_le_bytes());
        put(image, DRIVER_FEATURES, page(chosen, self.common.driver_features()).to_le_bytes());
        put(image, CONFIG_VECTOR, self.notify.config_vector().to_le_bytes());
        put(image, NUM_QUEUES, (self.common.device.queue_max_sizes().len() as u16).to_le_bytes());
        put(image, STATUS, [status]);
        put(image, CONFIG_GENERATION, [self.notify.generation.of(&self.common) as u8]);
    }

    fn fill_queue(&self, image: &mut [u8; COMMON_LEN]) {
        let index = self.selectors.queue.load(Ordering::Relaxed);
        put(image, QUEUE_SEL, index.to_le_bytes());
        put(image, QUEUE_VECTOR, self.notify.queue_vector(index.into()).to_le_bytes());
        // A queue that is not there has size 0, and nothing else.
        let Some(queue) = self.common.queue(index.into()) else { return };
        let config = &queue.config;
        put(image, QUEUE_SIZE, config.size.to_le_bytes());
        put(image, QUEUE_ENABLE, u16::from(config.ready).to_le_bytes());
        put(image, QUEUE_NOTIFY_OFF, index.to_le_bytes());
        put(image, QUEUE_DESC, config.desc.to_le_bytes());
        put(image, QUEUE_DRIVER, config.avail.to_le_bytes());
        put(image, QUEUE_DEVICE, config.used.to_le_bytes());
        put(image, QUEUE_NOTIFY_DATA, index.to_le_bytes());
        put(image, QUEUE_RESET, u16::from(self.common.is_stopping(index.into())).to_le_bytes());
    }

    /// Writes of a field's own width, and of 64 bits in halves (section 4.1.3.1). Others change nothing.
    pub(super) fn write_common(&self, offset: u64, data: &[u8]) -> Access {
        match data.len() {
            1 if offset == STATUS => self.common.set_status(data[0]),
            2 => self.write_word(offset, u16::from_le_bytes([data[0], data[1]])),
            4 | 8 => {
                for (word, at) in data.chunks_exact(4).zip((offset..).step_by(4)) {
                    self.write_long(at, u32::from_le_bytes([word[0], word[1], word[2], word[3]]));
                }
                Access::Done
            }
            _ => Access::Done,
        }
    }

    fn write_word(&self, offset: u64, value: u16) -> Access {
        let queue = self.selectors.queue.load(Ordering::Relaxed);
        match offset {
            QUEUE_SEL => self.selectors.queue.store(value, Ordering::Relaxed),
            CONFIG_VECTOR if !self.common.is_resetting() => self.notify.set_config_vector(value),
            QUEUE_VECTOR if !self.common.is_resetting() => self.notify.set_queue_vector(queue.into(), value),
            QUEUE_SIZE => self.common.configure_queue(queue.into(), |config| config.size = value),
            // A driver must not write 0, and has another register to take a queue back (section 4.1.4.3.2).
            QUEUE_ENABLE if value == 1 => return self.common.enable_queue(queue.into()),
            QUEUE_RESET if value == 1 => {
                self.notify.set_queue_vector(queue.into(), NO_VECTOR);
                return self.common.reset_queue(queue.into());
            }
            _ => {}
        }
        Access::Done
    }

    fn write_long(&self, offset: u64, value: u32) {
        let selectors = &self.selectors;
        let queue = u32::from(selectors.queue.load(Ordering::Relaxed));
        let address = |change: fn(&mut QueueConfig) -> &mut u64, shift: u32| {
            self.common.configure_queue(queue, |config| {
                let address = change(config);
                *address = *address & !(0xffff_ffff << shift) | u64::from(value) << shift;
            });
        };
        match offset {
            DEVICE_FEATURES_SEL => selectors.device_features.store(value, Ordering::Relaxed),
            DRIVER_FEATURES_SEL => selectors.driver_features.store(value, Ordering::Relaxed),
            DRIVER_FEATURES => {
                self.common.set_driver_features(selectors.driver_features.load(Ordering::Relaxed), value);
            }
            QUEUE_DESC..QUEUE_DRIVER => address(|config| &mut config.desc, half(offset)),
            QUEUE_DRIVER..QUEUE_DEVICE => address(|config| &mut config.avail, half(offset)),
            QUEUE_DEVICE..QUEUE_NOTIFY_DATA => address(|config| &mut config.used, half(offset)),
            _ => {}
        }
    }
}

/// Bits by which a half of an address is shifted. Accesses are aligned: others were thrown away before.
fn half(offset: u64) -> u32 {
    if offset.is_multiple_of(8) { 0 } else { 32 }
}
