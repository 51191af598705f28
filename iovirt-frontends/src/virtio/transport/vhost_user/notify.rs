//! The way to the driver: eventfds of the front-end, and requests of ours on a socket of its.

use super::message::{Direction, encode};
use crate::virtio::{ConfigListener, VirtioNotify};
use arc_swap::ArcSwapOption;
use iovirt_core::irq::{EventFdInterrupt, Interrupt};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};
use vhost::vhost_user::message::BackendReq;

/// What the front-end gave to reach the driver with.
#[derive(Debug)]
pub(super) struct VhostUserNotify {
    rings: Box<[RingEvents]>,
    channel: Mutex<Option<UnixStream>>,
}

#[derive(Debug, Default)]
struct RingEvents {
    call: ArcSwapOption<EventFdInterrupt>,
    error: ArcSwapOption<EventFdInterrupt>,
}

fn interrupt(fd: Option<OwnedFd>) -> Option<Arc<EventFdInterrupt>> {
    fd.map(|fd| Arc::new(EventFdInterrupt::from_fd(fd)))
}

impl VhostUserNotify {
    pub(super) fn new(queues: usize) -> Self {
        Self { rings: (0..queues).map(|_| RingEvents::default()).collect(), channel: Mutex::default() }
    }

    /// What is raised for used buffers. Raised once, as an interrupt may have gone to what was there before.
    pub(super) fn set_call(&self, queue: usize, fd: Option<OwnedFd>) {
        if let Some(ring) = self.rings.get(queue) {
            ring.call.store(interrupt(fd));
            raise(&ring.call);
        }
    }

    /// What is raised when the driver broke the ring.
    pub(super) fn set_error(&self, queue: usize, fd: Option<OwnedFd>) {
        if let Some(ring) = self.rings.get(queue) {
            ring.error.store(interrupt(fd));
        }
    }

    /// Where requests to the front-end go.
    pub(super) fn set_channel(&self, channel: Option<UnixStream>) {
        *self.channel.lock().unwrap_or_else(PoisonError::into_inner) = channel;
    }

    /// The front-end is gone.
    pub(super) fn disconnect(&self) {
        for ring in &self.rings {
            ring.call.store(None);
            ring.error.store(None);
        }
        self.set_channel(None);
    }

    fn tell_config_change(&self) {
        let channel = self.channel.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(stream) = &*channel {
            let message = encode(BackendReq::CONFIG_CHANGE_MSG.into(), Direction::Request, &[]);
            // A front-end that does not read loses messages, and holds nobody up. It asks for the whole space: one message that waits is
            // as good as two.
            let _ = iovirt_core::socket::send_now(stream, &message, &[]);
        }
    }
}

fn raise(event: &ArcSwapOption<EventFdInterrupt>) {
    if let Some(event) = &*event.load() {
        event.trigger();
    }
}

impl VirtioNotify for VhostUserNotify {
    fn used(&self, queue: u16) {
        if let Some(ring) = self.rings.get(usize::from(queue)) {
            raise(&ring.call);
        }
    }

    /// The device needs a reset: a front-end hears it of every ring, and reads the status.
    fn config(&self) {
        self.rings.iter().for_each(|ring| raise(&ring.error));
        self.tell_config_change();
    }

    fn reset(&self) {}
}

impl ConfigListener for VhostUserNotify {
    fn config_changed(&self) {
        self.tell_config_change();
    }
}
