//! Dirty logs: which pages a device wrote, for live migration and snapshots.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

/// A log of the pages that devices wrote in one [`Region`](super::Region).
///
/// Marking happens *after* the write, so a page that is harvested between the two is marked again. A log may
/// be coarser than the range it is told, never finer.
pub trait DirtyLog: fmt::Debug + Send + Sync {
    /// Notes that `len` bytes at `offset` from the region's start were written. Ranges beyond the log's end
    /// are ignored.
    fn mark_dirty(&self, offset: u64, len: u64);
}

/// A [`DirtyLog`] with one bit per 4 KiB page.
#[derive(Debug)]
pub struct PageLog {
    words: Box<[AtomicU64]>,
    pages: u64,
}

impl PageLog {
    /// Bytes in a page.
    pub const PAGE: u64 = 4096;

    /// A clean log for a region of `len` bytes.
    pub fn new(len: u64) -> Self {
        let pages = len.div_ceil(Self::PAGE);
        Self { words: (0..pages.div_ceil(64)).map(|_| AtomicU64::new(0)).collect(), pages }
    }

    /// Whether the page that holds `offset` was written since it was last taken.
    pub fn is_dirty(&self, offset: u64) -> bool {
        let page = offset / Self::PAGE;
        self.words
            .get((page / 64) as usize)
            .is_some_and(|word| word.load(Ordering::Acquire) >> (page % 64) & 1 == 1)
    }

    /// Takes the log and leaves it clean: calls `each` with the offset in bytes of every dirty page.
    pub fn take(&self, mut each: impl FnMut(u64)) {
        for (index, word) in self.words.iter().enumerate() {
            let mut bits = word.swap(0, Ordering::AcqRel);
            while bits != 0 {
                each((index as u64 * 64 + u64::from(bits.trailing_zeros())) * Self::PAGE);
                bits &= bits - 1;
            }
        }
    }
}

impl DirtyLog for PageLog {
    fn mark_dirty(&self, offset: u64, len: u64) {
        let first = offset / Self::PAGE;
        let last = offset.saturating_add(len.saturating_sub(1)) / Self::PAGE;
        if len == 0 || first >= self.pages {
            return;
        }
        for page in first..=last.min(self.pages - 1) {
            self.words[(page / 64) as usize].fetch_or(1 << (page % 64), Ordering::AcqRel);
        }
    }
}
