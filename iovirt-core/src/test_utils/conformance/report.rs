//! What a suite found.

use super::{Profile, guarded};
use crate::test_utils::rng::{ROUNDS_VARIABLE, Seed};
use std::fmt;

/// What a suite found, rule by rule. Printed, it says how many cases each rule made.
#[derive(Clone, Debug)]
#[must_use = "a report that nobody looks at proves nothing"]
pub struct Report {
    name: String,
    seed: u64,
    rounds: u64,
    rules: Vec<RuleResult>,
}

/// What became of one rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RuleResult {
    /// It was kept, in that many cases. Zero: nothing in the stack's capabilities calls for it.
    Passed(&'static str, u64),
    /// The profile says that it does not apply, and why.
    Skipped(&'static str, &'static str),
    /// It was broken.
    Failed(Failure),
}

/// A broken rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The rule.
    pub rule: &'static str,
    /// What happened, in words.
    pub message: String,
    /// The seed that brings it back.
    pub seed: u64,
}

impl Report {
    pub(in crate::test_utils) fn new(profile: &Profile) -> Self {
        Self { name: profile.name.clone(), seed: profile.seed, rounds: profile.rounds, rules: Vec::new() }
    }

    pub(in crate::test_utils) fn add(
        &mut self,
        profile: &Profile,
        rule: &'static str,
        check: impl FnOnce() -> Result<u64, String>,
    ) {
        let skipped = profile.skip.iter().find(|(skipped, _)| *skipped == rule);
        let result = match skipped {
            Some((_, reason)) => RuleResult::Skipped(rule, reason),
            None => match guarded(check) {
                Ok(cases) => RuleResult::Passed(rule, cases),
                Err(message) => RuleResult::Failed(Failure { rule, message, seed: self.seed }),
            },
        };
        self.rules.push(result);
    }

    /// The results in the order of the rules.
    pub fn rules(&self) -> &[RuleResult] {
        &self.rules
    }

    /// What was broken.
    pub fn failures(&self) -> impl Iterator<Item = &Failure> {
        self.rules.iter().filter_map(|result| match result {
            RuleResult::Failed(failure) => Some(failure),
            RuleResult::Passed(..) | RuleResult::Skipped(..) => None,
        })
    }

    /// Whether that rule was broken.
    pub fn has_failed(&self, rule: &str) -> bool {
        self.failures().any(|failure| failure.rule == rule)
    }

    /// How many cases all rules made.
    pub fn cases(&self) -> u64 {
        let cases = |result: &RuleResult| match result {
            RuleResult::Passed(_, cases) => *cases,
            RuleResult::Skipped(..) | RuleResult::Failed(_) => 0,
        };
        self.rules.iter().map(cases).sum()
    }

    /// Prints the report, for `cargo test -- --nocapture` and for whoever looks into a failure.
    ///
    /// # Panics
    /// Where a rule was broken, with its name and the seed.
    pub fn assert_passed(&self) {
        println!("{self}");
        assert!(self.failures().next().is_none(), "{self}");
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{}: {} cases, {} {ROUNDS_VARIABLE}={}",
            self.name,
            self.cases(),
            Seed(self.seed),
            self.rounds
        )?;
        for result in &self.rules {
            match result {
                RuleResult::Passed(rule, 0) => writeln!(f, "  {rule:<28} does not apply")?,
                RuleResult::Passed(rule, cases) => writeln!(f, "  {rule:<28} {cases} cases")?,
                RuleResult::Skipped(rule, reason) => writeln!(f, "  {rule:<28} skipped: {reason}")?,
                RuleResult::Failed(failure) => writeln!(f, "  {failure}")?,
            }
        }
        Ok(())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<28} FAILED ({}): {}", self.rule, Seed(self.seed), self.message)
    }
}
