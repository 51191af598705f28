//! Doorbells: how a guest's register write reaches a worker without a trip through user space.

use crate::worker::fd::{adopt, blocks, lend};
use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// An event file descriptor that the guest's doorbell writes and a worker watches.
#[derive(Clone)]
pub struct Doorbell {
    event: Arc<EventFd>,
    /// Reading it may block: it is somebody else's.
    blocks: bool,
}

impl Doorbell {
    /// A new doorbell.
    ///
    /// # Errors
    /// Where the host has no descriptor left.
    pub fn new() -> io::Result<Self> {
        Ok(Self { event: Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?), blocks: false })
    }

    /// An eventfd that exists already, such as one received over vhost-user.
    pub fn from_fd(fd: OwnedFd) -> Self {
        let event = adopt(fd);
        Self { blocks: blocks(&event), event: Arc::new(event) }
    }

    /// How often it was rung since this was last asked. Zero where asking might block. Whoever watches it by edges may miss one by
    /// this, and is to be woken where it is more than zero.
    pub fn take_rung(&self) -> u64 {
        if self.blocks { 0 } else { self.event.read().unwrap_or(0) }
    }

    /// Rings it from user space, as the kernel does for a registered ioeventfd.
    pub fn ring(&self) {
        // The only failure is a counter at its end, and then the worker is awake already.
        let _ = self.event.write(1);
    }

    /// The descriptor, to be registered as an ioeventfd.
    pub fn event(&self) -> &EventFd {
        &self.event
    }
}

/// For a loop or a hypervisor's binding that speaks of descriptors and not of `EventFd`.
impl AsFd for Doorbell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        lend(&self.event)
    }
}

impl AsRawFd for Doorbell {
    fn as_raw_fd(&self) -> RawFd {
        self.event.as_raw_fd()
    }
}

impl fmt::Debug for Doorbell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Doorbell(fd {})", self.event.as_raw_fd())
    }
}

/// An ioeventfd that the embedder registers with its hypervisor, in terms of the device's own region.
#[derive(Clone, Debug)]
pub struct DoorbellSpec {
    /// Which of [`Frontend::regions`](crate::Frontend::regions).
    pub region: usize,
    /// Offset of the register in the region, in bytes.
    pub offset: u64,
    /// Width of the write that rings, in bytes.
    pub width: u8,
    /// Rings only where this value is written; `None` for any.
    pub value: Option<u64>,
    /// What it rings.
    pub doorbell: Doorbell,
}
