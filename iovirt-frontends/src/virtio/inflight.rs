//! Which chains a device holds, written where it outlives the device's process: the region of a split virtqueue in the shared memory of
//! vhost-user ("Inflight I/O tracking" in QEMU's `docs/interop/vhost-user.rst`).
//!
//! The process may be killed between any two of the stores below. What they leave behind always tells which chains were taken and not
//! returned: a chain is marked before anything is done for it, and its mark goes after the used index has told the driver. In
//! between, the list of the last batch says which marks are stale.

use super::queue::Head;
use iovirt_core::dma::{Access, DmaError, DmaSpace, MappedArea};
use std::sync::atomic::Ordering;
use thiserror::Error;

/// Offsets in the region of a queue, in bytes.
const VERSION: usize = 8;
const ENTRIES: usize = 10;
const LAST_BATCH_HEAD: usize = 12;
const USED_IDX: usize = 14;
const STATES: usize = 16;
/// Size of the state of a descriptor, and the offset of its counter.
const STATE_LEN: usize = 16;
const COUNTER: usize = 8;
/// Where the state's `next` lies in its first word, whose lowest byte is the mark.
const NEXT_SHIFT: u32 = 48;
const MARK: u64 = 1;

/// The version of the layout.
const SPLIT_VERSION: u16 = 1;
/// Regions begin at multiples of a cache line.
const REGION_ALIGN: u64 = 64;

/// Why a region cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub(crate) enum InflightError {
    /// It lies outside the shared memory.
    #[error("the region of a queue lies outside the shared memory: {0}")]
    Outside(#[from] DmaError),
    /// It was written by something else.
    #[error("the region has version {0}, only {SPLIT_VERSION} is known")]
    Version(u16),
    /// It is for smaller queues.
    #[error("the region has {region} entries, the queue {queue}")]
    Size {
        /// What the region has.
        region: u16,
        /// What the queue has.
        queue: u16,
    },
}

/// The length of a queue's region in bytes.
pub(crate) fn region_len(queue_size: u16) -> u64 {
    (STATES as u64 + STATE_LEN as u64 * u64::from(queue_size)).next_multiple_of(REGION_ALIGN)
}

/// The region of one queue.
#[derive(Debug)]
pub(crate) struct InflightQueue {
    area: MappedArea<8>,
    size: u16,
    counter: u64,
    last_batch_head: u16,
    /// Chains returned since the used index was last shown.
    batch: Vec<u16>,
}

impl InflightQueue {
    /// The region of so many entries at that offset of a shared memory, for a queue of that size. Fresh memory, which is all zeroes, is set
    /// up.
    pub(crate) fn open(
        memory: &DmaSpace,
        offset: u64,
        (entries, size): (u16, u16),
    ) -> Result<Self, InflightError> {
        let area: MappedArea<8> = memory.view().map_area(offset, region_len(entries), Access::Write)?;
        match area.load_u16(VERSION, Ordering::Acquire) {
            0 => {
                area.store_u16(ENTRIES, entries, Ordering::Relaxed);
                area.store_u16(VERSION, SPLIT_VERSION, Ordering::Release);
            }
            SPLIT_VERSION => {}
            other => return Err(InflightError::Version(other)),
        }
        // Whatever is written there, no more than these are mapped.
        let region = area.load_u16(ENTRIES, Ordering::Relaxed).min(entries);
        if region < size {
            return Err(InflightError::Size { region, queue: size });
        }
        let last_batch_head = area.load_u16(LAST_BATCH_HEAD, Ordering::Relaxed);
        Ok(Self { area, size, counter: 0, last_batch_head, batch: Vec::with_capacity(size.into()) })
    }

