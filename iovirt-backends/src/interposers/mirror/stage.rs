//! The control plane.

use super::control::all;
use super::{MirrorConfig, MirrorControl, MirrorFan};
use iovirt_core::pipeline::Listeners;
use iovirt_core::request::block::{BlockCaps, BlockRequest};
use iovirt_core::stage::fanout::{MAX_BRANCHES, common_caps};
use iovirt_core::stage::{FanOutStage, FannedOut};
use iovirt_core::state::{SavedState, StageStates, StateError};
use iovirt_core::{AttachError, Backend, Depth, WorkerContext};
use serde::{Deserialize, Serialize};
use std::any::Any;
use std::sync::Arc;

/// The same data on several back-ends; see the [module](super).
#[derive(Debug)]
pub struct Mirror {
    config: MirrorConfig,
    control: Arc<MirrorControl>,
    #[cfg(test)]
    pub(super) sabotage: super::tests::Sabotage,
}

/// What a mirror saves: which replicas have failed.
#[derive(Debug, Serialize, Deserialize)]
struct MirrorState {
    replicas: u32,
    failed: u64,
}

impl SavedState for MirrorState {
    const KIND: &'static str = "mirror";
    const VERSION: u16 = 1;
}

impl Mirror {
    /// A mirror of that many replicas, none of which has failed.
    ///
    /// # Errors
    /// Where there is none or more than 64, or the quorum is not from 1 to their number.
    pub fn new(config: &MirrorConfig, replicas: usize) -> Result<Self, AttachError> {
        let refuse = |reason: String| Err(AttachError::new(&config.name, reason));
        if !(1..=MAX_BRANCHES).contains(&replicas) {
            return refuse(format!("{replicas} replicas are not allowed: 1 to {MAX_BRANCHES} are"));
        }
        let quorum = config.write_quorum.unwrap_or(replicas);
        if !(1..=replicas).contains(&quorum) {
            return refuse(format!(
                "write-quorum={quorum} is not allowed with {replicas} replicas: 1 to {replicas} is"
            ));
        }
        Ok(Self {
            config: config.clone(),
            control: Arc::new(MirrorControl::new(replicas, quorum)),
            #[cfg(test)]
            sabotage: super::tests::Sabotage::default(),
        })
    }

    /// A mirror above these replicas.
    ///
    /// # Errors
    /// As [`Mirror::new`].
    pub fn over<B: Backend<BlockRequest>>(
        config: &MirrorConfig,
        replicas: Vec<B>,
    ) -> Result<FannedOut<BlockRequest, Self, B>, AttachError> {
        FannedOut::new(Self::new(config, replicas.len())?, replicas)
    }

    /// What shows the replicas: the same handle that the stack lists under the stage's name.
    pub fn handle(&self) -> Arc<MirrorControl> {
        self.control.clone()
    }
}

impl FanOutStage<BlockRequest> for Mirror {
    type FanOut = MirrorFan;

    fn name(&self) -> &str {
        &self.config.name
    }

    fn caps(&self, replicas: &[Arc<BlockCaps>]) -> Result<BlockCaps, AttachError> {
        // Those of replicas that have failed too: a disk does not grow because a replica is gone.
        let mut caps = common_caps(replicas);
        caps.read_only |= !self.control.is_writable();
        Ok(caps)
    }

    fn fan_out(&self, _: &mut WorkerContext<'_>, depth: Depth) -> MirrorFan {
        #[cfg_attr(not(test), expect(unused_mut, reason = "a test's mirror may be broken"))]
        let mut fan = MirrorFan::new(self.control.clone(), self.config.read, depth);
        #[cfg(test)]
        {
            fan.sabotage = self.sabotage;
        }
        fan
    }

    fn control(&self) -> Option<Arc<dyn Any + Send + Sync>> {
        Some(self.control.clone())
    }

    fn listeners(&self) -> Option<&Listeners> {
        Some(&self.control.listeners)
    }

    fn save(&self, states: &mut StageStates) -> Result<(), StateError> {
        let replicas = self.control.replicas().len() as u32;
        states.push(&MirrorState { replicas, failed: self.control.failed() });
        Ok(())
    }

    fn restore(&self, states: &mut StageStates) -> Result<(), StateError> {
        let MirrorState { replicas, failed } = states.pop()?;
        let own = self.control.replicas().len();
        if replicas as usize != own || failed & all(own) != failed || failed == all(own) {
            let reason =
                format!("it is of {replicas} replicas, of which {failed:#b} have failed; here are {own}");
            return Err(StateError::Mismatch { kind: MirrorState::KIND.into(), reason });
        }
        self.control.set_failed(failed);
        Ok(())
    }
}
