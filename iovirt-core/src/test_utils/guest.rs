//! Guest memory for requests: lists of odd pieces, of guest and host memory mixed.

use super::io::BlockIo;
use super::rng::Rng;
use crate::dma::{Access, DmaError, DmaSpace, DmaView, HostBuffer, SgList};
use crate::request::block::BlockOp;
use std::sync::Arc;

/// How the memory of a request is cut into segments.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Shape {
    /// One segment of guest memory.
    Whole,
    /// Several segments of guest memory, of any length and at any address.
    Pieces,
    /// Several segments of guest and of host memory in any order.
    #[default]
    Mixed,
}

/// Most segments of one list.
const MAX_PIECES: u64 = 7;

/// Bytes of guest memory for each request in flight, the longest request, and the gaps between its segments.
fn slot_bytes(max_len: u64) -> u64 {
    (max_len + (MAX_PIECES + 1) * 64).next_multiple_of(4096)
}

/// The memory of a guest that has a slot for each request in flight, in two regions far apart.
#[derive(Debug)]
pub(super) struct Guest {
    space: DmaSpace,
    view: DmaView,
    slot: u64,
}

/// Where the second region begins: behind a hole, as behind the hole that PCI leaves below 4 GiB.
const HIGH: u64 = 1 << 32;
const LOW: u64 = 0x10_000;

impl Guest {
    pub(super) fn new(slots: u64, max_len: u64) -> Result<Self, crate::dma::MapError> {
        let slot = slot_bytes(max_len);
        let bytes = slot * slots.div_ceil(2);
        let space = DmaSpace::anonymous(&[(LOW, bytes), (HIGH, bytes)])?;
        let view = space.view();
        Ok(Self { space, view, slot })
    }

    pub(super) fn space(&self) -> &DmaSpace {
        &self.space
    }

    /// Room for a request of that many bytes in every slot.
    pub(super) fn longest(&self) -> u64 {
        self.slot - (MAX_PIECES + 1) * 64
    }

    fn base(&self, slot: u64) -> u64 {
        let half = if slot.is_multiple_of(2) { LOW } else { HIGH };
        half + slot / 2 * self.slot
    }

    /// Gives a list its segments, with the data in place where the request writes.
    pub(super) fn fill(
        &self,
        slot: u64,
        io: &BlockIo,
        shape: Shape,
        rng: &mut Rng,
        sg: &mut SgList,
    ) -> Result<(), DmaError> {
        let access = match io.op {
            BlockOp::Read => Access::Write,
            BlockOp::Write => Access::Read,
            BlockOp::Flush | BlockOp::Discard | BlockOp::WriteZeroes => return Ok(()),
        };
        let pieces = if shape == Shape::Whole { 1 } else { rng.between(1, MAX_PIECES) };
        let mut addr = self.base(slot) + if shape == Shape::Whole { 0 } else { rng.below(64) };
        let mut at = 0;
        for piece in (1..=pieces).rev() {
            let left = io.len - at;
            let len = if piece == 1 { left } else { rng.below(left + 1) };
            let data = io.data.get(at as usize..(at + len) as usize).unwrap_or_default();
            if shape == Shape::Mixed && rng.one_in(3) {
                push_host(sg, len as usize, data, rng)?;
            } else {
                self.view.write(addr, data)?;
                sg.push(&self.view, addr, len, access)?;
            }
            addr += len + rng.below(if shape == Shape::Whole { 1 } else { 64 });
            at += len;
        }
        Ok(())
    }
}

fn push_host(sg: &mut SgList, len: usize, data: &[u8], rng: &mut Rng) -> Result<(), DmaError> {
    let skip = rng.index(64);
    let mut buffer = HostBuffer::new(skip + len);
    buffer.as_mut_slice()[skip..skip + data.len()].copy_from_slice(data);
    sg.push_buffer(&Arc::new(buffer), skip, len)
}
