//! Where the disk's bytes are: one anonymous mapping that the host fills page by page.
//!
//! The mapping stays where it is until the last window is gone, so nothing is ever freed under a copy; a page that is
//! given back reads as zeroes from then on. Copies go through raw pointers and may be torn by others, as on any disk.

use super::sys;
use iovirt_core::dma::{Access, DmaError, DmaSpace, DmaView, MapError, SgList};

/// The disk's bytes, shared.
#[derive(Debug)]
pub(super) struct Store {
    space: DmaSpace,
    page: u32,
}

/// One queue's way to the disk's bytes. All ranges are checked against the disk's end.
#[derive(Debug)]
pub(super) struct Window {
    view: DmaView,
    /// The part of the disk that the request at hand is about.
    part: SgList,
    page: u64,
}

impl Store {
    pub(super) fn new(size: u64) -> Result<Self, MapError> {
        Ok(Self { space: DmaSpace::anonymous(&[(0, size)])?, page: sys::page_size() })
    }

    /// The unit in which memory is given back, in bytes.
    pub(super) fn page(&self) -> u32 {
        self.page
    }

    pub(super) fn view(&self) -> DmaView {
        self.space.view()
    }

    pub(super) fn window(&self) -> Window {
        Window { view: self.space.view(), part: SgList::new(), page: u64::from(self.page) }
    }
}

impl Window {
    #[inline]
    fn select(&mut self, offset: u64, len: u64, access: Access) -> Result<(), DmaError> {
        self.part.clear();
        self.part.push(&self.view, offset, len, access)
    }

    /// Copies `len` bytes of the disk to the start of `to`.
    #[inline]
    pub(super) fn read(&mut self, offset: u64, len: u64, to: &mut SgList) -> Result<(), DmaError> {
        self.select(offset, len, Access::Read)?;
        to.copy_sg(0, &self.part, 0, len)
    }

    /// Copies `len` bytes from the start of `from` to the disk.
    #[inline]
    pub(super) fn write(&mut self, offset: u64, len: u64, from: &SgList) -> Result<(), DmaError> {
        self.select(offset, len, Access::Write)?;
        self.part.copy_sg(0, from, 0, len)
    }

    /// Makes a range zero and keeps its memory.
    pub(super) fn zero(&mut self, offset: u64, len: u64) -> Result<(), DmaError> {
        self.select(offset, len, Access::Write)?;
        self.part.fill(0, len, 0)
    }

    /// Makes a range zero and gives the whole pages in it back to the host.
    pub(super) fn release(&mut self, offset: u64, len: u64) -> Result<(), DmaError> {
        let end = offset + len;
        let first = offset.next_multiple_of(self.page);
        let last = end - end % self.page;
        if first >= last {
            return self.zero(offset, len);
        }
        self.zero(offset, first - offset)?;
        self.zero(last, end - last)?;
        self.select(first, last - first, Access::Write)?;
        for piece in self.part.as_iovecs() {
            // SAFETY: the piece lies in the anonymous mapping of this store's space, which the window's view keeps and
            // to which no Rust reference exists: it is reached by copies through raw pointers only.
            if !unsafe { sys::give_back(piece) } {
                // Locked memory cannot be given back.
                return self.zero(first, last - first);
            }
        }
        Ok(())
    }
}
