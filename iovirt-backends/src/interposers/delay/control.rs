//! The control handle: the settings while the stage runs.

use super::DelayConfig;
use crate::interposers::kinds::{KindMask, UnknownKind};
use crate::interposers::live::Live;
use iovirt_core::{BackendError, Request};
use std::sync::Arc;

/// Changes a [`Delay`](super::Delay) stage while it runs, from any thread.
#[derive(Debug)]
pub struct DelayControl {
    pub(super) live: Arc<Live<Settings>>,
    check: fn(&DelayConfig) -> Result<KindMask, UnknownKind>,
}

/// What the queues go by.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub(super) config: DelayConfig,
    pub(super) mask: KindMask,
}

impl DelayControl {
    pub(super) fn new<R: Request>(config: &DelayConfig) -> Result<Self, BackendError> {
        let check = |config: &DelayConfig| config.kinds.mask::<R>();
        let settings = checked(config, check)?;
        Ok(Self { live: Arc::new(Live::new(settings)), check })
    }

    /// The settings.
    pub fn config(&self) -> DelayConfig {
        self.live.get().config
    }

    /// Changes the settings, for requests that are submitted from now on; those that are held stay so for as long as they
    /// were going to.
    ///
    /// # Errors
    /// Where a kind of request is none of the family's. Nothing is changed then.
    pub fn set(&self, config: &DelayConfig) -> Result<(), BackendError> {
        self.live.set(checked(config, self.check)?);
        Ok(())
    }

    /// Lets all go that is held now.
    pub fn release(&self) {
        self.live.release();
    }
}

fn checked(
    config: &DelayConfig,
    check: fn(&DelayConfig) -> Result<KindMask, UnknownKind>,
) -> Result<Settings, BackendError> {
    let mask =
        check(config).map_err(|error| BackendError::config(format!("kinds={}: {error}", config.kinds)))?;
    Ok(Settings { config: config.clone(), mask })
}
