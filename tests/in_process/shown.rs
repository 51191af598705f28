//! What a driver sees of a batch while the device works on it.

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
