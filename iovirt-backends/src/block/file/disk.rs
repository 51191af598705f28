//! The open file with what all queues know of it.

use super::config::{Cache, Discard, FileAccess, FileConfig, Inline};
use super::probe::{Facts, Medium};
use super::{lock, probe};
use iovirt_core::BackendError;
use iovirt_core::dma::{HostBuffer, SgList};
use iovirt_core::log::LogLimiter;
use iovirt_core::pipeline::{Event, Listeners};
use iovirt_core::request::block::{
    BlockCaps, BlockError, BlockOp, BlockOutput, DiscardLimits, Durability, SECTOR, WriteZeroesLimits,
};
use iovirt_core::sync::{Arc, Mutex, PoisonError};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Longest range of one discard or write-zeroes in bytes.
const MAX_RANGE: u64 = 1 << 30;

/// The open file. Whatever works on it holds an `Arc`, so that it is closed, and its lock released, after the last
/// system call.
#[derive(Debug)]
pub(super) struct Disk {
    file: File,
    config: FileConfig,
    facts: Facts,
    caps: Mutex<Arc<BlockCaps>>,
    /// Changes with `caps`.
    generation: AtomicU64,
    pub(super) listeners: Listeners,
    /// Batches of writes that completed and are not durable, and how many of these a sync has covered. The first one
    /// stands for what was in the page cache before.
    written: AtomicU64,
    synced: AtomicU64,
    /// Something that was acknowledged may be lost; see [`file`](super), "When a sync fails".
    lost: AtomicBool,
    durable_writes: AtomicBool,
    zero_range: AtomicBool,
    zeroes: SgList,
    complaints: LogLimiter,
}

impl Disk {
    /// Bytes in a piece of the zeroes that stand ready, and how many pieces there are: all show the same memory.
    pub(super) const ZERO_PIECE: usize = 64 << 10;
    pub(super) const ZERO_PIECES: usize = 16;

