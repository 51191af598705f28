//! A request that is done in several steps.

use iovirt_core::dma::SgList;
use iovirt_core::request::block::{BlockOp, BlockOutput, BlockRequest};
use iovirt_core::stage::{Hold, RangeTicket};
use std::ops::Range;

/// A request from above, and how far it is.
#[derive(Debug)]
pub(super) struct Parent {
    pub(super) request: BlockRequest,
    pub(super) ticket: Option<(RangeTicket, Hold)>,
    /// Up to here, as an offset of the disk, it is done.
    pub(super) done: u64,
    pub(super) step: Step,
    /// The aligned copy of the blocks of this step, while it is not travelling with a request.
    pub(super) bounce: Option<Box<SgList>>,
    /// What became of the step that came back last.
    pub(super) outcome: BlockOutput,
}

/// What is under way below, or goes there next. A range is of bytes; the blocks that hold it are what is read or written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// To be chosen.
    Choose,
    /// Reading the first block into the copy, or all where there are no more than two.
    ReadHead(Range<u64>),
    /// Reading the last block into the copy.
    ReadTail(Range<u64>),
    /// Writing the copy.
    WriteBody(Range<u64>),
    /// Reading into the copy.
    ReadBody(Range<u64>),
    /// Zeroing or discarding whole blocks, without a copy.
    Whole(Range<u64>),
}

impl Parent {
    pub(super) fn new(request: BlockRequest, ticket: Option<(RangeTicket, Hold)>) -> Self {
        Self {
            done: request.offset(),
            request,
            ticket,
            step: Step::Choose,
            bounce: None,
            outcome: BlockOutput::Done,
        }
    }

    /// The step after this one has succeeded.
    pub(super) fn step_done(&mut self, block: u64) {
        self.step = match std::mem::replace(&mut self.step, Step::Choose) {
            Step::ReadHead(range) if tail_is_apart(&range, block) => Step::ReadTail(range),
            Step::ReadHead(range) | Step::ReadTail(range) => Step::WriteBody(range),
            Step::WriteBody(range) | Step::ReadBody(range) | Step::Whole(range) => {
                self.done = range.end;
                Step::Choose
            }
            Step::Choose => Step::Choose,
        };
    }

    /// Chooses the next step; false where nothing is left to do.
    pub(super) fn choose(&mut self, block: u64, bounce_bytes: u64) -> bool {
        self.step = match self.next(block, bounce_bytes) {
            None => return false,
            Some(Next::Whole(range)) => Step::Whole(range),
            Some(Next::Copied(range)) if self.request.op() == BlockOp::Read => Step::ReadBody(range),
            Some(Next::Copied(range)) if !range.start.is_multiple_of(block) => Step::ReadHead(range),
            Some(Next::Copied(range)) if !range.end.is_multiple_of(block) => Step::ReadTail(range),
            Some(Next::Copied(range)) => Step::WriteBody(range),
        };
        true
    }

    /// What comes next, where something is left: the range and whether it goes through an aligned copy.
    pub(super) fn next(&self, block: u64, bounce_bytes: u64) -> Option<Next> {
        let (from, end) = (self.done, self.request.end());
        if from >= end {
            return None;
        }
        let copied = from.max(down(from, block).saturating_add(bounce_bytes)).min(end);
        Some(match self.request.op() {
            BlockOp::Read | BlockOp::Write => Next::Copied(from..copied),
            BlockOp::WriteZeroes if !from.is_multiple_of(block) => {
                Next::Copied(from..end.min(up(from, block)))
            }
            BlockOp::WriteZeroes if end - from < block => Next::Copied(from..end),
            BlockOp::WriteZeroes => Next::Whole(from..down(end, block)),
            BlockOp::Discard => {
                let whole = up(from, block)..down(end, block);
                if whole.start >= whole.end {
                    return None;
                }
                Next::Whole(whole)
            }
            BlockOp::Flush => return None,
        })
    }
}

/// The next part of a request.
#[derive(Debug)]
pub(super) enum Next {
    /// Goes through an aligned copy.
    Copied(Range<u64>),
    /// Goes down as it is: whole blocks, without data.
    Whole(Range<u64>),
}

/// Whether the last block is not whole, and not read with the first.
fn tail_is_apart(range: &Range<u64>, block: u64) -> bool {
    !range.end.is_multiple_of(block) && !is_short(range, block)
}

/// Whether the range lies in so few blocks that all are read at once.
fn is_short(range: &Range<u64>, block: u64) -> bool {
    let cover = cover(range, block);
    cover.end - cover.start <= 2 * block
}

/// The blocks to read first.
pub(super) fn head(range: &Range<u64>, block: u64) -> Range<u64> {
    let cover = cover(range, block);
    if is_short(range, block) { cover } else { cover.start..cover.start + block }
}

/// The last block.
pub(super) fn tail(range: &Range<u64>, block: u64) -> Range<u64> {
    let cover = cover(range, block);
    cover.end - block..cover.end
}

/// The blocks that hold a range.
pub(super) fn cover(range: &Range<u64>, block: u64) -> Range<u64> {
    down(range.start, block)..up(range.end, block)
}

pub(super) fn down(offset: u64, block: u64) -> u64 {
    offset & !(block - 1)
}

/// Offsets are below 2^63, so nothing overflows.
pub(super) fn up(offset: u64, block: u64) -> u64 {
    down(offset + (block - 1), block)
}

/// How a request that changes a disk with blocks of that size holds its blocks.
pub(super) fn hold(request: &BlockRequest, block: u64) -> Hold {
    let parts = !(request.offset() | request.len()).is_multiple_of(block);
    match request.op() {
        BlockOp::Write | BlockOp::WriteZeroes if parts => Hold::Exclusive,
        _ => Hold::Shared,
    }
}
