//! The front-end's dirty log: a bitmap of its memory's pages in memory that it shares ("Migration").

use iovirt_core::dma::{Access, DirtyLog, DmaError, DmaSpace, MappedArea};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// What one bit stands for, in bytes: `VHOST_LOG_PAGE`.
const PAGE: u64 = 4096;

/// A bitmap of pages by guest physical address.
#[derive(Debug)]
pub(super) struct SharedLog {
    bitmap: MappedArea<1>,
}

impl SharedLog {
    /// A bitmap of `len` bytes at the start of that memory.
    pub(super) fn new(memory: &DmaSpace, len: u64) -> Result<Self, DmaError> {
        Ok(Self { bitmap: memory.view().map_area(0, len, Access::Write)? })
    }

    /// Marks pages; those that the bitmap does not reach are nobody's.
    fn mark(&self, address: u64, len: u64) {
        let Some(last) = len.checked_sub(1) else { return };
        let end = self.bitmap.len() as u64 * 8;
        let last = (address.saturating_add(last) / PAGE).min(end.saturating_sub(1));
        for page in address / PAGE..=last {
            // Also where the bit is set already: what was written before must be visible before the front-end clears it.
            self.bitmap.set_bits((page / 8) as usize, 1 << (page % 8), Ordering::SeqCst);
        }
    }
}

/// The log of one region.
#[derive(Debug)]
pub(super) struct RegionLog {
    log: Arc<SharedLog>,
    base: u64,
}

impl RegionLog {
    pub(super) fn new(log: Arc<SharedLog>, base: u64) -> Self {
        Self { log, base }
    }
}

impl DirtyLog for RegionLog {
    fn mark_dirty(&self, offset: u64, len: u64) {
        self.log.mark(self.base.saturating_add(offset), len);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_marked_by_physical_address_and_never_beyond_the_end() {
        let memory = DmaSpace::anonymous(&[(0, 0x1000)]).unwrap();
        let log = Arc::new(SharedLog::new(&memory, 4).unwrap());
        let region = RegionLog::new(log.clone(), 0x3000);
        region.mark_dirty(0, 1);
        region.mark_dirty(0x1fff, 2);
        region.mark_dirty(0, 0);
        assert_eq!(memory.view().read_array::<4>(0).unwrap(), [0b0011_1000, 0, 0, 0]);
        log.mark(31 * PAGE + 5, u64::MAX);
        log.mark(32 * PAGE, 1);
        log.mark(u64::MAX, 1);
        assert_eq!(memory.view().read_array::<8>(0).unwrap(), [0b0011_1000, 0, 0, 0x80, 0, 0, 0, 0]);
    }
}
