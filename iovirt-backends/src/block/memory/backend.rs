//! The control plane.

use super::store::Store;
use super::{Copying, MAX_RANGE, MemoryConfig, MemoryQueue};
use crate::block::check_size;
use iovirt_core::pipeline::{EventListener, Stages};
use iovirt_core::request::block::{
    BlockCaps, BlockError, BlockRequest, DiscardLimits, Durability, SECTOR, WriteZeroesLimits,
};
use iovirt_core::state::{StageStates, StateError};
use iovirt_core::{Backend, BackendError, Depth, WorkerContext};
use std::sync::Arc;

const MAX_PHYSICAL_BLOCK: u32 = 1 << 20;

/// A sparse RAM disk; see the [module](super).
#[derive(Debug)]
pub struct MemoryBackend {
    caps: Arc<BlockCaps>,
    store: Store,
}

impl MemoryBackend {
    /// A RAM disk of zeroes.
    ///
    /// # Errors
    /// Where the configuration is not one that a disk can have, or the host refuses that much address space.
    pub fn new(config: &MemoryConfig) -> Result<Self, BackendError> {
        let MemoryConfig { size, physical_block, read_only } = *config;
        check_size(size)?;
        if !physical_block.is_power_of_two()
            || !(SECTOR as u32..=MAX_PHYSICAL_BLOCK).contains(&physical_block)
        {
            return Err(BackendError::config(format!(
                "a physical block cannot have {physical_block} bytes: it is a power of two from {SECTOR} to {MAX_PHYSICAL_BLOCK}"
            )));
        }
        let store = Store::new(size)
            .map_err(|error| BackendError::host(format!("no memory for a disk of {size} bytes"), error))?;
        let max_bytes = MAX_RANGE.min(size);
        let caps = BlockCaps {
            physical_block,
            read_only,
            durability: Durability::Unsafe,
            discard: Some(DiscardLimits { max_bytes, alignment: store.page(), reads_zero: true }),
            write_zeroes: Some(WriteZeroesLimits { max_bytes, may_unmap: true }),
            ..BlockCaps::new(size)
        };
        Ok(Self { caps: Arc::new(caps), store })
    }

    /// Writes to the disk past the pipeline, from any thread: for giving it content.
    ///
    /// # Errors
    /// [`BlockError::OutOfRange`] where the range ends beyond the disk; nothing is written then.
    pub fn write(&self, offset: u64, data: &[u8]) -> Result<(), BlockError> {
        self.store.view().write(offset, data).map_err(|_| BlockError::OutOfRange)
    }

    /// Reads from the disk past the pipeline, from any thread.
    ///
    /// # Errors
    /// [`BlockError::OutOfRange`] where the range ends beyond the disk; `data` is unspecified then.
    pub fn read(&self, offset: u64, data: &mut [u8]) -> Result<(), BlockError> {
        self.store.view().read(offset, data).map_err(|_| BlockError::OutOfRange)
    }
}

impl Backend<BlockRequest> for MemoryBackend {
    type Queue = MemoryQueue;

    fn caps(&self) -> Arc<BlockCaps> {
        self.caps.clone()
    }

    fn open(&self, _: &mut WorkerContext<'_>, depth: Depth) -> Result<MemoryQueue, BackendError> {
        Ok(MemoryQueue::new(Copying { caps: self.caps.clone(), window: self.store.window() }, depth))
    }

    fn stages(&self, stages: &mut Stages) {
        stages.push("memory");
    }

    fn subscribe(&self, _: &Arc<dyn EventListener>) {
        // Nothing about a RAM disk ever changes.
    }

    fn save(&self, _: &mut StageStates) -> Result<(), StateError> {
        // Nothing of a RAM disk outlives the process.
        Ok(())
    }

    fn restore(&self, _: &mut StageStates) -> Result<(), StateError> {
        Ok(())
    }
}
