//! Composable virtual devices and back-ends: one door to the iovirt crates, and the pipeline description language.
//!
//! ```text
//!  guest driver (Linux, firmware, `virtio-drivers` in a test)
//!      │ registers, rings in guest memory, doorbells                    ▲ interrupts
//!  ┌───▼──────────────┐
//!  │ Frontend         │  the emulated device                 virtio-blk,queues=2
//!  └───┬──────────────┘                                               ->
//!      │ request: operation + scatter-gather list that owns its memory
//!  ┌───▼──────────────┐
//!  │ Interposer  × n  │  what stands between                 stats,name=top
//!  └───┬──────────────┘                                               ->
//!  ┌───▼──────────────┐
//!  │ Backend          │  what does the work                  memory,size=1G
//!  └──────────────────┘
//! ```
//!
//! On the right is the same pipeline as text. Nobody above a line knows what is below it: any front-end runs over any
//! stack of interposers over any back-end of its family.
//!
//! | module | holds |
//! |---|---|
//! | [`describe`] | pipelines as text: parsing, printing, errors that say what is allowed |
//! | [`registry`] | the stages that a text can name, and what builds them |
//! | [`core`] | the contract: requests, back-ends, stages, guest memory, workers |
//! | [`frontends`] | the devices that a guest sees |
//! | [`backends`] | what does the work, and what stands between |
//! | [`iommu`] | DMA remapping |
//! | [`sched`] | who goes next, where several pipelines share a back-end |
//!
//! # Example
//!
//! ```
//! use iovirt::backends::interposers::stats::StatsControl;
//! use iovirt::core::Backend;
//! use iovirt::registry::Registry;
//!
//! let registry = Registry::standard();
//! for text in ["virtio-blk -> stats -> memory,size=64M", "virtio-blk,queues=4 -> stats -> null,size=1T"] {
//!     let description = registry.parse(text)?;
//!     // For whoever makes the device:
//!     let options = registry.frontend_options(&description.frontend)?;
//!     assert!(options.required::<u16>("queues")? >= 1);
//!     // What is below the device:
//!     let disk = registry.build_block(&description.below)?;
//!     assert!(disk.caps().capacity >= 64 << 20);
//!     let stats = disk.list_stages().control::<StatsControl>("stats").unwrap();
//!     assert_eq!(stats.snapshot().in_flight, 0);
//! }
//! # Ok::<(), iovirt::describe::DescribeError>(())
//! ```

pub mod describe;
pub mod registry;

pub use iovirt_backends as backends;
pub use iovirt_core as core;
pub use iovirt_frontends as frontends;
pub use iovirt_iommu as iommu;
pub use iovirt_sched as sched;

/// All stages of this build with their keys, defaults, one line of help and their maturity: what the `--list-stages` of
/// an example prints.
pub fn list_stages() -> String {
    registry::Registry::standard().list_stages()
}

/// The examples of the texts beside the code, compiled and run.
#[cfg(doctest)]
mod texts {
    #[doc = include_str!("../README.md")]
    struct Readme;

    #[doc = include_str!("../docs/iommu.md")]
    struct Iommu;

    #[doc = include_str!("../docs/virtio-mmio.md")]
    struct VirtioMmio;

    #[doc = include_str!("../docs/virtio-pci.md")]
    struct VirtioPci;

    #[cfg(feature = "vhost-user")]
    #[doc = include_str!("../docs/vhost-user.md")]
    struct VhostUser;
}
