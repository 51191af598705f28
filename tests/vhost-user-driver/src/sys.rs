//! Processors and their clocks. With [`memory`](crate::memory), the only file with `unsafe` code.

use std::io;
use std::mem;
use std::time::Duration;

/// Binds the calling thread to one processor.
///
/// # Errors
/// What the host says, as for a processor that does not exist.
pub fn pin_this_thread(processor: usize) -> io::Result<()> {
    if processor >= libc::CPU_SETSIZE as usize {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    // SAFETY: a set of bits, for which all zeroes is the empty set.
    let mut set: libc::cpu_set_t = unsafe { mem::zeroed() };
    // SAFETY: the number was checked to be within the set.
    unsafe { libc::CPU_SET(processor, &mut set) };
    // SAFETY: the set is a live value of the size that is given.
    let result = unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The calling thread's number.
pub fn this_thread() -> i32 {
    // SAFETY: it takes nothing and cannot fail.
    unsafe { libc::gettid() }
}

/// Processor time that all threads of a process have used so far, also those that have ended.
///
/// # Errors
/// What the host says, as when there is no such process.
pub fn time_of_process(process: i32) -> io::Result<Duration> {
    let mut clock = 0;
    // SAFETY: the clock's number is written to a live value.
    let result = unsafe { libc::clock_getcpuclockid(process, &raw mut clock) };
    if result == 0 { time(clock) } else { Err(io::Error::from_raw_os_error(result)) }
}

/// Processor time that a thread of this process has used so far.
///
/// # Errors
/// What the host says, as when the thread has ended.
pub fn time_of_thread(thread: i32) -> io::Result<Duration> {
    /// The clock of one thread (4), by what the scheduler counted (2): the kernel's encoding of such a number.
    const SCHEDULED_THREAD: i32 = 6;
    time((!thread << 3) | SCHEDULED_THREAD)
}

fn time(clock: libc::clockid_t) -> io::Result<Duration> {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the time is written to a live value.
    if unsafe { libc::clock_gettime(clock, &raw mut time) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(Duration::new(time.tv_sec as u64, time.tv_nsec as u32))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_go_on_with_work() {
        let (thread, process) = (this_thread(), std::process::id() as i32);
        let now = || (time_of_thread(thread).unwrap(), time_of_process(process).unwrap());
        let (before, more) = (now(), Duration::from_millis(2));
        let mut sum = 0u64;
        // Until both did; a process's clock counts what its threads run at the moment only now and then.
        while now().0 < before.0 + more || now().1 < before.1 + more {
            sum = std::hint::black_box(sum + 1);
        }
        assert!(time_of_process(5_000_000).is_err(), "beyond every number");
    }

    #[test]
    fn a_processor_that_is_not_there_is_refused() {
        assert!(pin_this_thread(1 << 20).is_err());
    }
}