    pub(super) fn open(file: File, config: FileConfig) -> Result<Self, BackendError> {
        let mut facts = probe::examine(&file, &config)?;
        let size = probe::size(&file, facts.medium).map_err(|error| {
            BackendError::host(format!("the size of {} cannot be found out", config.path.display()), error)
        })?;
        let capacity = facts.capacity_of(size, &config)?;
        lock::acquire(&file, &config)?;
        if config.access == FileAccess::ReadWrite {
            probe::try_holes(&file, &mut facts, size);
        }
        if config.cache == Cache::UnsafeIgnoreFlush {
            tracing::warn!(
                path = %config.path.display(),
                "cache=unsafe-ignore-flush: flushes are not done; a crash or a loss of power destroys this disk"
            );
        }
        Ok(Self {
            caps: Mutex::new(Arc::new(initial_caps(&config, &facts, capacity))),
            generation: AtomicU64::new(0),
            listeners: Listeners::default(),
            written: AtomicU64::new(1),
            synced: AtomicU64::new(0),
            lost: AtomicBool::new(false),
            durable_writes: AtomicBool::new(true),
            zero_range: AtomicBool::new(true),
            zeroes: zeroes(),
            complaints: LogLimiter::default(),
            file,
            config,
            facts,
        })
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    pub(super) fn config(&self) -> &FileConfig {
        &self.config
    }

    pub(super) fn facts(&self) -> &Facts {
        &self.facts
    }

    pub(super) fn zeroes(&self) -> &SgList {
        &self.zeroes
    }

    pub(super) fn is_memory(&self) -> bool {
        self.facts.medium == Medium::Memory
    }

    /// Whether the worker makes transfers itself.
    #[inline]
    pub(super) fn is_inline(&self) -> bool {
        match self.config.inline {
            Inline::Auto => self.is_memory(),
            Inline::On => true,
            Inline::Off => false,
        }
    }

    pub(super) fn is_device(&self) -> bool {
        self.facts.medium == Medium::Device
    }

    // Capabilities

    pub(super) fn caps(&self) -> Arc<BlockCaps> {
        self.caps.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Changes whenever the capabilities do.
    #[inline]
    pub(super) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Changes the capabilities and tells all listeners.
    pub(super) fn change_caps(&self, event: Event, change: impl FnOnce(&mut BlockCaps)) {
        {
            let mut caps = self.caps.lock().unwrap_or_else(PoisonError::into_inner);
            let mut changed = (**caps).clone();
            change(&mut changed);
            if changed == **caps {
                return;
            }
            *caps = Arc::new(changed);
            self.generation.fetch_add(1, Ordering::Release);
        }
        self.listeners.announce(event);
    }

    pub(super) fn durability(&self) -> Durability {
        match self.config.cache {
            Cache::WriteThrough => Durability::WriteThrough,
            Cache::WriteBack => Durability::WriteBack,
            Cache::UnsafeIgnoreFlush => Durability::Unsafe,
        }
    }

    pub(super) fn may_unmap(&self) -> bool {
        self.config.discard == Discard::On
    }

    /// The host refuses discards after all.
    #[cold]
    pub(super) fn no_discard(&self, errno: i32) {
        let error = io::Error::from_raw_os_error(errno);
        tracing::info!(path = %self.config.path.display(), %error, "discards are not offered any more");
        self.change_caps(Event::CapsChanged, |caps| caps.discard = None);
    }

    pub(super) fn has_zero_range(&self) -> bool {
        self.zero_range.load(Ordering::Relaxed)
    }

    #[cold]
    pub(super) fn no_zero_range(&self) {
        self.zero_range.store(false, Ordering::Relaxed);
    }

    /// Whether a write is made durable by its own flag.
    pub(super) fn writes_durably(&self) -> bool {
        self.durable_writes.load(Ordering::Relaxed)
    }

    #[cold]
    pub(super) fn no_durable_writes(&self) {
        self.durable_writes.store(false, Ordering::Relaxed);
    }

    // Durability

    /// How many batches of writes have completed that are not durable by themselves.
    pub(super) fn writes(&self) -> u64 {
        self.written.load(Ordering::SeqCst)
    }

    /// Writes are about to be reported as complete, and a later flush has to cover them.
    pub(super) fn note_writes(&self) {
        self.written.fetch_add(1, Ordering::SeqCst);
    }

    /// A sync that began after `covers` batches has succeeded: what becomes of the flush that it was for. Beside one that
    /// failed it means nothing, as the host reports a failure to one of them only.
    pub(super) fn synced(&self, covers: u64) -> BlockOutput {
        self.synced.fetch_max(covers, Ordering::SeqCst);
        self.written_durably()
    }

    /// What becomes of a write that the host said is durable. Beside one that failed that means nothing: see
    /// [`Disk::synced`].
    pub(super) fn written_durably(&self) -> BlockOutput {
        if self.lost.load(Ordering::SeqCst) { BlockOutput::Failed(BlockError::Io) } else { BlockOutput::Done }
    }

    /// What becomes of a flush that needs no system call; `None` where it does.
    pub(super) fn flush_now(&self) -> Option<BlockOutput> {
        if self.durability() == Durability::Unsafe || self.is_memory() {
            return Some(BlockOutput::Done);
        }
        if self.lost.load(Ordering::SeqCst) {
            return Some(BlockOutput::Failed(BlockError::Io));
        }
        (self.synced.load(Ordering::SeqCst) >= self.writes()).then_some(BlockOutput::Done)
    }

    #[cold]
    pub(super) fn sync_failed(&self) {
        self.lose();
    }

    /// A write that was to be durable failed. The host reports a failure to write back once, and may just have done so
    /// for an earlier write that was acknowledged already.
    #[cold]
    pub(super) fn durable_write_failed(&self) {
        if self.durability() != Durability::Unsafe {
            self.lose();
        }
    }

    fn lose(&self) {
        // Past the page cache nothing is dropped: the next sync may well succeed, and then tells the truth.
        if !self.facts.is_direct() && !self.lost.swap(true, Ordering::SeqCst) {
            tracing::error!(
                path = %self.config.path.display(),
                "the host failed to make data durable and may have dropped it: flushes and durable writes fail from now on"
            );
        }
    }

    // Complaints

    #[cold]
    pub(super) fn complain(&self, op: BlockOp, offset: u64, errno: i32) {
        if let Some(suppressed) = self.complaints.admit() {
            let error = io::Error::from_raw_os_error(errno);
            let path = self.config.path.display();
            tracing::warn!(%path, ?op, offset, errno, suppressed, "the host failed a request: {error}");
        }
    }

    #[cold]
    pub(super) fn complain_short(&self, op: BlockOp, offset: u64) {
        if let Some(suppressed) = self.complaints.admit() {
            let path = self.config.path.display();
            tracing::warn!(%path, ?op, offset, suppressed, "the file ends here, before the end of the disk: it was shortened");
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        lock::release(&self.file, &self.config);
    }
}

fn initial_caps(config: &FileConfig, facts: &Facts, capacity: u64) -> BlockCaps {
    let writable = config.access == FileAccess::ReadWrite;
    let durability = match config.cache {
        Cache::WriteThrough => Durability::WriteThrough,
        Cache::WriteBack => Durability::WriteBack,
        Cache::UnsafeIgnoreFlush => Durability::Unsafe,
    };
    let may_unmap = config.discard == Discard::On;
    let discard = facts.discard.filter(|_| writable && may_unmap).map(|discard| DiscardLimits {
        max_bytes: MAX_RANGE,
        alignment: discard.granularity.max(facts.offset_align),
        reads_zero: !matches!(facts.medium, Medium::Device),
    });
    BlockCaps {
        capacity,
        logical_block: facts.offset_align.max(SECTOR as u32),
        physical_block: facts.physical_block,
        optimal_io: 0,
        read_only: !writable,
        durability,
        fua: true,
        discard,
        write_zeroes: writable.then_some(WriteZeroesLimits { max_bytes: MAX_RANGE, may_unmap }),
    }
}

fn zeroes() -> SgList {
    let buffer = Arc::new(HostBuffer::new(Disk::ZERO_PIECE));
    let mut list = SgList::new();
    for _ in 0..Disk::ZERO_PIECES {
        list.push_buffer(&buffer, 0, Disk::ZERO_PIECE)
            .expect("the buffer is that long and the list has room");
    }
    list
}
