//! The signals that ask a process to end, as something to wait for.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

/// The signals that ask a process to end.
const ENDING_SIGNALS: [libc::c_int; 4] = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT];

/// The signals that ask this process to end, as something to wait for.
#[derive(Debug)]
pub(crate) struct EndingSignals(OwnedFd);

impl EndingSignals {
    /// From now on they do not end this thread, and threads that it starts, by themselves.
    pub(crate) fn block() -> io::Result<Self> {
        let signals = vmm_sys_util::signal::create_sigset(&ENDING_SIGNALS)
            .map_err(|error| io::Error::from_raw_os_error(error.errno()))?;
        // SAFETY: the set is initialised, and the old one is not asked for.
        let error =
            unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const signals, std::ptr::null_mut()) };
        if error != 0 {
            return Err(io::Error::from_raw_os_error(error));
        }
        // SAFETY: the set is initialised; -1 asks for a new descriptor.
        let fd = unsafe { libc::signalfd(-1, &raw const signals, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel just made this descriptor for us, and nobody else knows it.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Waits for a signal, and gives its number; `None` where `other` becomes readable or the time passes first.
    pub(crate) fn wait(&self, other: &impl AsRawFd, limit: Option<Duration>) -> Option<i32> {
        let timeout = limit.map_or(-1, |limit| limit.as_millis().clamp(1, 1 << 30) as libc::c_int);
        let watch = |fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
        let mut fds = [watch(self.0.as_raw_fd()), watch(other.as_raw_fd())];
        // SAFETY: the pointer and the count describe an array that lives until poll returns.
        unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, timeout) };
        self.take()
    }

    fn take(&self) -> Option<i32> {
        let mut info = std::mem::MaybeUninit::<libc::signalfd_siginfo>::zeroed();
        let size = size_of::<libc::signalfd_siginfo>();
        // SAFETY: the buffer is as long as the size says.
        let got = unsafe { libc::read(self.0.as_raw_fd(), info.as_mut_ptr().cast(), size) };
        // SAFETY: a signalfd gives whole records only, and all zeroes would be a valid one besides.
        (got == size as isize).then(|| unsafe { info.assume_init() }.ssi_signo as i32)
    }
}
