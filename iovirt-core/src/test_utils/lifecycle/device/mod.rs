//! The same for whole devices: a guest drives a virtio-mmio device in simulation, and in the middle of its load the device is
//! drained, reset, saved and restored, stalled, told of changes, and has its stack exchanged.
//!
//! ```text
//!   guest: its load, its rings, interrupts ──► the device under test ──► Watch ──► the stack ──► a brake ──► disk or network
//!                                              on two workers of one virtual clock
//! ```
//!
//! The guest is honest and does nothing without a reason: it rings where the device asks for a doorbell, and looks at its
//! rings where it was interrupted. So whatever the device forgets leaves everybody waiting, which is how it is found: a ring
//! that is not looked at again after a restore, an interrupt that was lost with a saved machine, a chain that was in flight
//! and is not served again. All the way it is checked that
//!
//! * every chain comes back once, and with the right content: what a write left in its cells of a disk, a frame as it was
//!   sent, each once and in order;
//! * a device that was reset writes nothing to the guest's memory any more;
//! * the stack below was used, and behaved, as the contract says ([`Watch`]).
//!
//! The device needs nothing but a [`Frontend`] with the registers of virtio-mmio; whoever runs this brings the device and the
//! stack.

mod disk;
mod guest;
mod network;
mod ops;
mod ring;
mod watch;
mod world;

pub use watch::{Watch, WatchHandle};

use super::{Failure, Run, SlowDiskHandle, SlowNetHandle, guarded};
use crate::WorkerHandle;
use crate::dma::DmaSpace;
use crate::frontend::{Frontend, Ticket};
use crate::irq::CountingInterrupt;
use crate::pipeline::{Stages, SwapControl, SwapError};
use crate::request::Request;
use crate::request::block::BlockRequest;
use crate::request::net::NetRequest;
use std::fmt;
use std::fs::File;
use std::ops::Range;
use std::sync::Arc;
use world::{Load, World};

/// What a device is made in.
#[derive(Clone, Debug)]
pub struct Surroundings {
    /// The guest's memory.
    pub space: DmaSpace,
    /// The same as a file, from address 0 on: for a device that maps it itself.
    pub memory: Arc<File>,
    /// The workers for its queues.
    pub workers: Vec<WorkerHandle>,
    /// Where its interrupts go.
    pub interrupt: Arc<CountingInterrupt>,
    /// For what is random below it.
    pub seed: u64,
}

/// A device under test.
pub struct Made {
    /// The device.
    pub frontend: Arc<dyn Frontend>,
    /// What holds up everything below it.
    pub brake: Box<dyn Brake>,
    /// What a [`Watch`] has seen go wrong, if anything; see [`WatchHandle::violation`]. Asked after each step of a worker: where
    /// a thread that is not simulated works for the device, it returns once that waits for the simulation again.
    pub watch: Box<dyn Fn() -> Option<String>>,
}

impl fmt::Debug for Made {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Made").field("frontend", &self.frontend.name()).finish_non_exhaustive()
    }
}

/// Holds up what is below a device.
pub trait Brake {
    /// From now on nothing gets through.
    fn stall(&self);
    /// The way back.
    fn go_on(&self);
    /// Changes what the guest is told: 0 to 7, for whatever can be changed.
    fn change(&self, to: u64);
}

impl Brake for (SlowDiskHandle, u64) {
    fn stall(&self) {
        self.0.stall();
    }

    fn go_on(&self) {
        self.0.go_on();
    }

    /// The disk of so many bytes becomes smaller by up to 7 sectors.
    fn change(&self, to: u64) {
        self.0.resize(self.1 - to * 512);
    }
}

impl Brake for SlowNetHandle {
    fn stall(&self) {
        self.stall();
    }

    fn go_on(&self) {
        self.go_on();
    }

    /// The link goes down or comes up.
    fn change(&self, to: u64) {
        self.set_link(if to == 0 { crate::request::net::Link::Down } else { crate::request::net::Link::Up });
    }
}

/// Makes devices above one disk or network: several, one after another, where the device is saved and restored.
pub type Maker = Box<dyn FnMut(&Surroundings) -> Made>;

/// What is tested, and how it is made.
#[derive(Clone, Copy)]
pub struct DeviceCase<'a> {
    /// What a failure calls it.
    pub name: &'a str,
    /// Makes the maker of devices above a fresh disk or network.
    pub fresh: &'a dyn Fn() -> Maker,
    /// Steps of a run, before what is left comes back and everything is looked at.
    pub steps: u64,
    kind: &'static Kind,
}

/// What differs between classes of devices.
struct Kind {
    features: u64,
    load: fn() -> Box<dyn Load>,
    swap: fn(&Stages) -> Option<Swap>,
}

/// An exchange that was begun, and how to give it up.
type Swap = (Result<Ticket, SwapError>, Box<dyn Fn()>);

/// `VIRTIO_BLK_F_FLUSH`.
static DISK: Kind =
    Kind { features: 1 << 9, load: || Box::new(disk::DiskLoad::new()), swap: swap::<BlockRequest> };
/// `VIRTIO_NET_F_CTRL_VQ`, `VIRTIO_NET_F_MQ`.
static NETWORK: Kind = Kind {
    features: 1 << 17 | 1 << 22,
    load: || Box::new(network::NetLoad::new()),
    swap: swap::<NetRequest>,
};

fn swap<R: Request>(stages: &Stages) -> Option<Swap> {
    let (_, control) = stages.controls::<SwapControl<R>>().next()?;
    let ticket = control.swap(control.current());
    Some((ticket, Box::new(move || control.cancel())))
}

impl<'a> DeviceCase<'a> {
    /// A virtio disk above a [`SlowDisk`](super::SlowDisk) of 256 KiB or more, all zeroes, in runs of 300 steps.
    pub fn disk(name: &'a str, fresh: &'a dyn Fn() -> Maker) -> Self {
        Self { name, fresh, steps: 300, kind: &DISK }
    }

    /// A virtio network card of two pairs above a [`SlowNet`](super::SlowNet) on which frames come back on their pair, in
    /// runs of 300 steps.
    pub fn network(name: &'a str, fresh: &'a dyn Fn() -> Maker) -> Self {
        Self { name, fresh, steps: 300, kind: &NETWORK }
    }

    /// The same with runs of that many steps.
    #[must_use]
    pub fn steps(mut self, steps: u64) -> Self {
        self.steps = steps;
        self
    }
}

impl fmt::Debug for DeviceCase<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeviceCase")
            .field("name", &self.name)
            .field("steps", &self.steps)
            .finish_non_exhaustive()
    }
}

/// Runs the case with each of these seeds.
///
/// # Errors
/// The first rule that was broken.
pub fn run(case: &DeviceCase<'_>, seeds: Range<u64>) -> Result<Run, Failure> {
    let mut total = Run::default();
    for seed in seeds {
        total += run_one(case, seed)?;
    }
    Ok(total)
}

/// Runs the case with that seed.
///
/// # Errors
/// The first rule that was broken.
pub fn run_one(case: &DeviceCase<'_>, seed: u64) -> Result<Run, Failure> {
    guarded(case.name, seed, |at| {
        let mut world = World::new(case, seed)?;
        let result = world.live();
        *at = world.at;
        result.map(|()| world.run())
    })
}
