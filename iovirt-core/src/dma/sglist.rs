//! The scatter-gather list that a request carries.

use std::sync::Arc;

use super::shrink::notice;
use super::store::Store;
use super::{Access, DmaError, DmaView, HostBuffer, IoVec, LostTags, MemoryMap};

/// Stands for the address of a segment of host memory. No guest address: a region ends below it.
pub(super) const HOST: u64 = u64::MAX;

/// One contiguous piece of a list: where it lies on the host and, for guest memory, in the guest.
#[derive(Debug, Clone, Copy)]
pub struct Segment {
    addr: u64,
    iov: IoVec,
}

impl Segment {
    #[inline]
    pub(super) fn new(addr: u64, iov: IoVec) -> Self {
        Self { addr, iov }
    }

    #[inline]
    pub(super) fn guest(addr: u64, iov: IoVec) -> Self {
        Self { addr, iov }
    }

    #[inline]
    pub(super) fn host(iov: IoVec) -> Self {
        Self { addr: HOST, iov }
    }

    #[inline]
    pub(super) fn addr(&self) -> u64 {
        self.addr
    }

    /// Guest physical address of the first byte; `None` for host memory.
    #[inline]
    pub fn guest_addr(&self) -> Option<u64> {
        (self.addr != HOST).then_some(self.addr)
    }

    /// Whether it is guest memory.
    #[inline]
    pub fn is_guest(&self) -> bool {
        self.addr != HOST
    }

    /// The host memory.
    #[inline]
    pub fn iovec(&self) -> IoVec {
        self.iov
    }

    /// Length in bytes.
    #[inline]
    pub fn len(&self) -> u64 {
        self.iov.len() as u64
    }

    /// Whether it holds no bytes.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.iov.is_empty()
    }
}

/// What one list may grow to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SgLimits {
    /// Most segments. The host's vectored calls take 1024.
    pub segments: usize,
    /// Most bytes of own host memory: the largest stable copy.
    pub host_bytes: usize,
}

impl Default for SgLimits {
    fn default() -> Self {
        Self { segments: 1024, host_bytes: 64 << 20 }
    }
}

/// The memory of one request: segments of guest and host memory, mixed freely, in order. It owns what they
/// point to: nothing it lists is unmapped or freed before it is cleared or dropped.
///
/// Capacity is kept on [`clear`](SgList::clear), and the memory map too, so a pooled list costs neither
/// allocations nor reference counting per request.
///
/// # Direction
///
/// A list with a segment that was pushed for [`Access::Read`] is read-only as a whole: the device may not
/// write it, and [`copy_from`](SgList::copy_from) and its like refuse. Request headers and data of a disk
/// write go into such lists, data of a disk read into another.
///
/// # Lost requests
///
/// While a list is [armed](SgList::arm) with a tag, dropping it reports the tag to the pool it came from.
#[derive(Debug)]
pub struct SgList {
    store: Store,
    limits: SgLimits,
    home: Option<Arc<LostTags>>,
    tag: Option<u32>,
    note: [u64; 2],
}

impl Default for SgList {
    fn default() -> Self {
        Self::new()
    }
}

impl SgList {
    /// Segments that a fresh list has room for without allocating again.
    const WARM: usize = 16;

    /// An empty list of no pool, with default limits.
    pub fn new() -> Self {
        Self::with_limits(SgLimits::default())
    }

    /// An empty list of no pool.
    pub fn with_limits(limits: SgLimits) -> Self {
        Self {
            store: Store::with_capacity(limits.segments.min(Self::WARM)),
            limits,
            home: None,
            tag: None,
            note: [0; 2],
        }
    }

    /// An empty list that reports to `home` when it is lost.
    pub(super) fn pooled(limits: SgLimits, home: &Arc<LostTags>) -> Self {
        let mut list = Self::with_limits(limits);
        list.home = Some(Arc::clone(home));
        list
    }

    pub(super) fn is_of(&self, home: &Arc<LostTags>) -> bool {
        self.home.as_ref().is_some_and(|held| Arc::ptr_eq(held, home))
    }

    // What it holds

    /// Total length in bytes.
    #[inline]
    pub fn len(&self) -> u64 {
        self.store.len()
    }

    /// Whether it holds no bytes.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What it may grow to.
    pub fn limits(&self) -> SgLimits {
        self.limits
    }

