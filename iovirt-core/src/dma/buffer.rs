//! Page-aligned host memory for stable copies and for frames.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ptr::NonNull;

use super::IoVec;

/// Zeroed, page-aligned host memory. Shared by `Arc` between a list and the slices taken of it.
#[derive(Debug)]
pub struct HostBuffer {
    memory: IoVec,
}

impl HostBuffer {
    /// Alignment in bytes: what direct I/O asks for at most.
    pub const ALIGN: usize = 4096;

    /// A zeroed buffer of at least `len` bytes, rounded up to whole pages (one at least).
    ///
    /// Aborts when the host is out of memory, as `Vec` does; the caller bounds `len`.
    pub fn new(len: usize) -> Self {
        let layout = Self::layout(len);
        // SAFETY: the layout has a size of at least one page.
        let base = unsafe { alloc_zeroed(layout) };
        let Some(base) = NonNull::new(base) else { handle_alloc_error(layout) };
        Self { memory: IoVec::new(base, layout.size()) }
    }

    /// Length in bytes; never zero.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.memory.len()
    }

    pub(super) fn memory(&self) -> IoVec {
        self.memory
    }

    /// The bytes, for a sole owner.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: the memory is initialised and lives as long as `self`. Lists reach it only while they hold an
        // `Arc` to it, which excludes this exclusive borrow.
        unsafe { std::slice::from_raw_parts_mut(self.memory.as_ptr(), self.memory.len()) }
    }

    fn layout(len: usize) -> Layout {
        let size = len.max(1).checked_next_multiple_of(Self::ALIGN).unwrap_or(usize::MAX);
        Layout::from_size_align(size, Self::ALIGN).expect("a buffer larger than the address space")
    }
}

impl Drop for HostBuffer {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this very layout: the length is a multiple of the alignment already.
        unsafe { dealloc(self.memory.as_ptr(), Self::layout(self.memory.len())) };
    }
}
