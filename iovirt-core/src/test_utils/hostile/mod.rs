//! The hostile-driver suite: what a guest can do to a virtio device behind virtio-mmio registers, and what becomes of it.
//!
//! | module | holds |
//! |---|---|
//! | `driver` | [`RawDriver`]: registers, descriptors and rings by hand, without any driver's good manners |
//! | `chain` | [`Buffer`], [`Exchange`], [`Split`]: one request, cut into descriptors in any way |
//! | `chains`, `indirect` | broken chains, broken indirect tables |
//! | `splits` | the same request in every split |
//! | `setup` | features, status, queue sizes and addresses |
//! | `registers` | accesses of every width everywhere |
//! | `life` | resets, queues taken back, a memory map without the ring |
//! | `load` | floods of log lines, of work, and memory that changes under the device |
//! | `saved` | saved state with every byte flipped |
//!
//! Each case says what the device must answer, and that is one of three things: the device needs a reset, the request
//! comes back (with an error, if its class has one), or nothing happens. After every case the same device must serve an
//! honest request again.
//!
//! The suite knows nothing of a device class but what a [`Profile`] tells it: requests as bytes to be read and bytes to
//! be written, and what an honest answer looks like.

mod chain;
mod chains;
mod driver;
mod indirect;
mod life;
mod load;
mod registers;
mod report;
mod saved;
mod setup;
mod splits;

pub use chain::{Buffer, Exchange, Split};
pub use driver::{Answer, Layout, QueueSetup, RawDriver, feature, register, status};
pub use report::{CaseResult, HostileReport};

use super::rng::{Rng, rounds_or, seed_or};
use crate::dma::DmaSpace;
use crate::frontend::Frontend;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

/// A fresh device, the memory that it sees, and a way to let it work.
pub struct Target {
    /// The device: its region 0 is a virtio-mmio register file.
    pub frontend: Arc<dyn Frontend>,
    /// The guest's memory as the device sees it.
    pub space: DmaSpace,
    /// Guest memory that the driver may use: a multiple of 4096, with [`Layout::LEN`] bytes behind it.
    pub base: u64,
    /// The queue that requests are made on.
    pub queue: u32,
    /// Lets the device work a little: one step of its worker, or a short sleep where it has a thread of its own.
    pub step: Box<dyn FnMut()>,
    /// How many lanes the device's workers have, where that can be told.
    pub lanes: Option<Box<dyn Fn() -> usize>>,
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Target").field("frontend", &self.frontend).finish_non_exhaustive()
    }
}

/// Makes a fresh device.
pub type Factory<'a> = dyn Fn() -> Target + 'a;

/// What the chains of a queue are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Requests with a part to be read and a part to be written: others cannot be answered, and break the device.
    Both,
    /// Something to be read, which comes back whatever it is: a queue that transmits.
    Readable,
    /// Room to be written, as much as a header takes at least: a queue that receives. Whoever made the target sees to it that
    /// there always is something to be received.
    Writable,
}

/// What the suite has to know of a device.
#[derive(Clone, Debug)]
pub struct Profile {
    /// What the report calls it.
    pub name: String,
    /// Seed of every choice; `IOVIRT_SEED` overrides it.
    pub seed: u64,
    /// How often each random case runs; `IOVIRT_ROUNDS` overrides it.
    pub rounds: u64,
    /// Requests to the target's queue with their answers, to be made one after the other. The first is the honest request that is
    /// made after every case: it changes nothing, its answer does not depend on what other requests did (some cases make
    /// requests that nobody meant), and it has the parts that [`Profile::direction`] says. The answer's last byte is zero; where
    /// there is no answer, the first byte of the request is.
    pub exchanges: Vec<Exchange>,
    /// What the queue's chains are.
    pub direction: Direction,
    /// Most requests that one step of the target may take from a ring, where steps are counted.
    pub step_bound: Option<u16>,
    /// Steps without an answer after which the device is taken to have none.
    pub idle_steps: u32,
    /// How long a device may take for what it must do, before it counts as hanging.
    pub hang: Duration,
    /// Most lines that a broken device may leave in the log, however often it is broken within a second or two.
    pub log_lines: usize,
    /// The cases to run; all where there are none.
    pub only: Vec<&'static str>,
}

impl Profile {
    /// A device with these requests.
    pub fn new(name: impl Into<String>, exchanges: Vec<Exchange>) -> Self {
        Self {
            name: name.into(),
            seed: 0x0bad_d21e,
            rounds: 60,
            exchanges,
            direction: Direction::Both,
            step_bound: None,
            idle_steps: 20,
            hang: driver::HANG,
            log_lines: 40,
            only: Vec::new(),
        }
    }
}

