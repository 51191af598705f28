//! `overlay`: copy-on-write over a base that is only read.
//!
//! ```text
//! virtio-blk -> overlay [memory,size=10G | file,path=base.img,readonly=on]
//! ```
//!
//! | option | default | meaning |
//! |---|---|---|
//! | `name` | `overlay` | what its control handle is found by |
//! | `cluster` | `64K` | the unit in which data moves up: a power of two from 4K to 1M |
//!
//! The first pipeline in the brackets is the upper layer, which gets all that is written; the second is the base. A bitmap
//! says which clusters the upper layer holds. A write of a part of a cluster that it does not hold copies the cluster up
//! first.
//!
//! # How long it lives
//!
//! **The bitmap is in memory only.** The overlay lives as long as the process, and a new one over the same layers shows the
//! base again, whatever the upper layer has. So the disk promises no durability
//! ([`Durability::Unsafe`](iovirt_core::request::block::Durability::Unsafe)). Saved state has the bitmap: restored above
//! layers with the same content (a file, say), it is the same disk again.
//!
//! # Promises
//! * The base is never written. Its content never comes back where something was written or zeroed.
//! * Writes of different parts of one cluster, of any queues, all survive.
//! * A write that fails while it copies leaves the base's content in view.
//! * A discard of what the base holds does nothing; of what the upper layer holds it is passed on.
//! * One lock per batch of writes that move clusters up, shared by the queues; none for reads and other writes.
//!
//! # Limits
//! One bit of memory for each cluster, for 2^30 clusters at most. Two clusters of memory for each request in flight that
//! copied one up.

mod config;
mod control;
mod map;
#[cfg(test)]
mod tests;

pub use config::OverlayConfig;
pub use control::OverlayControl;
pub use map::{ClusterMap, Overlay};
