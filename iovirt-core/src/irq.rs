//! Interrupts: how a device reaches the guest. The embedder supplies the way, a device only pulls it.

use crate::worker::fd::{adopt, blocks, is_writable, lend};
use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// A way to interrupt a guest. Called from worker threads and from vCPU threads; does not block.
pub trait Interrupt: Send + Sync + fmt::Debug {
    /// Raises it once (an edge).
    fn trigger(&self);
}

/// An interrupt through an eventfd: registered as an irqfd it needs no exit of the guest.
pub struct EventFdInterrupt {
    event: EventFd,
    /// Writing it may block: it is somebody else's.
    blocks: bool,
}

impl EventFdInterrupt {
    /// A new eventfd.
    ///
    /// # Errors
    /// Where the host has no descriptor left.
    pub fn new() -> io::Result<Self> {
        Ok(Self { event: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?, blocks: false })
    }

    /// An eventfd that exists already.
    pub fn from_event(event: EventFd) -> Self {
        Self { blocks: blocks(&event), event }
    }

    /// A descriptor that somebody else made, such as one received over vhost-user. Whatever it is, raising the interrupt does not
    /// block.
    pub fn from_fd(fd: OwnedFd) -> Self {
        Self::from_event(adopt(fd))
    }

    /// The descriptor, to be registered as an irqfd.
    pub fn event(&self) -> &EventFd {
        &self.event
    }
}

impl Interrupt for EventFdInterrupt {
    fn trigger(&self) {
        if self.blocks && !is_writable(&self.event) {
            return;
        }
        // The only failure is a counter at its end, and then an interrupt is pending already.
        let _ = self.event.write(1);
    }
}

/// For a loop or a hypervisor's binding that speaks of descriptors and not of `EventFd`.
impl AsFd for EventFdInterrupt {
    fn as_fd(&self) -> BorrowedFd<'_> {
        lend(&self.event)
    }
}

impl fmt::Debug for EventFdInterrupt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EventFdInterrupt(fd {})", self.event.as_raw_fd())
    }
}

/// A level-triggered interrupt line: `KVM_IRQ_LINE`, say. Called from worker threads and from vCPU threads; does not block.
pub trait InterruptLine: Send + Sync + fmt::Debug {
    /// Raises the line, until it is let go.
    fn assert(&self);

    /// Lets go of the line.
    fn deassert(&self);
}

/// A message-signalled interrupt: a write of `data` to `address` (PCI Local Bus 3.0, section 6.8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsiMessage {
    /// Where the message is written.
    pub address: u64,
    /// What is written.
    pub data: u32,
}

/// Delivers message-signalled interrupts: an embedder's `KVM_SIGNAL_MSI`, say.
pub trait MsiSink: Send + Sync {
    /// Delivers one message.
    fn signal(&self, message: MsiMessage);
}

/// An interrupt that is a message.
pub struct MsiInterrupt {
    message: MsiMessage,
    sink: Arc<dyn MsiSink>,
}

impl MsiInterrupt {
    /// That message, delivered by `sink`.
    pub fn new(message: MsiMessage, sink: Arc<dyn MsiSink>) -> Self {
        Self { message, sink }
    }
}

impl Interrupt for MsiInterrupt {
    fn trigger(&self) {
        self.sink.signal(self.message);
    }
}

impl fmt::Debug for MsiInterrupt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MsiInterrupt").field("message", &self.message).finish_non_exhaustive()
    }
}

/// An interrupt that is a function call.
pub struct CallbackInterrupt {
    callback: Box<dyn Fn() + Send + Sync>,
}

impl CallbackInterrupt {
    /// Calls `callback` for every interrupt, on the thread that raises it.
    pub fn new(callback: impl Fn() + Send + Sync + 'static) -> Self {
        Self { callback: Box::new(callback) }
    }
}

impl Interrupt for CallbackInterrupt {
    fn trigger(&self) {
        (self.callback)();
    }
}

impl fmt::Debug for CallbackInterrupt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CallbackInterrupt")
    }
}

/// An interrupt that only counts: for tests, and for the counters of a report.
#[derive(Debug, Default)]
pub struct CountingInterrupt {
    raised: AtomicU64,
    next: Option<Arc<dyn Interrupt>>,
}

impl CountingInterrupt {
    /// Counts, and raises nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Counts, and raises `next`.
    pub fn before(next: Arc<dyn Interrupt>) -> Self {
        Self { raised: AtomicU64::new(0), next: Some(next) }
    }

    /// How often it was raised.
    pub fn raised(&self) -> u64 {
        self.raised.load(Ordering::Relaxed)
    }
}

impl Interrupt for CountingInterrupt {
    fn trigger(&self) {
        self.raised.fetch_add(1, Ordering::Relaxed);
        if let Some(next) = &self.next {
            next.trigger();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_counter_blocks_nobody() {
        let event = EventFd::new(EFD_CLOEXEC).unwrap();
        event.write(u64::MAX - 1).unwrap();
        let interrupt = EventFdInterrupt::from_event(event);
        interrupt.trigger();
        assert_eq!(interrupt.event().read().unwrap(), u64::MAX - 1);
        interrupt.trigger();
        assert_eq!(interrupt.event().read().unwrap(), 1);
    }

    #[test]
    fn each_kind_delivers() {
        #[derive(Default)]
        struct Sink(AtomicU64);
        impl MsiSink for Sink {
            fn signal(&self, message: MsiMessage) {
                self.0.store(message.address + u64::from(message.data), Ordering::Relaxed);
            }
        }
        let sink = Arc::new(Sink::default());
        MsiInterrupt::new(MsiMessage { address: 0xfee0_0000, data: 7 }, sink.clone()).trigger();
        assert_eq!(sink.0.load(Ordering::Relaxed), 0xfee0_0007);

        let event = Arc::new(EventFdInterrupt::new().unwrap());
        let counting = CountingInterrupt::before(event.clone());
        counting.trigger();
        counting.trigger();
        assert_eq!(event.as_fd().as_raw_fd(), event.event().as_raw_fd());
        assert_eq!(event.event().read().unwrap(), 2);
        assert_eq!(counting.raised(), 2);

        let called = Arc::new(CountingInterrupt::new());
        let inner = called.clone();
        CallbackInterrupt::new(move || inner.trigger()).trigger();
        assert_eq!(called.raised(), 1);
    }
}
