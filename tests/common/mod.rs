//! A virtio disk in this process, and its driver.

#![allow(dead_code, reason = "each test uses what it needs")]

pub(crate) mod busy;
pub(crate) mod netns;
pub(crate) mod pci;
pub(crate) mod raw;
pub(crate) mod stacks;
pub(crate) mod tcp;

use iovirt_core::dma::DmaSpace;
use iovirt_core::irq::CountingInterrupt;
use iovirt_core::pipeline::BoxBackend;
use iovirt_core::request::block::BlockRequest;
use iovirt_core::test_utils::virtio::{Arena, BlkDriver, Pump};
use iovirt_core::{Worker, WorkerConfig, WorkerHandle};
use iovirt_frontends::virtio::blk::{BlkConfig, VirtioBlk};
use iovirt_frontends::virtio::transport::mmio::MmioDevice;
use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// Every feature that the driver's side knows what to do with: the class's own, indirect tables not, as the driver would
/// allocate them; event index; version 1.
pub(crate) const ALL: u64 = 0xffff | 1 << 29 | 1 << 32;
/// The same without event index.
pub(crate) const NO_EVENT_IDX: u64 = ALL & !(1 << 29);

/// A disk above `stack`, run by these workers.
pub(crate) fn disk(
    config: BlkConfig,
    stack: BoxBackend<BlockRequest>,
    workers: &[WorkerHandle],
) -> (Arc<MmioDevice>, Arc<CountingInterrupt>) {
    disk_in(Arena::get().space(), config, stack, workers)
}

/// The same, in that memory.
pub(crate) fn disk_in(
    space: &DmaSpace,
    config: BlkConfig,
    stack: BoxBackend<BlockRequest>,
    workers: &[WorkerHandle],
) -> (Arc<MmioDevice>, Arc<CountingInterrupt>) {
    let interrupts = Arc::new(CountingInterrupt::new());
    let blk = Arc::new(VirtioBlk::new(config, stack).expect("a good configuration"));
    let device = MmioDevice::new(blk, space, interrupts.clone(), workers).expect("a device");
    (Arc::new(device), interrupts)
}

pub(crate) struct Rig {
    pub(crate) worker: Rc<RefCell<Worker>>,
    pub(crate) device: Arc<MmioDevice>,
    pub(crate) interrupts: Arc<CountingInterrupt>,
}

impl Rig {
    /// A disk above `stack`, run by a worker of this thread.
    pub(crate) fn new(config: BlkConfig, stack: BoxBackend<BlockRequest>) -> Self {
        Self::new_in(Arena::get().space(), config, stack)
    }

    /// The same, on a worker whose every run is one round over its lanes.
    pub(crate) fn one_round(config: BlkConfig, stack: BoxBackend<BlockRequest>) -> Self {
        let worker = WorkerConfig { rounds: 1, ..WorkerConfig::default() };
        Self::on(worker, Arena::get().space(), config, stack)
    }

    /// The same, in that memory.
    pub(crate) fn new_in(space: &DmaSpace, config: BlkConfig, stack: BoxBackend<BlockRequest>) -> Self {
        Self::on(WorkerConfig::default(), space, config, stack)
    }

    fn on(
        worker: WorkerConfig,
        space: &DmaSpace,
        config: BlkConfig,
        stack: BoxBackend<BlockRequest>,
    ) -> Self {
        let worker = Worker::new(worker).expect("a worker");
        let (device, interrupts) = disk_in(space, config, stack, &[worker.handle()]);
        Self { worker: Rc::new(RefCell::new(worker)), device, interrupts }
    }

    /// Lets the worker run.
    pub(crate) fn pump(&self) -> Pump {
        let worker = self.worker.clone();
        Pump::new(move || worker.borrow_mut().run_within(Duration::from_millis(1)).expect("a turn"))
    }

    /// A driver for it.
    pub(crate) fn driver(&self, wanted: u64, max_data: usize) -> BlkDriver {
        BlkDriver::connect(self.device.clone(), self.pump(), wanted, max_data).expect("a driver")
    }
}
