//! One request as a sequence of system calls: which one comes next, and what its result means. The engines differ only in
//! who makes the call.

use super::disk::Disk;
use super::sys::{DSYNC, Range};
use iovirt_core::dma::IoVec;
use iovirt_core::request::block::{BlockError, BlockFlags, BlockOp, BlockOutput, BlockRequest, Durability};

/// Most pieces of memory in one vectored call (`UIO_MAXIOV`).
const IOV_MAX: usize = 1024;

/// How often a call that says "try again" is tried again before the request fails.
const RETRIES: u8 = 100;

/// A part of a scatter-gather list that one call works on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Window {
    /// Whole pieces.
    Whole { index: usize, count: usize },
    /// A part of one piece.
    Cut { index: usize, skip: usize, len: usize },
}

/// A system call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Call {
    /// `pread` or `preadv`.
    Read { offset: u64, window: Window },
    /// `pwrite` or `pwritev2` with these flags.
    Write { offset: u64, window: Window, flags: i32 },
    /// The same of zeroes.
    WriteZeroes { offset: u64, window: Window },
    /// `fallocate`.
    ChangeRange { range: Range, offset: u64, len: u64 },
    /// `ioctl(BLKDISCARD)`.
    DiscardDevice { offset: u64, len: u64 },
    /// `fdatasync`.
    Sync,
}

/// A request on its way, or the sync that a drain ends with.
#[derive(Debug)]
pub(super) struct Task {
    request: Option<BlockRequest>,
    step: Step,
    durable: Durable,
    /// Bytes of the range that are done.
    done: u64,
    /// The piece that comes next, and how much of it is done.
    index: usize,
    skip: usize,
    /// Of the disk's writes, those that a sync under way will cover.
    covers: u64,
    retries: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Read,
    Write,
    Discard,
    Hole,
    Zero,
    ZeroBytes,
    Sync,
}

/// How what a request changes becomes durable before it completes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Durable {
    /// Not at all: a flush will do it.
    Later,
    /// By each write itself.
    WithWrite,
    /// By `fdatasync` once all is written.
    BySync,
}

/// What a request starts with.
pub(super) enum Start {
    /// A call.
    Task(Task),
    /// Nothing is to be done.
    Ready(BlockRequest, BlockOutput),
}

impl Task {
    /// The task of a request that was checked against the capabilities.
    pub(super) fn start(disk: &Disk, request: BlockRequest) -> Start {
        let step = match request.op() {
            BlockOp::Read | BlockOp::Write if !fits(&request) => {
                // No front-end makes such a request; a stage that changed it has a bug.
                return Start::Ready(request, BlockOutput::Failed(BlockError::Io));
            }
            BlockOp::Read => Step::Read,
            BlockOp::Write => Step::Write,
            BlockOp::Discard => Step::Discard,
            BlockOp::WriteZeroes if request.flags().contains(BlockFlags::UNMAP) && disk.may_unmap() => {
                Step::Hole
            }
            BlockOp::WriteZeroes => disk.zero_step(),
            BlockOp::Flush => match disk.flush_now() {
                Some(output) => return Start::Ready(request, output),
                None => Step::Sync,
            },
        };
        if request.is_empty() && step != Step::Sync {
            return Start::Ready(request, BlockOutput::Done);
        }
        let durable = Durable::of(disk, &request);
        Start::Task(Self::new(Some(request), step, durable))
    }

    /// The sync that a drain ends with.
    pub(super) fn settle() -> Self {
        Self::new(None, Step::Sync, Durable::Later)
    }

    fn new(request: Option<BlockRequest>, step: Step, durable: Durable) -> Self {
        Self { request, step, durable, done: 0, index: 0, skip: 0, covers: 0, retries: 0 }
    }

    pub(super) fn request(&self) -> Option<&BlockRequest> {
        self.request.as_ref()
    }

    pub(super) fn into_request(self) -> Option<BlockRequest> {
        self.request
    }

    /// Whether what it changed waits for a flush.
    pub(super) fn leaves_dirt(&self, disk: &Disk) -> bool {
        let changes = self
            .request
            .as_ref()
            .is_some_and(|request| !matches!(request.op(), BlockOp::Read | BlockOp::Flush));
        changes
            && self.durable == Durable::Later
            && disk.durability() != Durability::Unsafe
            && !disk.is_memory()
    }

    /// Whether the next call moves data, which a worker may do itself.
    pub(super) fn is_transfer(&self) -> bool {
        matches!(self.step, Step::Read | Step::Write)
    }