    /// The heads of the chains that were taken and not returned, in the order in which they were taken. `used_idx` is the index
    /// of the used ring as the driver sees it.
    pub(crate) fn recover(&mut self, used_idx: u16) -> Vec<u16> {
        self.forget_last_batch(used_idx);
        let mut held: Vec<(u64, u16)> = (0..self.size)
            .filter(|&head| self.state(head) & MARK != 0)
            .map(|head| (self.area.load_u64(Self::at(head) + COUNTER, Ordering::Relaxed), head))
            .collect();
        held.sort_unstable();
        self.counter = held.last().map_or(0, |(counter, _)| *counter);
        held.into_iter().map(|(_, head)| head).collect()
    }

    /// The driver knows of the last batch, and its marks may still be there.
    fn forget_last_batch(&mut self, used_idx: u16) {
        let batch = used_idx.wrapping_sub(self.area.load_u16(USED_IDX, Ordering::Acquire));
        let mut head = self.last_batch_head;
        for _ in 0..batch.min(self.size) {
            if head >= self.size {
                break;
            }
            let state = self.state(head);
            self.set_state(head, state & !MARK);
            head = (state >> NEXT_SHIFT) as u16;
        }
        self.area.store_u16(USED_IDX, used_idx, Ordering::Release);
    }

    /// Nothing is held any more: the device was reset, and its driver begins anew.
    pub(crate) fn forget(&mut self) {
        self.batch.clear();
        (0..self.size).for_each(|head| self.set_state(head, 0));
        self.area.store_u16(USED_IDX, 0, Ordering::Release);
    }

    /// A chain was taken: nothing may be done for it before this.
    #[inline]
    pub(crate) fn taken(&mut self, head: Head) {
        self.counter = self.counter.wrapping_add(1);
        let at = Self::at(head.index());
        self.area.store_u64(at + COUNTER, self.counter, Ordering::Relaxed);
        self.area.store_u64(at, MARK, Ordering::Release);
    }

    /// A chain was put back.
    pub(crate) fn put_back(&mut self, head: Head) {
        self.set_state(head.index(), 0);
    }

    /// A chain is on the used ring; the driver does not see it yet.
    #[inline]
    pub(crate) fn returned(&mut self, head: Head) {
        let head = head.index();
        self.set_state(head, MARK | u64::from(self.last_batch_head) << NEXT_SHIFT);
        self.last_batch_head = head;
        self.area.store_u16(LAST_BATCH_HEAD, head, Ordering::Release);
        self.batch.push(head);
    }

    /// The driver sees the used ring up to that index.
    #[inline]
    pub(crate) fn published(&mut self, used_idx: u16) {
        if self.batch.is_empty() {
            return;
        }
        for head in self.batch.drain(..) {
            self.area.store_u64(Self::at(head), 0, Ordering::Release);
        }
        self.area.store_u16(USED_IDX, used_idx, Ordering::Release);
    }

    fn at(head: u16) -> usize {
        STATES + STATE_LEN * usize::from(head)
    }

    fn state(&self, head: u16) -> u64 {
        self.area.load_u64(Self::at(head), Ordering::Acquire)
    }

