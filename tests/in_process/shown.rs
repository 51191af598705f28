//! What a driver sees of a batch while the device works on it, and how much of one is the work of a turn.

use super::common::raw::{BUFFERS, Piece, RINGS, RawDriver};
use iovirt_backends::block::null::{NullBackend, NullConfig};
use iovirt_core::dma::DmaView;
use iovirt_core::pipeline::{BoxBackend, Pipeline};
use iovirt_core::prelude::*;
use iovirt_core::request::block::{BlockCaps, BlockOutput, BlockRequest};
use iovirt_core::stage::{Flow, Hook, HookLayer, HookStage};
use iovirt_frontends::virtio::blk::{BlkConfig, VirtioBlk};
use std::sync::{Arc, Mutex, PoisonError};

/// `VIRTIO_BLK_F_FLUSH`, and a request that needs nothing but a header and a status.
const F_FLUSH: u64 = 1 << 9;
const FLUSH: u32 = 4;
const F_INDIRECT_DESC: u64 = 1 << 28;
const NEXT: u16 = 1;
const WRITE: u16 = 2;
/// Entries of an indirect table.
const TABLE: u16 = 1024;

fn entry(address: u64, len: u32, flags: u16, next: u16) -> Vec<u8> {
    [&address.to_le_bytes()[..], &len.to_le_bytes(), &flags.to_le_bytes(), &next.to_le_bytes()].concat()
}

/// Looks at the used index whenever a request comes down.
#[derive(Clone, Debug, Default)]
struct Onlooker(Arc<Mutex<Sight>>);

#[derive(Debug, Default)]
struct Sight {
    view: Option<DmaView>,
    seen: Vec<u16>,
}

impl HookStage<BlockRequest> for Onlooker {
    type Hook = Self;
    fn name(&self) -> &str {
        "onlooker"
    }
    fn caps(&self, below: &BlockCaps) -> Result<BlockCaps, AttachError> {
        Ok(below.clone())
    }
    fn hook(&self, _: &mut WorkerContext<'_>, _: Depth) -> Self {
        self.clone()
    }
}

impl Hook<BlockRequest> for Onlooker {
    fn on_submit(&mut self, _: &mut WorkerContext<'_>, _: &mut BlockRequest) -> Flow<BlockOutput> {
        let mut sight = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let used = sight.view.as_ref().map(|view| view.read_array(RINGS + 0x2002).map(u16::from_le_bytes));
        sight.seen.extend(used.and_then(Result::ok));
        Flow::Pass
    }
}

#[test]
fn a_driver_that_looks_sees_part_of_a_batch_and_is_interrupted_once() {
    let onlooker = Onlooker::default();
    let null = NullBackend::new(&NullConfig::default()).unwrap();
    let stack = Pipeline::top().stage(HookLayer::new(onlooker.clone())).backend(null).unwrap();
    let disk = VirtioBlk::new(BlkConfig::default(), BoxBackend::new(stack)).unwrap();
    let mut driver = RawDriver::new(Arc::new(disk), F_FLUSH);
    onlooker.0.lock().unwrap().view = Some(driver.view.clone());
    driver.write(BUFFERS, &FLUSH.to_le_bytes());
    let before = driver.interrupts.raised();
    for status in 0..20 {
        driver.offer(0, &[Piece::Driver(BUFFERS, 16), Piece::Device(BUFFERS + 64 + status, 1)]);
    }
    driver.ring(0);
    assert_eq!(driver.used(0).len(), 20);
    assert_eq!(driver.read(BUFFERS + 64, 20), [0; 20]);
    let expected: Vec<u16> = (0..20).map(|request| request / 8 * 8).collect();
    assert_eq!(onlooker.0.lock().unwrap().seen, expected);
    assert_eq!(driver.interrupts.raised() - before, 1);
}

/// A turn's work is bounded by descriptors too: each of these chains counts for five of 256.
#[test]
fn long_chains_leave_a_part_of_the_ring_for_another_turn() {
    let null = NullBackend::new(&NullConfig::default()).unwrap();
    let disk = VirtioBlk::new(BlkConfig::default(), BoxBackend::new(null)).unwrap();
    let worker = Worker::new(WorkerConfig { rounds: 1, ..WorkerConfig::default() }).unwrap();
    let mut driver = RawDriver::with_worker(Arc::new(disk), F_FLUSH | F_INDIRECT_DESC, worker);
    driver.write(BUFFERS, &FLUSH.to_le_bytes());
    let table: Vec<_> = (0..TABLE)
        .flat_map(|index| match index {
            0 => entry(BUFFERS, 16, NEXT, 1),
            _ if index + 1 == TABLE => entry(BUFFERS + 64, 1, WRITE, 0),
            _ => entry(0, 0, NEXT, index + 1),
        })
        .collect();
    driver.write(BUFFERS + 0x1000, &table);
    for _ in 0..64 {
        driver.offer_indirect(0, BUFFERS + 0x1000, u32::from(TABLE) * 16);
    }
    let _ = driver.register(0x050, 0);
    driver.worker.run().unwrap();
    assert_eq!(driver.used(0).len(), 52);
    driver.worker.run().unwrap();
    assert_eq!(driver.used(0).len(), 12);
}
