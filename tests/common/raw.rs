//! A driver's side of a virtio device in this process, by bare register and ring writes: for what a well-behaved driver
//! does not do, and for looking at every byte of the guest's memory.

use iovirt_core::dma::{DmaSpace, DmaView, MemoryMap};
use iovirt_core::frontend::{Access, Frontend};
use iovirt_core::irq::CountingInterrupt;
use iovirt_core::{Worker, WorkerConfig, WorkerHandle};
use iovirt_frontends::virtio::VirtioDevice;
use iovirt_frontends::virtio::transport::mmio::MmioDevice;
use std::sync::{Arc, Weak};

/// Entries of each ring.
pub(crate) const SIZE: u16 = 64;
/// Where the rings are: 16 KiB for each queue.
pub(crate) const RINGS: u64 = 0x1_0000;
/// Where buffers are.
pub(crate) const BUFFERS: u64 = 0x40_0000;
pub(crate) const MEMORY: u64 = 16 << 20;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// A piece of a chain: address, length, and who writes it.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Piece {
    Driver(u64, u32),
    Device(u64, u32),
}

#[derive(Clone, Copy, Debug, Default)]
struct RingState {
    next_descriptor: u16,
    available: u16,
    used: u16,
}

/// A device with its worker on this thread, and a driver of few scruples.
pub(crate) struct RawDriver {
    pub(crate) worker: Worker,
    pub(crate) device: Arc<MmioDevice>,
    pub(crate) interrupts: Arc<CountingInterrupt>,
    pub(crate) view: DmaView,
    space: DmaSpace,
    rings: Vec<RingState>,
    /// How far from where they are the device finds the rings.
    iova: u64,
}

impl RawDriver {
    /// Sets the device up with these features and all its queues.
    pub(crate) fn new(device: Arc<dyn VirtioDevice>, features: u64) -> Self {
        Self::with_worker(device, features, Worker::new(WorkerConfig::default()).unwrap())
    }

    /// The same with that worker.
    pub(crate) fn with_worker(device: Arc<dyn VirtioDevice>, features: u64, worker: Worker) -> Self {
        let (space, interrupts) = (DmaSpace::anonymous(&[(0, MEMORY)]).unwrap(), Arc::default());
        let mut driver = Self::around(device, space, worker, interrupts);
        driver.set_up(features);
        driver
    }

    /// The same for a device that finds memory through `translated`, a view of `space`, and the rings `iova` bytes behind where
    /// they are.
    pub(crate) fn behind(
        device: Arc<dyn VirtioDevice>,
        features: u64,
        (space, translated, iova): (DmaSpace, &DmaSpace, u64),
    ) -> Self {
        let (worker, interrupts) = (Worker::new(WorkerConfig::default()).unwrap(), Arc::default());
        let mut driver = Self::around(device, translated.clone(), worker, interrupts);
        (driver.view, driver.iova) = (space.view(), iova);
        driver.set_up(features);
        driver
    }

    /// The same, with the queues on these workers; on its own where there are none.
    pub(crate) fn on_workers(device: Arc<dyn VirtioDevice>, features: u64, workers: &[WorkerHandle]) -> Self {
        if workers.is_empty() {
            return Self::new(device, features);
        }
        let space = DmaSpace::anonymous(&[(0, MEMORY)]).unwrap();
        let rings = vec![RingState::default(); device.queue_max_sizes().len()];
        let interrupts = Arc::<CountingInterrupt>::default();
        let device = MmioDevice::new(device, &space, interrupts.clone(), workers).unwrap();
        let (worker, view) = (Worker::new(WorkerConfig::default()).unwrap(), space.view());
        let mut driver = Self { worker, device: Arc::new(device), interrupts, view, space, rings, iova: 0 };
        driver.set_up(features);
        driver
    }

    fn around(
        device: Arc<dyn VirtioDevice>,
        space: DmaSpace,
        worker: Worker,
        interrupts: Arc<CountingInterrupt>,
    ) -> Self {
        let rings = vec![RingState::default(); device.queue_max_sizes().len()];
        let device = MmioDevice::new(device, &space, interrupts.clone(), &[worker.handle()]).unwrap();
        let view = space.view();
        Self { worker, device: Arc::new(device), interrupts, view, space, rings, iova: 0 }
    }

    /// The same guest over another device, which is put where this one stood: drained, saved, restored, resumed.
    pub(crate) fn migrate(mut self, device: Arc<dyn VirtioDevice>) -> Self {
        let ticket = self.device.drain();
        while !ticket.is_done() {
            self.run();
        }
        let saved = self.device.save().unwrap();
        let worker = Worker::new(WorkerConfig::default()).unwrap();
        let mut next = Self::around(device, self.space.clone(), worker, self.interrupts.clone());
        next.rings.clone_from(&self.rings);
        drop(self);
        next.device.restore(&saved).unwrap();
        next.run();
        next.device.resume();
        next.run();
        next
    }

    /// Announces a new map of the same memory; gives back the old one, which this driver does not hold any more.
    pub(crate) fn replace_map(&mut self) -> Weak<MemoryMap> {
        let old = self.space.map();
        self.space.replace(MemoryMap::new(old.regions().to_vec()).unwrap());
        self.view.refresh();
        Arc::downgrade(&old)
    }

