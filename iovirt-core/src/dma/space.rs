//! The handle to a guest's memory.

use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::{Arc, Mutex, PoisonError};

use super::{DmaView, MapError, MemoryMap, Region, Translate};

/// A guest's memory as one device sees it. Cloning is cheap, and all clones see the same
/// [`replace`](DmaSpace::replace).
#[derive(Debug, Clone)]
pub struct DmaSpace {
    shared: Arc<Shared>,
    translate: Option<Arc<dyn Translate>>,
}

#[derive(Debug)]
struct Shared {
    map: Mutex<Arc<MemoryMap>>,
    generation: AtomicU64,
}

impl DmaSpace {
    /// A space over `map`, without translation.
    pub fn new(map: MemoryMap) -> Self {
        let shared = Shared { map: Mutex::new(Arc::new(map)), generation: AtomicU64::new(0) };
        Self { shared: Arc::new(shared), translate: None }
    }

    /// A space over a table of regions in any order.
    ///
    /// # Errors
    ///
    /// [`MapError`] as in [`MemoryMap::new`].
    pub fn from_regions(regions: Vec<Region>) -> Result<Self, MapError> {
        Ok(Self::new(MemoryMap::new(regions)?))
    }

    /// A space over fresh zeroed memory, given as (guest physical address, length in bytes): for tests and
    /// simulations.
    ///
    /// # Errors
    ///
    /// [`MapError`] if a range is empty, overflows or overlaps another, or the host refuses the memory.
    pub fn anonymous(ranges: &[(u64, u64)]) -> Result<Self, MapError> {
        Self::from_regions(
            ranges.iter().map(|&(base, len)| Region::anonymous(base, len)).collect::<Result<_, _>>()?,
        )
    }

    /// A handle to the same memory for a device behind an IOMMU: its addresses go through `translate`.
    #[must_use]
    pub fn with_translate(&self, translate: Arc<dyn Translate>) -> Self {
        Self { shared: Arc::clone(&self.shared), translate: Some(translate) }
    }

    /// A handle to the same memory by guest physical addresses: for what does not go through the IOMMU.
    #[must_use]
    pub fn untranslated(&self) -> Self {
        Self { shared: Arc::clone(&self.shared), translate: None }
    }

    /// Announces a new memory map to all clones. The old one lives as long as anyone holds it; workers see the
    /// new one at their next [`DmaView::refresh`].
    pub fn replace(&self, map: MemoryMap) {
        let mut current = self.lock();
        *current = Arc::new(map);
        // Inside the lock, so that map and generation change in the same order for everyone.
        self.shared.generation.fetch_add(1, Ordering::Release);
    }

    /// The map of this moment.
    pub fn map(&self) -> Arc<MemoryMap> {
        Arc::clone(&self.lock())
    }

    /// A worker's cached view.
    pub fn view(&self) -> DmaView {
        DmaView::new(self.clone())
    }

    /// The translation, if the device is behind an IOMMU.
    pub fn translate(&self) -> Option<&Arc<dyn Translate>> {
        self.translate.as_ref()
    }

    /// How often the map was replaced.
    #[inline]
    pub fn generation(&self) -> u64 {
        self.shared.generation.load(Ordering::Acquire)
    }

    /// The map with its generation.
    pub(super) fn snapshot(&self) -> (Arc<MemoryMap>, u64) {
        let map = self.lock();
        (Arc::clone(&map), self.generation())
    }

    fn lock(&self) -> crate::sync::MutexGuard<'_, Arc<MemoryMap>> {
        self.shared.map.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
