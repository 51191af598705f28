//! The simulated world: lanes, their load, the clock, and who takes the next step.

use super::{Case, Run, SlowDisk, SlowDiskHandle, Stack, fold};
use crate::backend::{Backend, Mode, Queue};
use crate::pipeline::{BoxBackend, Event, EventListener};
use crate::request::block::BlockOutput;
use crate::test_utils::clock::VirtualClock;
use crate::test_utils::driver::Driver;
use crate::test_utils::rng::Rng;
use crate::test_utils::workload::{Workload, WorkloadConfig};
use crate::worker::{Clock, Time, UringPolicy, WorkerConfig};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

/// Queues, each on a worker of its own.
pub(super) const LANES: usize = 3;

/// The depth of a queue.
pub(super) const DEPTH: u32 = 12;

/// Bytes that each lane works on.
const SHARE: u64 = 64 << 10;

/// The longest that the disk takes for a request.
const LONGEST: Duration = Duration::from_micros(200);

/// Steps after which a wait that never ends is given up.
const PATIENCE: u64 = 100_000;

/// How long the host is waited for, in milliseconds.
const HOST_PATIENCE_MS: u32 = 10_000;

pub(super) struct World<'a> {
    pub(super) case: &'a Case<'a>,
    pub(super) rng: Rng,
    pub(super) clock: VirtualClock,
    pub(super) disk: Stack,
    pub(super) slow: SlowDiskHandle,
    pub(super) stack: Option<Stack>,
    pub(super) lanes: Vec<Lane>,
    pub(super) heard: Arc<Heard>,
    pub(super) run: Run,
    pub(super) at: (u64, &'static str),
}

pub(super) struct Lane {
    pub(super) driver: Driver,
    pub(super) load: Workload,
    readable: Epoll,
    /// Something was submitted or asked of the queue since its last step.
    pub(super) touched: bool,
    /// Asked to drain and not resumed.
    pub(super) draining: bool,
}

/// Counts events at the top of the stack.
#[derive(Default)]
pub(super) struct Heard(AtomicU64);

