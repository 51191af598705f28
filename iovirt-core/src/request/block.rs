//! Block requests: reads and writes of a disk, and what goes with them.

use super::{Cost, Request, Tag};
use crate::dma::SgList;
use bitflags::bitflags;
use thiserror::Error;

/// The size of a sector in bytes: the unit of capacity in virtio-blk and in most disk interfaces. The unit of
/// addressing in a [`BlockRequest`] is the byte.
pub const SECTOR: u64 = 512;

/// What a block request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum BlockOp {
    /// Fill the scatter-gather list from the disk.
    Read,
    /// Write the scatter-gather list to the disk.
    Write,
    /// Make every write that completed before this request was submitted durable.
    Flush,
    /// Tell the disk that the range is of no interest; what it reads as afterwards is
    /// [`DiscardLimits::reads_zero`].
    Discard,
    /// Make the range read as zeroes.
    WriteZeroes,
}

bitflags! {
    /// How a block request is to be done.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct BlockFlags: u8 {
        /// Force unit access: the write (or write-zeroes) is durable before it completes.
        const FUA = 1 << 0;
        /// Write-zeroes may deallocate the range.
        const UNMAP = 1 << 1;
    }
}

/// One block request: 32 bytes, with its memory behind a pooled handle.
///
/// `offset` and `len` are in bytes. For [`BlockOp::Read`] and [`BlockOp::Write`] `len` equals the length of the
/// list. `offset + len` does not overflow: that is checked once, where the request is made. Whether the range lies
/// within the disk is for the back-end to check **at the time of I/O**, since capacity may change while a request is
/// under way.
#[derive(Debug)]
pub struct BlockRequest {
    offset: u64,
    len: u64,
    sg: Box<SgList>,
    tag: Tag,
    op: BlockOp,
    flags: BlockFlags,
}

/// A range whose end is beyond what 64 bits hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the range of {len} bytes at {offset} ends beyond 2^63")]
pub struct RangeOverflow {
    /// Start of the range in bytes.
    pub offset: u64,
    /// Length of the range in bytes.
    pub len: u64,
}

/// A request that could not be made, with the scatter-gather list it would have had.
#[derive(Debug)]
pub struct Refused {
    /// What is wrong with the range.
    pub error: RangeOverflow,
    /// The list, to be used again.
    pub sg: Box<SgList>,
}

impl BlockRequest {
    /// A read or a write of the whole list at `offset`.
    ///
    /// # Errors
    /// Where the range ends beyond 2^63, as file offsets are signed.
    pub fn transfer(op: BlockOp, tag: Tag, offset: u64, sg: Box<SgList>) -> Result<Self, Refused> {
        debug_assert!(matches!(op, BlockOp::Read | BlockOp::Write));
        let len = sg.len();
        Self::ranged(op, tag, offset, len, sg)
    }

    /// A flush. The list stays empty: it only travels along.
    pub fn flush(tag: Tag, sg: Box<SgList>) -> Self {
        Self { offset: 0, len: 0, sg, tag, op: BlockOp::Flush, flags: BlockFlags::empty() }
    }

    /// A discard or a write-zeroes of `len` bytes at `offset`.
    ///
    /// # Errors
    /// Where the range ends beyond 2^63, as file offsets are signed.
    pub fn ranged(op: BlockOp, tag: Tag, offset: u64, len: u64, sg: Box<SgList>) -> Result<Self, Refused> {
        match offset.checked_add(len) {
            Some(end) if i64::try_from(end).is_ok() => {
                Ok(Self { offset, len, sg, tag, op, flags: BlockFlags::empty() })
            }
            _ => Err(Refused { error: RangeOverflow { offset, len }, sg }),
        }
    }

    /// The request with these flags.
    #[must_use]
    pub fn with_flags(mut self, flags: BlockFlags) -> Self {
        self.flags = flags;
        self
    }

    /// What is asked for.
    #[inline]
    pub fn op(&self) -> BlockOp {
        self.op
    }

    /// Start of the range in bytes.
    #[inline]
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Length of the range in bytes.
    #[inline]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether the range is empty.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// First byte behind the range.
    #[inline]
    pub fn end(&self) -> u64 {
        self.offset + self.len
    }

