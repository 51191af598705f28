//! What a test asks of a disk, and what came back.

use crate::request::block::{BlockError, BlockFlags, BlockOp, BlockOutput};

/// A block request as a test thinks of it: with its data at hand instead of in guest memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockIo {
    /// What is asked for.
    pub op: BlockOp,
    /// Start of the range in bytes.
    pub offset: u64,
    /// Length of the range in bytes.
    pub len: u64,
    /// How it is to be done.
    pub flags: BlockFlags,
    /// What is written; empty for anything but a write.
    pub data: Vec<u8>,
}

impl BlockIo {
    /// A read.
    pub fn read(offset: u64, len: u64) -> Self {
        Self { op: BlockOp::Read, offset, len, flags: BlockFlags::empty(), data: Vec::new() }
    }

    /// A write.
    pub fn write(offset: u64, data: Vec<u8>) -> Self {
        Self { op: BlockOp::Write, offset, len: data.len() as u64, flags: BlockFlags::empty(), data }
    }

    /// A flush.
    pub fn flush() -> Self {
        Self { op: BlockOp::Flush, ..Self::read(0, 0) }
    }

    /// A discard.
    pub fn discard(offset: u64, len: u64) -> Self {
        Self { op: BlockOp::Discard, ..Self::read(offset, len) }
    }

    /// A write-zeroes.
    pub fn write_zeroes(offset: u64, len: u64) -> Self {
        Self { op: BlockOp::WriteZeroes, ..Self::read(offset, len) }
    }

    /// The same with these flags.
    #[must_use]
    pub fn with_flags(mut self, flags: BlockFlags) -> Self {
        self.flags = flags;
        self
    }
}

/// The number of a request among all that a [`Driver`](super::Driver) submitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IoId(pub u64);

/// A request that came home to a [`Driver`](super::Driver).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IoDone {
    /// Its number.
    pub id: IoId,
    /// What was asked for, as it came back.
    pub io: BlockIo,
    /// What became of it.
    pub output: BlockOutput,
    /// What a successful read brought; empty for anything else.
    pub data: Vec<u8>,
    /// A stage dropped the request instead of completing it.
    pub lost: bool,
    /// What is wrong with the request as it came back: another operation or range than was submitted, say.
    pub mangled: Option<String>,
}

impl IoDone {
    /// What a read brought, or why the request failed.
    ///
    /// # Errors
    /// The error that the request completed with.
    pub fn into_result(self) -> Result<Vec<u8>, BlockError> {
        match self.output {
            BlockOutput::Done => Ok(self.data),
            BlockOutput::Failed(error) => Err(error),
        }
    }
}
