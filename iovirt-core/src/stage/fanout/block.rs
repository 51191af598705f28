//! Children of block requests.

use super::Children;
use crate::dma::{DmaError, SgList};
use crate::request::block::{
    BlockCaps, BlockError, BlockFlags, BlockOp, BlockRequest, DiscardLimits, Durability, WriteZeroesLimits,
};
use std::ops::Range;
use std::sync::Arc;

/// Checks a request against the capabilities of the whole, with the limits of length too: so that no branch refuses what
/// another accepts.
///
/// # Errors
/// As [`BlockCaps::check`]; [`BlockError::Unsupported`] beyond a limit of length; [`BlockError::Io`] where the memory of a
/// read or a write is not as long as its range.
pub fn admit(caps: &BlockCaps, request: &BlockRequest) -> Result<(), BlockError> {
    caps.check(request)?;
    let limit = match request.op() {
        BlockOp::Read | BlockOp::Write if request.sg().len() != request.len() => return Err(BlockError::Io),
        BlockOp::Discard => caps.discard.map(|limits| limits.max_bytes),
        BlockOp::WriteZeroes => caps.write_zeroes.map(|limits| limits.max_bytes),
        BlockOp::Read | BlockOp::Write | BlockOp::Flush => None,
    };
    if limit.is_some_and(|limit| request.len() > limit) { Err(BlockError::Unsupported) } else { Ok(()) }
}

/// What all of these can do: the smallest capacity, the largest blocks, the narrowest limits, and of durability the least.
/// Nothing at all where there are none.
pub fn common_caps(branches: &[Arc<BlockCaps>]) -> BlockCaps {
    let all = || branches.iter().map(|caps| &**caps);
    let least = all().map(|caps| caps.capacity).min().unwrap_or(0);
    let mut common = BlockCaps::new(least);
    for caps in all() {
        common.logical_block = common.logical_block.max(caps.logical_block);
        common.physical_block = common.physical_block.max(caps.physical_block);
        common.optimal_io = common.optimal_io.max(caps.optimal_io);
        common.read_only |= caps.read_only;
        common.durability = weaker(common.durability, caps.durability);
        // Where completed writes are durable, or nothing is, there is nothing that the flag could add.
        common.fua &= caps.fua || caps.durability != Durability::WriteBack;
    }
    let block = u64::from(common.logical_block);
    common.capacity = least - least % block;
    common.physical_block = common.physical_block.max(common.logical_block);
    if !common.optimal_io.is_multiple_of(common.logical_block) {
        common.optimal_io = 0;
    }
    let discards: Option<Vec<_>> = all().map(|caps| caps.discard).collect();
    common.discard = discards.and_then(|limits| common_discard(&limits, block));
    let zeroes: Option<Vec<_>> = all().map(|caps| caps.write_zeroes).collect();
    common.write_zeroes = zeroes.and_then(|limits| {
        let max_bytes = limits.iter().map(|limits| limits.max_bytes).min()?;
        let max_bytes = max_bytes - max_bytes % block;
        let may_unmap = limits.iter().all(|limits| limits.may_unmap);
        (max_bytes > 0).then_some(WriteZeroesLimits { max_bytes, may_unmap })
    });
    common
}

fn weaker(one: Durability, two: Durability) -> Durability {
    match (one, two) {
        (Durability::Unsafe, _) | (_, Durability::Unsafe) => Durability::Unsafe,
        (Durability::WriteBack, _) | (_, Durability::WriteBack) => Durability::WriteBack,
        (Durability::WriteThrough, Durability::WriteThrough) => Durability::WriteThrough,
    }
}

fn common_discard(limits: &[DiscardLimits], block: u64) -> Option<DiscardLimits> {
    let max_bytes = limits.iter().map(|limits| limits.max_bytes).min()?;
    let max_bytes = max_bytes - max_bytes % block;
    let alignment = limits.iter().map(|limits| limits.alignment).max()?;
    // A range that is aligned for one has to be for all.
    let aligned = limits.iter().all(|limits| alignment.is_multiple_of(limits.alignment.max(1)));
    let reads_zero = aligned && limits.iter().all(|limits| limits.reads_zero);
    (max_bytes > 0).then_some(DiscardLimits { max_bytes, alignment, reads_zero })
}

impl Children<'_, BlockRequest> {
    /// Starts a child that asks for the same as its parent, of the same range, in the same memory.
    ///
    /// # Errors
    /// [`BlockError::Io`] where the memory is in more pieces than a child may have.
    pub fn start_same(&mut self, branch: usize, parent: &BlockRequest) -> Result<(), BlockError> {
        self.start_part(branch, parent, 0..parent.len(), parent.offset())
    }

    /// Starts a child that asks for a part of its parent, which is counted from the parent's first byte, at `offset` of the
    /// branch, in the parent's memory.
    ///
    /// # Errors
    /// [`BlockError::Io`] where the memory is in more pieces than a child may have, or the part is none of the parent's.
    pub fn start_part(
        &mut self,
        branch: usize,
        parent: &BlockRequest,
        part: Range<u64>,
        offset: u64,
    ) -> Result<(), BlockError> {
        let len = part.end - part.start;
        let moves = matches!(parent.op(), BlockOp::Read | BlockOp::Write);
        self.start_block(branch, parent.op(), parent.flags(), offset..offset + len, |list| {
            if moves { parent.sg().slice_into(part.start, len, list) } else { Ok(()) }
        })
    }

    /// Starts a child of that operation and that range of the branch; `fill` gives its list the memory.
    ///
    /// # Errors
    /// [`BlockError::Io`] where `fill` fails, [`BlockError::OutOfRange`] where the range ends beyond 2^63.
    pub fn start_block(
        &mut self,
        branch: usize,
        op: BlockOp,
        flags: BlockFlags,
        range: Range<u64>,
        fill: impl FnOnce(&mut SgList) -> Result<(), DmaError>,
    ) -> Result<(), BlockError> {
        let mut refused = BlockError::Io;
        let started = self.start(branch, |tag, mut list| {
            if fill(&mut list).is_err() {
                return Err(list);
            }
            if op == BlockOp::Flush {
                return Ok(BlockRequest::flush(tag, list));
            }
            let request = BlockRequest::ranged(op, tag, range.start, range.end - range.start, list);
            request.map(|request| request.with_flags(flags)).map_err(|error| {
                refused = BlockError::OutOfRange;
                error.sg
            })
        });
        if started { Ok(()) } else { Err(refused) }
    }
}
