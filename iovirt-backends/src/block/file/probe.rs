//! What a file is: a file on a disk, a file in memory or a block device; its size and what direct I/O asks of it.

use super::config::{Direct, FileAccess, FileConfig};
use super::sys::{self, DioAlign, DioSupport};
use super::task::Window;
use iovirt_core::dma::{HostBuffer, SgList};
use iovirt_core::request::block::SECTOR;
use iovirt_core::{BackendError, BackendErrorKind};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};

/// Where the data lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Medium {
    /// A file on a file system that stores it on a disk, or somewhere over a network.
    File,
    /// A file in the host's memory.
    Memory,
    /// A block device.
    Device,
}

/// What was found out about a file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Facts {
    pub(super) medium: Medium,
    /// What offsets and lengths must be multiples of, in bytes: 1 through the page cache.
    pub(super) offset_align: u32,
    /// What addresses must be multiples of, in bytes: 1 through the page cache.
    pub(super) memory_align: u32,
    pub(super) physical_block: u32,
    /// Whether ranges can be deallocated.
    pub(super) discard: Option<DiscardFacts>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct DiscardFacts {
    /// In bytes.
    pub(super) granularity: u32,
}

/// A file system in memory that can only be read and mapped.
const HUGETLBFS: i64 = 0x9584_58f6;
const TMPFS: i64 = 0x0102_1994;
const RAMFS: i64 = 0x8584_58f6;

/// Opens the file as configured.
pub(super) fn open(config: &FileConfig) -> Result<File, BackendError> {
    // Non-blocking: opening a pipe that somebody has put there must not wait for its other end.
    let mut flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
    if config.direct == Direct::On {
        flags |= libc::O_DIRECT;
    }
    let writable = config.access == FileAccess::ReadWrite;
    let path = config.path.display();
    let options = OpenOptions::new().read(true).write(writable).custom_flags(flags).clone();
    let file = options.open(&config.path).map_err(|error| {
        let errno = error.raw_os_error();
        match errno {
            Some(libc::EINVAL) if config.direct == Direct::On => refuses_direct(config),
            Some(libc::EISDIR) => not_a_disk(config),
            Some(libc::EACCES | libc::EROFS | libc::EPERM) if writable => BackendError::host(
                format!("{path} cannot be opened for writing (readonly=on opens it for reading only)"),
                error,
            ),
            _ => BackendError::host(format!("{path} cannot be opened"), error),
        }
    })?;
    // io_uring takes a non-blocking file for one that it can ask not to wait, and where the file system cannot do that it
    // holds the worker instead of going to a thread.
    sys::set_blocking(file.as_fd())
        .map_err(|error| BackendError::host(format!("{path} cannot be used"), error))?;
    Ok(file)
}

/// Checks that a descriptor fits the configuration.
pub(super) fn check_descriptor(file: &File, config: &FileConfig) -> Result<(), BackendError> {
    let path = config.path.display();
    let flags = sys::open_flags(file.as_fd())
        .map_err(|error| BackendError::host(format!("the descriptor of {path} cannot be used"), error))?;
    let refuse = |what: &str| Err(BackendError::config(format!("the descriptor of {path} {what}")));
    if !flags.readable() {
        return refuse("was not opened for reading");
    }
    if config.access == FileAccess::ReadWrite && !flags.writable() {
        return refuse("was not opened for writing: open it for both, or use readonly=on");
    }
    if flags.append() {
        return refuse("was opened with O_APPEND, which sends every write to the end of the file");
    }
    match (config.direct, flags.direct()) {
        (Direct::On, false) => refuse("was opened without O_DIRECT: open it with, or use direct=off"),
        (Direct::Off, true) => refuse("was opened with O_DIRECT: open it without, or use direct=on"),
        _ => Ok(()),
    }
}

/// Finds out what the file is.
pub(super) fn examine(file: &File, config: &FileConfig) -> Result<Facts, BackendError> {
    let path = config.path.display();
    let host = |error: io::Error| BackendError::host(format!("{path} cannot be examined"), error);
    let metadata = file.metadata().map_err(host)?;
    if metadata.file_type().is_block_device() {
        return examine_device(file, config, metadata.rdev());
    }
    if !metadata.is_file() {
        return Err(not_a_disk(config));
    }
    let medium = match sys::file_system_type(file.as_fd()).map_err(host)? {
        HUGETLBFS if config.access == FileAccess::ReadWrite => {
            return Err(BackendError::config(format!(
                "{path} lies on hugetlbfs, where files cannot be written: readonly=on and other file systems are allowed"
            )));
        }
        HUGETLBFS | TMPFS | RAMFS => Medium::Memory,
        _ => Medium::File,
    };
    let align = match config.direct {
        Direct::Off => DioAlign { memory: 1, offset: 1 },
        Direct::On => direct_alignment(file, config, metadata.len())?,
    };
    let block = u32::try_from(metadata.blksize()).ok().filter(|block| block.is_power_of_two());
    let physical_block = block.unwrap_or(4096).clamp(SECTOR as u32, 4096).max(align.offset);
    Ok(Facts {
        medium,
        offset_align: align.offset,
        memory_align: align.memory,
        physical_block,
        discard: None,
    })
}

