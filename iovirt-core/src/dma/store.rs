//! The segments of a list, and what keeps them valid.
//!
//! The one invariant of this file: every piece in `iov` lies in a map or a host buffer that the same store
//! holds an `Arc` of. Everything `unsafe` about lists rests on it and is in this file.

use std::sync::atomic::{Ordering, fence};
use std::sync::{Arc, LazyLock};

use super::sglist::HOST;
use super::{DmaError, DmaView, HostBuffer, IoVec, MemoryMap, Segment};

#[derive(Debug)]
pub(super) struct Store {
    /// Segments `head .. tail` of these two; before them are those that were trimmed, after them is room.
    iov: Box<[IoVec]>,
    /// Guest physical addresses, or [`HOST`].
    addr: Box<[u64]>,
    head: usize,
    tail: usize,
    len: u64,
    /// Whether a segment was resolved for reading only.
    read_only: bool,
    /// Whether clearing has more to do than to forget the segments.
    holds: bool,
    map: Arc<MemoryMap>,
    /// Maps of segments that were added before the map was replaced.
    older: Vec<Arc<MemoryMap>>,
    own: Option<Arc<HostBuffer>>,
    /// Bytes of `own` that segments use.
    used: usize,
    /// Buffers that other lists own, or that this one outgrew.
    borrowed: Vec<Arc<HostBuffer>>,
}

/// What a store held at some moment.
#[derive(Clone, Copy)]
pub(super) struct Mark {
    segments: usize,
    len: u64,
    read_only: bool,
}

/// What a list holds before it has seen a map: one for all, so that comparing maps takes no case for none.
static NOTHING: LazyLock<Arc<MemoryMap>> = LazyLock::new(|| Arc::new(MemoryMap::empty()));

impl Store {
    pub(super) fn with_capacity(segments: usize) -> Self {
        Self {
            iov: vec![IoVec::EMPTY; segments].into(),
            addr: vec![HOST; segments].into(),
            head: 0,
            tail: 0,
            len: 0,
            read_only: false,
            holds: false,
            map: Arc::clone(&NOTHING),
            older: Vec::new(),
            own: None,
            used: 0,
            borrowed: Vec::new(),
        }
    }

    #[inline]
    pub(super) fn iovecs(&self) -> &[IoVec] {
        &self.iov[self.head..self.tail]
    }

    /// How many segments it has room for.
    #[inline]
    pub(super) fn room(&self) -> usize {
        self.iov.len()
    }

    #[inline]
    pub(super) fn addrs(&self) -> &[u64] {
        &self.addr[self.head..self.tail]
    }

    #[inline]
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    #[inline]
    pub(super) fn is_read_only(&self) -> bool {
        self.read_only
    }

    pub(super) fn is_host(&self) -> bool {
        self.addrs().iter().all(|&addr| addr == HOST)
    }

    #[inline]
    pub(super) fn clear(&mut self) {
        self.head = 0;
        self.tail = 0;
        self.len = 0;
        self.read_only = false;
        if self.used > 0 {
            self.reuse_own();
        }
        if self.holds {
            self.release();
        }
    }

    /// Lets the own buffer be filled from its start again, unless a slice still uses it: then it is left to that one.
    #[inline]
    fn reuse_own(&mut self) {
        self.used = 0;
        // No weak reference is ever made, so a count of one is ours and stays so.
        if self.own.as_ref().is_some_and(|own| Arc::strong_count(own) > 1) {
            self.leave_own();
        }
        // What others did with the buffer, they did before they let go of it.
        fence(Ordering::Acquire);
    }

    #[cold]
    #[inline(never)]
    fn leave_own(&mut self) {
        self.own = None;
    }

    /// Lets go of what only cleared segments needed.
    #[cold]
    #[inline(never)]
    fn release(&mut self) {
        self.holds = false;
        self.older.clear();
        self.borrowed.clear();
    }

    /// Holds `map` for the segments that follow.
    #[inline]
    pub(super) fn adopt(&mut self, map: &Arc<MemoryMap>) {
        if !Arc::ptr_eq(&self.map, map) {
            self.adopt_other(map);
        }
    }

