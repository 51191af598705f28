//! Drain, reset, save and restore, stall, resize and swap in the middle of load, in deterministic simulation.
//!
//! ```text
//!   lane 0: Workload ► Driver ─┐                                  several workers of one virtual clock,
//!   lane 1: Workload ► Driver ─┼─► the stack under test           all on one thread; the seed chooses
//!   lane 2: Workload ► Driver ─┘      └─► SlowDisk ► the disk     who takes the next step, and when what
//! ```
//!
//! A lane takes a step where it has a reason to (it was woken, its time has come, it submitted something), and sometimes
//! without one. Once nobody has a reason, the clock moves to the next time that somebody waits for; where nobody does and
//! something is still awaited, a wake-up was lost. Below the stack a [`SlowDisk`] gives each request a time of its own, and
//! stalls when told to.
//!
//! All the way it is checked that each request comes home once, with what may be read at that time; that a queue's count
//! of what is in flight is right; and that a queue rests only with nothing in flight, and serves when it was resumed.
//!
//! The same seed gives the same run, step by step: [`Run::trace`] is a hash of it. Where a disk has threads or the kernel work
//! for it ([`Case::on_the_host`]) it does not; what is checked is the same.
//!
//! ```
//! use iovirt_core::test_utils::lifecycle::{self, Case};
//! use iovirt_core::test_utils::{PowerLossConfig, PowerLossDisk};
//!
//! let disk = || PowerLossDisk::boxed(PowerLossConfig::new(1 << 20));
//! let case = Case::new("nothing but a disk", &disk, &|below| below);
//! let report = lifecycle::run(&case, 0..3).unwrap();
//! assert!(report.requests > 0 && report.operations() > 0);
//! ```

#[cfg(test)]
mod broken;
pub mod device;
mod ops;
mod slow;
#[cfg(test)]
mod tests;
mod world;

pub use ops::Operation;
pub use slow::{Slow, SlowDisk, SlowDiskHandle, SlowHandle, SlowNet, SlowNetHandle, SlowQueue};

use super::rng::{ROUNDS_VARIABLE, Seed};
use crate::pipeline::BoxBackend;
use crate::request::block::BlockRequest;
use std::fmt;
use std::ops::{AddAssign, Range};
use std::panic::{AssertUnwindSafe, catch_unwind};
use thiserror::Error;
use world::World;

/// A block stack.
type Stack = BoxBackend<BlockRequest>;

/// What is tested, and how it is made.
#[derive(Clone, Copy)]
pub struct Case<'a> {
    /// What a failure calls it.
    pub name: &'a str,
    /// Makes a fresh disk of zeroes, of 256 KiB or more.
    pub disk: &'a dyn Fn() -> Stack,
    /// Makes the stack above it: more than once over the same disk, where it is saved and restored.
    pub above: &'a dyn Fn(Stack) -> Stack,
    /// What is written is read back: true but for a disk that throws data away.
    pub keeps_data: bool,
    /// Threads or the kernel work for the disk: where nobody has a reason for a step they are waited for, and the same seed
    /// need not give the same run.
    pub host_works: bool,
    /// Steps of a run, before what is left comes home and everything is read back.
    pub steps: u64,
    /// What happens in the middle of load.
    pub operations: &'a [Operation],
}

impl<'a> Case<'a> {
    /// A stack that keeps what is written, in runs of 300 steps.
    pub fn new(name: &'a str, disk: &'a dyn Fn() -> Stack, above: &'a dyn Fn(Stack) -> Stack) -> Self {
        Self {
            name,
            disk,
            above,
            keeps_data: true,
            host_works: false,
            steps: 300,
            operations: Operation::ALL,
        }
    }

    /// The same for a disk that throws away what is written.
    #[must_use]
    pub fn discards_data(mut self) -> Self {
        self.keeps_data = false;
        self
    }

    /// The same for a disk that threads or the kernel work for.
    #[must_use]
    pub fn on_the_host(mut self) -> Self {
        self.host_works = true;
        self
    }

    /// The same with these operations only.
    #[must_use]
    pub fn only(mut self, operations: &'a [Operation]) -> Self {
        self.operations = operations;
        self
    }

