//! Where everything is in the memory: rings, tables and headers first, buffers behind them at whole pages.

use crate::options::{MOST_SEGMENTS, MemoryMap, Options};

/// Size of a page, which regions and buffers begin at.
pub const PAGE: usize = 4096;
/// Guest address of the first region. Neither an offset nor an address of this process, so that one of the three taken for
/// another is noticed.
const FIRST_REGION: u64 = 0x4000_0000;
/// Guest address of the second region.
const SECOND_REGION: u64 = 0x1_0000_0000;
/// What each slot has for its header and status, in a cache line of its own.
pub const HEADER_AREA: usize = 64;
/// What each slot has for a table of descriptors.
const TABLE_AREA: usize = (16 * MOST_SEGMENTS as usize).next_power_of_two();

/// The places of one queue's parts, as offsets into the memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueuePlaces {
    /// The table of descriptors.
    pub descriptors: usize,
    /// The available ring.
    pub available: usize,
    /// The used ring.
    pub used: usize,
    /// Tables of indirect descriptors, one for each slot.
    pub tables: usize,
    /// Headers, one for each slot.
    pub headers: usize,
    /// Buffers, one for each slot.
    pub buffers: usize,
}

/// A region of the memory table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Region {
    /// Where the guest sees it.
    pub guest: u64,
    /// Where it begins in the memory.
    pub offset: usize,
    /// Bytes of it.
    pub len: usize,
}

/// Where everything is.
#[derive(Debug, Clone)]
pub struct Layout {
    queues: Vec<QueuePlaces>,
    regions: Vec<Region>,
    buffer: usize,
    len: usize,
}

impl Layout {
    /// The layout for these options.
    pub fn new(options: &Options) -> Self {
        let (size, slots) = (usize::from(options.queue_size), usize::from(options.slots));
        let buffer = options.buffer.next_multiple_of(PAGE);
        let mut end = 0;
        let mut take = |len: usize, align: usize| {
            let start = usize::next_multiple_of(end, align);
            end = start + len;
            start
        };
        let mut queues = Vec::new();
        for _ in 0..options.queues {
            queues.push(QueuePlaces {
                descriptors: take(16 * size, PAGE),
                available: take(6 + 2 * size, 64),
                used: take(6 + 8 * size, 64),
                tables: take(TABLE_AREA * slots, 64),
                headers: take(HEADER_AREA * slots, 64),
                buffers: 0,
            });
        }
        let split = take(0, PAGE);
        for queue in &mut queues {
            queue.buffers = take(buffer * slots, PAGE);
        }
        let len = end;
        let regions = match options.memory_map {
            MemoryMap::OneRegion => vec![Region { guest: FIRST_REGION, offset: 0, len }],
            MemoryMap::TwoRegions => vec![
                Region { guest: FIRST_REGION, offset: 0, len: split },
                Region { guest: SECOND_REGION, offset: split, len: len - split },
            ],
        };
        Self { queues, regions, buffer, len }
    }

    /// Bytes of memory.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Never: there is at least one queue.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes of a slot's buffer.
    pub fn buffer(&self) -> usize {
        self.buffer
    }

    /// The regions, for the memory table.
    pub fn regions(&self) -> &[Region] {
        &self.regions
    }

    /// The places of each queue.
    pub fn queues(&self) -> &[QueuePlaces] {
        &self.queues
    }

    /// The guest's address of an offset into the memory.
    #[inline]
    pub fn guest_address(&self, offset: usize) -> u64 {
        match self.regions.as_slice() {
            [_, second] if offset >= second.offset => second.guest + (offset - second.offset) as u64,
            _ => FIRST_REGION + offset as u64,
        }
    }

    /// The offset of a guest's address that [`Layout::guest_address`] gave.
    #[inline]
    pub fn offset(&self, guest: u64) -> usize {
        match self.regions.as_slice() {
            [_, second] if guest >= second.guest => second.offset + (guest - second.guest) as usize,
            _ => (guest - FIRST_REGION) as usize,
        }
    }
}

/// The place of a slot's table of descriptors.
#[inline]
pub(crate) fn table(places: &QueuePlaces, slot: u16) -> usize {
    places.tables + TABLE_AREA * usize::from(slot)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_do_not_overlap_and_addresses_come_back() {
        for memory_map in [MemoryMap::OneRegion, MemoryMap::TwoRegions] {
            let options = Options { queues: 3, slots: 100, buffer: 5000, memory_map, ..Options::blk() };
            let layout = Layout::new(&options);
            assert_eq!(layout.buffer(), 8192);
            let mut parts = Vec::new();
            for queue in layout.queues() {
                assert_eq!((queue.descriptors % 16, queue.available % 2, queue.used % 4), (0, 0, 0));
                parts.extend([
                    (queue.descriptors, 16 * 256),
                    (queue.available, 6 + 2 * 256),
                    (queue.used, 6 + 8 * 256),
                    (queue.tables, TABLE_AREA * 100),
                    (queue.headers, HEADER_AREA * 100),
                    (queue.buffers, 8192 * 100),
                ]);
            }
            parts.sort_unstable();
            assert!(parts.windows(2).all(|two| two[0].0 + two[0].1 <= two[1].0), "{parts:?}");
            let last = parts[parts.len() - 1];
            assert!(last.0 + last.1 <= layout.len());
            for (start, len) in parts {
                let guest = layout.guest_address(start);
                assert_eq!(
                    layout.guest_address(start + len - 1),
                    guest + len as u64 - 1,
                    "a part in two regions"
                );
                assert_eq!(layout.offset(guest), start);
            }
            assert_eq!(layout.regions().iter().map(|region| region.len).sum::<usize>(), layout.len());
        }
    }
}