/// Whether a file takes holes, tried far behind its end where that changes nothing. Comes after locking.
pub(super) fn try_holes(file: &File, facts: &mut Facts, size: u64) {
    if facts.medium == Medium::Device {
        return;
    }
    let behind = size.next_multiple_of(1 << 20).saturating_add(1 << 30);
    let refused = sys::change_range(file.as_fd(), sys::Range::Hole, behind, 4096)
        .err()
        .is_some_and(|error| matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOSYS)));
    if !refused {
        facts.discard = Some(DiscardFacts { granularity: facts.physical_block });
    }
}

fn examine_device(file: &File, config: &FileConfig, rdev: u64) -> Result<Facts, BackendError> {
    let path = config.path.display();
    let host =
        |error: io::Error| BackendError::host(format!("the block device {path} cannot be examined"), error);
    let (logical, physical) = sys::device_blocks(file.as_fd()).map_err(host)?;
    if !logical.is_power_of_two() || logical < SECTOR as u32 {
        return Err(BackendError::config(format!("the block device {path} has blocks of {logical} bytes")));
    }
    if config.access == FileAccess::ReadWrite && sys::device_is_read_only(file.as_fd()).map_err(host)? {
        return Err(BackendError::config(format!("the block device {path} is read-only: use readonly=on")));
    }
    let align = match (config.direct, sys::direct_io_support(file.as_fd())) {
        (Direct::Off, _) => DioAlign { memory: 1, offset: 1 },
        (Direct::On, Ok(DioSupport::Aligned(align))) => align,
        (Direct::On, _) => DioAlign { memory: logical, offset: logical },
    };
    let physical = if physical.is_power_of_two() { physical.max(logical) } else { logical };
    Ok(Facts {
        medium: Medium::Device,
        offset_align: align.offset,
        memory_align: align.memory,
        physical_block: physical.max(align.offset),
        discard: device_discard(rdev)
            .map(|granularity| DiscardFacts { granularity: granularity.max(logical) }),
    })
}

/// What sysfs says of discards on a block device: their granularity in bytes, where it takes any.
fn device_discard(rdev: u64) -> Option<u32> {
    let (major, minor) = (libc::major(rdev), libc::minor(rdev));
    let read = |queue: &str, name: &str| -> Option<u64> {
        std::fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/{queue}/{name}"))
            .ok()?
            .trim()
            .parse()
            .ok()
    };
    // A partition has the queue of its disk.
    let queue = if read("queue", "discard_max_bytes").is_some() { "queue" } else { "../queue" };
    read(queue, "discard_max_bytes").filter(|&max| max > 0)?;
    let granularity = read(queue, "discard_granularity")? as u32;
    granularity.is_power_of_two().then_some(granularity)
}

fn direct_alignment(file: &File, config: &FileConfig, len: u64) -> Result<DioAlign, BackendError> {
    match sys::direct_io_support(file.as_fd()) {
        Ok(DioSupport::Aligned(align))
            if align.memory.is_power_of_two() && align.offset.is_power_of_two() =>
        {
            Ok(align)
        }
        Ok(DioSupport::Refused) => Err(refuses_direct(config)),
        _ => Ok(try_alignments(file, len)),
    }
}

/// Finds the alignment by reading: for file systems that do not state it.
fn try_alignments(file: &File, len: u64) -> DioAlign {
    let worst = HostBuffer::ALIGN as u32;
    let fits = |align: u32| {
        let mut list = SgList::new();
        if list.push_host(worst as usize * 2).is_err() {
            return false;
        }
        let window = Window::Cut { index: 0, skip: align as usize, len: align as usize };
        // At an offset that is aligned to no more than asked for.
        sys::read(file.as_fd(), &list, window, u64::from(align)).is_ok()
    };
    let align = [512, 1024, 2048]
        .into_iter()
        .find(|&align| len >= u64::from(worst) * 2 && fits(align))
        .unwrap_or(worst);
    DioAlign { memory: align, offset: align }
}

/// Size in bytes now.
pub(super) fn size(file: &File, medium: Medium) -> io::Result<u64> {
    match medium {
        Medium::Device => sys::device_size(file.as_fd()),
        Medium::File | Medium::Memory => Ok(file.metadata()?.len()),
    }
}

impl Facts {
    pub(super) fn is_direct(&self) -> bool {
        self.offset_align > 1
    }

    /// What a guest sees of `size` bytes.
    ///
    /// # Errors
    /// Where nothing is left of it, or where direct I/O could not reach all of it.
    pub(super) fn capacity_of(&self, size: u64, config: &FileConfig) -> Result<u64, BackendError> {
        let path = config.path.display();
        let capacity = size - size % SECTOR;
        let align = u64::from(self.offset_align);
        if capacity == 0 {
            return Err(BackendError::config(format!(
                "{path} has {size} bytes: a disk has at least {SECTOR}"
            )));
        }
        if !capacity.is_multiple_of(align) {
            let next = capacity.next_multiple_of(align);
            return Err(BackendError::config(format!(
                "{path} has {size} bytes, and direct=on reaches whole blocks of {align} only: make it {next} bytes long, or use direct=off"
            )));
        }
        Ok(capacity)
    }
}

fn refuses_direct(config: &FileConfig) -> BackendError {
    let path = config.path.display();
    BackendError::new(
        BackendErrorKind::Unsupported,
        format!("{path} lies on a file system that does not do direct I/O: use direct=off"),
    )
}

fn not_a_disk(config: &FileConfig) -> BackendError {
    let path = config.path.display();
    BackendError::config(format!("{path} is neither a regular file nor a block device"))
}
