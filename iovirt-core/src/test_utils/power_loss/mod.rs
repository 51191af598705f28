//! A disk that loses power.
//!
//! ```text
//!   submit ──► pending ──► executed ──► completed          power goes ──► what is found afterwards
//!                │            │                                              per unit, by seed:
//!                │            ▼                                              the durable version,
//!                │      volatile cache: every version since ────────────────► or any later one;
//!                │            │ flush, FUA                                   pending writes in part
//!                │            ▼
//!                └─ torn ─► durable medium
//! ```
//!
//! It is the worst disk that still keeps its promises: requests take effect and complete in any order; a flush makes
//! durable what had completed before it was submitted and nothing more; at a cut each unit of
//! [`PowerLossConfig::tear`] bytes falls on its own, to what was durable or to anything written since.
//!
//! A [`Sabotage`] breaks one promise on purpose, to show that a suite notices.

mod medium;
mod queue;
mod sabotage;

pub use queue::PowerLossQueue;
pub use sabotage::Sabotage;

use crate::backend::Backend;
use crate::error::BackendError;
use crate::pipeline::{BoxBackend, EventListener, Listeners, Stages};
use crate::request::Depth;
use crate::request::block::{BlockCaps, BlockRequest, Durability, SECTOR};
use crate::state::{StageStates, StateError};
use crate::test_utils::rng::Rng;
use crate::worker::WorkerContext;
use medium::Medium;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// When requests take effect.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pace {
    /// Some at a time, in any order, by seed; writes in flight may have begun.
    #[default]
    Random,
    /// All at the next poll, in the order of submission.
    InOrder,
}

/// How a [`PowerLossDisk`] is made.
#[derive(Clone, Debug)]
pub struct PowerLossConfig {
    /// What it says of itself; capacity and durability are as given here.
    pub caps: BlockCaps,
    /// The unit that a cut leaves whole, in bytes: a power of two. What is promised is one logical block; with a smaller
    /// unit blocks are torn, as by a disk that a stage with checksums must survive.
    pub tear: u32,
    /// When requests take effect.
    pub pace: Pace,
    /// Seed of everything that is random before the cut.
    pub seed: u64,
    /// The promise to break.
    pub sabotage: Option<Sabotage>,
}

impl PowerLossConfig {
    /// A disk of `capacity` bytes with a volatile cache: write-back, with FUA, discard and write-zeroes.
    pub fn new(capacity: u64) -> Self {
        use crate::request::block::{DiscardLimits, WriteZeroesLimits};
        let caps = BlockCaps {
            durability: Durability::WriteBack,
            fua: true,
            discard: Some(DiscardLimits {
                max_bytes: capacity.max(SECTOR),
                alignment: SECTOR as u32,
                reads_zero: false,
            }),
            write_zeroes: Some(WriteZeroesLimits { max_bytes: capacity.max(SECTOR), may_unmap: true }),
            ..BlockCaps::new(capacity)
        };
        Self { caps, tear: SECTOR as u32, pace: Pace::Random, seed: 0, sabotage: None }
    }

    /// The same with that promise.
    #[must_use]
    pub fn durability(mut self, durability: Durability) -> Self {
        self.caps.durability = durability;
        self
    }

    /// The same with or without [`BlockFlags::FUA`](crate::request::block::BlockFlags::FUA).
    #[must_use]
    pub fn fua(mut self, fua: bool) -> Self {
        self.caps.fua = fua;
        self
    }

    /// The same with that seed.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// The same with that pace.
    #[must_use]
    pub fn pace(mut self, pace: Pace) -> Self {
        self.pace = pace;
        self
    }

    /// The same, broken.
    #[must_use]
    pub fn sabotage(mut self, sabotage: Sabotage) -> Self {
        self.sabotage = Some(sabotage);
        self
    }
}

/// A disk in memory that loses power; see the [module](self).
///
/// ```
/// use iovirt_core::pipeline::BoxBackend;
/// use iovirt_core::test_utils::{Driver, PowerLossConfig, PowerLossDisk};
///
/// let (disk, power) = PowerLossDisk::new(PowerLossConfig::new(1 << 16));
/// let mut driver = Driver::new(1)?;
/// driver.open(&BoxBackend::new(disk), 8)?;
/// driver.write(0, &[1; 512])?;
/// driver.flush()?;
/// driver.write(512, &[2; 512])?;
///
/// // Whatever the seed: the first sector is there, the second is or is not.
/// let (disk, _) = power.cut(99);
/// driver.open(&BoxBackend::new(disk), 8)?;
/// assert_eq!(driver.read(0, 512)?, [1; 512]);
/// assert!([[0; 512], [2; 512]].contains(&driver.read(512, 512)?.try_into().unwrap()));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct PowerLossDisk {
    shared: Arc<Shared>,
}