    #[cold]
    fn adopt_other(&mut self, map: &Arc<MemoryMap>) {
        let previous = std::mem::replace(&mut self.map, Arc::clone(map));
        if !self.is_host() {
            self.holds = true;
            self.older.push(previous);
        }
    }

    /// Appends a piece of guest memory.
    ///
    /// # Safety
    ///
    /// The piece must lie in a map given to [`adopt`](Store::adopt) since the last clear, and be writable unless
    /// `read_only` is set.
    #[inline]
    pub(super) unsafe fn push(
        &mut self,
        segment: Segment,
        read_only: bool,
        max: usize,
    ) -> Result<(), DmaError> {
        self.append(segment, max)?;
        self.read_only |= read_only;
        Ok(())
    }

    #[inline]
    fn append(&mut self, segment: Segment, max: usize) -> Result<(), DmaError> {
        let (tail, len) = (self.tail, segment.len());
        if let Some(iov) = self.iov.get_mut(tail) {
            self.len = self.len.checked_add(len).ok_or(DmaError::Overflow { addr: segment.addr(), len })?;
            *iov = segment.iovec();
            debug_assert_eq!(self.iov.len(), self.addr.len());
            // SAFETY: `iov` and `addr` always have the same length: they are made and grown together, in
            // `with_capacity` and `make_room` only. The check of one is the check of both.
            *unsafe { self.addr.get_unchecked_mut(tail) } = segment.addr();
            self.tail = tail + 1;
            return Ok(());
        }
        self.append_to_full(segment, max)
    }

    #[cold]
    #[inline(never)]
    fn append_to_full(&mut self, segment: Segment, max: usize) -> Result<(), DmaError> {
        self.make_room(max)?;
        self.append(segment, max)
    }

    /// Makes room for one more segment, but never for more than `max`.
    fn make_room(&mut self, max: usize) -> Result<(), DmaError> {
        self.iov.copy_within(self.head..self.tail, 0);
        self.addr.copy_within(self.head..self.tail, 0);
        self.tail -= self.head;
        self.head = 0;
        if self.tail >= max {
            return Err(DmaError::TooManySegments { max });
        }
        if self.tail == self.iov.len() {
            let room = (self.tail * 2).clamp(4, max.max(4)).min(max);
            let mut iov = std::mem::take(&mut self.iov).into_vec();
            iov.resize(room, IoVec::EMPTY);
            self.iov = iov.into();
            let mut addr = std::mem::take(&mut self.addr).into_vec();
            addr.resize(room, HOST);
            self.addr = addr.into();
        }
        Ok(())
    }

    /// How much there is now, for [`rewind`](Store::rewind).
    pub(super) fn mark(&self) -> Mark {
        Mark { segments: self.tail - self.head, len: self.len, read_only: self.read_only }
    }

    /// Takes back what was appended since, after a failure half way.
    pub(super) fn rewind(&mut self, to: Mark) {
        self.tail = self.head + to.segments;
        self.len = to.len;
        self.read_only = to.read_only;
    }

    /// Appends `len` bytes of this list's own host buffer.
    #[inline]
    pub(super) fn push_own(&mut self, len: usize, max: usize) -> Result<(), DmaError> {
        let piece = self.reserve(len);
        self.append(Segment::host(piece), max)
    }

    /// Appends a copy of all of `src`, which is not empty, in this list's own host buffer.
    #[inline]
    pub(super) fn push_copy(&mut self, src: &Self, max: usize) -> Result<(), DmaError> {
        let copy = self.reserve_anywhere(src.len as usize);
        self.append(Segment::host(copy), max)?;
        let mut done = 0;
        for from in src.iovecs() {
            // SAFETY: the target lies in the own buffer, the source in held memory (the invariant); the pieces of `src`
            // are as long together as what was reserved.
            unsafe { copy.part(done, from.len()).copy_from(from) };
            done += from.len();
        }
        Ok(())
    }

    /// Appends a part of a buffer that others may hold too.
    pub(super) fn push_buffer(
        &mut self,
        buffer: &Arc<HostBuffer>,
        offset: usize,
        len: usize,
        max: usize,
    ) -> Result<(), DmaError> {
        let piece = buffer.memory().slice(offset, len);
        if piece.len() != len {
            return Err(DmaError::OutOfRange { offset: offset as u64, len: len as u64 });
        }
        self.borrow(buffer);
        self.append(Segment::host(piece), max)
    }

