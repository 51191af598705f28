//! Spaces made from the `vm-memory` crate's guest memory.

use std::any::{Any, TypeId};
use std::fmt;
use std::ptr::NonNull;
use std::sync::Arc;

use vm_memory::bitmap::Bitmap;
use vm_memory::{
    Address, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap, MmapRegion,
};

use super::{DirtyLog, DmaSpace, MapError, MemoryMap, Protection, Region};

impl DmaSpace {
    /// A space over the guest memory of an embedder that uses `vm-memory`, with any bitmap: what devices write
    /// is marked in that bitmap. The mappings live as long as the space, whatever becomes of `memory`.
    ///
    /// # Errors
    ///
    /// [`MapError`] as in [`MemoryMap::new`], or if a region cannot be read.
    pub fn from_guest_memory<B>(memory: &GuestMemoryMmap<B>) -> Result<Self, MapError>
    where
        B: Bitmap + Send + Sync + 'static,
    {
        Ok(Self::new(MemoryMap::from_guest_memory(memory)?))
    }
}

impl MemoryMap {
    /// The map of an embedder's guest memory, for [`DmaSpace::replace`].
    ///
    /// # Errors
    ///
    /// [`MapError`] as in [`MemoryMap::new`], or if a region cannot be read.
    pub fn from_guest_memory<B>(memory: &GuestMemoryMmap<B>) -> Result<Self, MapError>
    where
        B: Bitmap + Send + Sync + 'static,
    {
        Self::new(memory.iter().map(region).collect::<Result<_, _>>()?)
    }
}

fn region<B>(guest: &GuestRegionMmap<B>) -> Result<Region, MapError>
where
    B: Bitmap + Send + Sync + 'static,
{
    let (base, len) = (guest.start_addr().raw_value(), guest.len());
    let mapping = guest.get_mmap();
    if mapping.prot() & libc::PROT_READ == 0 {
        return Err(MapError::NotReadable { base });
    }
    let host = NonNull::new(mapping.as_ptr()).ok_or(MapError::Overflow { base, len })?;
    let protection = match mapping.prot() & libc::PROT_WRITE {
        0 => Protection::ReadOnly,
        _ => Protection::ReadWrite,
    };
    let owner: Arc<dyn Any + Send + Sync> = Arc::clone(&mapping) as _;
    // SAFETY: the mapping is readable (checked above), writable if its protection says so, unmapped only when the
    // last `Arc` to it is dropped, and `vm-memory` hands out no references to it either.
    let region = unsafe { Region::from_raw(base, len, host, protection, owner)? };
    if TypeId::of::<B>() == TypeId::of::<()>() {
        return Ok(region);
    }
    Ok(region.with_dirty_log(Arc::new(BitmapLog(mapping))))
}

/// The bitmap of a mapping as a log.
struct BitmapLog<B>(Arc<MmapRegion<B>>);

impl<B: Bitmap + Send + Sync> DirtyLog for BitmapLog<B> {
    fn mark_dirty(&self, offset: u64, len: u64) {
        self.0.bitmap().mark_dirty(offset as usize, len as usize);
    }
}

impl<B> fmt::Debug for BitmapLog<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BitmapLog").finish_non_exhaustive()
    }
}
