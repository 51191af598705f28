//! `stats`: counts requests, bytes and failures of each kind, and measures how long requests take below it.
//!
//! ```text
//! virtio-blk -> stats,name=top -> memory,size=1G
//! ```
//!
//! | option | default | meaning |
//! |---|---|---|
//! | `name` | `stats` | what its control handle is found by, where a pipeline has several |
//!
//! It stands above any stack of any family of requests and changes nothing. What it counted is read while it runs,
//! through its control handle:
//!
//! ```
//! use iovirt_backends::block::memory::{MemoryBackend, MemoryConfig};
//! use iovirt_backends::interposers::stats::{Stats, StatsConfig, StatsControl};
//! use iovirt_core::pipeline::{BoxBackend, Pipeline};
//! use iovirt_core::request::block::BlockRequest;
//!
//! let disk = MemoryBackend::new(&MemoryConfig::default())?;
//! let stats = Stats::<BlockRequest>::new(&StatsConfig::default()).layer();
//! let stack = BoxBackend::new(Pipeline::top().stage(stats).backend(disk)?);
//!
//! let control = stack.list_stages().control::<StatsControl>("stats").unwrap();
//! let reads = &control.snapshot().kinds[0];
//! assert_eq!((reads.name, reads.ops, reads.latency.percentile(99.0)), ("read", 0, None));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Limits
//! Time is the worker's, which is read once per turn and where a stage did a batch of work in between. A request that
//! completes within one turn, below which nobody read the clock, took no time as far as this stage can see. A back-end
//! that works on threads or in the kernel completes in a later turn.
//!
//! Latencies are kept in buckets 1/32 of their value wide, from 1 ns to 137 s; what takes longer counts as 137 s. Each
//! queue has 8.5 KiB of counters for each kind of request.
//!
//! # Promises
//! * A few nanoseconds for each request: no lock, no shared counter, no clock read, no allocation.
//! * Counters belong to a queue and are written by its worker alone; reading them disturbs nobody. A snapshot is not of
//!   one instant: each number in it is exact, but two may be a moment apart.
//! * A queue that was closed still counts.
//! * [`StatsControl::reset`] begins anew without touching a counter that a worker writes.
//! * Counters are of the process: nothing is saved or restored.

mod config;
mod control;
mod histogram;
mod queue;
mod shard;
mod stage;
#[cfg(test)]
mod tests;

pub use config::StatsConfig;
pub use control::{KindSnapshot, StatsControl, StatsSnapshot};
pub use histogram::Latency;
pub use queue::StatsHook;
pub use stage::Stats;
