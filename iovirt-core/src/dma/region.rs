//! One contiguous piece of guest memory and the host mapping behind it.

use std::any::Any;
use std::ptr::NonNull;
use std::sync::Arc;

use super::{Access, DirtyLog, IoVec, MapError};

/// What a device may do to a region.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protection {
    /// Devices read and write it.
    ReadWrite,
    /// Devices read it; a write is an error (and would fault in the host).
    ReadOnly,
}

/// A range of guest physical addresses, the host memory behind it, what keeps that mapped, and its dirty log.
#[derive(Debug, Clone)]
pub struct Region {
    base: u64,
    host: IoVec,
    protection: Protection,
    owner: Arc<dyn Any + Send + Sync>,
    log: Option<Arc<dyn DirtyLog>>,
}

impl Region {
    /// A region over memory that the caller mapped.
    ///
    /// # Errors
    ///
    /// [`MapError`] if `len` is zero, or `base + len` overflows 64 bits, or `len` exceeds the address space.
    ///
    /// # Safety
    ///
    /// `host .. host + len` must be mapped readable (and writable unless `protection` says otherwise) for as long
    /// as `owner` lives, and no Rust reference to that memory may exist meanwhile.
    pub unsafe fn from_raw(
        base: u64,
        len: u64,
        host: NonNull<u8>,
        protection: Protection,
        owner: Arc<dyn Any + Send + Sync>,
    ) -> Result<Self, MapError> {
        check_extent(base, len)?;
        Ok(Self { base, host: IoVec::new(host, len as usize), protection, owner, log: None })
    }

    /// A region over fresh, zeroed, anonymous host memory.
    ///
    /// # Errors
    ///
    /// [`MapError`] as in [`Region::from_raw`], or if the host refuses the memory.
    pub fn anonymous(base: u64, len: u64) -> Result<Self, MapError> {
        check_extent(base, len)?;
        let mapping = Mapping::anonymous(len as usize)?;
        let host = mapping.0;
        Ok(Self { base, host, protection: Protection::ReadWrite, owner: Arc::new(mapping), log: None })
    }

    /// The same region with a dirty log.
    #[must_use]
    pub fn with_dirty_log(mut self, log: Arc<dyn DirtyLog>) -> Self {
        self.log = Some(log);
        self
    }

    /// The same region without a dirty log.
    #[must_use]
    pub fn without_dirty_log(mut self) -> Self {
        self.log = None;
        self
    }

    /// The same region, read-only to devices.
    #[must_use]
    pub fn read_only(mut self) -> Self {
        self.protection = Protection::ReadOnly;
        self
    }

    /// Guest physical address of the first byte.
    pub fn base(&self) -> u64 {
        self.base
    }

    /// Length in bytes; never zero.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> u64 {
        self.host.len() as u64
    }

    /// What devices may do to it.
    pub fn protection(&self) -> Protection {
        self.protection
    }

    /// Whether writes are logged.
    pub fn logs_dirty(&self) -> bool {
        self.log.is_some()
    }

    /// What keeps the host memory mapped.
    pub fn owner(&self) -> &Arc<dyn Any + Send + Sync> {
        &self.owner
    }

    /// The whole host memory.
    pub(super) fn host(&self) -> IoVec {
        self.host
    }

    pub(super) fn allows(&self, access: Access) -> bool {
        access == Access::Read || self.protection == Protection::ReadWrite
    }

    /// Marks `len` bytes at `offset` dirty, if there is a log.
    pub(super) fn mark_dirty(&self, offset: u64, len: u64) {
        if let Some(log) = &self.log {
            log.mark_dirty(offset, len);
        }
    }

    /// Copies out of the region. The range must be inside it.
    pub(super) fn read(&self, offset: u64, dst: &mut [u8]) {
        // SAFETY: `owner` keeps the memory mapped and readable while `self` lives; `IoVec` checks the bounds.
        unsafe { self.host.read(offset as usize, dst) };
    }

    /// Copies into the region and marks it dirty. The range must be inside it.
    pub(super) fn write(&self, offset: u64, src: &[u8]) {
        assert!(self.allows(Access::Write), "write to a read-only region");
        // SAFETY: as in `read`, and writable by the assertion.
        unsafe { self.host.write(offset as usize, src) };
        self.mark_dirty(offset, src.len() as u64);
    }
}

fn check_extent(base: u64, len: u64) -> Result<(), MapError> {
    if len == 0 {
        return Err(MapError::EmptyRegion { base });
    }
    if base.checked_add(len).is_none() || len > isize::MAX as u64 {
        return Err(MapError::Overflow { base, len });
    }
    Ok(())
}

/// Anonymous memory, unmapped on drop.
#[derive(Debug)]
struct Mapping(IoVec);

impl Mapping {
    fn anonymous(len: usize) -> Result<Self, MapError> {
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new anonymous mapping at an address of the kernel's choice touches no existing memory.
        let base = unsafe { libc::mmap(std::ptr::null_mut(), len, prot, flags, -1, 0) };
        let refused = || MapError::Host {
            len: len as u64,
            errno: std::io::Error::last_os_error().raw_os_error().unwrap_or(0),
        };
        if base == libc::MAP_FAILED {
            return Err(refused());
        }
        let base = NonNull::new(base.cast()).ok_or_else(refused)?;
        Ok(Self(IoVec::new(base, len)))
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and whoever held a pointer into it held its region, thus this owner.
        unsafe { libc::munmap(self.0.as_ptr().cast(), self.0.len()) };
    }
}
