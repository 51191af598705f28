//! The control plane.

use super::device::Tap;
use super::{TapConfig, TapQueue};
use iovirt_core::pipeline::{EventListener, Stages};
use iovirt_core::request::net::{NetCaps, NetRequest};
use iovirt_core::state::{StageStates, StateError};
use iovirt_core::{Backend, BackendError, Depth, WorkerContext};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// A tap device of the host; see the [module](super).
#[derive(Debug)]
pub struct TapBackend {
    tap: Arc<Tap>,
    control: Arc<TapControl>,
}

/// Reads the counters of a [`TapBackend`], from any thread.
#[derive(Debug)]
pub struct TapControl {
    tap: Arc<Tap>,
}

/// What a tap counted since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct TapSnapshot {
    /// Frames from the host that were longer than its MTU allowed when the tap was opened, and were dropped.
    pub too_long: u64,
    /// Frames from the host with something left to be done that their receiver does not do, and were dropped: such as the host
    /// had ready when another receiver began.
    pub unfinished: u64,
}

impl TapControl {
    /// What was counted so far.
    pub fn snapshot(&self) -> TapSnapshot {
        TapSnapshot {
            too_long: self.tap.too_long.load(Ordering::Relaxed),
            unfinished: self.tap.unfinished.load(Ordering::Relaxed),
        }
    }
}

impl TapBackend {
    /// Opens a tap: it is made where there is none and the host permits it, and goes with the process then.
    ///
    /// # Errors
    /// Where the configuration is not possible, the host refuses, or somebody else has the tap open.
    pub fn open(config: &TapConfig) -> Result<Self, BackendError> {
        let tap = Arc::new(Tap::open(config)?);
        Ok(Self { control: Arc::new(TapControl { tap: tap.clone() }), tap })
    }
}

impl Backend<NetRequest> for TapBackend {
    type Queue = TapQueue;

    fn caps(&self) -> Arc<NetCaps> {
        self.tap.caps()
    }

    fn open(&self, _: &mut WorkerContext<'_>, depth: Depth) -> Result<TapQueue, BackendError> {
        Ok(TapQueue::new(self.tap.clone(), depth))
    }

    fn stages(&self, stages: &mut Stages) {
        stages.push_controlled("tap", self.control.clone());
    }

    fn subscribe(&self, listener: &Arc<dyn EventListener>) {
        self.tap.listeners.add(listener);
    }

    fn save(&self, _: &mut StageStates) -> Result<(), StateError> {
        // Frames are in the host's queue or nowhere.
        Ok(())
    }

    fn restore(&self, _: &mut StageStates) -> Result<(), StateError> {
        Ok(())
    }
}
