//! A guest that drives a virtio-mmio device: registers, rings, interrupts.

use super::ring::{GuestRing, Piece, SIZE};
use crate::dma::{DmaSpace, DmaView, Region, shared_memory};
use crate::frontend::{Access, Frontend, Ticket};
use crate::irq::CountingInterrupt;
use crate::test_utils::hostile::{register, status};
use std::fs::File;
use std::os::fd::AsFd;
use std::sync::Arc;

/// Where buffers begin.
pub(super) const BUFFERS: u64 = 256 << 10;
/// Bytes of guest memory.
const MEMORY: u64 = 512 << 10;

const EVENT_IDX: u64 = 1 << 29;
const VERSION_1: u64 = 1 << 32;
/// Bits of the interrupt status (VIRTIO 1.2, section 4.2.2).
const INT_USED: u32 = 1;
const INT_CONFIG: u32 = 2;

/// The guest's side of the bus.
pub(super) struct Guest {
    pub(super) space: DmaSpace,
    /// What its memory is in.
    pub(super) memory: Arc<File>,
    pub(super) view: DmaView,
    pub(super) interrupt: Arc<CountingInterrupt>,
    /// Interrupts taken.
    taken: u64,
    pub(super) device: Option<Arc<dyn Frontend>>,
    pub(super) rings: Vec<GuestRing>,
    /// Changes of the configuration that it was told of.
    pub(super) config_changes: u64,
}

impl Guest {
    pub(super) fn new() -> Result<Self, String> {
        let memory = shared_memory(MEMORY).map_err(|error| error.to_string())?;
        let region = Region::from_file(0, MEMORY, memory.as_fd(), 0).map_err(|error| error.to_string())?;
        let space = DmaSpace::from_regions(vec![region]).map_err(|error| error.to_string())?;
        Ok(Self {
            view: space.view(),
            space,
            memory: Arc::new(memory),
            interrupt: Arc::default(),
            taken: 0,
            device: None,
            rings: Vec::new(),
            config_changes: 0,
        })
    }

    pub(super) fn device(&self) -> &Arc<dyn Frontend> {
        self.device.as_ref().expect("a device is in place but for a moment")
    }

    fn register(&self, offset: u64, value: u32) -> Access {
        self.device().write(0, offset, &value.to_le_bytes())
    }

    fn read(&self, offset: u64) -> u32 {
        let mut bytes = [0; 4];
        self.device().read(0, offset, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    pub(super) fn status(&self) -> u32 {
        self.read(register::STATUS)
    }

    /// Finds a device that was reset, with those of the features that are on offer, and sets all its queues up.
    pub(super) fn set_up(&mut self, wanted: u64) -> Result<u64, String> {
        let mut offered = 0;
        for half in [0, 1] {
            let _ = self.register(register::DEVICE_FEATURES_SEL, half);
            offered |= u64::from(self.read(register::DEVICE_FEATURES)) << (32 * half);
        }
        let features = offered & (wanted | VERSION_1);
        let accepted = status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK;
        let _ = self.register(register::STATUS, status::ACKNOWLEDGE | status::DRIVER);
        for half in [0, 1] {
            let _ = self.register(register::DRIVER_FEATURES_SEL, half);
            let _ = self.register(register::DRIVER_FEATURES, (features >> (32 * half)) as u32);
        }
        let _ = self.register(register::STATUS, accepted);
        if self.status() != accepted {
            return Err(format!("features {features:#x} leave the status at {:#x}", self.status()));
        }
        self.rings.clear();
        for index in 0.. {
            let _ = self.register(register::QUEUE_SEL, index);
            if self.read(register::QUEUE_NUM_MAX) == 0 {
                break;
            }
            let ring = GuestRing::new(&self.view, index as u16, features & EVENT_IDX != 0);
            let _ = self.register(register::QUEUE_NUM, SIZE.into());
            let places = [register::QUEUE_DESC, register::QUEUE_DRIVER, register::QUEUE_DEVICE];
            for (offset, area) in places.into_iter().zip(ring.areas()) {
                let _ = self.register(offset, area as u32);
                let _ = self.register(offset + 4, 0);
            }
            let _ = self.register(register::QUEUE_READY, 1);
            self.rings.push(ring);
        }
        let _ = self.register(register::STATUS, accepted | status::DRIVER_OK);
        Ok(features)
    }

    /// Writes zero to the status; the ticket is done when that is.
    pub(super) fn begin_reset(&mut self) -> Ticket {
        match self.register(register::STATUS, 0) {
            Access::Deferred(ticket) => ticket,
            Access::Done => Ticket::done(),
        }
    }

    /// Offers a chain and rings where the device wants to hear of it; `None` without room.
    pub(super) fn offer(&mut self, queue: usize, pieces: &[Piece]) -> Option<u16> {
        let (head, wanted) = self.rings[queue].offer(&self.view, pieces)?;
        if wanted {
            let _ = self.register(register::QUEUE_NOTIFY, queue as u32);
        }
        Some(head)
    }

    /// Whether an interrupt waits to be taken.
    pub(super) fn is_interrupted(&self) -> bool {
        self.interrupt.raised() != self.taken
    }

    /// What was raised and not taken goes, as with a machine that is saved: the restored one raises it again.
    pub(super) fn lose_interrupts(&mut self) {
        self.taken = self.interrupt.raised();
    }

    /// Takes an interrupt: what came back on each queue.
    pub(super) fn take_interrupt(&mut self) -> Result<Vec<Vec<(u16, u32)>>, String> {
        self.taken = self.interrupt.raised();
        let pending = self.read(register::INTERRUPT_STATUS);
        let _ = self.register(register::INTERRUPT_ACK, pending);
        if self.status() & status::NEEDS_RESET != 0 {
            return Err("the device says that it needs a reset".into());
        }
        self.config_changes += u64::from(pending & INT_CONFIG != 0);
        if pending & INT_USED == 0 {
            return Ok(Vec::new());
        }
        let Self { rings, view, .. } = self;
        rings.iter_mut().map(|ring| ring.take(view)).collect()
    }

    /// All of its memory.
    pub(super) fn snapshot(&self) -> Vec<u8> {
        let mut bytes = vec![0; MEMORY as usize];
        self.view.read(0, &mut bytes).expect("it is mapped");
        bytes
    }

    pub(super) fn write(&self, at: u64, bytes: &[u8]) {
        self.view.write(at, bytes).expect("buffers are in memory");
    }

    pub(super) fn bytes(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.view.read(at, &mut bytes).expect("buffers are in memory");
        bytes
    }
}
