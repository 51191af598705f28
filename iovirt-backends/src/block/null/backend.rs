//! The control plane.

use super::{Nothing, NullConfig, NullQueue};
use crate::block::check_size;
use iovirt_core::pipeline::{EventListener, Stages};
use iovirt_core::request::block::{
    BlockCaps, BlockRequest, DiscardLimits, Durability, SECTOR, WriteZeroesLimits,
};
use iovirt_core::state::{StageStates, StateError};
use iovirt_core::{Backend, BackendError, Depth, WorkerContext};
use std::sync::Arc;

/// A disk that keeps nothing; see the [module](super).
#[derive(Debug)]
pub struct NullBackend {
    caps: Arc<BlockCaps>,
    fill: bool,
}

impl NullBackend {
    /// A null disk.
    ///
    /// # Errors
    /// Where the size is not one that a disk can have.
    pub fn new(config: &NullConfig) -> Result<Self, BackendError> {
        let size = config.size;
        check_size(size)?;
        let caps = BlockCaps {
            durability: Durability::Unsafe,
            discard: Some(DiscardLimits {
                max_bytes: size,
                alignment: SECTOR as u32,
                reads_zero: config.fill,
            }),
            write_zeroes: Some(WriteZeroesLimits { max_bytes: size, may_unmap: true }),
            ..BlockCaps::new(size)
        };
        Ok(Self { caps: Arc::new(caps), fill: config.fill })
    }
}

impl Backend<BlockRequest> for NullBackend {
    type Queue = NullQueue;

    fn caps(&self) -> Arc<BlockCaps> {
        self.caps.clone()
    }

    fn open(&self, _: &mut WorkerContext<'_>, depth: Depth) -> Result<NullQueue, BackendError> {
        Ok(NullQueue::new(Nothing { caps: self.caps.clone(), fill: self.fill }, depth))
    }

    fn stages(&self, stages: &mut Stages) {
        stages.push("null");
    }

    fn subscribe(&self, _: &Arc<dyn EventListener>) {
        // Nothing about a null disk ever changes.
    }

    fn save(&self, _: &mut StageStates) -> Result<(), StateError> {
        Ok(())
    }

    fn restore(&self, _: &mut StageStates) -> Result<(), StateError> {
        Ok(())
    }
}
