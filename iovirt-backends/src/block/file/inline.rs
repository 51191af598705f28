//! System calls made on the calling thread: by the worker itself, and by the threads of the pool.

use super::disk::Disk;
use super::sys;
use super::task::{Call, Task};
use iovirt_core::dma::SgList;
use iovirt_core::request::block::BlockOutput;
use std::io;

/// Makes the call.
fn make(disk: &Disk, task: &Task, call: Call) -> io::Result<usize> {
    let fd = disk.fd();
    let sg = |with: &dyn Fn(&SgList) -> io::Result<usize>| match task.request() {
        Some(request) => with(request.sg()),
        None => Err(io::ErrorKind::InvalidInput.into()),
    };
    match call {
        Call::Read { offset, window } => sg(&|sg| sys::read(fd, sg, window, offset)),
        Call::Write { offset, window, flags } => sg(&|sg| sys::write(fd, sg, window, offset, flags)),
        Call::WriteZeroes { offset, window } => sys::write(fd, disk.zeroes(), window, offset, 0),
        Call::ChangeRange { range, offset, len } => sys::change_range(fd, range, offset, len).map(|()| 0),
        Call::DiscardDevice { offset, len } => sys::discard_device(fd, offset, len).map(|()| 0),
        Call::Sync => sys::sync_data(fd).map(|()| 0),
    }
}

/// Makes the task's next call, moving at most `limit` bytes: the output once all is done, and how many bytes moved.
pub(super) fn step(disk: &Disk, task: &mut Task, limit: usize) -> (Option<BlockOutput>, usize) {
    let call = task.call(disk, limit);
    let result = make(disk, task, call).map_err(|error| error.raw_os_error().unwrap_or(libc::EIO));
    let moved = *result.as_ref().unwrap_or(&0);
    (task.advance(disk, result), moved)
}

/// Makes all calls of a task, however long they take.
pub(super) fn run(disk: &Disk, task: &mut Task) -> BlockOutput {
    loop {
        if let (Some(output), _) = step(disk, task, usize::MAX) {
            return output;
        }
    }
}
