//! The front-end's memory: a table of regions, by guest physical address and by address in the front-end.

use super::log::{RegionLog, SharedLog};
use iovirt_core::dma::{MapError, MemoryMap, Region, ShrinkWatch};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use thiserror::Error;
use vhost::vhost_user::message::VhostUserMemoryRegion;

/// The most regions that are taken: more than a front-end has slots in its hypervisor.
pub(super) const MAX_REGIONS: usize = 509;

/// What is wrong with a table of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub(super) enum MemoryError {
    #[error(transparent)]
    Map(#[from] MapError),
    #[error("the regions overlap in the front-end at {0:#x}")]
    UserOverlap(u64),
    #[error("more than {MAX_REGIONS} regions of memory")]
    TooMany,
    #[error("there is no such region of memory")]
    NoSuchRegion,
}

/// One region.
#[derive(Clone, Debug)]
struct Entry {
    user: u64,
    region: Region,
}

/// The regions of a front-end.
#[derive(Clone, Debug)]
pub(super) struct MemoryTable {
    entries: Vec<Entry>,
    /// Of their files.
    watch: ShrinkWatch,
}

impl MemoryTable {
    /// No region.
    pub(super) fn new(watch: ShrinkWatch) -> Self {
        Self { entries: Vec::new(), watch }
    }

    /// Adds a region, which the file holds.
    pub(super) fn add(&mut self, spec: &VhostUserMemoryRegion, file: &OwnedFd) -> Result<(), MemoryError> {
        let &VhostUserMemoryRegion { guest_phys_addr: base, memory_size: len, user_addr: user, mmap_offset } =
            spec;
        if self.entries.len() >= MAX_REGIONS {
            return Err(MemoryError::TooMany);
        }
        let end = user.checked_add(len).ok_or(MapError::Overflow { base: user, len })?;
        if let Some(other) = self.entries.iter().find(|other| user < other.user_end() && other.user < end) {
            return Err(MemoryError::UserOverlap(other.user.max(user)));
        }
        let region = self.watch.region(base, len, file.as_fd(), mmap_offset)?;
        self.entries.push(Entry { user, region });
        Ok(())
    }

    /// Takes a region out.
    pub(super) fn remove(&mut self, spec: &VhostUserMemoryRegion) -> Result<(), MemoryError> {
        let &VhostUserMemoryRegion { guest_phys_addr: base, memory_size: len, user_addr: user, .. } = spec;
        let same =
            |entry: &Entry| entry.user == user && entry.region.base() == base && entry.region.len() == len;
        let at = self.entries.iter().position(same).ok_or(MemoryError::NoSuchRegion)?;
        self.entries.swap_remove(at);
        Ok(())
    }

    /// The map for devices, whose writes go to that log.
    pub(super) fn map(&self, log: Option<&Arc<SharedLog>>) -> Result<MemoryMap, MemoryError> {
        let logged = |entry: &Entry| match log {
            Some(log) => {
                let base = entry.region.base();
                entry.region.clone().with_dirty_log(Arc::new(RegionLog::new(log.clone(), base)))
            }
            None => entry.region.clone(),
        };
        Ok(MemoryMap::new(self.entries.iter().map(logged).collect())?)
    }

    /// The guest physical address of an address in the front-end.
    pub(super) fn physical(&self, user: u64) -> Option<u64> {
        let entry = self.entries.iter().find(|entry| (entry.user..entry.user_end()).contains(&user))?;
        Some(entry.region.base() + (user - entry.user))
    }
}

impl Entry {
    /// Checked when the entry was made.
    fn user_end(&self) -> u64 {
        self.user + self.region.len()
    }
}
