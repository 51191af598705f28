//! Translation of device addresses: what an IOMMU is to a [`DmaSpace`](super::DmaSpace).

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

use super::{Access, InvalidateTicket, IovaRange, PinBoard};

/// Turns I/O virtual addresses into guest physical ones.
///
/// Called on the data path by many workers at once. What it returns is used until the next
/// [`DmaView::refresh`](super::DmaView::refresh) that sees another generation of [`pins`](Translate::pins).
pub trait Translate: fmt::Debug + Send + Sync {
    /// Where the device pins what it uses; always the same board. Whoever removes or changes a mapping does it in the table
    /// first, then calls [`PinBoard::invalidate`], and takes the mapping for gone when that ticket is done. Pure additions
    /// need none of this.
    fn pins(&self) -> &Arc<PinBoard>;

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
    pins: Arc<PinBoard>,
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
    /// [`Access::Write`] allows both. Wait for the ticket where the page was mapped to something else.
    pub fn map(&self, iova: u64, addr: u64, allowed: Access) -> Option<InvalidateTicket> {
        let page = Page { addr: addr & !(Self::PAGE - 1), writable: allowed == Access::Write };
        self.change(iova, |pages| pages.insert(iova / Self::PAGE, page))
    }

    /// Removes the page of `iova`; `None` where there was none.
    pub fn unmap(&self, iova: u64) -> Option<InvalidateTicket> {
        self.change(iova, |pages| pages.remove(&(iova / Self::PAGE)))
    }

    fn change(
        &self,
        iova: u64,
        change: impl FnOnce(&mut HashMap<u64, Page>) -> Option<Page>,
    ) -> Option<InvalidateTicket> {
        let mut pages = self.pages.write().unwrap_or_else(PoisonError::into_inner);
        change(&mut pages)?;
        IovaRange::new(iova & !(Self::PAGE - 1), Self::PAGE).map(|range| self.pins.invalidate(range))
    }
}

impl Translate for PageTable {
    fn pins(&self) -> &Arc<PinBoard> {
        &self.pins
    }

    fn translate(&self, iova: u64, _len: u64, access: Access) -> Result<Translation, DmaFault> {
        let pages = self.pages.read().unwrap_or_else(PoisonError::into_inner);
        let fault = |reason| DmaFault { iova, access, reason };
        let page = pages.get(&(iova / Self::PAGE)).ok_or(fault(FaultReason::NotMapped))?;
        if access == Access::Write && !page.writable {
            return Err(fault(FaultReason::Denied));
        }
        let offset = iova % Self::PAGE;
        Ok(Translation { addr: page.addr + offset, len: Self::PAGE - offset })
    }
}