    /// The next call, moving `limit` bytes at most (one piece at least is cut to fit).
    pub(super) fn call(&mut self, disk: &Disk, limit: usize) -> Call {
        let Some(request) = self.request.as_ref().filter(|_| self.step != Step::Sync) else {
            self.covers = disk.writes();
            return Call::Sync;
        };
        let (offset, len) = (request.offset() + self.done, request.len() - self.done);
        let window = || {
            window(request.sg().as_iovecs().len(), self.index, self.skip, limit, |index| {
                request.sg().as_iovecs()[index].len()
            })
        };
        match self.step {
            Step::Read => Call::Read { offset, window: window() },
            Step::Write => {
                let flags = if self.durable == Durable::WithWrite { DSYNC } else { 0 };
                Call::Write { offset, window: window(), flags }
            }
            Step::ZeroBytes => Call::WriteZeroes { offset, window: zero_window(len) },
            Step::Discard if disk.is_device() => Call::DiscardDevice { offset, len },
            Step::Discard | Step::Hole => Call::ChangeRange { range: Range::Hole, offset, len },
            Step::Zero => Call::ChangeRange { range: Range::Zero, offset, len },
            Step::Sync => Call::Sync,
        }
    }

    /// Takes the result of the call: the output once all is done, `None` where another call follows.
    pub(super) fn advance(&mut self, disk: &Disk, result: Result<usize, i32>) -> Option<BlockOutput> {
        match result {
            Ok(count) => {
                self.retries = 0;
                self.succeeded(disk, count)
            }
            Err(libc::EINTR | libc::EAGAIN) if self.retries < RETRIES => {
                self.retries += 1;
                None
            }
            Err(errno) => self.failed(disk, errno),
        }
    }

    fn succeeded(&mut self, disk: &Disk, count: usize) -> Option<BlockOutput> {
        let Some(request) = &self.request else {
            return Some(disk.synced(self.covers));
        };
        match self.step {
            Step::Sync => return Some(disk.synced(self.covers)),
            Step::Read | Step::Write | Step::ZeroBytes if count == 0 => {
                disk.complain_short(request.op(), request.offset() + self.done);
                return Some(BlockOutput::Failed(BlockError::Io));
            }
            Step::Read | Step::Write => {
                self.done += count as u64;
                (self.index, self.skip) = moved(self.index, self.skip + count, |index| {
                    request.sg().as_iovecs().get(index).map(IoVec::len)
                });
            }
            Step::ZeroBytes => self.done += count as u64,
            Step::Discard | Step::Hole | Step::Zero => self.done = request.len(),
        }
        if self.done < request.len() {
            return None;
        }
        if self.durable == Durable::BySync {
            self.step = Step::Sync;
            return None;
        }
        Some(if self.durable == Durable::WithWrite { disk.written_durably() } else { BlockOutput::Done })
    }

    fn failed(&mut self, disk: &Disk, errno: i32) -> Option<BlockOutput> {
        let refused = matches!(errno, libc::EOPNOTSUPP | libc::ENOSYS | libc::ENOTTY | libc::EINVAL);
        let request = self.request.as_ref();
        let (op, offset) = match request {
            Some(request) => (request.op(), request.offset() + self.done),
            None => (BlockOp::Flush, 0),
        };
        if let Some(request) = request.filter(|_| errno == libc::EFAULT) {
            request.sg().notice_shrunk();
        }
        match self.step {
            Step::Write if refused && self.durable == Durable::WithWrite => {
                // Where the durable write was not what is wrong, the plain one fails just the same.
                if errno != libc::EINVAL {
                    disk.no_durable_writes();
                }
                self.durable = Durable::BySync;
                return None;
            }
            Step::Hole if refused => {
                self.step = disk.zero_step();
                return None;
            }
            Step::Zero if refused => {
                if errno != libc::EINVAL {
                    disk.no_zero_range();
                }
                self.step = Step::ZeroBytes;
                return None;
            }
            Step::Discard if refused && disk.is_device() => {
                // A discard is advice, and what a device does with it was never promised to read as zeroes.
                if errno != libc::EINVAL {
                    disk.no_discard(errno);
                }
                return Some(BlockOutput::Done);
            }
            Step::Discard if refused => {
                disk.no_discard(errno);
                return Some(BlockOutput::Failed(BlockError::Unsupported));
            }
            Step::Sync => disk.sync_failed(),
            Step::Write if self.durable == Durable::WithWrite && errno == libc::EIO => {
                disk.durable_write_failed();
            }
            _ => {}
        }
        disk.complain(op, offset, errno);
        Some(BlockOutput::Failed(error_of(errno)))
    }
}