    /// How it is to be done.
    #[inline]
    pub fn flags(&self) -> BlockFlags {
        self.flags
    }

    /// The memory to read into or to write from.
    #[inline]
    pub fn sg(&self) -> &SgList {
        &self.sg
    }

    /// The memory to read into or to write from.
    #[inline]
    pub fn sg_mut(&mut self) -> &mut SgList {
        &mut self.sg
    }

    /// Gives the list back, to be used again.
    #[inline]
    pub fn into_sg(self) -> Box<SgList> {
        self.sg
    }

    /// Turns the request into another operation on the same range, for a stage that does one in two steps. The
    /// stage turns it back before it lets the completion go up.
    pub fn set_op(&mut self, op: BlockOp, flags: BlockFlags) {
        self.op = op;
        self.flags = flags;
    }

    /// Moves the range, for a stage that maps one disk onto a part of another; turned back before the completion
    /// goes up.
    ///
    /// # Errors
    /// Where the moved range ends beyond 2^63.
    pub fn set_offset(&mut self, offset: u64) -> Result<(), RangeOverflow> {
        let fits = offset.checked_add(self.len).is_some_and(|end| i64::try_from(end).is_ok());
        if !fits {
            return Err(RangeOverflow { offset, len: self.len });
        }
        self.offset = offset;
        Ok(())
    }
}

/// Why a block request failed. Maps onto what guests can be told; the host's log has the rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Error)]
pub enum BlockError {
    /// The medium or the host failed.
    #[error("input/output error")]
    Io,
    /// The range is not within the disk.
    #[error("the range is beyond the end of the disk")]
    OutOfRange,
    /// The offset or the length is not a multiple of the logical block size.
    #[error("the range is not aligned to the logical block size")]
    Misaligned,
    /// A discard or a write-zeroes that is longer than the stack said it takes.
    #[error("the range is longer than one request may cover")]
    TooLong,
    /// A write to a read-only disk.
    #[error("the disk is read-only")]
    ReadOnly,
    /// No room for the data where the disk is stored.
    #[error("no space is left where the disk is stored")]
    NoSpace,
    /// The stack cannot do this operation.
    #[error("the operation is not supported")]
    Unsupported,
    /// Given up: dropped by a stage, or discarded by a reset.
    #[error("aborted")]
    Aborted,
}

/// What became of a block request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockOutput {
    /// All of it was done.
    Done,
    /// It failed; for a write, any part of the range may have been written.
    Failed(BlockError),
}

impl Request for BlockRequest {
    type Output = BlockOutput;
    type Caps = BlockCaps;
    const KINDS: &'static [&'static str] = &["read", "write", "flush", "discard", "write-zeroes"];
    const FAMILY: &'static str = "block";

    #[inline]
    fn tag(&self) -> Tag {
        self.tag
    }

    #[inline]
    fn kind(&self) -> usize {
        self.op as usize
    }

    #[inline]
    fn cost(&self) -> Cost {
        let bytes = match self.op {
            BlockOp::Read | BlockOp::Write => self.len,
            BlockOp::Flush | BlockOp::Discard | BlockOp::WriteZeroes => 0,
        };
        Cost { ops: 1, bytes }
    }

    #[inline]
    fn into_memory(self) -> Option<Box<SgList>> {
        Some(self.sg)
    }

    fn aborted() -> BlockOutput {
        BlockOutput::Failed(BlockError::Aborted)
    }

    fn failed() -> BlockOutput {
        BlockOutput::Failed(BlockError::Io)
    }

    /// A disk that fails.
    fn vacant(told: &BlockCaps) -> BlockCaps {
        told.clone()
    }

    #[inline]
    fn is_failure(output: &BlockOutput) -> bool {
        *output != BlockOutput::Done
    }
}

