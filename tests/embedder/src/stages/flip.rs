//! `flip`: every byte that goes to the disk is combined with a key, and every byte that comes from it once more, so that the
//! guest reads what it wrote and the medium holds something else. No encryption, but it has the shape of one.
//!
//! Written in the smallest way there is, as a hook. The guest's memory is not touched on a write, and sees nothing but its own
//! data on a read: the request travels below with host memory in place of the guest's.

use iovirt::core::dma::{DmaError, SgLimits, SgList, SgPool};
use iovirt::core::pipeline::BoxInterposer;
use iovirt::core::prelude::*;
use iovirt::core::request::block::{
    BlockCaps, BlockError, BlockOp, BlockOutput, BlockRequest, DiscardLimits,
};
use iovirt::core::stage::{Flow, Hook, HookLayer, HookStage, Return, SlotTable};
use iovirt::registry::{Family, KeyInfo, Maturity, StageInfo, StageRow, ValueKind};
use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

const INFO: StageInfo = StageInfo {
    name: "flip",
    family: Family::Block,
    maturity: Maturity::Experimental,
    help: "Stores every byte combined with a key",
    keys: &[KeyInfo::required("key", ValueKind::Integer { min: 1, max: 255 }, "what to combine with")],
};

/// The row that makes the stage available by name: `flip,key=90`.
pub fn row() -> StageRow {
    StageRow::block_interposer(INFO, |options| Ok(BoxInterposer::new(layer(options.required("key")?))))
}

/// The stage as a layer of a typed pipeline.
pub fn layer(key: u8) -> HookLayer<Flip> {
    HookLayer::new(Flip { key, control: Arc::default() })
}

/// The control plane.
#[derive(Debug)]
pub struct Flip {
    key: u8,
    control: Arc<FlipControl>,
}

/// What the stage did so far; found by the name `flip`.
#[derive(Debug, Default)]
pub struct FlipControl {
    written: AtomicU64,
    read: AtomicU64,
}

impl FlipControl {
    /// Bytes flipped on their way down, and on their way up.
    pub fn bytes(&self) -> (u64, u64) {
        (self.written.load(Ordering::Relaxed), self.read.load(Ordering::Relaxed))
    }
}

impl HookStage<BlockRequest> for Flip {
    type Hook = FlipHook;

    fn name(&self) -> &str {
        INFO.name
    }

    /// Zeroes of the medium are none to the guest: nobody may write them unseen, or promise them.
    fn caps(&self, below: &BlockCaps) -> Result<BlockCaps, AttachError> {
        let discard = below.discard.map(|limits| DiscardLimits { reads_zero: false, ..limits });
        Ok(BlockCaps { discard, write_zeroes: None, ..below.clone() })
    }

    fn hook(&self, _: &mut WorkerContext<'_>, depth: Depth) -> FlipHook {
        FlipHook {
            key: self.key,
            pool: SgPool::new(depth.get(), SgLimits::default()),
            guests: SlotTable::new(depth),
            control: self.control.clone(),
        }
    }

    fn control(&self) -> Option<Arc<dyn Any + Send + Sync>> {
        Some(self.control.clone())
    }
}

/// One queue's.
#[derive(Debug)]
pub struct FlipHook {
    key: u8,
    pool: SgPool,
    /// The guest's memory of each request that went down without it.
    guests: SlotTable<Box<SgList>>,
    control: Arc<FlipControl>,
}

impl FlipHook {
    fn flip(&self, list: &mut SgList, counter: &AtomicU64) {
        let bytes = list.host_bytes().unwrap_or_default();
        for byte in &mut *bytes {
            *byte ^= self.key;
        }
        counter.fetch_add(bytes.len() as u64, Ordering::Relaxed);
    }

    /// Puts host memory in the place of the guest's.
    fn replace(&mut self, request: &mut BlockRequest) -> Result<(), DmaError> {
        let mut list = self.pool.take();
        let len = request.sg().len();
        list.push_host(len as usize)?;
        if request.op() == BlockOp::Write {
            list.copy_sg(0, request.sg(), 0, len)?;
            self.flip(&mut list, &self.control.written);
        }
        request.sg_mut().swap_segments(&mut list)?;
        self.guests.insert(request.tag(), list);
        Ok(())
    }
}

impl Hook<BlockRequest> for FlipHook {
    fn on_submit(&mut self, _: &mut WorkerContext<'_>, request: &mut BlockRequest) -> Flow<BlockOutput> {
        match request.op() {
            BlockOp::Read | BlockOp::Write => match self.replace(request) {
                Ok(()) => Flow::Pass,
                Err(_) => Flow::Complete(BlockOutput::Failed(BlockError::Io)),
            },
            BlockOp::WriteZeroes => Flow::Complete(BlockOutput::Failed(BlockError::Unsupported)),
            BlockOp::Flush | BlockOp::Discard => Flow::Pass,
        }
    }

    fn on_complete(
        &mut self,
        _: &mut WorkerContext<'_>,
        completion: &mut Completion<BlockRequest>,
    ) -> Return {
        let Completion { request, output } = completion;
        let Some(mut list) = self.guests.take(request.tag()) else { return Return::Pass };
        // The request comes home with its own memory, and the list keeps what was below.
        let mut result = request.sg_mut().swap_segments(&mut list);
        if request.op() == BlockOp::Read && *output == BlockOutput::Done && result.is_ok() {
            self.flip(&mut list, &self.control.read);
            result = request.sg_mut().copy_sg(0, &list, 0, list.len());
        }
        if result.is_err() {
            *output = BlockOutput::Failed(BlockError::Io);
        }
        self.pool.put(list);
        Return::Pass
    }
}
