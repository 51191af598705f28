//! An embedder of iovirt, outside of its workspace: what a virtual machine monitor brings along, in as few lines as it takes,
//! with nothing but the public API of the `iovirt` crate. Without KVM: the guest is a thread that does what a driver does.
//!
//! ```text
//!   "vCPU": the thread of the caller                              I/O thread (event_loop.rs)
//!   ───────────────────────────────                               ──────────────────────────
//!   guest/: drivers ──► Window (machine.rs) ──► MmioDevice        epoll ┬ Worker ──► lanes: rings, stages, back-ends
//!      │                    └─ doorbells ──► eventfd ───────────────────┘   │
//!      │                                                                ├ Line: eventfd ◄── Interrupt::trigger
//!      └── waits ◄───────────── Line: counted ◄─────────────────────────┘
//!                                                                       └ stop: eventfd
//! ```
//!
//! | file | what an embedder learns from it |
//! |---|---|
//! | [`event_loop`] | a [`Worker`](iovirt::core::Worker) in a loop of one's own, next to one's own descriptors |
//! | [`line`] | an interrupt of one's own |
//! | [`machine`] | memory handed over, devices from descriptions or types, register windows, doorbells, deferred writes |
//! | [`stages`] | a stage of one's own as a hook, another one in full, both with control handles, in a description by name |
//! | [`guest`] | the other side: a small driver for virtio-mmio, disks and network cards |
//!
//! What is done with them is in `tests/`: a disk on a file, a network, an exchange of the back-end under load, and a device that
//! is saved in the middle of its work and goes on in another machine.

pub mod event_loop;
pub mod guest;
pub mod line;
pub mod machine;
pub mod stages;

/// Whatever went wrong, as a `main` would print it.
pub type Error = Box<dyn std::error::Error + Send + Sync>;

/// How long this embedder waits for anything: a bound for what hangs, not a measure.
pub const PATIENCE: std::time::Duration = std::time::Duration::from_secs(30);
