//! What a chain asks for (VIRTIO 1.2, section 5.2.6).

use super::config::SERIAL_LEN;
use crate::virtio::QueueError;
use crate::virtio::queue::Chain;
use iovirt_core::dma::SgList;
use iovirt_core::request::block::{BlockFlags, BlockOp, SECTOR};
use thiserror::Error;
use virtio_bindings::virtio_blk as bindings;

/// Length of the header: type, reserved, sector.
const HEADER_LEN: u64 = 16;
/// Length of the range of a discard or a write-zeroes: sector, count, flags.
const RANGE_LEN: u64 = 16;
/// `VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP`.
const FLAG_UNMAP: u32 = 1;

/// What a chain asks for. The data, for those that have some, is what [`parse`] leaves in the chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parsed {
    /// IN or OUT at that offset in bytes.
    Transfer {
        /// Read or write.
        op: BlockOp,
        /// In bytes.
        offset: u64,
    },
    /// FLUSH.
    Flush,
    /// DISCARD or WRITE_ZEROES.
    Range {
        /// Discard or write-zeroes.
        op: BlockOp,
        /// In bytes.
        offset: u64,
        /// In bytes.
        len: u64,
        /// Unmap, or nothing.
        flags: BlockFlags,
    },
    /// GET_ID into what is left of the writable part.
    GetId,
    /// A request type that this device does not know, or flags that it must not accept.
    Unsupported,
    /// A request that contradicts itself, answered with an I/O error.
    Invalid,
}

/// A chain that cannot even be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ParseError {
    /// Fewer than 16 bytes for the device to read.
    #[error("a request without a whole header")]
    NoHeader,
    /// Nothing for the device to write its status into.
    #[error("a request without room for its status")]
    NoStatus,
}

impl From<ParseError> for QueueError {
    fn from(error: ParseError) -> Self {
        Self::Request(match error {
            ParseError::NoHeader => "a disk request without a whole header",
            ParseError::NoStatus => "a disk request without room for its status",
        })
    }
}

/// Takes a chain apart: the header is trimmed from the readable part, the status byte (the last one) moves from the
/// writable part into `status`. What is left is data.
///
/// # Errors
/// Where the chain cannot be answered.
#[inline]
pub fn parse(chain: &mut Chain, status: &mut SgList) -> Result<Parsed, ParseError> {
    let (readable, writable) = chain.parts_mut();
    let mut header = [0; HEADER_LEN as usize];
    readable.copy_to(0, &mut header).map_err(|_| ParseError::NoHeader)?;
    readable.trim_front(HEADER_LEN);
    let room = writable.len().checked_sub(1).ok_or(ParseError::NoStatus)?;
    status.clear();
    writable.slice_into(room, 1, status).map_err(|_| ParseError::NoStatus)?;
    writable.trim_back(1);

    let [t0, t1, t2, t3, _, _, _, _, sector @ ..] = header;
    let kind = u32::from_le_bytes([t0, t1, t2, t3]);
    let sector = u64::from_le_bytes(sector);
    Ok(decode(chain, kind, sector))
}

fn decode(chain: &Chain, kind: u32, sector: u64) -> Parsed {
    let (readable, writable) = (chain.readable().len(), chain.writable().len());
    match kind {
        bindings::VIRTIO_BLK_T_IN => transfer(BlockOp::Read, sector, writable, readable),
        bindings::VIRTIO_BLK_T_OUT => transfer(BlockOp::Write, sector, readable, writable),
        bindings::VIRTIO_BLK_T_FLUSH => Parsed::Flush,
        bindings::VIRTIO_BLK_T_GET_ID if writable < SERIAL_LEN as u64 => Parsed::Invalid,
        bindings::VIRTIO_BLK_T_GET_ID => Parsed::GetId,
        bindings::VIRTIO_BLK_T_DISCARD => range(chain, BlockOp::Discard),
        bindings::VIRTIO_BLK_T_WRITE_ZEROES => range(chain, BlockOp::WriteZeroes),
        _ => Parsed::Unsupported,
    }
}

fn transfer(op: BlockOp, sector: u64, data: u64, other: u64) -> Parsed {
    // Data in the wrong direction, or not in whole sectors (section 5.2.6.1).
    if other != 0 || data == 0 || !data.is_multiple_of(SECTOR) {
        return Parsed::Invalid;
    }
    match sector.checked_mul(SECTOR) {
        Some(offset) => Parsed::Transfer { op, offset },
        None => Parsed::Invalid,
    }
}

fn range(chain: &Chain, op: BlockOp) -> Parsed {
    // One range per request: that is what `max_discard_seg` and `max_write_zeroes_seg` say.
    let mut bytes = [0; RANGE_LEN as usize];
    if chain.readable().len() != RANGE_LEN || chain.readable().copy_to(0, &mut bytes).is_err() {
        return Parsed::Invalid;
    }
    let [s0, s1, s2, s3, s4, s5, s6, s7, c0, c1, c2, c3, f0, f1, f2, f3] = bytes;
    let sector = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
    let count = u32::from_le_bytes([c0, c1, c2, c3]);
    let flags = match (op, u32::from_le_bytes([f0, f1, f2, f3])) {
        (_, 0) => BlockFlags::empty(),
        (BlockOp::WriteZeroes, FLAG_UNMAP) => BlockFlags::UNMAP,
        // Unknown flags, and unmap in a discard, must be refused so (section 5.2.6.2).
        _ => return Parsed::Unsupported,
    };
    match sector.checked_mul(SECTOR) {
        Some(offset) => Parsed::Range { op, offset, len: u64::from(count) * SECTOR, flags },
        None => Parsed::Invalid,
    }
}
