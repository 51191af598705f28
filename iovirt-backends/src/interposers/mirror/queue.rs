//! The data plane.

use super::{MirrorControl, ReadPolicy};
use iovirt_core::dma::{SgLimits, SgList, SgPool};
use iovirt_core::request::block::{BlockCaps, BlockError, BlockOp, BlockOutput, BlockRequest};
use iovirt_core::stage::fanout::admit;
use iovirt_core::stage::{Child, Children, FanOut};
use iovirt_core::{Depth, WorkerContext};
use std::ops::Range;
use std::sync::Arc;

/// The data plane of a [`Mirror`](super::Mirror).
#[derive(Debug)]
pub struct MirrorFan {
    control: Arc<MirrorControl>,
    read: ReadPolicy,
    /// Where the next read goes, by turns.
    turn: usize,
    /// Stable copies of what is written. The request's own list stays as it is.
    copies: SgPool,
    #[cfg(test)]
    pub(super) sabotage: super::tests::Sabotage,
}

/// What the replicas said to a request, by bit.
#[derive(Debug, Default)]
pub struct Answers {
    done: u64,
    failed: u64,
    /// The first failure.
    error: Option<BlockError>,
    /// What is written, where it had to be copied; kept until no replica uses it, so that its memory is used again.
    copy: Option<Box<SgList>>,
}

impl MirrorFan {
    pub(super) fn new(control: Arc<MirrorControl>, read: ReadPolicy, depth: Depth) -> Self {
        Self {
            control,
            read,
            turn: 0,
            copies: SgPool::new(depth.get(), SgLimits::default()),
            #[cfg(test)]
            sabotage: super::tests::Sabotage::default(),
        }
    }

    /// The replica to read from, of these.
    fn choose(&mut self, candidates: u64) -> Option<usize> {
        if candidates == 0 {
            return None;
        }
        if self.read == ReadPolicy::First {
            return Some(candidates.trailing_zeros() as usize);
        }
        let behind = candidates & u64::MAX.checked_shl(self.turn as u32).unwrap_or(0);
        let chosen = if behind == 0 { candidates } else { behind }.trailing_zeros() as usize;
        self.turn = chosen + 1;
        Some(chosen)
    }

    /// Reads from a replica that has not answered yet; false where there is none.
    fn read(
        &mut self,
        tried: u64,
        request: &BlockRequest,
        children: &mut Children<'_, BlockRequest>,
    ) -> Result<bool, BlockError> {
        match self.choose(self.control.healthy() & !tried) {
            None => Ok(false),
            Some(replica) => children.start_same(replica, request).map(|()| true),
        }
    }

    /// Writes to all good replicas; gives the copy that was made for it.
    fn write(
        &mut self,
        request: &BlockRequest,
        children: &mut Children<'_, BlockRequest>,
    ) -> Result<Option<Box<SgList>>, BlockError> {
        let replicas = self.control.healthy();
        // Each replica reads the data for itself, and the guest may change it in between.
        let shared = request.op() == BlockOp::Write && replicas.count_ones() > 1;
        let copy = if shared && !request.sg().is_stable() && self.makes_stable() {
            Some(self.stable(request)?)
        } else {
            None
        };
        let data = copy.as_deref().unwrap_or(request.sg());
        let (op, flags, range) = (request.op(), request.flags(), request.offset()..request.end());
        let mut chosen = (0..children.branches()).filter(|replica| replicas & 1 << replica != 0);
        let started = chosen.try_for_each(|replica| {
            children
                .start_block(replica, op, flags, range.clone(), |list| data.slice_into(0, data.len(), list))
        });
        match started {
            Ok(()) => Ok(copy),
            Err(error) => {
                self.put(copy);
                Err(error)
            }
        }
    }

    fn put(&mut self, copy: Option<Box<SgList>>) {
        if let Some(copy) = copy {
            self.copies.put(copy);
        }
    }

    fn stable(&mut self, request: &BlockRequest) -> Result<Box<SgList>, BlockError> {
        let mut copy = self.copies.take();
        let made = request.sg().slice_into(0, request.len(), &mut copy).and_then(|()| copy.make_stable());
        if made.is_ok() {
            return Ok(copy);
        }
        self.copies.put(copy);
        Err(BlockError::Io)
    }

    #[cfg(not(test))]
    #[expect(clippy::unused_self, reason = "a test's mirror may be broken")]
    fn makes_stable(&self) -> bool {
        true
    }

    #[cfg(test)]
    fn makes_stable(&self) -> bool {
        self.sabotage != super::tests::Sabotage::WritesGuestMemory
    }

    #[cfg(test)]
    fn orders(&self) -> bool {
        self.sabotage != super::tests::Sabotage::KeepsNoOrder
    }

    #[cfg(not(test))]
    #[expect(clippy::unused_self, reason = "a test's mirror may be broken")]
    fn orders(&self) -> bool {
        true
    }
}

impl FanOut<BlockRequest> for MirrorFan {
    type Parent = Answers;

    /// Replicas may do requests in any order: overlapping ones would leave them with different data.
    fn excludes(&self, caps: &BlockCaps, request: &BlockRequest) -> Option<Range<u64>> {
        let changes = matches!(request.op(), BlockOp::Write | BlockOp::Discard | BlockOp::WriteZeroes);
        let excludes = changes && self.orders() && admit(caps, request).is_ok();
        excludes.then(|| request.offset()..request.end())
    }

    fn on_submit(
        &mut self,
        _: &mut WorkerContext<'_>,
        request: &mut BlockRequest,
        children: &mut Children<'_, BlockRequest>,
    ) -> Result<Answers, BlockOutput> {
        let started = admit(children.caps(), request).and_then(|()| match request.op() {
            BlockOp::Read => self.read(0, request, children).map(|_| None),
            _ => self.write(request, children),
        });
        started.map(|copy| Answers { copy, ..Answers::default() }).map_err(BlockOutput::Failed)
    }

    fn on_child(
        &mut self,
        _: &mut WorkerContext<'_>,
        answers: &mut Answers,
        request: &mut BlockRequest,
        child: Child<'_, BlockRequest>,
        children: &mut Children<'_, BlockRequest>,
    ) {
        let bit = 1 << child.branch;
        match child.output {
            BlockOutput::Done => answers.done |= bit,
            BlockOutput::Failed(error) => {
                answers.failed |= bit;
                answers.error.get_or_insert(error);
            }
        }
        if request.op() == BlockOp::Read && answers.done == 0 {
            self.control.read_failed(child.branch);
            // Where the memory cannot be cut so, the first failure stands.
            let _ = self.read(answers.failed, request, children);
        }
    }

    fn finish(&mut self, answers: Answers, request: &mut BlockRequest) -> BlockOutput {
        let Answers { done, failed, error, copy } = answers;
        self.put(copy);
        let failure = BlockOutput::Failed(error.unwrap_or(BlockError::Io));
        if request.op() == BlockOp::Read {
            return if done == 0 { failure } else { BlockOutput::Done };
        }
        if failed != 0 {
            self.control.fail(failed, done);
        }
        // A replica that failed meanwhile is not read any more: what it did does not count.
        let kept = done & self.control.healthy();
        if kept.count_ones() as usize >= self.control.quorum() { BlockOutput::Done } else { failure }
    }
}
