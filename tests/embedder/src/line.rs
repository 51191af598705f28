//! An interrupt line of the embedder's own: an eventfd, as an irqfd is one, which the event loop delivers.

use crate::{Error, PATIENCE};
use iovirt::core::irq::Interrupt;
use rustix::event::{EventfdFlags, eventfd};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Condvar, Mutex, PoisonError};

/// An edge-triggered line from a device to the guest.
#[derive(Debug)]
pub struct Line {
    event: OwnedFd,
    delivered: Mutex<u64>,
    changed: Condvar,
}

impl Line {
    /// A line on which nothing has happened.
    pub fn new() -> Result<Self, Error> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { event, delivered: Mutex::new(0), changed: Condvar::new() })
    }

    /// Brings what was triggered to the guest: called by the event loop.
    pub fn deliver(&self) {
        let mut count = [0; 8];
        if rustix::io::read(&self.event, &mut count).is_ok() {
            *self.delivered.lock().unwrap_or_else(PoisonError::into_inner) += u64::from_ne_bytes(count);
            self.changed.notify_all();
        }
    }

    /// Interrupts that reached the guest so far. Ask before looking at a ring, so that none between is missed.
    pub fn delivered(&self) -> u64 {
        *self.delivered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The guest sleeps until there were more than `seen`.
    pub fn wait_beyond(&self, seen: u64) -> Result<(), Error> {
        let delivered = self.delivered.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.changed.wait_timeout_while(delivered, PATIENCE, |delivered| *delivered <= seen);
        let (delivered, _) = waited.unwrap_or_else(PoisonError::into_inner);
        if *delivered > seen { Ok(()) } else { Err("no interrupt came".into()) }
    }
}

/// Called on the device's worker, or on whatever thread breaks a device down: it must not block.
impl Interrupt for Line {
    fn trigger(&self) {
        // The only failure is a counter at its end, and then an interrupt is pending already.
        let _ = rustix::io::write(&self.event, &1u64.to_ne_bytes());
    }
}

impl AsFd for Line {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}
