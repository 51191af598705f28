//! One contiguous piece of guest memory and the host mapping behind it.

use std::any::Any;
use std::fs::File;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::ptr::NonNull;
use std::sync::Arc;

use super::shrink::{Extent, Watched};
use super::{Access, DirtyLog, IoVec, MapError, ShrinkWatch};

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
        let host = mapping.memory;
        Ok(Self { base, host, protection: Protection::ReadWrite, owner: Arc::new(mapping), log: None })
    }

    /// A region over a file that another process maps too: a memfd, a file on tmpfs or hugetlbfs, as received over vhost-user.
    /// `offset` is that of the region's first byte in the file.
    ///
    /// Whoever may shorten the file can end this process: an access beyond its new end is a bus error. So the file must be
    /// sealed against that, or its owner trusted with it. [`ShrinkWatch::region`] needs neither.
    ///
    /// # Errors
    ///
    /// [`MapError`] as in [`Region::from_raw`], if the file ends before the region does, or if the host refuses to map it.
    pub fn from_file(base: u64, len: u64, file: BorrowedFd<'_>, offset: u64) -> Result<Self, MapError> {
        check_extent(base, len)?;
        let (mapping, host, _) = Mapping::shared(base, len, file, offset)?;
        Ok(Self { base, host, protection: Protection::ReadWrite, owner: Arc::new(mapping), log: None })
    }

    /// The same for a file that may be shortened.
    pub(super) fn watched(
        base: u64,
        len: u64,
        (file, offset): (BorrowedFd<'_>, u64),
        watch: &ShrinkWatch,
    ) -> Result<Self, MapError> {
        check_extent(base, len)?;
        let (mut mapping, host, extent) = Mapping::shared(base, len, file, offset)?;
        // The length of a device is not told, and does not change.
        if let Some(extent) = extent {
            let refused =
                |error: std::io::Error| MapError::Host { len, errno: error.raw_os_error().unwrap_or(0) };
            mapping.watched = Some(Watched::new(extent, file, watch).map_err(refused)?);
        }
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

/// A file of `len` zeroes in memory that other processes can map, as [`Region::from_file`] does, once they were given its
/// descriptor. It cannot be shortened, by anybody.
///
/// # Errors
///
/// What the host says.
pub fn shared_memory(len: u64) -> std::io::Result<File> {
    let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
    // SAFETY: a new descriptor of a name that is a constant with a zero at its end.
    let fd = unsafe { libc::memfd_create(c"iovirt".as_ptr(), flags) };
    if fd < 0 {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: the call has just made this descriptor and nobody else knows it.
    let file = unsafe { <File as std::os::fd::FromRawFd>::from_raw_fd(fd) };
    file.set_len(len)?;
    // SAFETY: a call with integers only.
    if unsafe { libc::fcntl(fd, libc::F_ADD_SEALS, libc::F_SEAL_SHRINK | libc::F_SEAL_SEAL) } < 0 {
        return Err(std::io::Error::last_os_error());
    }
    Ok(file)
}

/// The host's page size in bytes.
fn host_page() -> u64 {
    // SAFETY: a call with integers only.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    u64::try_from(size).unwrap_or(4096)
}

/// Whether a file has huge pages, so that its mappings can be taken apart only between those.
fn is_huge(file: BorrowedFd<'_>) -> bool {
    let mut stat = std::mem::MaybeUninit::<libc::statfs>::uninit();
    // SAFETY: the kernel writes a whole structure where it says that it succeeded.
    unsafe {
        libc::fstatfs(file.as_raw_fd(), stat.as_mut_ptr()) == 0
            && stat.assume_init().f_type == libc::HUGETLBFS_MAGIC
    }
}

/// Memory that is ours to unmap.
#[derive(Debug)]
struct Mapping {
    memory: IoVec,
    watched: Option<Watched>,
}

impl Mapping {
    fn anonymous(len: usize) -> Result<Self, MapError> {
        Self::map(len, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE, -1, 0)
    }

    /// Maps that part of a file, and says where it begins: the kernel maps whole pages, which are huge ones on hugetlbfs. Where it is a
    /// file, and no device, also what the mapping covers.
    fn shared(
        base: u64,
        len: u64,
        file: BorrowedFd<'_>,
        offset: u64,
    ) -> Result<(Self, IoVec, Option<Extent>), MapError> {
        let smallest = host_page();
        let beyond = |file_len| MapError::BeyondFile { base, file_len };
        let metadata =
            file.try_clone_to_owned().and_then(|file| File::from(file).metadata()).map_err(|_| beyond(0))?;
        let kind = metadata.file_type();
        let end = offset.checked_add(len).ok_or(MapError::Overflow { base, len })?;
        // The length of a device, such as one of DAX memory, is not told; the kernel checks it when it is mapped.
        if !kind.is_char_device() && (!kind.is_file() || metadata.len() < end) {
            return Err(beyond(if kind.is_file() { metadata.len() } else { 0 }));
        }
        let page = Some(metadata.blksize())
            .filter(|size| size.is_power_of_two())
            .map_or(smallest, |size| size.max(smallest));
        let start = offset & !(page - 1);
        let total = end.checked_next_multiple_of(page).ok_or(MapError::Overflow { base, len })? - start;
        let flags = libc::MAP_SHARED | libc::MAP_NORESERVE;
        let mapping = Self::map(total as usize, flags, file.as_raw_fd(), start)?;
        let host = mapping.memory.slice((offset - start) as usize, len as usize);
        let address = mapping.memory.as_ptr() as usize;
        let page = if is_huge(file) { page } else { smallest } as usize;
        let extent = Extent { start: address, len: total as usize, page, offset: start };
        Ok((mapping, host, kind.is_file().then_some(extent)))
    }

    fn map(len: usize, flags: libc::c_int, fd: libc::c_int, offset: u64) -> Result<Self, MapError> {
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        let start = libc::off_t::try_from(offset).map_err(|_| MapError::Overflow { base: 0, len: offset })?;
        // SAFETY: a new mapping at an address of the kernel's choice touches no existing memory.
        let base = unsafe { libc::mmap(std::ptr::null_mut(), len, prot, flags, fd, start) };
        let refused = || MapError::Host {
            len: len as u64,
            errno: std::io::Error::last_os_error().raw_os_error().unwrap_or(0),
        };
        if base == libc::MAP_FAILED {
            return Err(refused());
        }
        let base = NonNull::new(base.cast()).ok_or_else(refused)?;
        Ok(Self { memory: IoVec::new(base, len), watched: None })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // Before something else may be mapped there.
        self.watched = None;
        // SAFETY: the mapping is ours, and whoever held a pointer into it held its region, thus this owner.
        unsafe { libc::munmap(self.memory.as_ptr().cast(), self.memory.len()) };
    }
}
