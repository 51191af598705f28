//! How a file is to be used as a disk.

use iovirt_core::BackendError;
use std::path::{Path, PathBuf};

/// How a file or a block device is used as a disk.
///
/// ```
/// use iovirt_backends::block::file::{Cache, Direct, FileConfig};
///
/// let config = FileConfig { cache: Cache::WriteBack, direct: Direct::On, ..FileConfig::new("disk.img") };
/// assert_eq!(config.threads, 4);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileConfig {
    /// The file, or the block device.
    pub path: PathBuf,
    /// Whether the guest may write.
    pub access: FileAccess,
    /// Whether the host's page cache is bypassed.
    pub direct: Direct,
    /// When a completed write is durable.
    pub cache: Cache,
    /// Who does the system calls.
    pub engine: Engine,
    /// Whether reads and writes are done by the worker itself.
    pub inline: Inline,
    /// Whether others are kept from opening the file.
    pub lock: Lock,
    /// Whether the guest may give space back.
    pub discard: Discard,
    /// Most threads of the pool, shared by all queues: 1 to [`FileConfig::MAX_THREADS`]. They are started when there
    /// is work for them.
    pub threads: usize,
}

/// Whether the guest may write.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FileAccess {
    /// It may.
    #[default]
    ReadWrite,
    /// Writes fail with [`BlockError::ReadOnly`](iovirt_core::request::block::BlockError::ReadOnly).
    ReadOnly,
}

/// Whether the host's page cache is bypassed (`O_DIRECT`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Direct {
    /// Through the page cache.
    #[default]
    Off,
    /// Past it. Requests that are not aligned as the host demands go through aligned host memory.
    On,
}

/// When a completed write is durable: as durable as the file system makes it, which in memory (tmpfs) is not at all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Cache {
    /// Before it completes. A flush has nothing left to do.
    #[default]
    WriteThrough,
    /// Once it is flushed, or before it completes where it asks for that (FUA).
    WriteBack,
    /// Never: flushes are acknowledged and **not done**. A crash of the host, or a loss of power, destroys the disk's
    /// file system. For throw-away guests.
    UnsafeIgnoreFlush,
}

/// Who does the system calls that are not done inline.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Engine {
    /// The worker's `io_uring`; threads where the host does not permit one.
    #[default]
    Auto,
    /// The worker's `io_uring`; opening a queue fails where there is none.
    Uring,
    /// A pool of threads.
    Threads,
}

/// Whether reads and writes are done by the worker itself, by `pread` and `pwrite` and their kin.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Inline {
    /// Where the file lies in memory (tmpfs, ramfs, memfd): a plain system call takes about half the time of one through
    /// `io_uring` there.
    #[default]
    Auto,
    /// Always. Where the file is on a disk the worker waits for it, and everything else on that worker with it.
    On,
    /// Never.
    Off,
}

/// Whether others are kept from opening the file at the same time; see [`file`](super) for whom that concerns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Lock {
    /// One writer, or any number of readers.
    #[default]
    On,
    /// No lock is taken and none is asked for: for the moment of a migration, when both sides have the file open.
    Off,
}

/// Whether the guest may give space back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Discard {
    /// Where the host can take it.
    #[default]
    On,
    /// Discards are not offered, and write-zeroes never deallocates: the file stays as allocated as it is.
    Off,
}

impl FileConfig {
    /// Most threads of one pool.
    pub const MAX_THREADS: usize = 256;

    /// The defaults for that file: writable, write-through, locked, discards passed on.
    pub fn new(path: impl AsRef<Path>) -> Self {
        Self {
            path: path.as_ref().to_path_buf(),
            access: FileAccess::default(),
            direct: Direct::default(),
            cache: Cache::default(),
            engine: Engine::default(),
            inline: Inline::default(),
            lock: Lock::default(),
            discard: Discard::default(),
            threads: 4,
        }
    }

    /// What can be said without looking at the file.
    pub(super) fn validate(&self) -> Result<(), BackendError> {
        if !(1..=Self::MAX_THREADS).contains(&self.threads) {
            let (given, max) = (self.threads, Self::MAX_THREADS);
            return Err(BackendError::config(format!("threads={given} is not allowed: 1 to {max} are")));
        }
        if self.path.as_os_str().is_empty() {
            return Err(BackendError::config("path is empty: it names a file or a block device"));
        }
        Ok(())
    }
}
