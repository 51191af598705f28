//! The control handle: the settings while the stage runs, and what it did.

use super::{FaultConfig, FaultKind};
use crate::interposers::kinds::{KindMask, UnknownKind};
use crate::interposers::live::Live;
use iovirt_core::{BackendError, Request};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Changes and reads a [`Fault`](super::Fault) stage while it runs, from any thread.
#[derive(Debug)]
pub struct FaultControl {
    pub(super) live: Arc<Live<Settings>>,
    pub(super) counters: Counters,
    check: fn(&FaultConfig) -> Result<KindMask, UnknownKind>,
}

/// What the queues go by.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub(super) config: FaultConfig,
    pub(super) mask: KindMask,
}

/// Shared by all queues, and touched for requests that are struck only.
#[derive(Debug, Default)]
pub(super) struct Counters {
    errors: AtomicU64,
    stalls: AtomicU64,
    hangs: AtomicU64,
    drops: AtomicU64,
}

/// How many requests a stage struck since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct FaultSnapshot {
    /// Failed.
    pub errors: u64,
    /// Left unanswered; those that were let go since are counted all the same.
    pub stalls: u64,
    /// Left unanswered also through a drain; counted in the same way.
    pub hangs: u64,
    /// Dropped.
    pub drops: u64,
}

impl FaultControl {
    pub(super) fn new<R: Request>(config: &FaultConfig) -> Result<Self, BackendError> {
        let check = |config: &FaultConfig| config.fail.mask::<R>();
        let settings = checked(config, check)?;
        Ok(Self { live: Arc::new(Live::new(settings)), counters: Counters::default(), check })
    }

    /// The settings.
    pub fn config(&self) -> FaultConfig {
        self.live.get().config
    }

    /// Changes the settings, for requests that are submitted from now on. Counting and chance begin anew.
    ///
    /// # Errors
    /// Where a kind of request is none of the family's, or a probability is above 1000 per mille. Nothing is changed then.
    pub fn set(&self, config: &FaultConfig) -> Result<(), BackendError> {
        self.live.set(checked(config, self.check)?);
        Ok(())
    }

    /// Lets requests go on that were left unanswered.
    pub fn release(&self) {
        self.live.release();
    }

    /// What the stage did so far.
    pub fn snapshot(&self) -> FaultSnapshot {
        let Counters { errors, stalls, hangs, drops } = &self.counters;
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        FaultSnapshot { errors: get(errors), stalls: get(stalls), hangs: get(hangs), drops: get(drops) }
    }
}

impl Counters {
    pub(super) fn count(&self, kind: FaultKind) {
        let counter = match kind {
            FaultKind::Error => &self.errors,
            FaultKind::Stall => &self.stalls,
            FaultKind::Hang => &self.hangs,
            FaultKind::Drop => &self.drops,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

fn checked(
    config: &FaultConfig,
    check: fn(&FaultConfig) -> Result<KindMask, UnknownKind>,
) -> Result<Settings, BackendError> {
    if config.permille > 1000 {
        let permille = config.permille;
        return Err(BackendError::config(format!("permille={permille} is not allowed: 0 to 1000 is")));
    }
    let mask =
        check(config).map_err(|error| BackendError::config(format!("fail={}: {error}", config.fail)))?;
    Ok(Settings { config: config.clone(), mask })
}
