//! A worker's cached view of guest memory.

use std::cell::Cell;
use std::sync::Arc;

use super::{
    Access, DmaError, DmaFault, DmaSpace, FaultReason, IoVec, MappedArea, MemoryMap, Region, Segment,
};

/// A worker's view of a [`DmaSpace`]: the map it saw at the last [`refresh`](DmaView::refresh), and the region
/// it used last. One per worker and device; `Send`, not `Sync`.
#[derive(Debug, Clone)]
pub struct DmaView {
    space: DmaSpace,
    map: Arc<MemoryMap>,
    generation: u64,
    translate_generation: u64,
    hot: Cell<Hot>,
}

/// The region used last, for an answer without a search. Covers nothing where there is a translation.
#[derive(Debug, Clone, Copy)]
struct Hot {
    base: u64,
    /// Bytes that may be read, and that may be written: the region's length, or zero.
    readable: u64,
    writable: u64,
    host: IoVec,
}

impl Hot {
    const EMPTY: Self = Self { base: 0, readable: 0, writable: 0, host: IoVec::EMPTY };

    fn of(region: &Region) -> Self {
        let writable = if region.allows(Access::Write) { region.len() } else { 0 };
        Self { base: region.base(), readable: region.len(), writable, host: region.host() }
    }
}

impl DmaView {
    pub(super) fn new(space: DmaSpace) -> Self {
        let (map, generation) = space.snapshot();
        let translate_generation = space.translate().map_or(0, |translate| translate.pins().generation());
        Self { space, map, generation, translate_generation, hot: Cell::new(Hot::EMPTY) }
    }

    /// Takes up a new map or new translations. True if anything changed: then areas and addresses resolved
    /// before must be resolved again. Costs one atomic load when nothing changed (two with translation).
    #[inline]
    pub fn refresh(&mut self) -> bool {
        if self.space.generation() == self.generation
            && self.current_translation() == self.translate_generation
        {
            return false;
        }
        self.reload();
        true
    }

    #[inline]
    fn current_translation(&self) -> u64 {
        self.space.translate().map_or(0, |translate| translate.pins().generation())
    }

    #[cold]
    fn reload(&mut self) {
        *self = Self::new(self.space.clone());
    }

    /// The space behind this view.
    pub fn space(&self) -> &DmaSpace {
        &self.space
    }

    /// Whether addresses go through a translation.
    #[inline]
    pub fn is_translated(&self) -> bool {
        self.space.translate().is_some()
    }

    /// The map in use.
    #[inline]
    pub fn map(&self) -> &Arc<MemoryMap> {
        &self.map
    }

    /// Two numbers that tell whether what was resolved through this view is still current: how often the map
    /// was replaced, and the translation's own generation.
    #[inline]
    pub fn generation(&self) -> (u64, u64) {
        (self.generation, self.translate_generation)
    }

    /// The segment for `len` bytes at the device's address `addr`, if it is one segment in the region used last:
    /// the fast path of [`resolve`](DmaView::resolve). None for a length of zero.
    #[inline]
    pub(super) fn lookup(&self, addr: u64, len: u64, access: Access) -> Option<Segment> {
        let hot = self.hot.get();
        let limit = match access {
            Access::Read => hot.readable,
            Access::Write => hot.writable,
        };
        let offset = addr.wrapping_sub(hot.base);
        // A length of zero wraps, and is no segment.
        if offset >= limit || len.wrapping_sub(1) >= limit - offset {
            return None;
        }
        Some(Segment::guest(addr, hot.host.part(offset as usize, len as usize)))
    }

    /// Finds the host memory of `len` bytes at the device's address `addr` and calls `each` for every
    /// contiguous piece in order. Nothing for a length of zero.
    ///
    /// # Errors
    ///
    /// [`DmaError`] if any byte is not mapped, not translated, or not writable where that is asked; `each` may
    /// have been called for what lies before.
    #[inline]
    pub fn resolve(
        &self,
        addr: u64,
        len: u64,
        access: Access,
        each: &mut impl FnMut(Segment),
    ) -> Result<(), DmaError> {
        if let Some(segment) = self.lookup(addr, len, access) {
            each(segment);
            return Ok(());
        }
        self.walk(addr, len, access, &mut |region, offset, len| {
            each(Segment::guest(region.base() + offset, region.host().slice(offset as usize, len as usize)));
            Ok(())
        })
    }

