//! The suite that every block back-end and every stage runs.
//!
//! | function | for | rules |
//! |---|---|---|
//! | [`run`] | any back-end, any stack | [`ranges`], [`once`], [`wakes`], [`data`], [`caps`], [`zeroes`], [`drain`], [`dropping`] |
//! | [`durability()`] | a stage over a [`PowerLossDisk`](super::PowerLossDisk) | [`durability`](mod@durability) |
//! | [`transparency()`] | a stage that says it changes nothing | [`transparency`](mod@transparency) |
//!
//! A rule has a stable name: a failure is reported under it, with the seed that brings it back.
//!
//! ```
//! use iovirt_core::test_utils::{PowerLossConfig, PowerLossDisk, conformance};
//!
//! let factory = || PowerLossDisk::boxed(PowerLossConfig::new(1 << 20));
//! let report = conformance::run(&factory, &conformance::Profile::new("power-loss").rounds(20));
//! report.assert_passed();
//! ```

pub mod caps;
pub mod data;
pub mod drain;
pub mod dropping;
pub mod durability;
pub mod once;
pub mod ranges;
mod report;
pub mod transparency;
pub mod wakes;
pub mod zeroes;

pub use durability::run as durability;
pub use report::{Failure, Report, RuleResult};
pub use transparency::run as transparency;

use super::driver::Driver;
use super::rng::{Rng, rounds_or, seed_or};
use crate::backend::Backend;
use crate::pipeline::BoxBackend;
use crate::request::block::{BlockCaps, BlockRequest};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

/// Makes a fresh stack: a writable disk of zeroes, unless the profile says otherwise.
pub type Factory<'a> = dyn Fn() -> BoxBackend<BlockRequest> + 'a;

/// What a suite has to know of the stack it runs on.
#[derive(Clone, Debug)]
pub struct Profile {
    /// What the report calls the stack.
    pub name: String,
    /// Seed of every choice; `IOVIRT_SEED` overrides it.
    pub seed: u64,
    /// How often each random rule runs; `IOVIRT_ROUNDS` overrides it.
    pub rounds: u64,
    /// The deepest queue that is opened.
    pub depth: u32,
    /// How many queues are opened at once, each on a worker with a thread of its own.
    pub workers: usize,
    /// What is written is read back: true but for a back-end that throws data away.
    pub keeps_data: bool,
    /// How long nothing may happen before a rule fails as stuck.
    pub patience: Duration,
    /// Rules that do not apply, each with the reason, which the report repeats.
    pub skip: Vec<(&'static str, &'static str)>,
}

impl Profile {
    /// A stack that keeps what is written.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            seed: 0x10_71_27,
            rounds: 50,
            depth: 32,
            workers: 3,
            keeps_data: true,
            patience: Duration::from_secs(30),
            skip: Vec::new(),
        }
    }

    /// The same with that seed.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// The same with that many rounds.
    #[must_use]
    pub fn rounds(mut self, rounds: u64) -> Self {
        self.rounds = rounds;
        self
    }

    /// The same for a back-end that throws away what is written.
    #[must_use]
    pub fn discards_data(mut self) -> Self {
        self.keeps_data = false;
        self
    }

    /// The same without that rule, for that reason.
    #[must_use]
    pub fn skip(mut self, rule: &'static str, reason: &'static str) -> Self {
        self.skip.push((rule, reason));
        self
    }

    /// The same with that patience.
    #[must_use]
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    pub(in crate::test_utils) fn resolved(&self) -> Self {
        Self { seed: seed_or(self.seed), rounds: rounds_or(self.rounds).max(1), ..self.clone() }
    }
}

/// A rule: its name, and what checks it; the check gives the number of cases it made.
pub type Rule = (&'static str, fn(&mut Bench<'_>) -> Result<u64, String>);

/// All rules of [`run`], in the order in which they run.
pub fn rules() -> Vec<Rule> {
    let groups = [
        caps::RULES,
        ranges::RULES,
        data::RULES,
        zeroes::RULES,
        once::RULES,
        wakes::RULES,
        drain::RULES,
        dropping::RULES,
    ];
    groups.concat()
}

/// The names of all rules: those of [`run`], of [`durability()`] and of [`transparency()`].
pub fn rule_names() -> Vec<&'static str> {
    let run = rules().into_iter().map(|(name, _)| name);
    let cuts = durability::RULES.into_iter().map(|(name, _, _)| name);
    run.chain([durability::HONEST]).chain(cuts).chain(transparency::RULES).collect()
}

/// Runs every rule on fresh stacks.
pub fn run(factory: &Factory<'_>, profile: &Profile) -> Report {
    let profile = profile.resolved();
    let mut report = Report::new(&profile);
    for (name, check) in rules() {
        let mut bench = Bench::new(factory, &profile, name);
        report.add(&profile, name, || check(&mut bench));
    }
    report
}

/// What a rule works with.
#[derive(Debug)]
pub struct Bench<'a> {
    factory: FactoryRef<'a>,
    profile: &'a Profile,
    rng: Rng,
    driver: Option<Driver>,
}

struct FactoryRef<'a>(&'a Factory<'a>);

impl std::fmt::Debug for FactoryRef<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Factory")
    }
}

impl<'a> Bench<'a> {
    fn new(factory: &'a Factory<'a>, profile: &'a Profile, rule: &str) -> Self {
        // Each rule has its own sequence, so that one more case in one of them leaves the others as they are.
        let seed = rule.bytes().fold(profile.seed, |seed, byte| Rng::new(seed ^ u64::from(byte)).next_u64());
        Self { factory: FactoryRef(factory), profile, rng: Rng::new(seed), driver: None }
    }

    /// A fresh stack.
    fn backend(&self) -> BoxBackend<BlockRequest> {
        (self.factory.0)()
    }

    /// A fresh stack with a queue open on the rule's driver.
    fn open(&mut self, depth: u32) -> Result<(&mut Driver, BoxBackend<BlockRequest>, BlockCaps), String> {
        let backend = self.backend();
        let caps = (*backend.caps()).clone();
        let driver = self.reopen(&backend, depth)?;
        Ok((driver, backend, caps))
    }

    fn reopen(&mut self, backend: &BoxBackend<BlockRequest>, depth: u32) -> Result<&mut Driver, String> {
        if self.driver.is_none() {
            self.driver = Some(new_driver(self.rng.next_u64(), self.profile)?);
        }
        let driver = self.driver.as_mut().ok_or("no driver")?;
        driver.open(backend, depth).map_err(|error| format!("open failed: {error}"))?;
        Ok(driver)
    }
}

fn new_driver(seed: u64, profile: &Profile) -> Result<Driver, String> {
    let mut driver = Driver::new(seed).map_err(|error| format!("no driver: {error}"))?;
    driver.set_patience(profile.patience);
    Ok(driver)
}

/// What `check` says, also where the stack panics.
fn guarded(check: impl FnOnce() -> Result<u64, String>) -> Result<u64, String> {
    catch_unwind(AssertUnwindSafe(check)).unwrap_or_else(|panic| {
        let words = panic.downcast_ref::<String>().map(String::as_str);
        let words = words.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
        Err(format!("the stack panicked: {words}"))
    })
}

/// Fails a rule with words.
macro_rules! ensure {
    ($condition:expr, $($words:tt)+) => {
        if !$condition {
            return Err(format!($($words)+));
        }
    };
}
pub(in crate::test_utils) use ensure;

fn words(error: impl std::fmt::Display) -> String {
    error.to_string()
}
