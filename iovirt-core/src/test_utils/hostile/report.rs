//! What the suite found.

use super::Profile;
use crate::test_utils::rng::{ROUNDS_VARIABLE, Seed};
use std::fmt;

/// What the suite found, case by case. Printed, it says how much each case tried.
#[derive(Clone, Debug)]
#[must_use = "a report that nobody looks at proves nothing"]
pub struct HostileReport {
    name: String,
    seed: u64,
    rounds: u64,
    results: Vec<CaseResult>,
}

/// What became of one case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CaseResult {
    /// The case.
    pub case: &'static str,
    /// How many things it tried, or what happened, in words.
    pub result: Result<u64, String>,
}

impl HostileReport {
    pub(super) fn new(profile: &Profile) -> Self {
        Self { name: profile.name.clone(), seed: profile.seed, rounds: profile.rounds, results: Vec::new() }
    }

    pub(super) fn add(&mut self, case: &'static str, result: Result<u64, String>) {
        self.results.push(CaseResult { case, result });
    }

    /// The results in the order of the cases.
    pub fn results(&self) -> &[CaseResult] {
        &self.results
    }

    /// How many things all cases tried together.
    pub fn tries(&self) -> u64 {
        self.results.iter().filter_map(|result| result.result.as_ref().ok()).sum()
    }

    /// The cases that failed.
    pub fn failures(&self) -> impl Iterator<Item = &CaseResult> {
        self.results.iter().filter(|result| result.result.is_err())
    }

    /// Whether that case failed.
    pub fn has_failed(&self, case: &str) -> bool {
        self.failures().any(|failure| failure.case == case)
    }

    /// Prints the report.
    ///
    /// # Panics
    /// Where a case failed, with its name and the seed.
    pub fn assert_passed(&self) {
        println!("{self}");
        assert!(self.failures().next().is_none(), "{self}");
    }
}

impl fmt::Display for HostileReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}: {} {ROUNDS_VARIABLE}={}", self.name, Seed(self.seed), self.rounds)?;
        for CaseResult { case, result } in &self.results {
            match result {
                Ok(count) => writeln!(f, "  {case:<36} {count} tried")?,
                Err(words) => writeln!(f, "  {case:<36} FAILED ({}): {words}", Seed(self.seed))?,
            }
        }
        Ok(())
    }
}