impl EventListener for Heard {
    fn event(&self, _: Event) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

impl Heard {
    pub(super) fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl<'a> World<'a> {
    pub(super) fn new(case: &'a Case<'a>, seed: u64) -> Result<Self, String> {
        let mut rng = Rng::new(seed);
        let clock = VirtualClock::new();
        let disk = (case.disk)();
        let (below, slow) = slow_disk(&disk, disk.caps().capacity, &mut rng);
        let mut world = Self {
            case,
            clock,
            disk,
            slow,
            stack: None,
            lanes: Vec::new(),
            heard: Arc::default(),
            run: Run { seeds: 1, trace: seed, ..Run::default() },
            at: (0, "opening queues"),
            rng,
        };
        world.put_in_place((case.above)(below));
        for at in 0..LANES {
            let lane = world.lane(at as u64)?;
            world.lanes.push(lane);
            world.open(at)?;
        }
        Ok(world)
    }

    fn lane(&mut self, at: u64) -> Result<Lane, String> {
        let words = |error: std::io::Error| format!("no lane: {error}");
        let config = WorkerConfig {
            clock: Arc::new(self.clock.clone()),
            uring: UringPolicy::Off,
            ..WorkerConfig::default()
        };
        let mut driver = Driver::with_config(self.rng.next_u64(), config).map_err(words)?;
        let readable = Epoll::new().map_err(words)?;
        let event = EpollEvent::new(EventSet::IN, 0);
        readable.ctl(ControlOperation::Add, driver.worker().as_raw_fd(), event).map_err(words)?;
        let caps = self.stack().caps();
        let mut config = WorkloadConfig::new(&caps, 0);
        let block = u64::from(caps.logical_block);
        let first = (at * SHARE).next_multiple_of(block) / 512;
        config.sectors = first..first + SHARE / block * block / 512;
        config.keeps_data = self.case.keeps_data;
        let load = Workload::new(config, &caps, self.rng.next_u64());
        Ok(Lane { driver, load, readable, touched: false, draining: false })
    }

    /// The stack that the lanes use.
    pub(super) fn stack(&self) -> Stack {
        self.stack.clone().expect("a stack is in place but for a moment")
    }

    pub(super) fn put_in_place(&mut self, stack: Stack) {
        let listener: Arc<dyn EventListener> = self.heard.clone();
        stack.subscribe(&listener);
        self.stack = Some(stack);
    }

    /// Makes the stack anew above the same disk.
    pub(super) fn rebuild(&mut self) -> Stack {
        let capacity = self.disk.caps().capacity;
        let (below, slow) = slow_disk(&self.disk, capacity, &mut self.rng);
        self.slow = slow;
        (self.case.above)(below)
    }

    pub(super) fn open(&mut self, at: usize) -> Result<(), String> {
        let stack = self.stack();
        let lane = &mut self.lanes[at];
        lane.driver.open_with_fua(&stack, DEPTH).map_err(|error| format!("open failed: {error}"))?;
        (lane.touched, lane.draining) = (true, false);
        match lane.driver.mode() {
            Mode::Running => Ok(()),
            mode => Err(format!("a fresh queue is {mode:?}")),
        }
    }

    /// Some load and an operation now and then; then all that is left comes home, and everything is read back.
    pub(super) fn live(&mut self) -> Result<(), String> {
        for step in 1..=self.case.steps {
            self.at = (step, "under load");
            match self.rng.below(100) {
                0..40 => self.submit(),
                40..88 => {
                    let lane = self.rng.index(LANES);
                    self.step(lane)?;
                }
                88..95 => self.clock.advance(LONGEST.mul_f64(0.25)),
                _ => self.operation()?,
            }
        }
        self.at.1 = "at the end";
        self.settle(|world| world.lanes.iter().all(|lane| lane.driver.in_flight() == 0))?;
        if self.case.keeps_data {
            for lane in &mut self.lanes {
                lane.load.submit_read_back(&mut lane.driver);
                lane.touched = true;
            }
            self.settle(|world| world.lanes.iter().all(|lane| lane.driver.in_flight() == 0))?;
        }
        Ok(())
    }

    pub(super) fn at(&self) -> (u64, &'static str) {
        self.at
    }

    pub(super) fn run(&self) -> Run {
        Run { requests: self.lanes.iter().map(|lane| lane.load.finished()).sum(), ..self.run }
    }

    /// One lane submits a few requests.
    pub(super) fn submit(&mut self) {
        let lane = self.rng.index(LANES);
        let Lane { driver, load, touched, .. } = &mut self.lanes[lane];
        for _ in 0..self.rng.between(1, 4) {
            load.submit(driver);
        }
        *touched = true;
    }

    /// One lane takes a turn.
    pub(super) fn step(&mut self, at: usize) -> Result<(), String> {
        let now = self.clock.now();
        self.note(now.as_nanos() << 4 | at as u64);
        let Lane { driver, load, touched, .. } = &mut self.lanes[at];
        *touched = false;
        let done = driver.turn();
        for done in &done {
            let failed = u64::from(done.output != BlockOutput::Done);
            let data = done.data.iter().step_by(64).fold(0, |sum, byte| fold(sum, u64::from(*byte)));
            self.run.trace = fold(self.run.trace, fold(done.id.0 << 1 | failed, data));
        }
        load.take(done).map_err(|violation| format!("lane {at}: {violation}"))?;
        self.check(at)
    }

    pub(super) fn note(&mut self, number: u64) {
        self.run.trace = fold(self.run.trace, number);
    }

    /// What must hold at any time.
    pub(super) fn check(&mut self, at: usize) -> Result<(), String> {
        let lane = &mut self.lanes[at];
        let (ours, mode) = (lane.driver.in_flight(), lane.driver.mode());
        let theirs = lane.driver.with_queue(|queue, _| queue.in_flight());
        if theirs != ours {
            return Err(format!(
                "lane {at} has {ours} requests in flight, and its queue says {theirs} ({mode:?})"
            ));
        }
        match (lane.draining, mode) {
            (true, Mode::Quiesced) if ours > 0 => {
                Err(format!("the queue of lane {at} says it rests with {ours} requests in flight"))
            }
            (true, Mode::Running) => {
                Err(format!("the queue of lane {at} was asked to drain and says it runs"))
            }
            (false, Mode::Draining | Mode::Quiesced) => {
                Err(format!("the queue of lane {at} was not asked to drain and is {mode:?}"))
            }
            _ => Ok(()),
        }
    }

    /// Lanes that have a reason for a step.
    fn awake(&mut self) -> Result<Vec<usize>, String> {
        let now = self.clock.now();
        let mut awake = Vec::new();
        for (at, lane) in self.lanes.iter_mut().enumerate() {
            let due = lane.driver.worker().next_deadline().is_some_and(|deadline| deadline <= now);
            let events = lane.readable.wait(0, &mut [EpollEvent::default()]);
            let readable = events.map_err(|error| format!("the host failed to poll: {error}"))? > 0;
            if lane.touched || due || readable {
                awake.push(at);
            }
        }
        Ok(awake)
    }

    /// Lets the world go on until `enough`, each lane with reason; where nobody has one, the clock moves.
    pub(super) fn settle(&mut self, enough: impl Fn(&Self) -> bool) -> Result<(), String> {
        if self.settle_until(None, enough)? { Ok(()) } else { Err(self.stuck()) }
    }

    /// The same until a time at most, or until nobody has a reason any more; whether it was enough.
    pub(super) fn settle_until(
        &mut self,
        limit: Option<Time>,
        enough: impl Fn(&Self) -> bool,
    ) -> Result<bool, String> {
        for _ in 0..PATIENCE {
            if enough(self) {
                return Ok(true);
            }
            let awake = self.awake()?;
            if !awake.is_empty() {
                let at = awake[self.rng.index(awake.len())];
                self.step(at)?;
                continue;
            }
            let deadlines = self.lanes.iter_mut().filter_map(|lane| lane.driver.worker().next_deadline());
            match (deadlines.min(), limit) {
                (Some(next), None) => self.clock.set(next),
                (Some(next), Some(limit)) if next <= limit => self.clock.set(next),
                (_, Some(limit)) => {
                    self.clock.set(limit);
                    return Ok(false);
                }
                (None, None) if self.case.host_works && self.wait_for_host()? => {}
                (None, None) => return Ok(false),
            }
        }
        Err(format!("it goes on and on: {}", self.stuck()))
    }

    /// Waits until somebody is woken from outside; whether anybody was.
    fn wait_for_host(&mut self) -> Result<bool, String> {
        for _ in 0..HOST_PATIENCE_MS {
            if !self.awake()?.is_empty() {
                return Ok(true);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(false)
    }

    fn stuck(&self) -> String {
        let lanes = self.lanes.iter().map(|lane| (lane.driver.in_flight(), lane.driver.mode()));
        format!(
            "nobody has a reason to do anything, with these requests in flight on each lane: {:?}",
            lanes.collect::<Vec<_>>()
        )
    }
}

fn slow_disk(disk: &Stack, capacity: u64, rng: &mut Rng) -> (Stack, SlowDiskHandle) {
    let (slow, handle) = SlowDisk::new(disk.clone(), capacity, LONGEST, rng.next_u64());
    (BoxBackend::new(slow), handle)
}