impl Durable {
    fn of(disk: &Disk, request: &BlockRequest) -> Self {
        let by_sync = match request.op() {
            BlockOp::Read | BlockOp::Flush => return Self::Later,
            // A worker that writes by itself is not to wait for the disk too.
            BlockOp::Write => disk.is_inline() || !disk.writes_durably(),
            BlockOp::Discard | BlockOp::WriteZeroes => true,
        };
        let wanted = match disk.durability() {
            Durability::WriteThrough => true,
            Durability::WriteBack => request.flags().contains(BlockFlags::FUA),
            Durability::Unsafe => false,
        };
        match (wanted && !disk.is_memory(), by_sync) {
            (false, _) => Self::Later,
            (true, false) => Self::WithWrite,
            (true, true) => Self::BySync,
        }
    }
}

impl Disk {
    fn zero_step(&self) -> Step {
        if self.has_zero_range() { Step::Zero } else { Step::ZeroBytes }
    }
}

/// Whether the list holds what the operation needs.
fn fits(request: &BlockRequest) -> bool {
    let writable = request.op() != BlockOp::Read || !request.sg().is_read_only();
    writable && request.sg().len() == request.len()
}

fn error_of(errno: i32) -> BlockError {
    match errno {
        libc::ENOSPC | libc::EDQUOT => BlockError::NoSpace,
        libc::EROFS | libc::EPERM => BlockError::ReadOnly,
        _ => BlockError::Io,
    }
}

/// The window that starts at `skip` bytes into piece `index` and holds at most `limit` bytes.
fn window(pieces: usize, index: usize, skip: usize, limit: usize, len: impl Fn(usize) -> usize) -> Window {
    let first = len(index);
    if skip > 0 || first > limit {
        return Window::Cut { index, skip, len: (first - skip).min(limit.max(1)) };
    }
    let most = (pieces - index).min(IOV_MAX);
    if limit == usize::MAX {
        return Window::Whole { index, count: most };
    }
    let (mut count, mut bytes) = (0, 0);
    while count < most && bytes + len(index + count) <= limit {
        bytes += len(index + count);
        count += 1;
    }
    Window::Whole { index, count }
}

/// Where `skip` bytes from the start of piece `index` lie: always within a piece, unless it is the end.
fn moved(mut index: usize, mut skip: usize, len: impl Fn(usize) -> Option<usize>) -> (usize, usize) {
    while let Some(len) = len(index).filter(|&len| skip >= len) {
        skip -= len;
        index += 1;
    }
    (index, skip)
}

/// The window of the disk's zeroes for the next `len` bytes: as many whole pieces as fit, or a part of one.
fn zero_window(len: u64) -> Window {
    match (len / Disk::ZERO_PIECE as u64).min(Disk::ZERO_PIECES as u64) as usize {
        0 => Window::Cut { index: 0, skip: 0, len: len as usize },
        count => Window::Whole { index: 0, count },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_are_cut_at_every_limit() {
        let pieces = [4096usize, 512, 0, 8192];
        let at = |index, skip, limit| window(pieces.len(), index, skip, limit, |index| pieces[index]);
        assert_eq!(at(0, 0, usize::MAX), Window::Whole { index: 0, count: 4 });
        assert_eq!(at(0, 0, 4608), Window::Whole { index: 0, count: 3 });
        assert_eq!(at(0, 0, 4095), Window::Cut { index: 0, skip: 0, len: 4095 });
        assert_eq!(at(3, 100, 1000), Window::Cut { index: 3, skip: 100, len: 1000 });
        assert_eq!(at(3, 8000, 1000), Window::Cut { index: 3, skip: 8000, len: 192 });
        let many = window(3000, 10, 0, usize::MAX, |_| 512);
        assert_eq!(many, Window::Whole { index: 10, count: IOV_MAX });
    }

    #[test]
    fn moving_skips_whole_and_empty_pieces() {
        let pieces = [4096usize, 512, 0, 8192];
        let after = |index, skip| moved(index, skip, |index| pieces.get(index).copied());
        assert_eq!(after(0, 4095), (0, 4095));
        assert_eq!(after(0, 4096), (1, 0));
        assert_eq!(after(0, 4608), (3, 0));
        assert_eq!(after(3, 8192), (4, 0));
    }

    #[test]
    fn zeroes_come_in_bounded_chunks() {
        assert_eq!(zero_window(512), Window::Cut { index: 0, skip: 0, len: 512 });
        assert_eq!(zero_window(Disk::ZERO_PIECE as u64 + 1), Window::Whole { index: 0, count: 1 });
        assert_eq!(zero_window(u64::MAX), Window::Whole { index: 0, count: Disk::ZERO_PIECES });
    }
}
