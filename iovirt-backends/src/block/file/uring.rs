//! System calls made through the worker's `io_uring`.
//!
//! What the kernel works on lies in a slot that neither moves nor changes until the completion was reaped; a queue that is
//! dropped leaves its slots to the ring.

use super::disk::Disk;
use super::sys;
use super::task::{Call, Task};
use iovirt_core::Depth;
use iovirt_core::dma::{IoVec, SgList};
use iovirt_core::request::block::BlockOutput;
use iovirt_core::worker::io_uring::{opcode, squeue, types};
use iovirt_core::worker::{FixedFile, Reaped, UringClient};
use std::os::fd::AsRawFd;
use std::sync::Arc;

/// Most bytes in a read or write of one piece, whose length the ring takes as 32 bits.
const MAX_PIECE: usize = 1 << 30;

/// The place of one queue on its worker's ring.
pub(super) struct Ring {
    // Always there but in `drop`.
    client: Option<UringClient>,
    fixed: Option<FixedFile>,
    slots: Box<[Option<Slot>]>,
    disk: Arc<Disk>,
    /// A disk behind no page cache works on a request while the next one is made.
    at_once: bool,
    reaped: Vec<Reaped>,
}

#[derive(Debug)]
struct Slot {
    task: Task,
    /// A part of a piece that the call works on.
    cut: Option<IoVec>,
}

/// A task that the ring is finished with.
pub(super) enum Left {
    /// All of it is done.
    Done(BlockOutput),
    /// Its next call is one that the ring does not know.
    Elsewhere,
}

impl Ring {
    pub(super) fn new(client: UringClient, disk: &Arc<Disk>, depth: Depth) -> Self {
        let fixed = client.register_file(disk.file());
        // One more: the sync at the end of a drain.
        let slots = (0..=depth.get()).map(|_| None).collect();
        let reaped = Vec::with_capacity(depth.get() + 1);
        let at_once = disk.facts().is_direct();
        Self { client: Some(client), fixed, slots, disk: disk.clone(), at_once, reaped }
    }

    /// Whether the ring can do that call.
    fn knows(call: Call) -> bool {
        !matches!(call, Call::DiscardDevice { .. })
    }

    /// Puts a task into a slot that is free and starts its next call, or gives it back where the ring does not know that.
    pub(super) fn start(&mut self, slot: u32, mut task: Task) -> Option<Task> {
        let call = task.call(&self.disk, usize::MAX);
        if !Self::knows(call) {
            return Some(task);
        }
        let place = self.slots.get_mut(slot as usize)?.insert(Slot { task, cut: None });
        let (Some(client), Some(entry)) = (&self.client, place.entry(&self.disk, self.fixed, call)) else {
            return self.slots[slot as usize].take().map(|slot| slot.task);
        };
        // SAFETY: the entry points into the slot's request, which owns its memory, into the slot itself, or into the
        // zeroes of the disk. The slot lies in a slice of fixed size and is not touched until `reap` has its
        // completion; `drop` gives slots and disk to the ring otherwise. The disk keeps the file open.
        unsafe { client.push(slot, entry) };
        if self.at_once {
            client.submit();
        }
        None
    }

    /// Takes completions, goes on with tasks that have more to do, and hands out those that leave the ring.
    #[inline]
    pub(super) fn reap(&mut self, mut each: impl FnMut(Task, Left)) {
        let Some(client) = &self.client else { return };
        let mut reaped = std::mem::take(&mut self.reaped);
        client.reap(&mut reaped);
        for Reaped { slot, result } in reaped.drain(..) {
            let Some(Slot { mut task, .. }) = self.slots.get_mut(slot as usize).and_then(Option::take) else {
                continue;
            };
            let result = usize::try_from(result).map_err(|_| -result);
            match task.advance(&self.disk, result) {
                Some(output) => each(task, Left::Done(output)),
                None => {
                    if let Some(task) = self.start(slot, task) {
                        each(task, Left::Elsewhere);
                    }
                }
            }
        }
        self.reaped = reaped;
    }
}

impl Slot {
    /// The entry for a call; it points into this slot, and stays valid for as long as the slot is neither moved nor
    /// changed.
    fn entry(&mut self, disk: &Disk, fixed: Option<FixedFile>, call: Call) -> Option<squeue::Entry> {
        let Self { task, cut } = self;
        // The list of the request; for a read, one that the device may write (`Task::start` has checked that).
        let sg = || -> Option<&SgList> { Some(task.request()?.sg()) };
        macro_rules! on_file {
            ($file:ident => $entry:expr) => {
                match fixed {
                    Some(FixedFile(index)) => {
                        let $file = types::Fixed(index);
                        $entry
                    }
                    None => {
                        let $file = types::Fd(disk.fd().as_raw_fd());
                        $entry
                    }
                }
            };
        }
        Some(match call {
            Call::Read { offset, window } => match sys::pieces(sg()?, window, cut) {
                [piece] => {
                    let len = piece.len().min(MAX_PIECE) as u32;
                    on_file!(file => opcode::Read::new(file, piece.as_ptr(), len).offset(offset).build())
                }
                pieces => {
                    let iovecs = IoVec::as_libc(pieces);
                    let count = iovecs.len() as u32;
                    on_file!(file => opcode::Readv::new(file, iovecs.as_ptr(), count).offset(offset).build())
                }
            },
            Call::Write { offset, window, flags } => {
                write_entry(disk, fixed, sys::pieces(sg()?, window, cut), offset, flags)
            }
            Call::WriteZeroes { offset, window } => {
                write_entry(disk, fixed, sys::pieces(disk.zeroes(), window, cut), offset, 0)
            }
            Call::ChangeRange { range, offset, len } => {
                on_file!(file => opcode::Fallocate::new(file, len).offset(offset).mode(range.mode()).build())
            }
            Call::Sync => {
                on_file!(file => opcode::Fsync::new(file).flags(types::FsyncFlags::DATASYNC).build())
            }
            Call::DiscardDevice { .. } => return None,
        })
    }
}

fn write_entry(
    disk: &Disk,
    fixed: Option<FixedFile>,
    pieces: &[IoVec],
    offset: u64,
    flags: i32,
) -> squeue::Entry {
    let fd = types::Fd(disk.fd().as_raw_fd());
    match (pieces, fixed) {
        ([piece], fixed) => {
            let len = piece.len().min(MAX_PIECE) as u32;
            match fixed {
                Some(FixedFile(index)) => opcode::Write::new(types::Fixed(index), piece.as_ptr(), len),
                None => opcode::Write::new(fd, piece.as_ptr(), len),
            }
            .offset(offset)
            .rw_flags(flags)
            .build()
        }
        (pieces, fixed) => {
            let iovecs = IoVec::as_libc(pieces);
            let count = iovecs.len() as u32;
            match fixed {
                Some(FixedFile(index)) => opcode::Writev::new(types::Fixed(index), iovecs.as_ptr(), count),
                None => opcode::Writev::new(fd, iovecs.as_ptr(), count),
            }
            .offset(offset)
            .rw_flags(flags)
            .build()
        }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        let Some(client) = self.client.take() else { return };
        if let Some(fixed) = self.fixed {
            client.unregister_file(fixed);
        }
        client.close(Box::new((std::mem::take(&mut self.slots), self.disk.clone())));
    }
}

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ring")
            .field("client", &self.client)
            .field("fixed", &self.fixed)
            .finish_non_exhaustive()
    }
}
