//! The system calls of the `file` back-end, each behind a safe function.
//!
//! Data goes through an [`SgList`], which keeps what its pieces point to mapped, so no caller can hand the kernel a
//! pointer into nothing.

use super::task::Window;
use iovirt_core::dma::{IoVec, SgList};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// What `open(2)`'s flags say of a descriptor.
#[derive(Clone, Copy, Debug)]
pub(super) struct OpenFlags(libc::c_int);

impl OpenFlags {
    pub(super) fn readable(self) -> bool {
        matches!(self.0 & libc::O_ACCMODE, libc::O_RDONLY | libc::O_RDWR) && self.0 & libc::O_PATH == 0
    }

    pub(super) fn writable(self) -> bool {
        self.0 & libc::O_ACCMODE == libc::O_RDWR
    }

    pub(super) fn direct(self) -> bool {
        self.0 & libc::O_DIRECT != 0
    }

    pub(super) fn append(self) -> bool {
        self.0 & libc::O_APPEND != 0
    }
}

/// Alignment that direct I/O asks for, as the file system states it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct DioAlign {
    /// Of addresses, in bytes.
    pub(super) memory: u32,
    /// Of offsets and lengths, in bytes.
    pub(super) offset: u32,
}

/// What `statx(2)` says of direct I/O on a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DioSupport {
    /// Supported, with that alignment.
    Aligned(DioAlign),
    /// Not supported on this file.
    Refused,
    /// The file system does not say.
    Unknown,
}

/// How `fallocate(2)` is to change a range; the file's size stays as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Range {
    /// Deallocate it; it reads as zeroes.
    Hole,
    /// Make it read as zeroes and keep it allocated.
    Zero,
}

impl Range {
    pub(super) fn mode(self) -> libc::c_int {
        libc::FALLOC_FL_KEEP_SIZE
            | match self {
                Self::Hole => libc::FALLOC_FL_PUNCH_HOLE,
                Self::Zero => libc::FALLOC_FL_ZERO_RANGE,
            }
    }
}

/// `RWF_DSYNC` of `pwritev2(2)`: the write is durable before it returns.
pub(super) const DSYNC: libc::c_int = libc::RWF_DSYNC;

// `linux/fs.h`; the encoding of read-only ioctls with an argument is that of x86, Arm, RISC-V and LoongArch.
const BLKROGET: libc::Ioctl = 0x125e;
const BLKDISCARD: libc::Ioctl = 0x1277;
const BLKGETSIZE64: libc::Ioctl = 0x8008_1272;

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn check_count(result: libc::ssize_t) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// The pieces of a window of `sg`; a cut piece is put into `cut` and lives there.
pub(super) fn pieces<'a>(sg: &'a SgList, window: Window, cut: &'a mut Option<IoVec>) -> &'a [IoVec] {
    let iovecs = sg.as_iovecs();
    match window {
        Window::Whole { index, count } => &iovecs[index..index + count],
        Window::Cut { index, skip, len } => std::slice::from_ref(cut.insert(iovecs[index].slice(skip, len))),
    }
}

/// `preadv(2)` into a window of the list, which the device may write. One piece goes by `pread(2)`, for which the kernel need not fetch
/// and check an array.
pub(super) fn read(fd: BorrowedFd<'_>, sg: &SgList, window: Window, offset: u64) -> io::Result<usize> {
    assert!(!sg.is_read_only(), "read into a read-only list");
    let mut cut = None;
    let iovecs = IoVec::as_libc(pieces(sg, window, &mut cut));
    let (fd, offset) = (fd.as_raw_fd(), offset as libc::off_t);
    if let [piece] = iovecs {
        // SAFETY: the list keeps the piece mapped for the length of the call, and the device may write it as the list is not
        // read-only. No reference to that memory exists.
        return check_count(unsafe { libc::pread(fd, piece.iov_base, piece.iov_len, offset) });
    }
    let count = iovecs.len() as libc::c_int;
    // SAFETY: the list keeps every piece mapped for the length of the call, and the device may write all of them as the
    // list is not read-only. No reference to that memory exists. `pieces` checked the bounds of the array.
    check_count(unsafe { libc::preadv(fd, iovecs.as_ptr(), count, offset) })
}

/// `pwritev2(2)` out of a window of the list, with `flags` of that call. One piece without any goes by `pwrite(2)`.
pub(super) fn write(
    fd: BorrowedFd<'_>,
    sg: &SgList,
    window: Window,
    offset: u64,
    flags: libc::c_int,
) -> io::Result<usize> {
    let mut cut = None;
    let iovecs = IoVec::as_libc(pieces(sg, window, &mut cut));
    let (fd, offset) = (fd.as_raw_fd(), offset as libc::off_t);
    if let ([piece], 0) = (iovecs, flags) {
        // SAFETY: the list keeps the piece mapped for the length of the call; the kernel only reads it.
        return check_count(unsafe { libc::pwrite(fd, piece.iov_base, piece.iov_len, offset) });
    }
    let count = iovecs.len() as libc::c_int;
    // SAFETY: the list keeps every piece mapped for the length of the call; the kernel only reads it.
    check_count(unsafe { libc::pwritev2(fd, iovecs.as_ptr(), count, offset, flags) })
}

/// `fdatasync(2)`.
pub(super) fn sync_data(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: takes a descriptor that is open.
    check(unsafe { libc::fdatasync(fd.as_raw_fd()) }).map(drop)
}