    /// Resolves a piece that must be contiguous in the guest and on the host, aligned to `ALIGN` bytes in both.
    ///
    /// # Errors
    ///
    /// [`DmaError`] as in [`resolve`](DmaView::resolve), or if the piece is empty, not contiguous or not aligned.
    pub fn map_area<const ALIGN: usize>(
        &self,
        addr: u64,
        len: u64,
        access: Access,
    ) -> Result<MappedArea<ALIGN>, DmaError> {
        MappedArea::resolve(self, addr, len, access)
    }

    /// Copies from guest memory.
    ///
    /// # Errors
    ///
    /// [`DmaError`] as in [`resolve`](DmaView::resolve); `dst` is then unspecified.
    pub fn read(&self, addr: u64, dst: &mut [u8]) -> Result<(), DmaError> {
        let mut done = 0;
        self.walk(addr, dst.len() as u64, Access::Read, &mut |region, offset, len| {
            region.read(offset, &mut dst[done..done + len as usize]);
            done += len as usize;
            Ok(())
        })
    }

    /// Copies `N` bytes from guest memory.
    ///
    /// # Errors
    ///
    /// [`DmaError`] as in [`resolve`](DmaView::resolve).
    pub fn read_array<const N: usize>(&self, addr: u64) -> Result<[u8; N], DmaError> {
        let mut bytes = [0; N];
        self.read(addr, &mut bytes)?;
        Ok(bytes)
    }

    /// Copies to guest memory and marks it dirty.
    ///
    /// # Errors
    ///
    /// [`DmaError`] as in [`resolve`](DmaView::resolve); nothing is written then.
    pub fn write(&self, addr: u64, src: &[u8]) -> Result<(), DmaError> {
        let len = src.len() as u64;
        self.walk(addr, len, Access::Write, &mut |_, _, _| Ok(()))?;
        let mut done = 0;
        self.walk(addr, len, Access::Write, &mut |region, offset, len| {
            region.write(offset, &src[done..done + len as usize]);
            done += len as usize;
            Ok(())
        })
    }

    /// Marks guest *physical* memory as written by the device.
    #[inline]
    pub fn mark_dirty(&self, addr: u64, len: u64) {
        if self.map.dirty_logging() {
            self.map.mark_dirty(addr, len);
        }
    }

    /// Calls `each` with (region, offset, length) for every piece of a range of device addresses.
    pub(super) fn walk<'a>(
        &'a self,
        addr: u64,
        len: u64,
        access: Access,
        each: &mut dyn FnMut(&'a Region, u64, u64) -> Result<(), DmaError>,
    ) -> Result<(), DmaError> {
        addr.checked_add(len).ok_or(DmaError::Overflow { addr, len })?;
        let Some(translate) = self.space.translate() else {
            return self.walk_physical(addr, len, access, each);
        };
        let (mut iova, mut left) = (addr, len);
        while left > 0 {
            let piece = translate.translate(iova, left, access)?;
            let len = piece.len.min(left);
            if len == 0 {
                // Against the contract of `Translate`; an endless loop otherwise.
                return Err(DmaFault { iova, access, reason: FaultReason::NotMapped }.into());
            }
            self.walk_physical(piece.addr, len, access, each)?;
            iova += len;
            left -= len;
        }
        Ok(())
    }

    fn walk_physical<'a>(
        &'a self,
        mut addr: u64,
        mut len: u64,
        access: Access,
        each: &mut dyn FnMut(&'a Region, u64, u64) -> Result<(), DmaError>,
    ) -> Result<(), DmaError> {
        addr.checked_add(len).ok_or(DmaError::Overflow { addr, len })?;
        while len > 0 {
            let (region, offset) = self.map.find(addr).ok_or(DmaError::Unmapped { addr, len })?;
            let piece = len.min(region.len() - offset);
            if !region.allows(access) {
                return Err(DmaError::ReadOnly { addr, len: piece });
            }
            if self.space.translate().is_none() {
                self.hot.set(Hot::of(region));
            }
            each(region, offset, piece)?;
            addr += piece;
            len -= piece;
        }
        Ok(())
    }
}
