//! The `file` back-end: a disk in a file or a block device of the host.
//!
//! ```
//! use iovirt_backends::block::file::{Cache, FileBackend, FileConfig};
//! use iovirt_core::prelude::*;
//! use iovirt_core::dma::{SgLimits, SgPool};
//! use iovirt_core::request::block::{BlockOp, BlockOutput, BlockRequest};
//!
//! # let folder = tempfile::tempdir()?;
//! # let path = folder.path().join("disk.img");
//! std::fs::File::create(&path)?.set_len(1 << 20)?;
//! let disk = FileBackend::open(FileConfig { cache: Cache::WriteBack, ..FileConfig::new(&path) })?;
//! assert_eq!(disk.caps().capacity, 1 << 20);
//!
//! let depth = Depth::new(8).unwrap();
//! let (mut pool, mut done) = (SgPool::new(8, SgLimits::default()), Completions::with_depth(depth));
//! let mut worker = Worker::new(WorkerConfig::default())?;
//! let mut queue = worker.with_context(|cx| disk.open(cx, depth))?;
//! let mut data = pool.take();
//! data.push_host(4096)?;
//! data.fill(0, 4096, 7)?;
//! let write = BlockRequest::transfer(BlockOp::Write, Tag::new(0), 8192, data).unwrap();
//! worker.with_context(|cx| {
//!     queue.submit(cx, write);
//!     queue.kick(cx);
//! });
//! while done.is_empty() {
//!     worker.run_within(std::time::Duration::from_millis(10))?;
//!     worker.with_context(|cx| queue.poll(cx, &mut done));
//! }
//! assert_eq!(done.drain().next().unwrap().output, BlockOutput::Done);
//! assert_eq!(std::fs::read(&path)?[8192..12288], [7; 4096]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Who makes the system calls
//!
//! | way | calls | when |
//! |---|---|---|
//! | inline | `pread(2)`, `pwrite(2)` and their kin on the worker | the file lies in memory, or `inline=on` |
//! | ring | the worker's `io_uring(7)` | `engine=auto` or `engine=uring`, where the host permits one |
//! | threads | the same calls on a pool shared by all queues | `engine=threads`, no ring, and discards of block devices |
//!
//! Data is never copied on the way (but for [alignment](crate::block::align)): the request's scatter-gather list goes to the
//! kernel as it is, in calls of at most 1024 pieces. What the kernel does only in part is continued.
//!
//! Inline, a worker moves at most 1 MiB in one turn, where a small transfer counts as 4 KiB; the rest goes on in the next
//! turn, after whatever else the worker has to do. Syncs, discards and zeroing are never done inline. With `inline=on` and a
//! file on a disk, each of the reads holds the worker until the disk has answered.
//!
//! # Durability
//!
//! | `cache` | a write is durable | flush |
//! |---|---|---|
//! | [`Cache::WriteThrough`] | before it completes | has nothing left to do |
//! | [`Cache::WriteBack`] | once it is flushed; before it completes where it asks for that (FUA) | `fdatasync(2)` |
//! | [`Cache::UnsafeIgnoreFlush`] | never | **acknowledged and not done** |
//!
//! Writes become durable by `RWF_DSYNC` (`pwritev2(2)`), or by `fdatasync` after the write where the host does not take that
//! flag; zeroing and, in write-through, discards always by `fdatasync`. A flush covers every write that completed before it
//! was submitted, on all queues: they share one file. It makes no system call where nothing was written since the last one.
//! A file in memory is durable for as long as the memory is: there, syncs are left out.
//!
//! ## When a sync fails
//!
//! A host that fails to write back dirty pages of its cache may mark them clean and drop them, and reports that once
//! (`fsync(2)`, "NOTES"): a second `fdatasync` would succeed and mean nothing. So after the first failure **every flush
//! fails** until the file is opened again, and a drain does not come to rest. The same holds, in write-back, where a write
//! with FUA fails with an input/output error, since that may be the one report for an earlier write. With `direct=on` no
//! page cache is in between, and the next sync tells the truth again.
//!
//! # Discard and write-zeroes
//!
//! On a file, `fallocate(2)` with `FALLOC_FL_PUNCH_HOLE` for discards (what was discarded reads as zeroes) and for
//! write-zeroes that may deallocate; `FALLOC_FL_ZERO_RANGE` for those that may not. On a block device `BLKDISCARD`, after
//! which content is undefined, and the same two `fallocate` calls. Where the host refuses to zero, zeroes are written, 1 MiB
//! in a call. Where it refuses to discard, discards are not offered any more
//! ([`Event::CapsChanged`](iovirt_core::pipeline::Event::CapsChanged)).
//!
//! # Size
//!
//! Guests see whole sectors of 512 bytes; bytes behind the last one are not exposed. With `direct=on` the size has to be a
//! multiple of what direct I/O is aligned to, so that no sector is out of reach. [`FileControl`] changes the size and tells
//! the guest. Where somebody else shortened the file, reads behind its end fail with
//! [`BlockError::Io`](iovirt_core::request::block::BlockError::Io) and a line in the log, until [`FileControl::refresh`].
//!
//! # Direct I/O
//!
//! The alignment is what `statx(2)` states (`STATX_DIOALIGN`), the logical block size of a device, or what is found by
//! trying. A disk always has logical blocks of 512 bytes; where the host demands more the [`align`](crate::block::align)
//! stage is a part of this back-end, and the guest is told of the physical block size.
//!
//! # Who else has the file
//!
//! One writer or any number of readers, by advisory locks that QEMU's tools respect and set too (open-file-description
//! locks, `fcntl(2)`, at the offsets that QEMU uses). They go with the last system call on the file. Programs that do not
//! lock are not kept out.
//!
//! # Errors of the host
//!
//! `ENOSPC` and `EDQUOT` become [`BlockError::NoSpace`](iovirt_core::request::block::BlockError::NoSpace), everything else
//! that is not tried again (`EINTR`, `EAGAIN`) [`BlockError::Io`](iovirt_core::request::block::BlockError::Io). Each is a line
//! in the host's log with path, offset and error number; ten lines in ten seconds at most.
//!
//! # Threads and locks
//!
//! A queue that uses the ring or works inline takes no lock. One that uses threads takes the pool's once per batch, and its
//! own outbox's once per poll that finds something. A queue that is dropped leaves the memory of requests in flight to the
//! ring or to the threads, until the kernel has let go of it. Nothing is allocated per request once queues have been open
//! for a while.

mod backend;
mod config;
mod control;
mod disk;
mod inline;
mod lock;
mod outbox;
mod probe;
mod queue;
mod sys;
mod task;
mod threads;
mod uring;

#[cfg(test)]
mod tests;

pub use backend::{FileBackend, FileQueue};
pub use config::{Cache, Direct, Discard, Engine, FileAccess, FileConfig, Inline, Lock};
pub use control::FileControl;
