//! A contiguous piece of guest memory, resolved once: what a ring lies in.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};

use super::{Access, DmaError, DmaView, IoVec, MemoryMap};

/// A piece of guest memory with bounds-checked atomic access, resolved once by [`DmaView::map_area`].
///
/// It keeps its map alive. When [`DmaView::refresh`] returns true it must be resolved again: the memory it
/// shows is still valid then, but may no longer be the guest's.
///
/// All integers are little-endian in guest memory, and naturally aligned; `ALIGN` is the alignment of the area
/// in bytes, and an integer that is larger does not compile. Offsets are in bytes and are the caller's own: one
/// that is out of range, or misaligned, or a store to an area resolved for [`Access::Read`], is a bug in the
/// caller and panics. A guest must have no influence on it beyond what the caller checked.
#[derive(Debug)]
pub struct MappedArea<const ALIGN: usize> {
    host: IoVec,
    /// Length for stores: zero if resolved for reading.
    writable: usize,
    /// Guest physical address of the first byte.
    physical: u64,
    /// The region, if the area lies in one that has a log.
    log: Option<usize>,
    map: Arc<MemoryMap>,
}

macro_rules! accessors {
    ($load:ident, $store:ident, $int:ty, $atomic:ty) => {
        #[doc = concat!("Loads the little-endian `", stringify!($int), "` at `offset`.")]
        #[inline]
        pub fn $load(&self, offset: usize, ordering: Ordering) -> $int {
            let place = self.place::<$int>(offset, 1, self.host.len());
            // SAFETY: `place` checked bounds and alignment; the map keeps the memory mapped, and the atomic
            // reference lives for this access only. Others access ring fields atomically or not from Rust.
            <$int>::from_le(unsafe { <$atomic>::from_ptr(place.cast()) }.load(ordering))
        }

        #[doc = concat!("Stores `value` at `offset` as a little-endian `", stringify!($int), "`.")]
        #[inline]
        pub fn $store(&self, offset: usize, value: $int, ordering: Ordering) {
            let place = self.place::<$int>(offset, 1, self.writable);
            // SAFETY: as for the load, and `writable` is zero unless devices may write the region.
            unsafe { <$atomic>::from_ptr(place.cast()) }.store(value.to_le(), ordering);
        }
    };
}

impl<const ALIGN: usize> MappedArea<ALIGN> {
    pub(super) fn resolve(view: &DmaView, addr: u64, len: u64, access: Access) -> Result<Self, DmaError> {
        let mut first = None;
        let mut done = 0;
        view.walk(addr, len, access, &mut |region, offset, piece| {
            let host = region.host().slice(offset as usize, piece as usize).as_ptr();
            let (base, start) = *first.get_or_insert((host, region.base() + offset));
            if host != base.wrapping_add(done) || region.base() + offset != start + done as u64 {
                return Err(DmaError::NotContiguous { addr, len });
            }
            done += piece as usize;
            Ok(())
        })?;
        let (base, physical) = first.ok_or(DmaError::Unmapped { addr, len })?;
        if !addr.is_multiple_of(ALIGN as u64) || !base.addr().is_multiple_of(ALIGN) {
            return Err(DmaError::Misaligned { addr, align: ALIGN as u64 });
        }
        let map = Arc::clone(view.map());
        let log = log_of(&map, physical, len);
        let base = std::ptr::NonNull::new(base).ok_or(DmaError::Unmapped { addr, len })?;
        let host = IoVec::new(base, done);
        Ok(Self { host, writable: if access == Access::Write { done } else { 0 }, physical, log, map })
    }