    fn borrow(&mut self, buffer: &Arc<HostBuffer>) {
        self.holds = true;
        if !self.borrowed.iter().any(|held| Arc::ptr_eq(held, buffer)) {
            self.borrowed.push(Arc::clone(buffer));
        }
    }

    /// Bytes of host memory in use.
    #[inline]
    pub(super) fn host_used(&self) -> usize {
        self.used
    }

    /// A fresh piece of the own buffer, page aligned. A buffer that is too small is left to its segments.
    #[inline]
    fn reserve(&mut self, len: usize) -> IoVec {
        match &self.own {
            Some(own) if self.used == 0 && len <= own.len() => {
                self.used = len;
                own.memory().part(0, len)
            }
            _ => self.reserve_more(len),
        }
    }

    /// The same for what need not be page aligned. Small pieces of different lists then begin at different places of their
    /// pages: all at the same one, they would compete for the few lines that a first cache has for it.
    #[inline]
    fn reserve_anywhere(&mut self, len: usize) -> IoVec {
        const LINE: usize = 64;
        const PLACES: usize = HostBuffer::ALIGN / 2 / LINE;
        let place = std::ptr::from_ref(self).addr() / LINE % PLACES * LINE;
        let piece = self.reserve(len);
        match &self.own {
            // The piece is the first of its buffer, which has a page at least; what follows begins on the next one.
            Some(own) if self.used == len && len <= HostBuffer::ALIGN / 2 => own.memory().part(place, len),
            _ => piece,
        }
    }

    #[inline(never)]
    fn reserve_more(&mut self, len: usize) -> IoVec {
        let start = self.used.next_multiple_of(HostBuffer::ALIGN);
        if let Some(own) = &self.own
            && own.len().checked_sub(start).is_some_and(|room| len <= room)
        {
            self.used = start + len;
            return own.memory().slice(start, len);
        }
        let fresh = Arc::new(HostBuffer::new(len));
        let piece = fresh.memory().slice(0, len);
        let outgrown = self.own.replace(fresh);
        if self.used > 0 {
            self.holds = true;
            self.borrowed.extend(outgrown);
        }
        self.used = len;
        piece
    }

    /// Copies all guest segments into host memory, once, and lets the list point there.
    pub(super) fn make_host(&mut self) {
        let guest = self.guest_len();
        if guest == 0 {
            return;
        }
        let copy = self.reserve(guest as usize);
        let mut done = 0;
        for index in self.head..self.tail {
            if self.addr[index] != HOST {
                let piece = copy.slice(done, self.iov[index].len());
                // SAFETY: the target lies in the own buffer, the source in a held map (the invariant).
                unsafe { piece.copy_from(&self.iov[index]) };
                done += piece.len();
                self.iov[index] = piece;
                self.addr[index] = HOST;
            }
        }
        if done as u64 == self.len {
            self.tail = self.head + 1;
            self.iov[self.head] = copy;
        }
        self.read_only = false;
        self.older.clear();
    }

    /// Total length of the guest segments in bytes.
    pub(super) fn guest_len(&self) -> u64 {
        let guest = |(iov, &addr): (&IoVec, &u64)| if addr == HOST { 0 } else { iov.len() as u64 };
        self.iovecs().iter().zip(self.addrs()).map(guest).sum()
    }

    /// The bytes of a list that is one piece of its own, unshared buffer.
    pub(super) fn own_bytes(&mut self) -> Option<&mut [u8]> {
        let &[piece] = self.iovecs() else { return None };
        let own = Arc::get_mut(self.own.as_mut()?)?;
        let start = piece.as_ptr().addr().checked_sub(own.memory().as_ptr().addr())?;
        own.as_mut_slice().get_mut(start..start.checked_add(piece.len())?)
    }

    #[inline]
    pub(super) fn trim_front(&mut self, mut count: u64) {
        while count > 0 && self.head < self.tail {
            let piece = self.iov[self.head];
            let cut = count.min(piece.len() as u64);
            self.len -= cut;
            count -= cut;
            if cut == piece.len() as u64 {
                self.head += 1;
            } else {
                self.iov[self.head] = piece.slice(cut as usize, usize::MAX);
                if self.addr[self.head] != HOST {
                    self.addr[self.head] += cut;
                }
            }
        }
    }

