//! What a server's export can do, and what follows for the disk.
#![forbid(unsafe_code)]

use super::config::{NbdAccess, NbdConfig, WithoutFlush};
use super::proto::{self, Export};
use iovirt_core::BackendError;
use iovirt_core::request::block::{BlockCaps, DiscardLimits, Durability, SECTOR, WriteZeroesLimits};

/// Longest data of one request to a server that does not say: "for maximum portability" ("Size constraints").
const DEFAULT_PAYLOAD: u32 = 32 << 20;
/// Largest minimum block ("Size constraints").
const MAX_BLOCK: u32 = 1 << 16;

/// What an export can do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Facts {
    pub(super) caps: BlockCaps,
    pub(super) flush: bool,
    pub(super) fua: bool,
    /// Every write is sent with FUA: there is no flush to make it durable later.
    pub(super) always_fua: bool,
    pub(super) multi: bool,
    /// Longest data of one request in bytes, a multiple of the block.
    pub(super) payload: u64,
    /// Longest range of one request without data in bytes, a multiple of the block.
    pub(super) range: u64,
}

impl Facts {
    pub(super) fn new(export: &Export, config: &NbdConfig) -> Result<Self, BackendError> {
        let bad =
            |what: String| Err(BackendError::config(format!("the NBD server at {} {what}", config.address)));
        let Some((size, flags)) = export.size_and_flags else {
            return bad("does not say how large the export is".into());
        };
        if flags & proto::FLAG_HAS_FLAGS == 0 {
            return bad("does not say what the export can do".into());
        }
        let (min, preferred, max) = export.sizes.unwrap_or((1, 4096, DEFAULT_PAYLOAD));
        if !min.is_power_of_two() || min > MAX_BLOCK || !preferred.is_power_of_two() || max < min.max(512) {
            return bad(format!(
                "gives block sizes that are not allowed: minimum {min}, preferred {preferred}, maximum {max}"
            ));
        }
        let block = min.max(SECTOR as u32);
        let capacity = size & !(u64::from(block) - 1);
        if capacity == 0 || i64::try_from(size).is_err() {
            return bad(format!(
                "has an export of {size} bytes: one block and less than 2^63 bytes make a disk"
            ));
        }
        let has = |flag| flags & flag != 0;
        let read_only = has(proto::FLAG_READ_ONLY) || config.access == NbdAccess::ReadOnly;
        let (flush, fua) = (has(proto::FLAG_SEND_FLUSH), has(proto::FLAG_SEND_FUA));
        let whole = |len: u32| u64::from(len & !(block - 1));
        let range = whole(u32::MAX);
        let mut caps = BlockCaps::new(capacity);
        caps.logical_block = block;
        caps.physical_block = preferred.clamp(block, block.max(1 << 20));
        caps.read_only = read_only;
        caps.durability = match (flush, fua, config.without_flush) {
            _ if read_only => Durability::WriteThrough,
            (true, ..) => Durability::WriteBack,
            (false, true, _) | (false, false, WithoutFlush::AssumeWriteThrough) => Durability::WriteThrough,
            (false, false, WithoutFlush::Unsafe) => Durability::Unsafe,
        };
        caps.fua = fua || flush;
        if !read_only && has(proto::FLAG_SEND_TRIM) {
            caps.discard = Some(DiscardLimits { max_bytes: range, alignment: block, reads_zero: false });
        }
        if !read_only && has(proto::FLAG_SEND_WRITE_ZEROES) {
            caps.write_zeroes = Some(WriteZeroesLimits { max_bytes: range, may_unmap: true });
        }
        Ok(Self {
            caps,
            flush,
            fua,
            always_fua: fua && !flush,
            multi: has(proto::FLAG_CAN_MULTI_CONN) || read_only,
            payload: whole(max.min(DEFAULT_PAYLOAD)).max(u64::from(block)),
            range,
        })
    }
}
