//! The control plane.

use super::pair::Pair;
use super::{LoopbackConfig, LoopbackControl, LoopbackQueue};
use crate::net::check;
use iovirt_core::pipeline::{EventListener, Stages};
use iovirt_core::request::net::{NetCaps, NetRequest, Offloads};
use iovirt_core::state::{StageStates, StateError};
use iovirt_core::{Backend, BackendError, Depth, WorkerContext};
use std::sync::Arc;

/// A network on which every frame comes back; see the [module](super).
#[derive(Debug)]
pub struct LoopbackBackend {
    caps: Arc<NetCaps>,
    pairs: Arc<[Pair]>,
    pub(super) control: Arc<LoopbackControl>,
}

impl LoopbackBackend {
    /// A network without frames.
    ///
    /// # Errors
    /// Where the configuration is not one that a network can have.
    pub fn new(config: &LoopbackConfig) -> Result<Self, BackendError> {
        check(config.mtu, config.pairs)?;
        let pairs: Arc<[Pair]> = (0..config.pairs).map(|_| Pair::default()).collect();
        let control = Arc::new(LoopbackControl::new(pairs.clone()));
        let caps = NetCaps {
            tx_offloads: Offloads::all(),
            rx_offloads: Offloads::all(),
            ..NetCaps::new(config.mtu, config.pairs)
        };
        Ok(Self { caps: Arc::new(caps), pairs, control })
    }
}

impl Backend<NetRequest> for LoopbackBackend {
    type Queue = LoopbackQueue;

    fn caps(&self) -> Arc<NetCaps> {
        self.caps.clone()
    }

    fn open(&self, cx: &mut WorkerContext<'_>, depth: Depth) -> Result<LoopbackQueue, BackendError> {
        Ok(LoopbackQueue::new(self.caps.clone(), self.pairs.clone(), cx.waker(), depth))
    }

    fn stages(&self, stages: &mut Stages) {
        stages.push_controlled("loopback", self.control.clone());
    }

    fn subscribe(&self, _: &Arc<dyn EventListener>) {
        // Nothing about a loopback ever changes.
    }

    fn save(&self, _: &mut StageStates) -> Result<(), StateError> {
        // At rest there are no frames under way.
        Ok(())
    }

    fn restore(&self, _: &mut StageStates) -> Result<(), StateError> {
        Ok(())
    }
}