    /// The same with runs of that many steps.
    #[must_use]
    pub fn steps(mut self, steps: u64) -> Self {
        self.steps = steps;
        self
    }
}

impl fmt::Debug for Case<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Case").field("name", &self.name).field("steps", &self.steps).finish_non_exhaustive()
    }
}

/// What a run, or several, did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Run {
    /// A hash of every step, every completion and the time of each; of several runs, of all in their order.
    pub trace: u64,
    /// Seeds.
    pub seeds: u64,
    /// Requests that came home.
    pub requests: u64,
    /// Queues that came to rest under load and went on.
    pub drains: u64,
    /// Drains that were taken back before the queue rested.
    pub ways_back: u64,
    /// Queues dropped with requests in flight, and opened anew.
    pub resets: u64,
    /// Stacks saved, made anew and restored.
    pub restores: u64,
    /// Drains past their deadline over a disk that stalled, and taken back.
    pub stalls: u64,
    /// Changes of the disk's size that were heard of at the top.
    pub resizes: u64,
    /// Stacks exchanged under load, or the exchange cancelled.
    pub swaps: u64,
}

impl Run {
    /// Operations of all kinds.
    pub fn operations(&self) -> u64 {
        self.drains + self.ways_back + self.resets + self.restores + self.stalls + self.resizes + self.swaps
    }
}

impl AddAssign for Run {
    fn add_assign(&mut self, other: Self) {
        self.trace = fold(self.trace, other.trace);
        for (mine, others) in [
            (&mut self.seeds, other.seeds),
            (&mut self.requests, other.requests),
            (&mut self.drains, other.drains),
            (&mut self.ways_back, other.ways_back),
            (&mut self.resets, other.resets),
            (&mut self.restores, other.restores),
            (&mut self.stalls, other.stalls),
            (&mut self.resizes, other.resizes),
            (&mut self.swaps, other.swaps),
        ] {
            *mine += others;
        }
    }
}

impl fmt::Display for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seeds, requests, drains, ways_back, resets, restores, stalls, resizes, swaps, .. } = self;
        write!(
            f,
            "{seeds} seeds, {requests} requests; {drains} drains, {ways_back} ways back, {resets} resets, \
             {restores} restores, {stalls} stalls, {resizes} resizes, {swaps} swaps"
        )
    }
}

/// A rule that was broken, and the seed that brings it back.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{name}, {} {ROUNDS_VARIABLE}=1, step {step}, {during}: {message}", Seed(*seed))]
pub struct Failure {
    /// The case.
    pub name: String,
    /// The seed.
    pub seed: u64,
    /// The step of the run.
    pub step: u64,
    /// What was being done.
    pub during: &'static str,
    /// What happened, in words.
    pub message: String,
}

/// Runs the case with each of these seeds.
///
/// # Errors
/// The first rule that was broken.
pub fn run(case: &Case<'_>, seeds: Range<u64>) -> Result<Run, Failure> {
    let mut total = Run::default();
    for seed in seeds {
        total += run_one(case, seed)?;
    }
    Ok(total)
}

/// Runs the case with that seed.
///
/// # Errors
/// The first rule that was broken.
pub fn run_one(case: &Case<'_>, seed: u64) -> Result<Run, Failure> {
    guarded(case.name, seed, |at| {
        let mut world = World::new(case, seed)?;
        let result = world.live();
        *at = world.at();
        result.map(|()| world.run())
    })
}

/// What a run gives, which tells where it is; also where something panics.
fn guarded(
    name: &str,
    seed: u64,
    run: impl FnOnce(&mut (u64, &'static str)) -> Result<Run, String>,
) -> Result<Run, Failure> {
    let mut at = (0, "in the beginning");
    let result = catch_unwind(AssertUnwindSafe(|| run(&mut at))).unwrap_or_else(|panic| {
        let words = panic.downcast_ref::<String>().map(String::as_str);
        let words = words.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
        Err(format!("the stack panicked: {words}"))
    });
    result.map_err(|message| Failure { name: name.into(), seed, step: at.0, during: at.1, message })
}

/// A hash that takes in one more number.
fn fold(hash: u64, number: u64) -> u64 {
    super::rng::Rng::new(hash.rotate_left(17) ^ number).next_u64()
}