/// The test's end of a [`PowerLossDisk`].
#[derive(Clone, Debug)]
pub struct PowerLossHandle {
    shared: Arc<Shared>,
}

#[derive(Debug)]
pub(in crate::test_utils) struct Shared {
    config: PowerLossConfig,
    state: Mutex<State>,
    listeners: Listeners,
}

#[derive(Debug)]
struct State {
    medium: Medium,
    caps: Arc<BlockCaps>,
    powered: bool,
    rng: Rng,
    /// Requests that took effect.
    executed: u64,
    broken: Broken,
}

/// What only a broken disk remembers.
#[derive(Debug, Default)]
struct Broken {
    /// How often it was asked for its capabilities.
    asked: u64,
    /// Where the next read or write goes that has no place of its own.
    cursor: usize,
    /// It is of no use any more.
    dead: bool,
    /// Requests of queues that are gone.
    kept: Vec<BlockRequest>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PowerLossDisk {
    /// An empty disk that reads as zeroes, and the test's end of it.
    ///
    /// # Panics
    /// Where the capacity is no multiple of `tear`.
    pub fn new(config: PowerLossConfig) -> (Self, PowerLossHandle) {
        let content = vec![0; config.caps.capacity as usize];
        Self::with_content(config, content)
    }

    /// A disk of which `content` is durable; its length replaces the configured capacity.
    ///
    /// # Panics
    /// As [`PowerLossDisk::new`].
    pub fn with_content(mut config: PowerLossConfig, content: Vec<u8>) -> (Self, PowerLossHandle) {
        config.caps.capacity = content.len() as u64;
        let medium = Medium::new(content, config.tear as usize);
        let state = State {
            medium,
            caps: Arc::new(config.caps.clone()),
            powered: true,
            rng: Rng::new(config.seed),
            executed: 0,
            broken: Broken::default(),
        };
        let shared = Arc::new(Shared { config, state: Mutex::new(state), listeners: Listeners::default() });
        (Self { shared: shared.clone() }, PowerLossHandle { shared })
    }

    /// The disk as a boxed back-end, for who needs no handle.
    pub fn boxed(config: PowerLossConfig) -> BoxBackend<BlockRequest> {
        BoxBackend::new(Self::new(config).0)
    }
}

impl PowerLossHandle {
    /// The power goes, and comes back: a new disk, made the same way, with what survived by that seed. The old one
    /// answers nothing any more; drop the stack above it, as the power took that as well.
    pub fn cut(&self, seed: u64) -> (PowerLossDisk, PowerLossHandle) {
        let content = {
            let mut state = self.shared.lock();
            state.powered = false;
            state.medium.survivors(&mut Rng::new(seed))
        };
        let mut config = self.shared.config.clone();
        config.seed = Rng::new(config.seed ^ seed).next_u64();
        PowerLossDisk::with_content(config, content)
    }

    /// What would be read now.
    pub fn content(&self) -> Vec<u8> {
        self.shared.lock().medium.content()
    }

    /// How many requests took effect, to choose the place of a cut.
    pub fn executed(&self) -> u64 {
        self.shared.lock().executed
    }
}

impl Backend<BlockRequest> for PowerLossDisk {
    type Queue = PowerLossQueue;

    fn caps(&self) -> Arc<BlockCaps> {
        let mut state = self.shared.lock();
        let mut told = state.caps.clone();
        match self.shared.config.sabotage {
            Some(Sabotage::OddCapacity) => Arc::make_mut(&mut told).capacity += 1,
            Some(Sabotage::ChangesItsMind) => {
                state.broken.asked += 1;
                Arc::make_mut(&mut told).optimal_io = told.logical_block << (state.broken.asked % 8);
            }
            _ => {}
        }
        told
    }

    fn open(&self, _: &mut WorkerContext<'_>, depth: Depth) -> Result<PowerLossQueue, BackendError> {
        let mut state = self.shared.lock();
        if self.shared.config.sabotage == Some(Sabotage::ForgetsForNewQueues) {
            let nothing = vec![0; state.caps.capacity as usize];
            state.medium.write(0, &nothing);
        }
        let rng = state.rng.fork();
        drop(state);
        Ok(PowerLossQueue::new(self.shared.clone(), rng, depth))
    }

    fn stages(&self, stages: &mut Stages) {
        let badly = self.shared.config.sabotage == Some(Sabotage::NamesItselfBadly);
        stages.push(if badly { "Power Loss!" } else { "power-loss" });
    }

    fn subscribe(&self, listener: &Arc<dyn EventListener>) {
        self.shared.listeners.add(listener);
    }

    fn save(&self, _: &mut StageStates) -> Result<(), StateError> {
        Ok(())
    }

    fn restore(&self, _: &mut StageStates) -> Result<(), StateError> {
        Ok(())
    }
}
