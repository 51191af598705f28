//! `memory`: a sparse RAM disk. For tests, scratch disks, and for comparing other back-ends with the best case.
//!
//! ```text
//! virtio-blk -> memory,size=1G
//! ```
//!
//! | option | default | meaning |
//! |---|---|---|
//! | `size` | `1G` | size of the disk, a multiple of 512 bytes |
//! | `physical-block` | `512` | the unit that the guest is told to write in: a power of two, 512 bytes or more |
//! | `readonly` | `off` | refuse what changes the disk |
//!
//! # Limits
//! The content goes with the process: it survives neither power loss nor save and restore, which leaves it where it is.
//! Host memory is not reserved: it is taken page by page as the guest writes, up to the disk's size, and a host that has
//! none left kills a process. Discard gives whole pages back. One discard or write-zeroes covers at most
//! [`MAX_RANGE`] bytes; a longer one fails.
//!
//! # Promises
//! * Never-written, discarded and zeroed ranges read as zeroes.
//! * Each request completes in the first poll after its submission. It copies once, allocates nothing and takes no lock,
//!   and any number of workers do so at the same time.
//! * Requests in flight at the same time over the same bytes may see each other's bytes mixed, as on any disk; memory is
//!   never freed under one of them.
//! * Capabilities say [`Durability::Unsafe`](iovirt_core::request::block::Durability::Unsafe): a flush cannot make
//!   anything survive a loss of power here.

mod backend;
mod config;
mod queue;
mod store;
mod sys;
#[cfg(test)]
mod tests;

pub use backend::MemoryBackend;
pub use config::MemoryConfig;
pub use queue::{Copying, MemoryQueue};

/// The longest range of one discard or write-zeroes in bytes: what bounds the time of one request.
pub const MAX_RANGE: u64 = 64 << 20;