    /// The segments in order.
    #[inline]
    pub fn segments(&self) -> impl ExactSizeIterator<Item = Segment> + '_ {
        self.store.iovecs().iter().zip(self.store.addrs()).map(|(&iov, &addr)| Segment::new(addr, iov))
    }

    /// The host memory of all segments, for vectored I/O. Valid while the list is neither changed nor dropped.
    #[inline]
    pub fn as_iovecs(&self) -> &[IoVec] {
        self.store.iovecs()
    }

    /// Whether the device may not write it.
    #[inline]
    pub fn is_read_only(&self) -> bool {
        self.store.is_read_only()
    }

    /// Whether all of it is host memory, which no guest can change.
    pub fn is_stable(&self) -> bool {
        self.store.is_host()
    }

    /// Whether every segment starts at a multiple of `addr_align` bytes on the host and is a multiple of
    /// `len_align` bytes long. Zero counts as one.
    pub fn is_aligned(&self, addr_align: usize, len_align: usize) -> bool {
        let (addr_align, len_align) = (addr_align.max(1), len_align.max(1));
        self.as_iovecs()
            .iter()
            .all(|iov| iov.as_ptr().addr().is_multiple_of(addr_align) && iov.len().is_multiple_of(len_align))
    }

    #[cfg(test)]
    pub(super) fn room(&self) -> usize {
        self.store.room()
    }

    // Filling it

    /// Empties it and keeps its capacity, its host buffer and its map.
    #[inline]
    pub fn clear(&mut self) {
        self.store.clear();
    }

    /// Appends `len` bytes at the device's address `addr`. Nothing for a length of zero.
    ///
    /// # Errors
    ///
    /// [`DmaError`] if any byte cannot be reached for `access`, or the list is full; it is unchanged then.
    #[inline]
    pub fn push(&mut self, view: &DmaView, addr: u64, len: u64, access: Access) -> Result<(), DmaError> {
        self.store.adopt(view.map());
        match view.lookup(addr, len, access) {
            // SAFETY: the segment lies in the view's map, adopted above, and was resolved for `access`.
            Some(segment) => unsafe {
                self.store.push(segment, access == Access::Read, self.limits.segments)
            },
            None => self.push_pieces(view, addr, len, access),
        }
    }

    #[inline(never)]
    fn push_pieces(&mut self, view: &DmaView, addr: u64, len: u64, access: Access) -> Result<(), DmaError> {
        let mark = self.store.mark();
        let (store, max) = (&mut self.store, self.limits.segments);
        let result = view.walk(addr, len, access, &mut |region, offset, len| {
            let host = region.host().slice(offset as usize, len as usize);
            let segment = Segment::guest(region.base() + offset, host);
            // SAFETY: the region is of the view's map, adopted by the caller, and allows `access`.
            unsafe { store.push(segment, access == Access::Read, max) }
        });
        if result.is_err() {
            self.store.rewind(mark);
        }
        result
    }

    /// Appends `len` bytes of the list's own host memory, page aligned. They hold whatever an earlier request
    /// left there: write them before anyone reads them.
    ///
    /// # Errors
    ///
    /// [`DmaError::BufferTooLarge`] or [`DmaError::TooManySegments`] at the list's limits.
    #[inline]
    pub fn push_host(&mut self, len: usize) -> Result<(), DmaError> {
        if len == 0 {
            return Ok(());
        }
        self.check_host(len as u64)?;
        self.store.push_own(len, self.limits.segments)
    }

    /// Appends a copy of all that `src` holds, in the list's own host memory.
    ///
    /// # Errors
    ///
    /// As for [`push_host`](SgList::push_host).
    #[inline]
    pub fn push_copy(&mut self, src: &Self) -> Result<(), DmaError> {
        let len = src.len();
        if len == 0 {
            return Ok(());
        }
        self.check_host(len)?;
        self.store.push_copy(&src.store, self.limits.segments)
    }

    /// Appends `len` bytes at `offset` of a buffer that others may hold too.
    ///
    /// # Errors
    ///
    /// [`DmaError::OutOfRange`] beyond the buffer's end, [`DmaError::TooManySegments`] at the list's limit.
    pub fn push_buffer(
        &mut self,
        buffer: &Arc<HostBuffer>,
        offset: usize,
        len: usize,
    ) -> Result<(), DmaError> {
        if len == 0 {
            return Ok(());
        }
        self.store.push_buffer(buffer, offset, len, self.limits.segments)
    }

    /// Copies all guest segments into own host memory, once, so that nobody changes them any more; the list
    /// then points there. Nothing if that was done already.
    ///
    /// For data that the device reads. The list may be written afterwards: the guest's memory is not changed.
    ///
    /// # Errors
    ///
    /// [`DmaError::BufferTooLarge`] at the list's limit; the list is unchanged then.
    pub fn make_stable(&mut self) -> Result<(), DmaError> {
        self.check_host(self.store.guest_len())?;
        self.store.make_host();
        Ok(())
    }

    #[inline]
    fn check_host(&self, len: u64) -> Result<(), DmaError> {
        let max = self.limits.host_bytes;
        let used = self.store.host_used() as u64;
        if used.checked_add(len).is_none_or(|total| total > max as u64) {
            return Err(DmaError::BufferTooLarge { max });
        }
        Ok(())
    }

    /// The bytes of a list that is a single piece of its own host memory, as [`make_stable`](SgList::make_stable)
    /// and [`push_host`](SgList::push_host) leave it; `None` for any other, and while a slice shares it.
    pub fn host_bytes(&mut self) -> Option<&mut [u8]> {
        self.store.own_bytes()
    }

    // Cutting it

    /// Removes `count` bytes from the front, or all if there are fewer.
    #[inline]
    pub fn trim_front(&mut self, count: u64) {
        self.store.trim_front(count);
    }

    /// Removes `count` bytes from the back, or all if there are fewer.
    #[inline]
    pub fn trim_back(&mut self, count: u64) {
        self.store.trim_back(count);
    }

    /// Appends `offset .. offset + len` of this list to `to`, without copying data.
    ///
    /// # Errors
    ///
    /// [`DmaError::OutOfRange`] beyond the end, [`DmaError::TooManySegments`] at the limit of `to`; `to` is
    /// unchanged then.
    #[inline]
    pub fn slice_into(&self, offset: u64, len: u64, to: &mut Self) -> Result<(), DmaError> {
        if self.store.slice_first(offset, len, &mut to.store) {
            return Ok(());
        }
        self.slice_into_any(offset, len, to)
    }

    #[inline(never)]
    fn slice_into_any(&self, offset: u64, len: u64, to: &mut Self) -> Result<(), DmaError> {
        self.check(offset, len)?;
        let mark = to.store.mark();
        let result = self.store.slice_into(offset, len, &mut to.store, to.limits.segments);
        if result.is_err() {
            to.store.rewind(mark);
        }
        result
    }

    // Moving data

    /// Looks whether files behind the list were shortened, page by page, without an access: a system call answers memory that is gone by
    /// `EFAULT`, and with no signal. Whoever watches it ([`ShrinkWatch`](super::ShrinkWatch)) hears of it then, and the call can be made
    /// once more.
    #[cold]
    pub fn notice_shrunk(&self) {
        const PAGE: usize = 4096;
        for piece in self.as_iovecs() {
            let last = piece.len().checked_sub(1);
            for offset in (0..piece.len()).step_by(PAGE).chain(last) {
                notice(piece.as_ptr() as usize + offset);
            }
        }
    }

    /// Copies `dst.len()` bytes from `offset` of the list.
    ///
    /// # Errors
    ///
    /// [`DmaError::OutOfRange`] beyond the end.
    #[inline]
    pub fn copy_to(&self, offset: u64, dst: &mut [u8]) -> Result<(), DmaError> {
        if self.store.read_first(offset, dst) { Ok(()) } else { self.copy_to_any(offset, dst) }
    }

    #[inline(never)]
    fn copy_to_any(&self, offset: u64, dst: &mut [u8]) -> Result<(), DmaError> {
        self.check(offset, dst.len() as u64)?;
        self.store.read(offset, dst);
        Ok(())
    }

    /// Copies `src` to `offset` of the list. Dirty marking is apart: [`mark_dirty`](SgList::mark_dirty).
    ///
    /// # Errors
    ///
    /// [`DmaError::OutOfRange`] beyond the end, [`DmaError::ReadOnly`] if the device may not write the list.
    #[inline]
    pub fn copy_from(&mut self, offset: u64, src: &[u8]) -> Result<(), DmaError> {
        if self.store.write_first(offset, src) { Ok(()) } else { self.copy_from_any(offset, src) }
    }

    #[inline(never)]
    fn copy_from_any(&mut self, offset: u64, src: &[u8]) -> Result<(), DmaError> {
        self.check_write(offset, src.len() as u64)?;
        self.store.write(offset, src);
        Ok(())
    }

    /// Sets `len` bytes at `offset` to `byte`.
    ///
    /// # Errors
    ///
    /// As for [`copy_from`](SgList::copy_from).
    pub fn fill(&mut self, offset: u64, len: u64, byte: u8) -> Result<(), DmaError> {
        self.check_write(offset, len)?;
        self.store.fill(offset, len, byte);
        Ok(())
    }

    /// Copies `len` bytes from `src_offset` of `src` to `offset` of this list.
    ///
    /// # Errors
    ///
    /// As for [`copy_from`](SgList::copy_from), for either list.
    #[inline]
    pub fn copy_sg(&mut self, offset: u64, src: &Self, src_offset: u64, len: u64) -> Result<(), DmaError> {
        if self.store.copy_first(offset, &src.store, src_offset, len) {
            return Ok(());
        }
        self.copy_sg_any(offset, src, src_offset, len)
    }

    #[inline(never)]
    fn copy_sg_any(&mut self, offset: u64, src: &Self, src_offset: u64, len: u64) -> Result<(), DmaError> {
        self.check_write(offset, len)?;
        src.check(src_offset, len)?;
        self.store.copy(offset, &src.store, src_offset, len);
        Ok(())
    }

    /// Whether every byte is zero at the moment it is looked at.
    pub fn is_zero(&self) -> bool {
        let mut chunk = [0; 512];
        let mut offset = 0;
        while offset < self.len() {
            let len = (self.len() - offset).min(chunk.len() as u64);
            self.store.read(offset, &mut chunk[..len as usize]);
            if chunk[..len as usize].iter().any(|&byte| byte != 0) {
                return false;
            }
            offset += len;
        }
        true
    }

    /// Marks the first `len` bytes, as far as they are guest memory, as written by the device. Call it when
    /// the device wrote them, before the driver is told.
    ///
    /// It marks in the map of `view`, so a log that was started while the request was in flight gets its pages.
    /// Nothing where nobody logs.
    #[inline]
    pub fn mark_dirty(&self, view: &DmaView, len: u64) {
        self.store.mark_dirty(view, 0, len.min(self.len()));
    }

    fn check_write(&self, offset: u64, len: u64) -> Result<(), DmaError> {
        self.check(offset, len)?;
        if self.is_read_only() {
            let addr = self.segments().next().map_or(HOST, |segment| segment.addr());
            return Err(DmaError::ReadOnly { addr, len });
        }
        Ok(())
    }

    #[inline]
    fn check(&self, offset: u64, len: u64) -> Result<(), DmaError> {
        if offset.checked_add(len).is_none_or(|end| end > self.len()) {
            return Err(DmaError::OutOfRange { offset, len });
        }
        Ok(())
    }

    // Moving on

    /// Exchanges what two lists hold; each keeps its limits, its pool and its tag. This is how the buffers of a popped
    /// chain become those of a request without being copied. Where `other` has grown beyond this list's limit its
    /// segments are copied and it is emptied instead: room that one long chain took must not wander into every list of
    /// a pool.
    ///
    /// # Errors
    ///
    /// [`DmaError::TooManySegments`] if `other` holds more segments than this list may; nothing has moved then.
    #[inline]
    pub fn swap_segments(&mut self, other: &mut Self) -> Result<(), DmaError> {
        if other.segments().len() > self.limits.segments {
            return Err(DmaError::TooManySegments { max: self.limits.segments });
        }
        if other.store.room() > self.limits.segments.max(Self::WARM) {
            return self.take_segments(other);
        }
        std::mem::swap(&mut self.store, &mut other.store);
        Ok(())
    }

    #[cold]
    fn take_segments(&mut self, other: &mut Self) -> Result<(), DmaError> {
        self.clear();
        other.slice_into(0, other.len(), self)?;
        other.clear();
        Ok(())
    }

    // What a request that has no room for it keeps here

    /// The note of the request that the list belongs to; it means nothing to the list.
    #[inline]
    pub(crate) fn note(&self) -> [u64; 2] {
        self.note
    }

    /// Sets the note: whoever makes a request does, as it is left alone by everything else.
    #[inline]
    pub(crate) fn set_note(&mut self, note: [u64; 2]) {
        self.note = note;
    }

    // Being lost

    /// From now on, dropping the list reports `tag` to its pool.
    #[inline]
    pub fn arm(&mut self, tag: u32) {
        self.tag = Some(tag);
    }

    /// The list came home: dropping it is harmless again. Returns the tag it was armed with.
    #[inline]
    pub fn disarm(&mut self) -> Option<u32> {
        self.tag.take()
    }

    /// Holds that map in place of an older one, which can then be unmapped, if the list is empty.
    #[inline]
    pub fn rehome(&mut self, map: &Arc<MemoryMap>) {
        if self.is_empty() {
            self.reset(Some(map));
        }
    }

    /// Empties it, and holds that map where one is given.
    #[inline]
    pub(super) fn reset(&mut self, map: Option<&Arc<MemoryMap>>) {
        self.store.clear();
        if let Some(map) = map {
            self.store.adopt(map);
        }
    }
}

impl Drop for SgList {
    #[inline]
    fn drop(&mut self) {
        if let (Some(tag), Some(home)) = (self.tag, &self.home) {
            home.report(tag);
        }
    }
}
