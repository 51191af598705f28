//! The suite that every network back-end and every network stage runs, and what it is made of.
//!
//! | name | is |
//! |---|---|
//! | [`run`] | the suite, for a stack over a network that gives back what it is sent: a [`Wire`], a loopback |
//! | [`judge()`] | more of it, for a stage that judges frames |
//! | [`NetDriver`] | the submitting side: frames out of guest memory, tokens, one data plane |
//! | [`Wire`] | a network for tests, honest or broken by a [`NetSabotage`] |
//!
//! A rule has a stable name, as those of [`conformance`](super::conformance) have; the report is the same.
//!
//! ```
//! use iovirt_core::test_utils::conformance::Profile;
//! use iovirt_core::test_utils::net::{self, Wire, WireConfig};
//!
//! // Your stage goes above the wire.
//! let factory = || Wire::boxed(WireConfig::default());
//! net::run(&factory, &Profile::new("nothing but a wire").rounds(10)).assert_passed();
//! ```

mod caps;
mod driver;
mod frames;
mod judge;
mod offloads;
mod rest;
mod sabotage;
mod tokens;
mod wakes;
mod wire;

pub use driver::{NetDriver, NetHome, frame};
pub use judge::{JUDGE_RULES, JudgeFactory, Verdicts, judge};
pub use sabotage::NetSabotage;
pub use wire::{Wire, WireConfig, WireQueue};

use super::conformance::{Profile, Report, ensure};
use super::rng::Rng;
use crate::backend::Backend;
use crate::pipeline::BoxBackend;
use crate::request::net::{NetCaps, NetOp, NetOutput, NetRequest};
use std::time::{Duration, Instant};

/// Makes a fresh stack over a network that gives back what it is sent.
pub type Factory<'a> = dyn Fn() -> BoxBackend<NetRequest> + 'a;

/// A rule: its name, and what checks it; the check gives the number of cases it made.
pub type Rule = (&'static str, fn(&mut Bench<'_>) -> Result<u64, String>);

/// All rules, in the order in which they run.
pub fn rules() -> Vec<Rule> {
    [caps::RULES, frames::RULES, offloads::RULES, tokens::RULES, wakes::RULES, rest::RULES].concat()
}

/// Runs every rule on fresh stacks.
pub fn run(factory: &Factory<'_>, profile: &Profile) -> Report {
    let profile = profile.resolved();
    let mut report = Report::new(&profile);
    for (name, check) in rules() {
        let seed = name.bytes().fold(profile.seed, |seed, byte| Rng::new(seed ^ u64::from(byte)).next_u64());
        let mut bench = Bench { factory, profile: &profile, rng: Rng::new(seed) };
        report.add(&profile, name, || check(&mut bench));
    }
    report
}

/// Requests in flight on each data plane of a rule.
const DEPTH: u32 = 16;

/// What a rule works with.
pub struct Bench<'a> {
    factory: &'a Factory<'a>,
    profile: &'a Profile,
    rng: Rng,
}

impl std::fmt::Debug for Bench<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bench").field("profile", &self.profile).finish_non_exhaustive()
    }
}

impl Bench<'_> {
    fn backend(&self) -> BoxBackend<NetRequest> {
        (self.factory)()
    }

    /// A fresh stack with a data plane that sends and one that receives, of the same pair.
    fn open(&self) -> Result<Line, String> {
        let backend = self.backend();
        Ok(Line {
            sender: NetDriver::new(&backend, 0, DEPTH)?,
            receiver: NetDriver::new(&backend, 0, DEPTH)?,
            caps: (*backend.caps()).clone(),
            backend,
            patience: self.profile.patience,
        })
    }
}

/// Two data planes of a pair.
struct Line {
    sender: NetDriver,
    receiver: NetDriver,
    caps: NetCaps,
    backend: BoxBackend<NetRequest>,
    patience: Duration,
}

impl Line {
    /// Turns until the driver waits for nothing but frames: no time of a stage's own is left.
    fn settle(driver: &mut NetDriver, patience: Duration) -> Result<Vec<NetHome>, String> {
        let (mut home, since) = (Vec::new(), Instant::now());
        loop {
            let before = home.len();
            driver.kick();
            home.extend(driver.poll());
            driver.worker().run().map_err(|error| error.to_string())?;
            home.extend(driver.poll());
            driver.check()?;
            if home.len() == before && driver.worker().next_deadline().is_none() {
                return Ok(home);
            }
            ensure!(since.elapsed() < patience, "a stage goes on and on, with nothing sent");
        }
    }

    /// Turns until everything that was sent is home; says what came home.
    fn all_sent(&mut self) -> Result<Vec<NetHome>, String> {
        let (mut home, since) = (Vec::new(), Instant::now());
        while self.sender.awaited() > 0 {
            home.extend(Self::settle(&mut self.sender, self.patience)?);
            let left = self.sender.awaited();
            ensure!(since.elapsed() < self.patience, "{left} frames that were sent did not come home");
        }
        Ok(home)
    }

    /// Posts tokens for a batch, sends it, and gives what came of it.
    fn exchange(&mut self, batch: &[Vec<u8>]) -> Result<Vec<Vec<u8>>, String> {
        self.receiver.post(batch.len().saturating_sub(self.receiver.awaited()));
        let early = Self::settle(&mut self.receiver, self.patience)?;
        ensure!(early.is_empty(), "before any frame was sent, {} tokens came home", early.len());
        let sent = self.sender.send(batch.iter().map(Vec::as_slice));
        ensure!(sent == batch.len(), "{sent} of {} frames found room", batch.len());
        for (op, output, _) in self.all_sent()? {
            ensure!(
                (op, output) == (NetOp::Transmit, NetOutput::Done),
                "a frame that was sent gave {output:?}"
            );
        }
        let home = Self::settle(&mut self.receiver, self.patience)?;
        let mut frames = Vec::with_capacity(home.len());
        for (op, output, frame) in home {
            ensure!((op, output) == (NetOp::Receive, NetOutput::Done), "a token gave {output:?}");
            frames.push(frame);
        }
        Ok(frames)
    }

    /// Exchanges a batch and compares. There are tokens for all, so a network that gives back what it is sent loses none.
    fn carry(&mut self, batch: &[Vec<u8>]) -> Result<(), String> {
        let came = self.exchange(batch)?;
        let differ = came.iter().zip(batch).position(|(came, sent)| came != sent);
        if let Some(at) = differ {
            return Err(format!("frame {at} of {} is not the one that was sent", batch.len()));
        }
        ensure!(came.len() == batch.len(), "{} of {} frames came", came.len(), batch.len());
        Ok(())
    }
}