    #[inline]
    pub(super) fn trim_back(&mut self, mut count: u64) {
        while count > 0 && self.head < self.tail {
            let last = self.tail - 1;
            let piece = self.iov[last];
            let cut = count.min(piece.len() as u64);
            self.len -= cut;
            count -= cut;
            if cut == piece.len() as u64 {
                self.tail = last;
            } else {
                self.iov[last] = piece.slice(0, piece.len() - cut as usize);
            }
        }
    }

    /// Appends `offset .. offset + len` of this list to `to`, if that is guest memory in the first segment, `to` holds the
    /// same map and it has room; whether all is so.
    #[inline]
    pub(super) fn slice_first(&self, offset: u64, len: u64, to: &mut Self) -> bool {
        let Some(piece) = self.first_part(offset, len) else { return false };
        let Some(&addr) = self.addr.get(self.head) else { return false };
        let same_map = self.older.is_empty() && Arc::ptr_eq(&self.map, &to.map);
        if len == 0 || addr == HOST || !same_map {
            return false;
        }
        let room = to.iov.len();
        let fits = to.tail < room && to.append(Segment::guest(addr + offset, piece), room).is_ok();
        to.read_only |= fits && self.read_only;
        fits
    }

    /// Appends `offset .. offset + len` of this list, which must be in range, to `to`.
    pub(super) fn slice_into(
        &self,
        offset: u64,
        len: u64,
        to: &mut Self,
        max: usize,
    ) -> Result<(), DmaError> {
        let (mut guest, mut host) = (false, false);
        for segment in self.pieces(offset, len) {
            to.append(segment, max)?;
            guest |= segment.is_guest();
            host |= !segment.is_guest();
        }
        if guest {
            to.read_only |= self.read_only;
            to.hold_maps_of(self);
        }
        if host {
            self.own.iter().chain(&self.borrowed).for_each(|buffer| to.borrow(buffer));
        }
        Ok(())
    }

    #[inline]
    fn hold_maps_of(&mut self, other: &Self) {
        for map in std::iter::once(&other.map).chain(&other.older) {
            if !Arc::ptr_eq(&self.map, map) && !self.older.iter().any(|held| Arc::ptr_eq(held, map)) {
                self.hold_map(map);
            }
        }
    }

    #[cold]
    fn hold_map(&mut self, map: &Arc<MemoryMap>) {
        let previous = std::mem::replace(&mut self.map, Arc::clone(map));
        self.holds = true;
        self.older.push(previous);
    }