    fn set_state(&self, head: u16, state: u64) {
        self.area.store_u64(Self::at(head), state, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SIZE: u16 = 8;

    fn memory() -> DmaSpace {
        DmaSpace::anonymous(&[(0, 0x1000)]).unwrap()
    }

    fn open(memory: &DmaSpace) -> InflightQueue {
        InflightQueue::open(memory, 0, (SIZE, SIZE)).unwrap()
    }

    fn head(index: u16) -> Head {
        Head::from_saved(index)
    }

    #[test]
    fn what_was_taken_is_found_again_in_order() {
        let memory = memory();
        let mut queue = open(&memory);
        assert!(queue.recover(0).is_empty());
        for index in [5, 2, 7] {
            queue.taken(head(index));
        }
        queue.returned(head(2));
        queue.published(1);
        queue.taken(head(1));
        queue.taken(head(2));
        queue.put_back(head(1));
        drop(queue);
        let mut queue = open(&memory);
        assert_eq!(queue.recover(1), [5, 7, 2]);
        queue.taken(head(0));
        assert_eq!(open(&memory).recover(1), [5, 7, 2, 0], "the order goes on where it stood");
    }

    #[test]
    fn a_smaller_queue_leaves_room_for_a_larger_one() {
        let memory = memory();
        let mut small = InflightQueue::open(&memory, 0, (SIZE, 2)).unwrap();
        small.taken(head(1));
        assert_eq!(open(&memory).recover(0), [1]);
        open(&memory).forget();
        assert!(open(&memory).recover(5).is_empty());
        // What the other side says of the size is not believed.
        memory.view().write(ENTRIES as u64, &[0xff; 2]).unwrap();
        assert!(InflightQueue::open(&memory, 0, (SIZE, SIZE + 1)).is_err());
    }

    #[test]
    fn foreign_regions_are_refused() {
        let memory = memory();
        drop(open(&memory));
        assert_eq!(
            InflightQueue::open(&memory, 0, (SIZE * 2, SIZE * 2)).unwrap_err(),
            InflightError::Size { region: SIZE, queue: SIZE * 2 }
        );
        memory.view().write(VERSION as u64, &[9, 0]).unwrap();
        assert_eq!(InflightQueue::open(&memory, 0, (SIZE, SIZE)).unwrap_err(), InflightError::Version(9));
        assert!(matches!(InflightQueue::open(&memory, 0xfc0, (SIZE, SIZE)), Err(InflightError::Outside(_))));
    }

    #[test]
    fn a_list_that_leads_nowhere_is_left() {
        let memory = memory();
        let mut queue = open(&memory);
        queue.taken(head(3));
        // Next and last head beyond the queue, and used indices that are far apart.
        memory.view().write(LAST_BATCH_HEAD as u64, &[0xff; 2]).unwrap();
        drop(queue);
        assert_eq!(open(&memory).recover(0x8000), [3]);
    }

    proptest! {
        /// Killed between any two steps of a device that takes, returns and publishes at random, the region tells what is in flight.
        #[test]
        fn killed_anywhere_it_tells_what_is_in_flight(
            steps in prop::collection::vec((0u8..3, any::<prop::sample::Index>()), 0..120),
        ) {
            let memory = memory();
            let mut queue = open(&memory);
            queue.recover(0);
            let (mut free, mut held): (Vec<u16>, Vec<u16>) = ((0..SIZE).collect(), Vec::new());
            let (mut unseen, mut used_idx) = (Vec::new(), 0u16);
            for (step, at) in steps {
                match step {
                    0 if !free.is_empty() => {
                        let index = free.swap_remove(at.index(free.len()));
                        queue.taken(head(index));
                        held.push(index);
                    }
                    1 if !held.is_empty() => {
                        let index = held.remove(at.index(held.len()));
                        queue.returned(head(index));
                        unseen.push(index);
                    }
                    2 => {
                        // The driver sees the index before the marks go: here a killed process has lost no chain either.
                        used_idx = used_idx.wrapping_add(unseen.len() as u16);
                        prop_assert_eq!(&InflightQueue::open(&copy(&memory), 0, (SIZE, SIZE)).unwrap().recover(used_idx), &held);
                        queue.published(used_idx);
                        free.append(&mut unseen);
                    }
                    _ => {}
                }
                // What was returned and not shown is in flight for the driver, in the order in which it was taken.
                let mut expected: Vec<u16> = held.iter().chain(&unseen).copied().collect();
                let mut found = InflightQueue::open(&copy(&memory), 0, (SIZE, SIZE)).unwrap().recover(used_idx);
                prop_assert!(held.iter().all(|index| found.contains(index)));
                expected.sort_unstable();
                found.sort_unstable();
                prop_assert_eq!(found, expected);
            }
        }
    }

    /// What another process finds there now.
    fn copy(memory: &DmaSpace) -> DmaSpace {
        let copy = self::memory();
        copy.view().write(0, &memory.view().read_array::<0x1000>(0).unwrap()).unwrap();
        copy
    }
}