/// What a block stack can do and what it promises. A stage states how it changes them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockCaps {
    /// Size of the disk in bytes; a multiple of `logical_block`.
    pub capacity: u64,
    /// The unit of addressing in bytes: a power of two, 512 or more. A request that is not aligned to it fails with
    /// [`BlockError::Misaligned`].
    pub logical_block: u32,
    /// The unit in which the medium writes without reading first, in bytes: a power of two, `logical_block` or more.
    pub physical_block: u32,
    /// The preferred size and alignment of a large transfer in bytes; 0 where there is none.
    pub optimal_io: u32,
    /// Writes are refused with [`BlockError::ReadOnly`].
    pub read_only: bool,
    /// What survives a loss of power.
    pub durability: Durability,
    /// [`BlockFlags::FUA`] is honoured. Where it is not, [`stage::EmulateFua`](crate::stage::EmulateFua) does it by
    /// write and flush.
    pub fua: bool,
    /// The stack can discard, within these limits.
    pub discard: Option<DiscardLimits>,
    /// The stack can write zeroes without being sent them, within these limits.
    pub write_zeroes: Option<WriteZeroesLimits>,
}

impl BlockCaps {
    /// A writable disk of `capacity` bytes with 512-byte blocks that does reads, writes and flushes, and is
    /// write-through.
    pub fn new(capacity: u64) -> Self {
        Self {
            capacity,
            logical_block: SECTOR as u32,
            physical_block: SECTOR as u32,
            optimal_io: 0,
            read_only: false,
            durability: Durability::WriteThrough,
            fua: true,
            discard: None,
            write_zeroes: None,
        }
    }

    /// Checks a range against these capabilities, as a back-end does at the time of I/O.
    ///
    /// # Errors
    /// [`BlockError::OutOfRange`], [`BlockError::Misaligned`], [`BlockError::TooLong`], [`BlockError::Unsupported`], or
    /// [`BlockError::ReadOnly`] for an operation that changes the disk.
    #[inline]
    pub fn check(&self, request: &BlockRequest) -> Result<(), BlockError> {
        let longest = match request.op() {
            BlockOp::Flush => return Ok(()),
            BlockOp::Read => u64::MAX,
            _ if self.read_only => return Err(BlockError::ReadOnly),
            BlockOp::Write => u64::MAX,
            BlockOp::Discard => self.discard.ok_or(BlockError::Unsupported)?.max_bytes,
            BlockOp::WriteZeroes => self.write_zeroes.ok_or(BlockError::Unsupported)?.max_bytes,
        };
        let mask = u64::from(self.logical_block) - 1;
        if (request.offset() | request.len()) & mask != 0 {
            return Err(BlockError::Misaligned);
        }
        if request.end() > self.capacity {
            return Err(BlockError::OutOfRange);
        }
        if request.len() > longest {
            return Err(BlockError::TooLong);
        }
        Ok(())
    }
}

impl BlockCaps {
    /// Whether [`BlockFlags::FUA`] is only honoured with [`stage::EmulateFua`](crate::stage::EmulateFua) on top.
    pub(crate) fn needs_fua_emulated(&self) -> bool {
        !self.fua && self.durability == Durability::WriteBack
    }

    /// Whether a stack with these capabilities may take the place of one with those of `told`, which a guest has been told:
    /// what [`Swappable`](crate::pipeline::Swappable) asks of block stacks.
    ///
    /// # Errors
    /// One sentence that names the first thing that is missing.
    pub fn may_replace(told: &Self, new: &Self) -> Result<(), String> {
        let refuse = |what: String| Err(format!("the stack cannot take the place of the one in use: {what}"));
        if new.logical_block != told.logical_block {
            return refuse(format!(
                "its blocks have {} bytes, not {}",
                new.logical_block, told.logical_block
            ));
        }
        if new.capacity < told.capacity {
            return refuse(format!("it has {} bytes, fewer than {}", new.capacity, told.capacity));
        }
        if new.read_only && !told.read_only {
            return refuse("it is read-only".into());
        }
        if new.durability.weaker_than(told.durability) {
            return refuse(format!("it promises {:?}, less than {:?}", new.durability, told.durability));
        }
        // Queues that are open were opened for what was there, see `stage::open_with_fua`.
        if new.needs_fua_emulated() && !told.needs_fua_emulated() {
            return refuse("it cannot force a single write to the medium, and the one in use can".into());
        }
        if told.discard.is_some() && new.discard.is_none() {
            return refuse("it cannot discard".into());
        }
        if told.write_zeroes.is_some() && new.write_zeroes.is_none() {
            return refuse("it cannot write zeroes".into());
        }
        Ok(())
    }
}