/// `fallocate(2)`.
pub(super) fn change_range(fd: BorrowedFd<'_>, range: Range, offset: u64, len: u64) -> io::Result<()> {
    // SAFETY: takes a descriptor that is open, and numbers.
    let result =
        unsafe { libc::fallocate(fd.as_raw_fd(), range.mode(), offset as libc::off_t, len as libc::off_t) };
    check(result).map(drop)
}

/// The `BLKDISCARD` ioctl of a block device.
pub(super) fn discard_device(fd: BorrowedFd<'_>, offset: u64, len: u64) -> io::Result<()> {
    let range = [offset, len];
    // SAFETY: the ioctl reads two 64-bit integers from its argument, which lives until it returns.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), BLKDISCARD, range.as_ptr()) }).map(drop)
}

/// Size of a block device in bytes.
pub(super) fn device_size(fd: BorrowedFd<'_>) -> io::Result<u64> {
    let mut size = 0u64;
    // SAFETY: the ioctl writes one 64-bit integer to its argument.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), BLKGETSIZE64, &raw mut size) })?;
    Ok(size)
}

/// Logical and physical block size of a block device in bytes.
pub(super) fn device_blocks(fd: BorrowedFd<'_>) -> io::Result<(u32, u32)> {
    Ok((device_number(fd, libc::BLKSSZGET)?, device_number(fd, libc::BLKPBSZGET)?))
}

/// Whether the kernel holds a block device read-only.
pub(super) fn device_is_read_only(fd: BorrowedFd<'_>) -> io::Result<bool> {
    Ok(device_number(fd, BLKROGET)? != 0)
}

fn device_number(fd: BorrowedFd<'_>, request: libc::Ioctl) -> io::Result<u32> {
    let mut number: libc::c_uint = 0;
    // SAFETY: each of the three ioctls writes one integer to its argument.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), request, &raw mut number) })?;
    Ok(number)
}

/// `fcntl(2)` with `F_GETFL`.
pub(super) fn open_flags(fd: BorrowedFd<'_>) -> io::Result<OpenFlags> {
    // SAFETY: takes a descriptor that is open.
    check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFL) }).map(OpenFlags)
}

/// Takes `O_NONBLOCK` away.
pub(super) fn set_blocking(fd: BorrowedFd<'_>) -> io::Result<()> {
    let OpenFlags(flags) = open_flags(fd)?;
    // SAFETY: takes a descriptor that is open, and a number.
    check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, flags & !libc::O_NONBLOCK) }).map(drop)
}

/// The magic number of the file system that holds the file.
pub(super) fn file_system_type(fd: BorrowedFd<'_>) -> io::Result<i64> {
    // SAFETY: all bytes zero is a value of this plain struct.
    let mut stat: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: the call fills the struct that it is given.
    check(unsafe { libc::fstatfs(fd.as_raw_fd(), &raw mut stat) })?;
    #[allow(clippy::unnecessary_cast, reason = "the type differs between hosts")]
    Ok(stat.f_type as i64)
}

/// What the file system says of direct I/O on this file (`STATX_DIOALIGN`, since Linux 6.1).
pub(super) fn direct_io_support(fd: BorrowedFd<'_>) -> io::Result<DioSupport> {
    // SAFETY: all bytes zero is a value of this plain struct.
    let mut stat: libc::statx = unsafe { std::mem::zeroed() };
    // SAFETY: an empty path with AT_EMPTY_PATH means the descriptor itself; the call fills the struct.
    let result = unsafe {
        libc::statx(fd.as_raw_fd(), c"".as_ptr(), libc::AT_EMPTY_PATH, libc::STATX_DIOALIGN, &raw mut stat)
    };
    check(result)?;
    if stat.stx_mask & libc::STATX_DIOALIGN == 0 {
        return Ok(DioSupport::Unknown);
    }
    if stat.stx_dio_mem_align == 0 || stat.stx_dio_offset_align == 0 {
        return Ok(DioSupport::Refused);
    }
    Ok(DioSupport::Aligned(DioAlign { memory: stat.stx_dio_mem_align, offset: stat.stx_dio_offset_align }))
}

/// What to do with one byte of a file's advisory locks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ByteLock {
    /// Take a lock that others may share.
    Share,
    /// Let go.
    Release,
}

/// Sets an open-file-description lock on one byte (`F_OFD_SETLK`). False where somebody else's lock is in the way.
pub(super) fn lock_byte(fd: BorrowedFd<'_>, byte: i64, lock: ByteLock) -> io::Result<bool> {
    let kind = match lock {
        ByteLock::Share => libc::F_RDLCK,
        ByteLock::Release => libc::F_UNLCK,
    };
    let flock = byte_flock(byte, kind);
    // SAFETY: the command reads the struct, which lives until the call returns.
    match check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_OFD_SETLK, &raw const flock) }) {
        Ok(_) => Ok(true),
        Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Whether another open file description holds any lock on that byte (`F_OFD_GETLK`).
pub(super) fn byte_is_locked(fd: BorrowedFd<'_>, byte: i64) -> io::Result<bool> {
    let mut flock = byte_flock(byte, libc::F_WRLCK);
    // SAFETY: the command reads and fills the struct, which lives until the call returns.
    check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_OFD_GETLK, &raw mut flock) })?;
    Ok(libc::c_int::from(flock.l_type) != libc::F_UNLCK)
}

fn byte_flock(byte: i64, kind: libc::c_int) -> libc::flock {
    // SAFETY: all bytes zero is a value of this plain struct, and `l_pid` has to be zero.
    let mut flock: libc::flock = unsafe { std::mem::zeroed() };
    flock.l_type = kind as libc::c_short;
    flock.l_whence = libc::SEEK_SET as libc::c_short;
    flock.l_start = byte as libc::off_t;
    flock.l_len = 1;
    flock
}