    /// Length in bytes; never zero.
    #[inline]
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.host.len()
    }

    /// Guest physical address of the first byte.
    pub fn physical(&self) -> u64 {
        self.physical
    }

    accessors!(load_u16, store_u16, u16, AtomicU16);
    accessors!(load_u32, store_u32, u32, AtomicU32);
    accessors!(load_u64, store_u64, u64, AtomicU64);

    /// Loads two neighbouring little-endian `u64` at `offset`, relaxed and each by itself: a descriptor. `None`
    /// beyond the end, so that the check of a driver's index is the check of the bounds.
    #[inline]
    pub fn load_u64_pair(&self, offset: usize) -> Option<[u64; 2]> {
        let first = self.get::<u64>(offset, 2, self.host.len())?;
        let load = |place: *mut u8| {
            // SAFETY: bounds were checked for both, alignment for the first, thus for both; otherwise as for
            // `load_u64`.
            u64::from_le(unsafe { AtomicU64::from_ptr(place.cast()) }.load(Ordering::Relaxed))
        };
        Some([load(first), load(first.wrapping_add(size_of::<u64>()))])
    }

    /// Stores two neighbouring little-endian `u32` at `offset`, relaxed and each by itself: a used element.
    ///
    /// # Panics
    ///
    /// As the other accessors, where the offset is out of range or misaligned.
    #[inline]
    pub fn store_u32_pair(&self, offset: usize, values: [u32; 2]) {
        let first = self.place::<u32>(offset, 2, self.writable);
        let store = |place: *mut u8, value: u32| {
            // SAFETY: bounds were checked for both, alignment for the first, thus for both; otherwise as for
            // `store_u32`.
            unsafe { AtomicU32::from_ptr(place.cast()) }.store(value.to_le(), Ordering::Relaxed);
        };
        store(first, values[0]);
        store(first.wrapping_add(size_of::<u32>()), values[1]);
    }

    /// Sets bits of the byte at `offset`, and no others: for a bitmap that another process clears at the same time.
    #[inline]
    pub fn set_bits(&self, offset: usize, bits: u8, ordering: Ordering) {
        let place = self.place::<u8>(offset, 1, self.writable);
        // SAFETY: bounds were checked, and a byte is always aligned; otherwise as for the stores.
        unsafe { AtomicU8::from_ptr(place) }.fetch_or(bits, ordering);
    }

    /// Loads the byte at `offset`.
    #[inline]
    pub fn load_u8(&self, offset: usize, ordering: Ordering) -> u8 {
        let place = self.place::<u8>(offset, 1, self.host.len());
        // SAFETY: as for `set_bits`.
        unsafe { AtomicU8::from_ptr(place) }.load(ordering)
    }

    /// Copies `N` bytes from `offset`; they may be torn.
    #[inline]
    pub fn read_bytes<const N: usize>(&self, offset: usize) -> [u8; N] {
        let mut bytes = [0; N];
        // SAFETY: the map keeps the memory mapped and readable; `IoVec` checks the bounds.
        unsafe { self.host.read(offset, &mut bytes) };
        bytes
    }

    /// Copies `bytes` to `offset`. Does not mark them dirty.
    #[inline]
    pub fn write_bytes(&self, offset: usize, bytes: &[u8]) {
        // SAFETY: as above, and clipped to the part that may be written, which is nothing if read-only.
        unsafe { self.host.slice(0, self.writable).write(offset, bytes) };
    }

    /// Marks `len` bytes at `offset` as written; call it after the stores. Nothing without a log.
    #[inline]
    pub fn mark_dirty(&self, offset: usize, len: usize) {
        if self.map.dirty_logging() {
            self.log_dirty(offset as u64, len as u64);
        }
    }

    /// Whether [`mark_dirty`](MappedArea::mark_dirty) does anything.
    #[inline]
    pub fn logs_dirty(&self) -> bool {
        self.map.dirty_logging()
    }

    #[inline(never)]
    fn log_dirty(&self, offset: u64, len: u64) {
        let addr = self.physical + offset;
        match self.log {
            Some(index) => {
                let region = &self.map.regions()[index];
                region.mark_dirty(addr - region.base(), len);
            }
            None => self.map.mark_dirty(addr, len),
        }
    }

    /// The address of `count` integers at `offset`, checked against `limit` and for natural alignment. The area
    /// is aligned to `ALIGN`, which is no less than the integer's, so the offset tells.
    #[inline]
    fn place<Int>(&self, offset: usize, count: usize, limit: usize) -> *mut u8 {
        self.get::<Int>(offset, count, limit).expect("access beyond a mapped area")
    }

    /// The same, where beyond the end is an answer.
    #[inline]
    fn get<Int>(&self, offset: usize, count: usize, limit: usize) -> Option<*mut u8> {
        const { assert!(size_of::<Int>() <= ALIGN) };
        assert!(offset.is_multiple_of(size_of::<Int>()), "misaligned access to a mapped area");
        let end = offset.checked_add(count * size_of::<Int>())?;
        (end <= limit).then(|| self.host.as_ptr().wrapping_add(offset))
    }
}

/// The region that holds the whole area, for marking without a search.
fn log_of(map: &MemoryMap, physical: u64, len: u64) -> Option<usize> {
    map.regions().iter().position(|region| {
        let offset = physical.wrapping_sub(region.base());
        offset < region.len() && len <= region.len() - offset
    })
}
