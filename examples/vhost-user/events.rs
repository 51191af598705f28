//! What the main thread waits for beside signals.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Mutex, PoisonError};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// Something that happened.
#[derive(Debug)]
pub(crate) enum Event {
    /// A client of the control socket asked for the end.
    Quit,
    /// The server of this device returned.
    Ended(usize, io::Result<()>),
}

/// What happened and was not looked at yet. Readable where there is something.
#[derive(Debug)]
pub(crate) struct Events {
    signal: EventFd,
    list: Mutex<Vec<Event>>,
}

impl Events {
    /// Nothing happened yet.
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self { signal: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?, list: Mutex::default() })
    }

    /// It happens.
    pub(crate) fn push(&self, event: Event) {
        self.list.lock().unwrap_or_else(PoisonError::into_inner).push(event);
        // It fails where it is readable already.
        let _ = self.signal.write(1);
    }

    /// What happened since the last time.
    pub(crate) fn take(&self) -> Vec<Event> {
        // Before the list, so that what comes in between makes it readable again. It fails where there is nothing.
        let _ = self.signal.read();
        std::mem::take(&mut self.list.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl AsRawFd for Events {
    fn as_raw_fd(&self) -> RawFd {
        self.signal.as_raw_fd()
    }
}
