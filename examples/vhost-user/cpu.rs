//! How long a thread has had a processor.

use std::time::Duration;

/// The processor-time clock of a thread.
///
/// Once the thread is gone the clock cannot be read, or is that of a later thread which was given the same number.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CpuClock(Option<libc::clockid_t>);

impl CpuClock {
    /// That of the calling thread.
    pub(crate) fn of_this_thread() -> Self {
        let mut clock = 0;
        // SAFETY: a thread's own handle is valid while it runs, and the pointer is to a local that outlives the call.
        let error = unsafe { libc::pthread_getcpuclockid(libc::pthread_self(), &raw mut clock) };
        Self((error == 0).then_some(clock))
    }

    /// The time so far; `None` where the host does not tell.
    pub(crate) fn read(&self) -> Option<Duration> {
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: any clock number may be asked for, and the pointer is to a local that outlives the call.
        let error = unsafe { libc::clock_gettime(self.0?, &raw mut time) };
        (error == 0).then(|| Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec as u32))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;

    use super::*;

    #[test]
    fn a_thread_that_works_takes_time_and_another_sees_it() {
        let (clocks, receiver) = mpsc::channel();
        let (stop, stopped) = mpsc::channel::<()>();
        let working = thread::spawn(move || {
            clocks.send(CpuClock::of_this_thread()).unwrap();
            while stopped.try_recv().is_err() {}
        });
        let clock = receiver.recv().unwrap();
        let start = clock.read().unwrap();
        while clock.read().unwrap() < start + Duration::from_millis(1) {
            thread::yield_now();
        }
        stop.send(()).unwrap();
        working.join().unwrap();
    }
}