/// What survives a loss of power.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// Every completed write does. A flush has nothing left to do.
    WriteThrough,
    /// What was flushed, or written with [`BlockFlags::FUA`], does.
    WriteBack,
    /// Nothing is promised: flushes and FUA are acknowledged and ignored. Of a stack that could promise more only by an
    /// explicit option with an alarming name; of one that lives in memory by its nature.
    Unsafe,
}

impl Durability {
    fn weaker_than(self, other: Self) -> bool {
        let rank = |durability| match durability {
            Self::WriteThrough => 2,
            Self::WriteBack => 1,
            Self::Unsafe => 0,
        };
        rank(self) < rank(other)
    }
}

/// Limits of [`BlockOp::Discard`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiscardLimits {
    /// Longest range of one request in bytes; a longer one fails with [`BlockError::TooLong`].
    pub max_bytes: u64,
    /// Ranges that are not aligned to this many bytes may be discarded in part only.
    pub alignment: u32,
    /// What was discarded reads as zeroes.
    pub reads_zero: bool,
}

/// Limits of [`BlockOp::WriteZeroes`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WriteZeroesLimits {
    /// Longest range of one request in bytes; a longer one fails with [`BlockError::TooLong`].
    pub max_bytes: u64,
    /// [`BlockFlags::UNMAP`] may deallocate the range.
    pub may_unmap: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dma::{SgLimits, SgPool};

    #[test]
    fn a_request_is_small() {
        assert!(size_of::<BlockRequest>() <= 32);
        assert!(size_of::<super::super::Completion<BlockRequest>>() <= 40);
    }

    #[test]
    fn a_range_that_overflows_is_refused_with_its_list() {
        let mut pool = SgPool::new(1, SgLimits::default());
        let sg = pool.take();
        let refused = BlockRequest::ranged(BlockOp::Discard, Tag::new(0), u64::MAX, 1, sg)
            .expect_err("overflows 64 bits");
        let refused = BlockRequest::ranged(BlockOp::Discard, Tag::new(0), i64::MAX as u64, 1, refused.sg)
            .expect_err("overflows a file offset");
        assert!(
            BlockRequest::ranged(BlockOp::Discard, Tag::new(0), i64::MAX as u64 - 1, 1, refused.sg).is_ok()
        );
    }

    #[test]
    fn caps_check_each_rule() {
        let mut pool = SgPool::new(1, SgLimits::default());
        let mut check = |caps: &BlockCaps, op, offset, len| {
            let request = BlockRequest::ranged(op, Tag::new(0), offset, len, pool.take()).unwrap();
            let checked = caps.check(&request);
            pool.put(request.into_sg());
            checked
        };
        let caps = BlockCaps::new(1 << 20);
        assert_eq!(check(&caps, BlockOp::Read, (1 << 20) - 512, 512), Ok(()));
        assert_eq!(check(&caps, BlockOp::Read, (1 << 20) - 512, 1024), Err(BlockError::OutOfRange));
        assert_eq!(check(&caps, BlockOp::Read, 100, 512), Err(BlockError::Misaligned));
        assert_eq!(check(&caps, BlockOp::Discard, 0, 512), Err(BlockError::Unsupported));
        assert_eq!(check(&caps, BlockOp::WriteZeroes, 0, 512), Err(BlockError::Unsupported));
        let short = DiscardLimits { max_bytes: 1024, alignment: 512, reads_zero: true };
        let discards = BlockCaps { discard: Some(short), ..caps.clone() };
        assert_eq!(check(&discards, BlockOp::Discard, 0, 1024), Ok(()));
        assert_eq!(check(&discards, BlockOp::Discard, 0, 1536), Err(BlockError::TooLong));
        let read_only = BlockCaps { read_only: true, ..caps };
        assert_eq!(check(&read_only, BlockOp::Write, 0, 512), Err(BlockError::ReadOnly));
        assert_eq!(check(&read_only, BlockOp::Read, 0, 512), Ok(()));
    }
}