    pub(crate) fn register(&self, offset: u64, value: u32) -> Access {
        self.device.write(0, offset, &value.to_le_bytes())
    }

    pub(crate) fn status(&self) -> u32 {
        let mut status = [0; 4];
        self.device.read(0, 0x070, &mut status);
        u32::from_le_bytes(status)
    }

    /// Resets the device and waits for it.
    pub(crate) fn reset(&mut self) {
        if let Access::Deferred(ticket) = self.register(0x070, 0) {
            while !ticket.is_done() {
                self.run();
            }
        }
        self.rings.fill(RingState::default());
    }

    pub(crate) fn set_up(&mut self, features: u64) {
        let features = features | 1 << 32;
        self.view.write(RINGS, &vec![0; self.rings.len() * 0x4000]).unwrap();
        for (offset, value) in [
            (0x070, 3),
            (0x024, 0),
            (0x020, features as u32),
            (0x024, 1),
            (0x020, (features >> 32) as u32),
            (0x070, 11),
        ] {
            let _ = self.register(offset, value);
        }
        assert_eq!(self.status() & 8, 8, "the features were not accepted");
        for index in 0..self.rings.len() as u64 {
            let base = self.iova + RINGS + index * 0x4000;
            for (offset, value) in [
                (0x030, index),
                (0x038, SIZE.into()),
                (0x080, base),
                (0x084, base >> 32),
                (0x090, base + 0x1000),
                (0x094, base >> 32),
                (0x0a0, base + 0x2000),
                (0x0a4, base >> 32),
                (0x044, 1),
            ] {
                let _ = self.register(offset, value as u32);
            }
        }
        let _ = self.register(0x070, 15);
        self.run();
    }

    /// Makes a chain available without ringing the doorbell; gives its head.
    pub(crate) fn offer(&mut self, queue: u16, pieces: &[Piece]) -> u16 {
        let base = RINGS + u64::from(queue) * 0x4000;
        let ring = &mut self.rings[usize::from(queue)];
        let head = ring.next_descriptor;
        for (at, piece) in pieces.iter().enumerate() {
            let index = (head + at as u16) % SIZE;
            let last = at + 1 == pieces.len();
            let (address, len, flags) = match *piece {
                Piece::Driver(address, len) => (address, len, 0),
                Piece::Device(address, len) => (address, len, WRITE),
            };
            let mut descriptor = [0; 16];
            descriptor[..8].copy_from_slice(&address.to_le_bytes());
            descriptor[8..12].copy_from_slice(&len.to_le_bytes());
            descriptor[12..14].copy_from_slice(&(flags | if last { 0 } else { NEXT }).to_le_bytes());
            descriptor[14..].copy_from_slice(&((index + 1) % SIZE).to_le_bytes());
            self.view.write(base + u64::from(index) * 16, &descriptor).unwrap();
        }
        ring.next_descriptor = (head + pieces.len() as u16) % SIZE;
        let slot = u64::from(ring.available % SIZE);
        self.view.write(base + 0x1004 + slot * 2, &head.to_le_bytes()).unwrap();
        ring.available = ring.available.wrapping_add(1);
        self.view.write(base + 0x1002, &ring.available.to_le_bytes()).unwrap();
        head
    }

    /// The same for a chain whose descriptors are a table of so many bytes.
    pub(crate) fn offer_indirect(&mut self, queue: u16, table: u64, len: u32) {
        let head = self.offer(queue, &[Piece::Driver(table, len)]);
        let flags = RINGS + u64::from(queue) * 0x4000 + u64::from(head) * 16 + 12;
        self.view.write(flags, &INDIRECT.to_le_bytes()).unwrap();
    }

    /// Rings the doorbell and lets the device work.
    pub(crate) fn ring(&mut self, queue: u16) {
        let _ = self.register(0x050, queue.into());
        self.run();
    }

    /// Lets the device work.
    pub(crate) fn run(&mut self) {
        for _ in 0..4 {
            self.worker.run().unwrap();
        }
    }

    /// What came back since the last call: heads and lengths.
    pub(crate) fn used(&mut self, queue: u16) -> Vec<(u16, u32)> {
        let base = RINGS + u64::from(queue) * 0x4000 + 0x2000;
        let index = u16::from_le_bytes(self.view.read_array(base + 2).unwrap());
        let ring = &mut self.rings[usize::from(queue)];
        let mut back = Vec::new();
        while ring.used != index {
            let entry: [u8; 8] = self.view.read_array(base + 4 + u64::from(ring.used % SIZE) * 8).unwrap();
            let word = |at: usize| u32::from_le_bytes(entry[at..at + 4].try_into().unwrap());
            back.push((word(0) as u16, word(4)));
            ring.used = ring.used.wrapping_add(1);
        }
        back
    }

    pub(crate) fn write(&self, address: u64, bytes: &[u8]) {
        self.view.write(address, bytes).unwrap();
    }

    pub(crate) fn read(&self, address: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.view.read(address, &mut bytes).unwrap();
        bytes
    }

    /// Every byte of the guest where buffers are.
    pub(crate) fn memory(&self) -> Vec<u8> {
        self.read(BUFFERS, (MEMORY - BUFFERS) as usize)
    }
}