/// A case: its name, and what runs it; it gives the number of things it tried.
pub type Case = (&'static str, fn(&mut Bench<'_>) -> Result<u64, String>);

/// All cases of [`run`], in the order in which they run.
pub fn cases() -> Vec<Case> {
    [
        chains::CASES,
        indirect::CASES,
        splits::CASES,
        setup::CASES,
        registers::CASES,
        life::CASES,
        load::CASES,
        saved::CASES,
    ]
    .concat()
}

/// Runs every case, each on a fresh device.
pub fn run(factory: &Factory<'_>, profile: &Profile) -> HostileReport {
    let profile =
        Profile { seed: seed_or(profile.seed), rounds: rounds_or(profile.rounds).max(1), ..profile.clone() };
    let mut report = HostileReport::new(&profile);
    let wanted = |name| profile.only.is_empty() || profile.only.contains(&name);
    for (name, case) in cases().into_iter().filter(|(name, _)| wanted(*name)) {
        report.add(name, guarded(|| run_case(factory, &profile, name, case)));
    }
    report
}

fn run_case(
    factory: &Factory<'_>,
    profile: &Profile,
    name: &str,
    case: fn(&mut Bench<'_>) -> Result<u64, String>,
) -> Result<u64, String> {
    // Each case has its own sequence, so that one more draw in one of them leaves the others as they are.
    let seed = name.bytes().fold(profile.seed, |seed, byte| Rng::new(seed ^ u64::from(byte)).next_u64());
    let mut bench = Bench::new(factory, profile, seed);
    let count = case(&mut bench)?;
    bench.must_serve().map_err(|error| format!("after the case: {error}"))?;
    Ok(count)
}

/// What `check` says, also where the device panics.
fn guarded(check: impl FnOnce() -> Result<u64, String>) -> Result<u64, String> {
    catch_unwind(AssertUnwindSafe(check)).unwrap_or_else(|panic| {
        let words = panic.downcast_ref::<String>().map(String::as_str);
        let words = words.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
        Err(format!("a panic: {words}"))
    })
}

/// What a case works with: a device with its raw driver, and a seeded generator.
pub struct Bench<'a> {
    factory: &'a Factory<'a>,
    /// What the suite knows of the device.
    pub profile: &'a Profile,
    /// The case's own generator.
    pub rng: Rng,
    /// The driver of the device.
    pub driver: RawDriver,
}

impl fmt::Debug for Bench<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bench").field("driver", &self.driver).finish_non_exhaustive()
    }
}

impl<'a> Bench<'a> {
    fn new(factory: &'a Factory<'a>, profile: &'a Profile, seed: u64) -> Self {
        let mut driver = RawDriver::new(factory(), profile.idle_steps);
        driver.set_hang(profile.hang);
        Self { factory, profile, rng: Rng::new(seed), driver }
    }

    /// Goes on with a fresh device.
    pub fn renew(&mut self) {
        self.driver = RawDriver::new((self.factory)(), self.profile.idle_steps);
        self.driver.set_hang(self.profile.hang);
    }

    /// Resets the device and starts it with all features that this driver knows.
    ///
    /// # Errors
    /// Where the device does not follow.
    pub fn start(&mut self) -> Result<(), String> {
        self.driver.start(feature::ALL, &QueueSetup::good(&self.driver.layout(), 16))
    }

    /// Resets the device, starts it, and makes the honest request.
    ///
    /// # Errors
    /// Where the device does not serve it.
    pub fn must_serve(&mut self) -> Result<(), String> {
        self.start()?;
        let status = self.driver.status();
        ensure!(status & status::NEEDS_RESET == 0, "the device is broken after a reset: {status:#x}");
        self.serve_now()
    }

    /// Makes the honest request on the device as it is.
    ///
    /// # Errors
    /// Where the device does not serve it.
    pub fn serve_now(&mut self) -> Result<(), String> {
        let exchange = &self.profile.exchanges[0];
        let answer = self.driver.exchange(exchange, &Split::whole())?;
        exchange.check(&answer)
    }

    /// Waits for an answer and compares it, then resets and starts the device again.
    ///
    /// # Errors
    /// Where it is another one.
    pub fn expect(&mut self, what: &str, wanted: Answer) -> Result<(), String> {
        let answer = self.driver.answer();
        ensure!(answer == wanted, "{what}: the answer was {answer:?}, not {wanted:?}");
        self.start().map_err(|error| format!("{what}: {error}"))
    }
}

/// Fails a case with words.
macro_rules! ensure {
    ($condition:expr, $($words:tt)+) => {
        if !$condition {
            return Err(format!($($words)+));
        }
    };
}
use ensure;
