//! A ring with its doorbell and its interrupt.

use std::fmt;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::layout::Layout;
use crate::memory::SharedMemory;
use crate::options::Options;
use crate::ring::{Ring, Segment};
use crate::{Error, HostContext, Result};

/// How a driver learns that requests are done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Client {
    /// By an interrupt.
    Sleeping,
    /// By looking.
    Polling,
}

impl Client {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Sleeping, Self::Polling];
}

impl fmt::Display for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sleeping => "sleeping",
            Self::Polling => "polling",
        })
    }
}

/// What woke a sleeper.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// Something was returned, or an interrupt came.
    Ready,
    /// The server closed the connection.
    Gone,
    /// Nothing came in time.
    TimedOut,
}

/// What an event is about.
const CALL: u64 = 0;
const CONNECTION: u64 = 1;

/// A ring with its doorbell and its interrupt. It is moved to the thread that drives it.
#[derive(Debug)]
pub struct Queue {
    number: u16,
    memory: Arc<SharedMemory>,
    layout: Arc<Layout>,
    ring: Ring,
    kick: EventFd,
    call: EventFd,
    error: EventFd,
    sleep: Epoll,
    kicks: u64,
    calls: u64,
}

impl Queue {
    /// One of the layout's queues, with the negotiated `features`, for chains of up to `segments` descriptors.
    ///
    /// # Errors
    /// Where the host refuses an eventfd or an epoll instance.
    pub fn new(
        memory: &Arc<SharedMemory>,
        layout: &Arc<Layout>,
        number: u16,
        options: &Options,
        features: u64,
        segments: u16,
    ) -> Result<Self> {
        let eventfd = || EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).while_doing("eventfd");
        let (kick, call, error) = (eventfd()?, eventfd()?, eventfd()?);
        let sleep = Epoll::new().while_doing("epoll_create")?;
        // By edges, so that the counter need not be read: one system call less for each time asleep.
        let event = EpollEvent::new(EventSet::IN | EventSet::EDGE_TRIGGERED, CALL);
        sleep.ctl(ControlOperation::Add, call.as_raw_fd(), event).while_doing("epoll_ctl")?;
        Ok(Self {
            number,
            memory: Arc::clone(memory),
            layout: Arc::clone(layout),
            ring: Ring::new(memory, layout, number, options, features, segments),
            kick,
            call,
            error,
            sleep,
            kicks: 0,
            calls: 0,
        })
    }

    /// Its number.
    pub fn number(&self) -> u16 {
        self.number
    }

    /// The ring.
    pub fn ring(&self) -> &Ring {
        &self.ring
    }

    /// The ring, for what is not usual.
    pub fn ring_mut(&mut self) -> &mut Ring {
        &mut self.ring
    }

    /// The memory.
    pub fn memory(&self) -> &Arc<SharedMemory> {
        &self.memory
    }

    /// Where everything is in the memory.
    pub fn layout(&self) -> &Arc<Layout> {
        &self.layout
    }

    /// The doorbell.
    pub fn kick_fd(&self) -> &EventFd {
        &self.kick
    }

    /// The interrupt.
    pub fn call_fd(&self) -> &EventFd {
        &self.call
    }

    /// What the server signals when it gives the ring up.
    pub fn error_fd(&self) -> &EventFd {
        &self.error
    }

    /// Whether the server gave the ring up since this was asked last.
    pub fn has_failed(&self) -> bool {
        self.error.read().is_ok()
    }

    /// Doorbells rung, and interrupts slept for, so far.
    pub fn notifications(&self) -> [u64; 2] {
        [self.kicks, self.calls]
    }

    /// The offset of a slot's header.
    #[inline]
    pub fn header(&self, slot: u16) -> usize {
        self.ring.places().headers + crate::layout::HEADER_AREA * usize::from(slot)
    }

    /// The offset of a slot's buffer.
    #[inline]
    pub fn buffer(&self, slot: u16) -> usize {
        self.ring.places().buffers + self.layout.buffer() * usize::from(slot)
    }

    /// Hands a slot's request to the device, which sees it with the next [`Queue::publish`].
    #[inline]
    pub fn offer(&mut self, slot: u16, segments: &[Segment]) {
        self.ring.offer(slot, segments);
    }

    /// Lets the device see what was offered, and rings the doorbell if it wants that.
    ///
    /// # Errors
    /// Where the host refuses to write the eventfd.
    #[inline]
    pub fn publish(&mut self) -> Result<()> {
        if self.ring.publish() {
            self.ring_doorbell()?;
        }
        Ok(())
    }

    /// Rings the doorbell.
    ///
    /// # Errors
    /// Where the host refuses to write the eventfd.
    pub fn ring_doorbell(&mut self) -> Result<()> {
        self.kicks += 1;
        self.kick.write(1).while_doing("ringing a doorbell")
    }

    /// Takes the next returned slot, with the number of bytes that the device says it wrote.
    ///
    /// # Errors
    /// [`Error::Broken`].
    #[inline]
    pub fn take_used(&mut self) -> Result<Option<(u16, u32)>> {
        self.ring.take_used().map_err(|what| Error::Broken { queue: self.number, what })
    }

    /// Checks that a server may go on at the used index; see [`Ring::check_in_turn`].
    ///
    /// # Errors
    /// [`Error::Broken`].
    pub fn check_in_turn(&self) -> Result<()> {
        self.ring.check_in_turn().map_err(|what| Error::Broken { queue: self.number, what })
    }

    /// Asks for an interrupt, and sleeps until it comes or something is there.
    ///
    /// # Errors
    /// Where the host refuses to wait.
    pub fn wait(&mut self, timeout: Duration) -> Result<Wait> {
        self.ring.ask_for_interrupt();
        let deadline = Instant::now() + timeout;
        let mut events = [EpollEvent::default(); 2];
        loop {
            if self.ring.has_used() {
                return Ok(Wait::Ready);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let millis = left.as_nanos().div_ceil(1_000_000).min(i32::MAX as u128) as i32;
            let count = match self.sleep.wait(millis, &mut events) {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error).while_doing("waiting for an interrupt"),
            };
            let events = &events[..count];
            if events.iter().any(|event| event.data() == CALL) {
                self.calls += 1;
                return Ok(Wait::Ready);
            }
            if events.iter().any(|event| event.data() == CONNECTION) {
                return Ok(if self.ring.has_used() { Wait::Ready } else { Wait::Gone });
            }
            if left.is_zero() {
                return Ok(Wait::TimedOut);
            }
        }
    }

    /// Has a sleeper woken when this connection ends.
    pub(crate) fn watch(&self, connection: &impl AsRawFd) -> Result<()> {
        let event = EpollEvent::new(EventSet::READ_HANG_UP | EventSet::HANG_UP, CONNECTION);
        self.sleep
            .ctl(ControlOperation::Add, connection.as_raw_fd(), event)
            .while_doing("watching the connection")
    }
}
