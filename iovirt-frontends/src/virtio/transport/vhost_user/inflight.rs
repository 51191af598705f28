//! The shared memory in which the queues of a device say which chains they hold.

use crate::virtio::inflight::{InflightError, InflightQueue, region_len};
use iovirt_core::dma::{DmaSpace, MapError, ShrinkWatch, shared_memory};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

/// A description of that memory, as front-end and back-end pass it on: 64 bits of size and offset of the mapping, 16 bits of number and
/// size of the queues.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct InflightSpec {
    pub(super) mmap_size: u64,
    pub(super) mmap_offset: u64,
    pub(super) queues: u16,
    pub(super) queue_size: u16,
}

/// Length of a description. Front-ends that send the structure of their C header pad it.
const SPEC_LEN: usize = 20;
const PADDED_LEN: usize = 24;

impl InflightSpec {
    /// Reads a description; `None` for one of no queues, or of a size that no queue has.
    pub(super) fn parse(payload: &[u8]) -> Option<Self> {
        if payload.len() != SPEC_LEN && payload.len() != PADDED_LEN {
            return None;
        }
        let long = |at: usize| payload[at..at + 8].try_into().map(u64::from_le_bytes);
        let short = |at: usize| payload[at..at + 2].try_into().map(u16::from_le_bytes);
        let spec = Self {
            mmap_size: long(0).ok()?,
            mmap_offset: long(8).ok()?,
            queues: short(16).ok()?,
            queue_size: short(18).ok()?,
        };
        (spec.queues > 0 && (1..=32768).contains(&spec.queue_size)).then_some(spec)
    }

    /// As bytes, padded as the answer is expected to be.
    pub(super) fn encode(&self) -> [u8; PADDED_LEN] {
        let mut bytes = [0; PADDED_LEN];
        bytes[0..8].copy_from_slice(&self.mmap_size.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.mmap_offset.to_le_bytes());
        bytes[16..18].copy_from_slice(&self.queues.to_le_bytes());
        bytes[18..20].copy_from_slice(&self.queue_size.to_le_bytes());
        bytes
    }

    /// Fresh memory for those queues.
    pub(super) fn allocate(self) -> io::Result<(Self, File)> {
        let mmap_size = region_len(self.queue_size) * u64::from(self.queues);
        let file = shared_memory(mmap_size)?;
        Ok((Self { mmap_size, mmap_offset: 0, ..self }, file))
    }
}

/// That memory, mapped.
#[derive(Debug)]
pub(super) struct InflightMemory {
    memory: DmaSpace,
    spec: InflightSpec,
}

impl InflightMemory {
    pub(super) fn map(spec: InflightSpec, file: &OwnedFd, watch: &ShrinkWatch) -> Result<Self, MapError> {
        let region = watch.region(0, spec.mmap_size, file.as_fd(), spec.mmap_offset)?;
        Ok(Self { memory: DmaSpace::from_regions(vec![region])?, spec })
    }

    /// The region of a queue; `None` where the front-end has none for it.
    pub(super) fn queue(&self, index: u16, size: u16) -> Option<Result<InflightQueue, InflightError>> {
        if index >= self.spec.queues {
            return None;
        }
        let offset = region_len(self.spec.queue_size) * u64::from(index);
        Some(InflightQueue::open(&self.memory, offset, (self.spec.queue_size, size)))
    }

    /// The device was reset: no chain is held.
    pub(super) fn forget(&self) {
        let queues = (0..self.spec.queues).filter_map(|index| self.queue(index, self.spec.queue_size)?.ok());
        queues.for_each(|mut queue| queue.forget());
    }
}
