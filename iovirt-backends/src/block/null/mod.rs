//! `null`: a disk that keeps nothing and answers at once. For measuring what stands above it.
//!
//! ```text
//! virtio-blk -> null,size=1G
//! ```
//!
//! | option | default | meaning |
//! |---|---|---|
//! | `size` | `1G` | size of the disk, a multiple of 512 bytes |
//! | `fill` | `on` | `on`: reads give zeroes. `off`: reads leave memory as it is, which measures the path alone |
//!
//! # Limits
//! What is written is gone. With `fill=off` a read reports success without having read anything: the guest sees what its
//! buffer held before, and where a stage above reads into pooled host memory, what an earlier request of the same queue
//! left there. It is for measuring and for nothing else.
//!
//! # Promises
//! * Ranges are checked like those of any disk.
//! * Each request completes in the first poll after its submission. None waits, allocates, or takes a lock.
//! * Capabilities say [`Durability::Unsafe`](iovirt_core::request::block::Durability::Unsafe): a flush has nothing to
//!   make durable.
//! * There is no state to save: a device restored above it finds the same disk.

mod backend;
mod config;
mod queue;
#[cfg(test)]
mod tests;

pub use backend::NullBackend;
pub use config::NullConfig;
pub use queue::{Nothing, NullQueue};
