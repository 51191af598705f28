//! The immutable table of regions.

use super::{MapError, Region};

/// A guest's memory at one moment: regions sorted by address, none overlapping. Never changed, only
/// [replaced](super::DmaSpace::replace).
#[derive(Debug)]
pub struct MemoryMap {
    regions: Box<[Region]>,
    dirty_logging: bool,
}

impl MemoryMap {
    /// Sorts and checks a table of regions. An empty table is a map in which nothing is mapped.
    ///
    /// # Errors
    ///
    /// [`MapError::Overlap`] if two regions share an address.
    pub fn new(mut regions: Vec<Region>) -> Result<Self, MapError> {
        regions.sort_by_key(Region::base);
        for pair in regions.windows(2) {
            if pair[1].base() - pair[0].base() < pair[0].len() {
                return Err(MapError::Overlap { first: pair[0].base(), second: pair[1].base() });
            }
        }
        let dirty_logging = regions.iter().any(Region::logs_dirty);
        Ok(Self { regions: regions.into(), dirty_logging })
    }

    /// A map in which nothing is mapped.
    pub fn empty() -> Self {
        Self { regions: Box::default(), dirty_logging: false }
    }

    /// The regions, sorted by address.
    pub fn regions(&self) -> &[Region] {
        &self.regions
    }

    /// Whether any region logs writes.
    #[inline]
    pub fn dirty_logging(&self) -> bool {
        self.dirty_logging
    }

    /// The region that holds guest physical `addr`, and the offset of `addr` in it.
    pub fn find(&self, addr: u64) -> Option<(&Region, u64)> {
        let index = self.regions.partition_point(|region| region.base() <= addr).checked_sub(1)?;
        let region = &self.regions[index];
        let offset = addr - region.base();
        (offset < region.len()).then_some((region, offset))
    }

    /// Marks `len` bytes at guest physical `addr` as written by a device. Parts that are not mapped or not
    /// logged are skipped.
    pub fn mark_dirty(&self, addr: u64, len: u64) {
        if !self.dirty_logging {
            return;
        }
        let end = addr.saturating_add(len);
        let first = self.regions.partition_point(|region| region.base() + region.len() <= addr);
        for region in self.regions[first..].iter().take_while(|region| region.base() < end) {
            let from = addr.max(region.base());
            // A region ends below 2^64, so this cannot overflow.
            let to = end.min(region.base() + region.len());
            if from < to {
                region.mark_dirty(from - region.base(), to - from);
            }
        }
    }
}
