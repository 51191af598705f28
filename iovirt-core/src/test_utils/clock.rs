//! Time under the test's command.

use crate::worker::{Clock, Time, UringPolicy, Worker, WorkerConfig};
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

/// A clock that stands still until it is told to move. Clones are the same clock.
#[derive(Clone, Debug, Default)]
pub struct VirtualClock {
    nanos: Arc<AtomicU64>,
}

impl VirtualClock {
    /// A clock at [`Time::ZERO`].
    pub fn new() -> Self {
        Self::default()
    }

    /// Moves to `time`. A clock never goes back: an earlier time changes nothing.
    pub fn set(&self, time: Time) {
        self.nanos.fetch_max(time.as_nanos(), Ordering::SeqCst);
    }

    /// Moves on by `duration`.
    pub fn advance(&self, duration: Duration) {
        self.set(self.now() + duration);
    }
}

impl Clock for VirtualClock {
    fn now(&self) -> Time {
        Time::from_nanos(self.nanos.load(Ordering::SeqCst))
    }
}

/// Turns after which [`Simulation::settle`] gives up on a worker that never comes to rest.
const MAX_TURNS: usize = 1_000_000;

/// A worker in virtual time: it runs until nothing is left to do, and then the clock jumps to the next deadline.
///
/// ```
/// use iovirt_core::test_utils::Simulation;
/// use iovirt_core::worker::{Lane, Time, Turn};
/// use iovirt_core::WorkerContext;
/// use std::time::Duration;
///
/// struct Ticking;
/// impl Lane for Ticking {
///     fn turn(&mut self, cx: &mut WorkerContext<'_>) -> Turn {
///         cx.wake_at(cx.now() + Duration::from_secs(3600));
///         Turn::Idle
///     }
/// }
///
/// let mut simulation = Simulation::new()?;
/// simulation.worker().handle().add_lane(|_| Some(Box::new(Ticking)));
/// assert_eq!(simulation.step()?, Some(Time::ZERO + Duration::from_secs(3600)));
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug)]
pub struct Simulation {
    clock: VirtualClock,
    worker: Worker,
    readable: Epoll,
}

impl Simulation {
    /// A worker at [`Time::ZERO`], without `io_uring`: a simulation's result depends on nothing but its seed.
    ///
    /// # Errors
    /// Where the host has no descriptor left.
    pub fn new() -> io::Result<Self> {
        Self::with_clock(VirtualClock::new())
    }

    /// A worker of that clock, which several workers may share.
    ///
    /// # Errors
    /// As [`Simulation::new`].
    pub fn with_clock(clock: VirtualClock) -> io::Result<Self> {
        let config = WorkerConfig {
            clock: Arc::new(clock.clone()),
            uring: UringPolicy::Off,
            ..WorkerConfig::default()
        };
        let worker = Worker::new(config)?;
        let readable = Epoll::new()?;
        readable.ctl(ControlOperation::Add, worker.as_raw_fd(), EpollEvent::new(EventSet::IN, 0))?;
        Ok(Self { clock, worker, readable })
    }

    /// The worker.
    pub fn worker(&mut self) -> &mut Worker {
        &mut self.worker
    }

    /// The clock.
    pub fn clock(&self) -> &VirtualClock {
        &self.clock
    }

    /// Runs until nothing is left to do at this time.
    ///
    /// # Errors
    /// Where the host fails to poll, or the worker never comes to rest.
    pub fn settle(&mut self) -> io::Result<()> {
        for _ in 0..MAX_TURNS {
            self.worker.run()?;
            if !self.has_work()? {
                return Ok(());
            }
        }
        Err(io::Error::other(format!("the worker did not come to rest within {MAX_TURNS} turns")))
    }

    /// Runs until nothing is left to do, then moves the clock to the next deadline and runs what it was for. Says what
    /// time it is then; `None` where nobody waits for a time.
    ///
    /// # Errors
    /// As [`Simulation::settle`].
    pub fn step(&mut self) -> io::Result<Option<Time>> {
        self.settle()?;
        let Some(deadline) = self.worker.next_deadline() else { return Ok(None) };
        self.clock.set(deadline);
        self.settle()?;
        Ok(Some(self.clock.now()))
    }

    /// Lets that much time pass, from one deadline to the next.
    ///
    /// # Errors
    /// As [`Simulation::settle`].
    pub fn run_for(&mut self, duration: Duration) -> io::Result<()> {
        let end = self.clock.now() + duration;
        self.settle()?;
        while self.worker.next_deadline().is_some_and(|deadline| deadline <= end) {
            self.step()?;
        }
        self.clock.set(end);
        self.settle()
    }

    /// Whether the worker's descriptor is readable, which is how an embedder learns of work.
    fn has_work(&self) -> io::Result<bool> {
        Ok(self.readable.wait(0, &mut [EpollEvent::default()])? > 0)
    }
}
