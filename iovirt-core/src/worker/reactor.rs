//! The worker's one pollable file descriptor: an epoll instance with a wake-up, a timer, and whatever lanes watch.

use super::clock::Time;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::time::Duration;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::timerfd::TimerFd;

/// When a watched file descriptor gives its lane a turn; an error or a hang-up does so in any case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trigger {
    /// As long as it is readable.
    Level,
    /// Each time it becomes readable, or is written once more: an eventfd need never be read.
    Edge,
    /// As long as it can be written.
    Writable,
}

const WAKE: u64 = u64::MAX;
const TIMER: u64 = u64::MAX - 1;
const URING: u64 = u64::MAX - 2;
const EVENTS: usize = 64;

pub(super) struct Reactor {
    epoll: Epoll,
    timer: TimerFd,
    armed: Option<Time>,
    events: Vec<EpollEvent>,
}

impl Reactor {
    pub(super) fn new(wake: &EventFd) -> io::Result<Self> {
        let reactor = Self {
            epoll: Epoll::new()?,
            timer: TimerFd::new()?,
            armed: None,
            events: vec![EpollEvent::default(); EVENTS],
        };
        reactor.add(wake.as_raw_fd(), WAKE, Trigger::Edge)?;
        reactor.add(reactor.timer.as_raw_fd(), TIMER, Trigger::Edge)?;
        Ok(reactor)
    }

    pub(super) fn watch_uring(&self, event: &EventFd) -> io::Result<()> {
        self.add(event.as_raw_fd(), URING, Trigger::Edge)
    }

    pub(super) fn watch_lane(&self, fd: &OwnedFd, lane: usize, trigger: Trigger) -> io::Result<()> {
        self.add(fd.as_raw_fd(), lane as u64, trigger)
    }

    pub(super) fn forget(&self, fd: &OwnedFd) {
        // A descriptor that is not there is forgotten already.
        let _ = self.epoll.ctl(ControlOperation::Delete, fd.as_raw_fd(), EpollEvent::default());
    }

    fn add(&self, fd: RawFd, data: u64, trigger: Trigger) -> io::Result<()> {
        let events = match trigger {
            Trigger::Level => EventSet::IN,
            Trigger::Edge => EventSet::IN | EventSet::EDGE_TRIGGERED,
            Trigger::Writable => EventSet::OUT,
        };
        self.epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(events, data))
    }

    /// Waits at most that long (milliseconds; -1 for ever) and tells which lanes have something to read, and whether the
    /// ring has completions.
    pub(super) fn wait(
        &mut self,
        timeout_ms: i32,
        mut ready: impl FnMut(usize),
        mut completions: impl FnMut(),
    ) -> io::Result<()> {
        let count = match self.epoll.wait(timeout_ms, &mut self.events) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            Err(error) => return Err(error),
        };
        for event in &self.events[..count] {
            match event.data() {
                WAKE => {}
                TIMER => self.armed = None,
                URING => completions(),
                lane => ready(lane as usize),
            }
        }
        Ok(())
    }

    /// Makes the descriptor readable at `deadline`.
    pub(super) fn arm(&mut self, deadline: Option<Time>, now: Time) -> io::Result<()> {
        if deadline == self.armed {
            return Ok(());
        }
        // A timer of zero would be none.
        let at_least = Duration::from_nanos(1);
        match deadline {
            Some(deadline) => self.timer.reset(deadline.since(now).max(at_least), None)?,
            None => self.timer.clear()?,
        }
        self.armed = deadline;
        Ok(())
    }
}

impl AsRawFd for Reactor {
    fn as_raw_fd(&self) -> RawFd {
        self.epoll.as_raw_fd()
    }
}
