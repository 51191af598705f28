//! The simulated machine: a guest, its device, the device's workers, the clock, and who takes the next step.

use super::guest::Guest;
use super::{DeviceCase, Made, Surroundings};
use crate::frontend::Ticket;
use crate::test_utils::clock::VirtualClock;
use crate::test_utils::lifecycle::{Run, fold};
use crate::test_utils::rng::Rng;
use crate::worker::{Clock, Time, UringPolicy, Worker, WorkerConfig};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Duration;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

/// Workers that the device's queues are spread over.
const WORKERS: usize = 2;
/// Steps after which a wait that never ends is given up.
const PATIENCE: u64 = 200_000;
/// How long nothing may happen before the machine counts as quiet: longer than a card waits for buffers.
const QUIET: Duration = Duration::from_millis(500);

/// What the guest does with its device, and what it knows of it.
pub(super) trait Load {
    /// The device was set up with these features.
    fn start(&mut self, guest: &mut Guest, features: u64);
    /// Makes some requests.
    fn submit(&mut self, guest: &mut Guest, rng: &mut Rng);
    /// Takes what came back, queue by queue.
    fn take(&mut self, guest: &mut Guest, rng: &mut Rng, back: Vec<Vec<(u16, u32)>>) -> Result<(), String>;
    /// Whether something is to come without any further doing of the guest.
    fn awaits(&self) -> bool;
    /// The device was reset: what it had may have had its effect or not.
    fn forget(&mut self);
    /// Makes part of the requests that show that all is well, with nothing in flight; whether there is a next part.
    fn probe(&mut self, guest: &mut Guest, rng: &mut Rng, round: u64) -> bool;
    /// Requests that came back.
    fn finished(&self) -> u64;
}

struct SimWorker {
    worker: Worker,
    readable: Epoll,
}

impl SimWorker {
    fn new(clock: &VirtualClock) -> Result<Self, String> {
        let words = |error: std::io::Error| format!("no worker: {error}");
        let config = WorkerConfig {
            clock: Arc::new(clock.clone()),
            uring: UringPolicy::Off,
            rounds: 1,
            ..WorkerConfig::default()
        };
        let worker = Worker::new(config).map_err(words)?;
        let readable = Epoll::new().map_err(words)?;
        readable
            .ctl(ControlOperation::Add, worker.as_raw_fd(), EpollEvent::new(EventSet::IN, 0))
            .map_err(words)?;
        Ok(Self { worker, readable })
    }

    fn is_awake(&self, now: Time) -> Result<bool, String> {
        let due = self.worker.next_deadline().is_some_and(|deadline| deadline <= now);
        let events = self.readable.wait(0, &mut [EpollEvent::default()]);
        Ok(due || events.map_err(|error| format!("the host failed to poll: {error}"))? > 0)
    }
}

pub(super) struct World<'a> {
    pub(super) case: &'a DeviceCase<'a>,
    pub(super) rng: Rng,
    pub(super) clock: VirtualClock,
    pub(super) guest: Guest,
    pub(super) load: Box<dyn Load>,
    maker: super::Maker,
    pub(super) made: Option<Made>,
    workers: Vec<SimWorker>,
    /// Features that the driver knows of, in this run.
    wanted: u64,
    pub(super) run: Run,
    pub(super) at: (u64, &'static str),
}

impl<'a> World<'a> {
    pub(super) fn new(case: &'a DeviceCase<'a>, seed: u64) -> Result<Self, String> {
        /// `EVENT_IDX` and `MRG_RXBUF`, each in half of the runs.
        const OPTIONAL: [u64; 2] = [1 << 29, 1 << 15];
        let mut rng = Rng::new(seed);
        let chosen = OPTIONAL.iter().filter(|_| rng.one_in(2)).fold(0, |chosen, feature| chosen | feature);
        let mut world = Self {
            case,
            clock: VirtualClock::new(),
            guest: Guest::new()?,
            load: (case.kind.load)(),
            maker: (case.fresh)(),
            made: None,
            workers: Vec::new(),
            wanted: case.kind.features | chosen,
            run: Run { seeds: 1, trace: seed, ..Run::default() },
            at: (0, "making the device"),
            rng,
        };
        world.make_device()?;
        world.set_up()?;
        Ok(world)
    }

    /// Puts a fresh device on fresh workers in the place of the one that is there.
    pub(super) fn make_device(&mut self) -> Result<(), String> {
        self.guest.device = None;
        self.made = None;
        // What the old workers still had in flight goes with them, as with a process that ended.
        self.workers.clear();
        for _ in 0..WORKERS {
            self.workers.push(SimWorker::new(&self.clock)?);
        }
        let surroundings = Surroundings {
            space: self.guest.space.clone(),
            memory: self.guest.memory.clone(),
            workers: self.workers.iter().map(|worker| worker.worker.handle()).collect(),
            interrupt: self.guest.interrupt.clone(),
            seed: self.rng.next_u64(),
        };
        let made = (self.maker)(&surroundings);
        self.guest.device = Some(made.frontend.clone());
        self.made = Some(made);
        Ok(())
    }

