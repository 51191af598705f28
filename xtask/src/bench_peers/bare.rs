//! What the system calls alone cost: `pread` and `pwrite` of the target's file, one behind the other, on the server's
//! processor.

use std::fs::File;
use std::time::{Duration, Instant};

use vhost_user_driver::memory::SharedMemory;
use vhost_user_driver::sys;

use super::files::{Files, open};
use super::points::{Access, Bare, Target};
use crate::error::{Context, Error, Result};

/// Measures one access for that long, in a thread on that processor.
pub(crate) fn measure(
    target: Target,
    access: Access,
    files: &Files,
    processor: usize,
    span: Duration,
) -> Result<Option<Bare>> {
    let Some(path) = files.path(target) else { return Ok(None) };
    let (file, disk) = (open(path, target)?, files.bytes());
    let work = move || {
        sys::pin_this_thread(processor).context(format_args!("processor {processor}"))?;
        run(&file, access, disk, span)
    };
    std::thread::spawn(work).join().map_err(|_| Error::new("the bare system calls panicked"))?.map(Some)
}

fn run(file: &File, access: Access, disk: u64, span: Duration) -> Result<Bare> {
    let len = access.bytes() as usize;
    let buffer = SharedMemory::new(len).context("a buffer")?;
    let count = disk / len as u64;
    let (mut state, mut calls) = (0x9e37_79b9_7f4a_7c15_u64, 0u64);
    let (clock, cpu) = (Instant::now(), sys::time_of_thread(sys::this_thread()).context("the clock")?);
    while clock.elapsed() < span {
        // Some between two looks at the clock, which costs as much as a hundredth of a call.
        for _ in 0..16 {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            let number = if access.is_random() { state % count } else { calls % count };
            let at = number * len as u64;
            let moved = if access.reads() {
                buffer.pread(file, at, 0, len).context("pread")?
            } else {
                buffer.pwrite(file, at, 0, len).context("pwrite")?
            };
            if moved != len {
                return Err(Error::new(format!("{moved} of {len} bytes at {at}")));
            }
            calls += 1;
        }
    }
    let wall = clock.elapsed();
    let cpu = sys::time_of_thread(sys::this_thread()).context("the clock")?.saturating_sub(cpu);
    let each = |time: Duration| time.as_nanos() as f64 / calls as f64;
    Ok(Bare { wall: each(wall), cpu: each(cpu) })
}
