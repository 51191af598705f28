//! The data plane.

use iovirt_core::WorkerContext;
use iovirt_core::dma::DmaError;
use iovirt_core::request::block::{BlockError, BlockOp, BlockOutput, BlockRequest};
use iovirt_core::stage::fanout::admit;
use iovirt_core::stage::{Child, Children, FanOut};
use std::ops::Range;

/// The data plane of a [`Stripe`](super::Stripe).
#[derive(Debug)]
pub struct StripeFan {
    chunk: u64,
}

/// Where the chunks are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layout {
    pub(super) chunk: u64,
    pub(super) branches: u64,
}

impl Layout {
    /// What of `range` lies on a branch, as a range there.
    pub(super) fn on_branch(self, range: &Range<u64>, branch: u64) -> Range<u64> {
        self.before(range.start, branch)..self.before(range.end, branch)
    }

    /// How many of the first `offset` bytes of the disk lie on a branch.
    fn before(self, offset: u64, branch: u64) -> u64 {
        let (chunk, within) = (offset / self.chunk, offset % self.chunk);
        let (row, at) = (chunk / self.branches, chunk % self.branches);
        row * self.chunk
            + match at.cmp(&branch) {
                std::cmp::Ordering::Less => 0,
                std::cmp::Ordering::Equal => within,
                std::cmp::Ordering::Greater => self.chunk,
            }
    }

    /// Where on the disk a byte of a branch is.
    pub(super) fn on_disk(self, branch: u64, offset: u64) -> u64 {
        let (row, within) = (offset / self.chunk, offset % self.chunk);
        (row * self.branches + branch) * self.chunk + within
    }
}

impl StripeFan {
    pub(super) fn new(chunk: u64) -> Self {
        Self { chunk }
    }

    /// Starts what of a request lies on a branch from `from` on, as much of it as one child can have pieces of memory.
    fn start(
        &self,
        branch: usize,
        from: Option<u64>,
        request: &BlockRequest,
        children: &mut Children<'_, BlockRequest>,
    ) -> Result<(), BlockError> {
        let layout = Layout { chunk: self.chunk, branches: children.branches() as u64 };
        let mut range = layout.on_branch(&(request.offset()..request.end()), branch as u64);
        range.start = from.unwrap_or(range.start);
        if range.is_empty() {
            return Ok(());
        }
        if !matches!(request.op(), BlockOp::Read | BlockOp::Write) {
            return children.start_block(branch, request.op(), request.flags(), range, |_| Ok(()));
        }
        // The list is filled first: how far it goes is how long the child is.
        let mut refused = BlockError::Io;
        let started = children.start(branch, |tag, mut list| {
            let mut at = range.start;
            while at < range.end {
                let end = range.end.min(at - at % self.chunk + self.chunk);
                let skip = layout.on_disk(branch as u64, at) - request.offset();
                match request.sg().slice_into(skip, end - at, &mut list) {
                    Ok(()) => at = end,
                    Err(DmaError::TooManySegments { .. }) if at > range.start => break,
                    Err(_) => return Err(list),
                }
            }
            let child = BlockRequest::transfer(request.op(), tag, range.start, list);
            child.map(|child| child.with_flags(request.flags())).map_err(|error| {
                refused = BlockError::OutOfRange;
                error.sg
            })
        });
        if started { Ok(()) } else { Err(refused) }
    }
}

impl FanOut<BlockRequest> for StripeFan {
    /// The first failure.
    type Parent = Option<BlockError>;

    fn on_submit(
        &mut self,
        _: &mut WorkerContext<'_>,
        request: &mut BlockRequest,
        children: &mut Children<'_, BlockRequest>,
    ) -> Result<Self::Parent, BlockOutput> {
        admit(children.caps(), request).map_err(BlockOutput::Failed)?;
        for branch in 0..children.branches() {
            let started = if request.op() == BlockOp::Flush {
                children.start_same(branch, request)
            } else {
                self.start(branch, None, request, children)
            };
            started.map_err(BlockOutput::Failed)?;
        }
        Ok(None)
    }

    fn on_child(
        &mut self,
        _: &mut WorkerContext<'_>,
        failure: &mut Self::Parent,
        request: &mut BlockRequest,
        child: Child<'_, BlockRequest>,
        children: &mut Children<'_, BlockRequest>,
    ) {
        if let BlockOutput::Failed(error) = child.output {
            failure.get_or_insert(error);
        }
        let (None, Some(done)) = (*failure, child.request) else { return };
        if request.op() != BlockOp::Flush
            && let Err(error) = self.start(child.branch, Some(done.end()), request, children)
        {
            *failure = Some(error);
        }
    }

    fn finish(&mut self, failure: Self::Parent, _: &mut BlockRequest) -> BlockOutput {
        failure.map_or(BlockOutput::Done, BlockOutput::Failed)
    }
}