    /// The segments of `offset .. offset + len`, the first and last cut to fit.
    #[inline]
    pub(super) fn pieces(&self, offset: u64, len: u64) -> impl Iterator<Item = Segment> + '_ {
        let (mut skip, mut left) = (offset, len);
        self.iovecs().iter().zip(self.addrs()).filter_map(move |(iov, &addr)| {
            let size = iov.len() as u64;
            if left == 0 || skip >= size {
                skip = skip.saturating_sub(size);
                return None;
            }
            let piece = iov.slice(skip as usize, left.min(size) as usize);
            let addr = if addr == HOST { HOST } else { addr + skip };
            left -= piece.len() as u64;
            skip = 0;
            Some(Segment::new(addr, piece))
        })
    }

    #[inline]
    fn first(&self) -> Option<&IoVec> {
        debug_assert!(self.head <= self.tail && self.tail <= self.iov.len());
        // SAFETY: `head` never passes `tail`, nor `tail` the length of `iov`, which never shrinks: a segment is taken off
        // only while `head < tail`, and added only where `iov` has a place for it.
        (self.head < self.tail).then(|| unsafe { self.iov.get_unchecked(self.head) })
    }

    /// The host memory of `offset .. offset + len` where all of it lies in the first segment, as it does of most lists.
    #[inline]
    fn first_part(&self, offset: u64, len: u64) -> Option<IoVec> {
        let first = self.first()?;
        let size = first.len() as u64;
        if offset > size || len > size - offset {
            return None;
        }
        Some(first.part(offset as usize, len as usize))
    }

    /// Copies from `offset` if that lies in the first segment; whether it does.
    #[inline]
    pub(super) fn read_first(&self, offset: u64, dst: &mut [u8]) -> bool {
        let Some(piece) = self.first_part(offset, dst.len() as u64) else { return false };
        // SAFETY: the piece lies in held memory (the invariant).
        unsafe { piece.read(0, dst) };
        true
    }

    /// Copies to `offset` if that lies in the first segment and the list may be written; whether both is so.
    #[inline]
    pub(super) fn write_first(&mut self, offset: u64, src: &[u8]) -> bool {
        if self.read_only {
            return false;
        }
        let Some(piece) = self.first_part(offset, src.len() as u64) else { return false };
        // SAFETY: the piece lies in held memory (the invariant) that may be written (checked above).
        unsafe { piece.write(0, src) };
        true
    }

    /// Copies from another list where both ranges lie in a first segment and this list may be written; whether all is so.
    #[inline]
    pub(super) fn copy_first(&mut self, offset: u64, src: &Self, src_offset: u64, len: u64) -> bool {
        if self.read_only {
            return false;
        }
        let (Some(to), Some(from)) = (self.first_part(offset, len), src.first_part(src_offset, len)) else {
            return false;
        };
        // SAFETY: both pieces lie in held memory (the invariant), and this list may be written (checked above).
        unsafe { to.copy_from(&from) };
        true
    }

    /// Copies from `offset`; the range must be inside the list.
    pub(super) fn read(&self, offset: u64, dst: &mut [u8]) {
        let mut done = 0;
        for segment in self.pieces(offset, dst.len() as u64) {
            let piece = segment.iovec();
            // SAFETY: the piece lies in held memory (the invariant).
            unsafe { piece.read(0, &mut dst[done..done + piece.len()]) };
            done += piece.len();
        }
    }

    /// Copies to `offset`; the range must be inside the list, and the list not read-only.
    pub(super) fn write(&mut self, offset: u64, src: &[u8]) {
        assert!(!self.read_only, "write to a read-only list");
        let mut done = 0;
        for segment in self.pieces(offset, src.len() as u64) {
            let piece = segment.iovec();
            // SAFETY: the piece lies in held memory (the invariant) that may be written (checked above).
            unsafe { piece.write(0, &src[done..done + piece.len()]) };
            done += piece.len();
        }
    }

    /// Sets a range to `byte`; the conditions of [`write`](Store::write).
    pub(super) fn fill(&mut self, offset: u64, len: u64, byte: u8) {
        assert!(!self.read_only, "write to a read-only list");
        for segment in self.pieces(offset, len) {
            // SAFETY: as in `write`.
            unsafe { segment.iovec().fill(byte) };
        }
    }

    /// Copies `len` bytes from `offset` of `src`; the conditions of [`write`](Store::write) and
    /// [`read`](Store::read).
    pub(super) fn copy(&mut self, offset: u64, src: &Self, src_offset: u64, len: u64) {
        assert!(!self.read_only, "write to a read-only list");
        let mut at = offset;
        for from in src.pieces(src_offset, len) {
            let mut from = from.iovec();
            for to in self.pieces(at, from.len() as u64) {
                // SAFETY: both pieces lie in held memory (the invariant), and this list may be written.
                unsafe { to.iovec().copy_from(&from) };
                at += to.len();
                from = from.slice(to.len() as usize, usize::MAX);
            }
        }
    }

    /// Marks guest memory of a range dirty: in the view's map, which is the one that is being logged now, and
    /// in the maps the segments came from.
    #[inline]
    pub(super) fn mark_dirty(&self, view: &DmaView, offset: u64, len: u64) {
        let nobody_logs = !view.map().dirty_logging() && !self.map.dirty_logging() && self.older.is_empty();
        if !nobody_logs {
            self.log_dirty(view, offset, len);
        }
    }

    #[inline(never)]
    fn log_dirty(&self, view: &DmaView, offset: u64, len: u64) {
        let current = view.map();
        let others =
            || std::iter::once(&self.map).chain(&self.older).filter(|map| !Arc::ptr_eq(map, current));
        for segment in self.pieces(offset, len).filter(Segment::is_guest) {
            current.mark_dirty(segment.addr(), segment.len());
            others().for_each(|map| map.mark_dirty(segment.addr(), segment.len()));
        }
    }
}
