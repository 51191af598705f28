//! The test kit: what a stage, a back-end or a device is tested with, here and by embedders.
//!
//! | module | holds |
//! |---|---|
//! | [`rng`] | a seeded generator; every test that chooses takes its seed from here and prints it |
//! | [`clock`] | [`VirtualClock`], and [`Simulation`]: a worker in virtual time |
//! | [`manual`] | [`ManualBackend`]: requests complete, fail, stall or vanish by command |
//! | [`power_loss`] | [`PowerLossDisk`]: a disk with a volatile cache that loses power, honest or broken |
//! | [`driver`], [`io`], [`guest`] | [`Driver`]: the submitting side, with guest memory in odd pieces |
//! | [`plane`] | [`Plane`](plane::Plane): one data plane of any family, with books that trust nobody |
//! | [`workload`], [`oracle`], [`stamp`] | [`Workload`]: seeded load that knows what may be found, now and after a cut |
//! | [`alloc`] | [`CountingAllocator`] |
//! | [`skip`] | [`skipped`]: a test that lacks something of the host says so, or fails where nothing may be skipped |
//! | [`lifecycle`] | drain, reset, save and restore, stall, resize and swap in the middle of load, in deterministic simulation: of stacks, and of whole devices |
//! | [`conformance`] | the suite that every back-end and every stage runs |
//! | [`net`] | the same for networks: a suite, a driver, and a wire to run it over |
//! | [`hostile`] | the suite that every device runs: what a guest can do to it |
//! | [`mmio_over_pci`] | drives a virtio-pci function as if it were virtio-mmio |
//!
//! Everything that is random comes from a seed. A failure prints it; `IOVIRT_SEED` runs it again, and
//! `IOVIRT_ROUNDS` makes a test longer or shorter.

pub mod alloc;
pub mod clock;
pub mod conformance;
pub mod driver;
pub mod guest;
pub mod hostile;
pub mod io;
pub mod lifecycle;
pub mod manual;
pub mod mmio_over_pci;
pub mod net;
pub mod oracle;
pub mod plane;
pub mod power_loss;
pub mod rng;
pub mod skip;
pub mod stamp;
#[cfg(feature = "test-utils-virtio")]
pub mod virtio;
pub mod workload;

pub use alloc::{AllocationCount, CountingAllocator, count_all_allocations, count_allocations};
pub use clock::{Simulation, VirtualClock};
pub use driver::{Driver, DriverError, Stuck};
pub use guest::Shape;
pub use io::{BlockIo, IoDone, IoId};
pub use manual::{ManualBackend, ManualHandle};
pub use power_loss::{PowerLossConfig, PowerLossDisk, PowerLossHandle, Sabotage};
pub use rng::{Rng, rounds_or, seed_or};
pub use skip::skipped;
pub use workload::{Violation, Workload, WorkloadConfig};

/// The examples of the page that tells embedders how to use the kit are compiled and run.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/testing-your-own-stage.md")]
#[derive(Debug)]
pub struct TestingYourOwnStage;

/// So are those of the page about async stages, which the kit tests.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/write-your-own-stage-async.md")]
#[derive(Debug)]
pub struct WriteYourOwnStageAsync;
/// What the compiler holds of the contract.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/contract.md")]
#[derive(Debug)]
pub struct Contract;
/// The same for the page on how to write a stage.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/write-your-own-stage.md")]
#[derive(Debug)]
pub struct WriteYourOwnStage;
