//! Duplicating and lending file descriptors.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};
use vmm_sys_util::eventfd::EventFd;

/// A duplicate that is closed on its own and across `exec`.
pub(super) fn duplicate(fd: &impl AsRawFd) -> io::Result<OwnedFd> {
    // SAFETY: fcntl with F_DUPFD_CLOEXEC takes any number; one that is no open descriptor is an error.
    let duplicate = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, 0) };
    if duplicate < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call has just made this descriptor and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(duplicate) })
}

/// The descriptor of an eventfd, for as long as the eventfd is borrowed: the type itself gives only its number.
pub(crate) fn lend(event: &EventFd) -> BorrowedFd<'_> {
    // SAFETY: an `EventFd` owns its descriptor and closes it when it is dropped, which the borrow keeps from happening.
    unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) }
}

/// An eventfd that somebody else made, as received over a socket. Whether it is one, only its use tells.
pub(crate) fn adopt(fd: OwnedFd) -> EventFd {
    // SAFETY: the descriptor is given up by its owner right here.
    unsafe { EventFd::from_raw_fd(fd.into_raw_fd()) }
}

/// Whether reading or writing may block.
pub(crate) fn blocks(fd: &impl AsRawFd) -> bool {
    // SAFETY: asks for flags; a number that is no open descriptor is an error.
    let flags = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFL) };
    flags < 0 || flags & libc::O_NONBLOCK == 0
}

/// Whether a write would not block now.
pub(crate) fn is_writable(fd: &impl AsRawFd) -> bool {
    let mut poll = libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLOUT, revents: 0 };
    // SAFETY: one live entry, and no waiting.
    let count = unsafe { libc::poll(&raw mut poll, 1, 0) };
    count == 1 && poll.revents & libc::POLLOUT != 0
}
