//! Copies through raw pointers, and the `iovec` that holds one.
//!
//! Memory behind an [`IoVec`] may be written by others at any time, so it is never borrowed. Each function
//! ends in a compiler fence: the compiler may not assume that the source still holds what was copied, so it
//! cannot read it a second time in place of the copy.

use std::fmt;
use std::ptr::{self, NonNull};
use std::sync::atomic::{Ordering, compiler_fence};

/// A piece of host memory, laid out as the `iovec` of the host's system calls.
///
/// It is an address and a length; it neither keeps the memory mapped nor allows access to it. An
/// [`SgList`](super::SgList) does both.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct IoVec(libc::iovec);

// SAFETY: an `IoVec` is an address and a length. All access through it is in `unsafe` code, whose callers
// vouch that the memory is mapped; the memory itself belongs to no thread.
unsafe impl Send for IoVec {}
// SAFETY: as above; shared access reads the address and the length only.
unsafe impl Sync for IoVec {}

impl IoVec {
    /// No memory at all.
    pub(super) const EMPTY: Self = Self::new(NonNull::dangling(), 0);

    pub(super) const fn new(base: NonNull<u8>, len: usize) -> Self {
        Self(libc::iovec { iov_base: base.as_ptr().cast(), iov_len: len })
    }

    /// The host address of the first byte.
    #[inline]
    pub const fn as_ptr(&self) -> *mut u8 {
        self.0.iov_base.cast()
    }

    /// Length in bytes.
    #[inline]
    pub const fn len(&self) -> usize {
        self.0.iov_len
    }

    /// Whether it holds no bytes.
    #[inline]
    pub const fn is_empty(&self) -> bool {
        self.0.iov_len == 0
    }

    /// The part of `len` bytes at `offset`, clipped to this piece.
    #[inline]
    #[must_use]
    pub fn slice(&self, offset: usize, len: usize) -> Self {
        let offset = offset.min(self.len());
        let len = len.min(self.len() - offset);
        Self(libc::iovec { iov_base: self.as_ptr().wrapping_add(offset).cast(), iov_len: len })
    }

    /// As [`slice`](IoVec::slice) where the caller checked that the part is inside.
    #[inline]
    pub(super) fn part(&self, offset: usize, len: usize) -> Self {
        debug_assert!(offset <= self.len() && len <= self.len() - offset);
        Self(libc::iovec { iov_base: self.as_ptr().wrapping_add(offset).cast(), iov_len: len })
    }

    /// The same pieces as the host's system calls take them.
    #[inline]
    pub const fn as_libc(pieces: &[Self]) -> &[libc::iovec] {
        // SAFETY: `IoVec` is a transparent wrapper, so layout, length and lifetime are the same.
        unsafe { std::slice::from_raw_parts(pieces.as_ptr().cast(), pieces.len()) }
    }

    /// Copies `dst.len()` bytes from `offset` of the piece.
    ///
    /// # Safety
    ///
    /// The piece must be mapped and readable.
    #[inline]
    pub(super) unsafe fn read(&self, offset: usize, dst: &mut [u8]) {
        let src = self.slice(offset, dst.len());
        assert_eq!(src.len(), dst.len(), "read beyond a piece");
        // SAFETY: the caller vouches for the source, `slice` and the assertion for its bounds; the destination
        // is a live exclusive slice of the same length.
        unsafe { ptr::copy(src.as_ptr(), dst.as_mut_ptr(), dst.len()) };
        compiler_fence(Ordering::SeqCst);
    }

    /// Copies `src` to `offset` of the piece.
    ///
    /// # Safety
    ///
    /// The piece must be mapped and writable.
    #[inline]
    pub(super) unsafe fn write(&self, offset: usize, src: &[u8]) {
        let dst = self.slice(offset, src.len());
        assert_eq!(dst.len(), src.len(), "write beyond a piece");
        // SAFETY: as in `read`, with the sides swapped.
        unsafe { ptr::copy(src.as_ptr(), dst.as_ptr(), src.len()) };
        compiler_fence(Ordering::SeqCst);
    }

    /// Sets the whole piece to `byte`.
    ///
    /// # Safety
    ///
    /// The piece must be mapped and writable.
    pub(super) unsafe fn fill(&self, byte: u8) {
        // SAFETY: the caller vouches for the piece.
        unsafe { ptr::write_bytes(self.as_ptr(), byte, self.len()) };
        compiler_fence(Ordering::SeqCst);
    }

    /// Copies as many bytes from `src` as the shorter of the two holds. They may overlap.
    ///
    /// # Safety
    ///
    /// `src` must be mapped and readable, this piece mapped and writable.
    pub(super) unsafe fn copy_from(&self, src: &Self) {
        // SAFETY: the caller vouches for both pieces; the length is within both.
        unsafe { ptr::copy(src.as_ptr(), self.as_ptr(), self.len().min(src.len())) };
        compiler_fence(Ordering::SeqCst);
    }
}

impl fmt::Debug for IoVec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:p}+{:#x}", self.as_ptr(), self.len())
    }
}
