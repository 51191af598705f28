//! Translation of device addresses: what an IOMMU is to a [`DmaSpace`](super::DmaSpace).

use std::collections::HashMap;
use std::fmt;
use std::sync::RwLock;
use std::sync::atomic::{AtomicU64, Ordering};

use super::Access;

/// Turns I/O virtual addresses into guest physical ones.
///
/// Called on the data path by many workers at once. What it returns is used until the next
/// [`DmaView::refresh`](super::DmaView::refresh) that sees another [`generation`](Translate::generation).
pub trait Translate: fmt::Debug + Send + Sync {
    /// A number that changes whenever a mapping was removed or changed, at the cost of one atomic load.
    /// Pure additions need not change it.
    fn generation(&self) -> u64;

    /// Translates the start of `iova .. iova + len`. The answer covers at least one byte and may cover less
    /// or more than `len`; the caller asks again for what is left.
    ///
    /// # Errors
    ///
    /// [`DmaFault`] if the first byte is not mapped for `access`.
    fn translate(&self, iova: u64, len: u64, access: Access) -> Result<Translation, DmaFault>;
}

/// Where the start of a range lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Translation {
    /// Guest physical address of the first byte.
    pub addr: u64,
    /// Number of bytes that are contiguous from there; never zero.
    pub len: u64,
}

/// Why an access was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FaultReason {
    /// No mapping covers the address.
    NotMapped,
    /// The mapping does not allow this access.
    Denied,
    /// The device is not attached to any domain.
    NoDomain,
}

/// An access that the IOMMU refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DmaFault {
    /// The first I/O virtual address that was refused.
    pub iova: u64,
    /// What the device wanted.
    pub access: Access,
    /// Why it was refused.
    pub reason: FaultReason,
}

impl fmt::Display for DmaFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let access = match self.access {
            Access::Read => "read",
            Access::Write => "write",
        };
        let reason = match self.reason {
            FaultReason::NotMapped => "is not mapped",
            FaultReason::Denied => "denies it",
            FaultReason::NoDomain => "belongs to a device without a domain",
        };
        write!(f, "device {access} of I/O address {:#x}: the address {reason}", self.iova)
    }
}

impl std::error::Error for DmaFault {}

/// The simplest [`Translate`]: a hash table of 4 KiB pages. For tests and simulations.
#[derive(Debug, Default)]
pub struct PageTable {
    pages: RwLock<HashMap<u64, Page>>,
    generation: AtomicU64,
}

#[derive(Debug, Clone, Copy)]
struct Page {
    addr: u64,
    writable: bool,
}

impl PageTable {
    /// Bytes in a page.
    pub const PAGE: u64 = 4096;

    /// A table that maps nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Maps the page of `iova` to the page of guest physical `addr`. `allowed` is the strongest access:
    /// [`Access::Write`] allows both.
    pub fn map(&self, iova: u64, addr: u64, allowed: Access) {
        let page = Page { addr: addr & !(Self::PAGE - 1), writable: allowed == Access::Write };
        self.lock_pages(|pages| pages.insert(iova / Self::PAGE, page));
    }

    /// Removes the page of `iova`.
    pub fn unmap(&self, iova: u64) {
        self.lock_pages(|pages| pages.remove(&(iova / Self::PAGE)));
    }

    fn lock_pages(&self, change: impl FnOnce(&mut HashMap<u64, Page>) -> Option<Page>) {
        let mut pages = self.pages.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        if change(&mut pages).is_some() {
            self.generation.fetch_add(1, Ordering::Release);
        }
    }
}

impl Translate for PageTable {
    fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    fn translate(&self, iova: u64, _len: u64, access: Access) -> Result<Translation, DmaFault> {
        let pages = self.pages.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        let fault = |reason| DmaFault { iova, access, reason };
        let page = pages.get(&(iova / Self::PAGE)).ok_or(fault(FaultReason::NotMapped))?;
        if access == Access::Write && !page.writable {
            return Err(fault(FaultReason::Denied));
        }
        let offset = iova % Self::PAGE;
        Ok(Translation { addr: page.addr + offset, len: Self::PAGE - offset })
    }
}