    pub(super) fn made(&self) -> &Made {
        self.made.as_ref().expect("a device is in place but for a moment")
    }

    pub(super) fn set_up(&mut self) -> Result<(), String> {
        let features = self.guest.set_up(self.wanted)?;
        self.load.start(&mut self.guest, features);
        Ok(())
    }

    /// Some load and an operation now and then; then all that is left comes back, and everything is looked at.
    pub(super) fn live(&mut self) -> Result<(), String> {
        for step in 1..=self.case.steps {
            self.at = (step, "under load");
            match self.rng.below(100) {
                0..30 => self.load.submit(&mut self.guest, &mut self.rng),
                30..45 => self.interrupt()?,
                45..88 => {
                    let worker = self.rng.index(WORKERS);
                    self.step(worker)?;
                }
                88..95 => self.clock.advance(Duration::from_micros(50)),
                _ => self.operation()?,
            }
        }
        self.at.1 = "at the end";
        self.settle(|world| !world.load.awaits())?;
        for round in 0.. {
            self.at.1 = "looking at everything";
            self.quiet()?;
            let more = self.load.probe(&mut self.guest, &mut self.rng, round);
            self.settle(|world| !world.load.awaits())?;
            if !more {
                return Ok(());
            }
        }
        Ok(())
    }

    pub(super) fn run(&self) -> Run {
        Run { requests: self.load.finished(), ..self.run }
    }

    pub(super) fn note(&mut self, number: u64) {
        self.run.trace = fold(self.run.trace, number);
    }

    /// A worker takes a step.
    pub(super) fn step(&mut self, at: usize) -> Result<(), String> {
        self.note(self.clock.now().as_nanos() << 4 | at as u64);
        self.workers[at].worker.run().map_err(|error| format!("the host failed to poll: {error}"))?;
        match (self.made().watch)() {
            Some(violation) => Err(violation),
            None => Ok(()),
        }
    }

    /// The guest takes an interrupt, where one waits.
    pub(super) fn interrupt(&mut self) -> Result<(), String> {
        if !self.guest.is_interrupted() {
            return Ok(());
        }
        let back = self.guest.take_interrupt()?;
        for (head, len) in back.iter().flatten() {
            self.run.trace = fold(self.run.trace, u64::from(*head) << 32 | u64::from(*len));
        }
        self.load.take(&mut self.guest, &mut self.rng, back)
    }

    /// A few steps of whoever comes, and some load where the guest is `busy`.
    pub(super) fn a_while(&mut self, steps: u64, busy: Busy) -> Result<(), String> {
        for _ in 0..self.rng.below(steps + 1) {
            match self.rng.below(4) {
                0 if busy == Busy::Working => self.load.submit(&mut self.guest, &mut self.rng),
                1 => self.interrupt()?,
                _ => {
                    let worker = self.rng.index(WORKERS);
                    self.step(worker)?;
                }
            }
        }
        Ok(())
    }

    /// Lets the machine go on until `enough`, each part of it with reason; where none has one, the clock moves.
    pub(super) fn settle(&mut self, enough: impl Fn(&Self) -> bool) -> Result<(), String> {
        if self.settle_until(None, enough)? {
            return Ok(());
        }
        Err("nobody has a reason to do anything, and something is still awaited: an interrupt, a doorbell or a \
             wake-up was lost"
            .into())
    }

    pub(super) fn settle_for(&mut self, ticket: &Ticket) -> Result<(), String> {
        self.settle(|_| ticket.is_done())
    }

    /// Lets everything happen that happens by itself.
    pub(super) fn quiet(&mut self) -> Result<(), String> {
        let limit = self.clock.now() + QUIET;
        self.settle_until(Some(limit), |_| false).map(drop)
    }

    /// The same as [`World::settle`], until a time at most; whether it was enough.
    pub(super) fn settle_until(
        &mut self,
        limit: Option<Time>,
        enough: impl Fn(&Self) -> bool,
    ) -> Result<bool, String> {
        for _ in 0..PATIENCE {
            if enough(self) {
                return Ok(true);
            }
            let now = self.clock.now();
            let mut awake = Vec::new();
            for (at, worker) in self.workers.iter().enumerate() {
                if worker.is_awake(now)? {
                    awake.push(at);
                }
            }
            if self.guest.is_interrupted() {
                awake.push(WORKERS);
            }
            if !awake.is_empty() {
                match awake[self.rng.index(awake.len())] {
                    WORKERS => self.interrupt()?,
                    at => self.step(at)?,
                }
                continue;
            }
            let next = self.workers.iter().filter_map(|worker| worker.worker.next_deadline()).min();
            match (next, limit) {
                (Some(next), None) => self.clock.set(next),
                (Some(next), Some(limit)) if next <= limit => self.clock.set(next),
                (_, Some(limit)) => {
                    self.clock.set(limit);
                    return Ok(false);
                }
                (None, None) => return Ok(false),
            }
        }
        Err("it goes on and on".into())
    }
}

/// Whether the guest makes requests meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Busy {
    Working,
    Waiting,
}
