//! `delay`: holds requests for a time before they go on.
//!
//! ```text
//! virtio-blk -> delay,time=2ms,jitter=500us,kinds=read+write -> memory,size=1G
//! ```
//!
//! | option | default | meaning |
//! |---|---|---|
//! | `time` | `1ms` | how long a request is held at least |
//! | `jitter` | `0s` | how much longer at most, by chance |
//! | `kinds` | `all` | the kinds of request that it holds: `all`, or names with `+` between them |
//! | `seed` | `1` | where chance begins |
//!
//! It stands above any stack of any family of requests, and its settings change while it runs:
//!
//! ```
//! use iovirt_backends::block::memory::{MemoryBackend, MemoryConfig};
//! use iovirt_backends::interposers::delay::{Delay, DelayConfig, DelayControl};
//! use iovirt_core::pipeline::{BoxBackend, Pipeline};
//! use iovirt_core::request::block::BlockRequest;
//! use std::time::Duration;
//!
//! let disk = MemoryBackend::new(&MemoryConfig::default())?;
//! let delay = Delay::<BlockRequest>::new(&DelayConfig::default())?.layer();
//! let stack = BoxBackend::new(Pipeline::top().stage(delay).backend(disk)?);
//!
//! let control = stack.list_stages().control::<DelayControl>("delay").unwrap();
//! control.set(&DelayConfig { time: Duration::from_millis(20), ..DelayConfig::default() })?;
//! control.release();
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Limits
//! Time is the worker's: it is read once per turn, and the host's timer wakes a worker when it does. A request is held for no
//! less than it should be, and for as much longer as that takes.
//!
//! # Promises
//! * Requests whose time comes at once go on in the order in which they were submitted. With `jitter` those of a disk overtake
//!   each other; frames never do: one waits for the one before it.
//! * A drain lets all go at once, and while a queue drains nothing is held.
//! * Memory for two entries for each request of the queue's depth, taken when it opens; nothing is allocated later. No lock
//!   but when the settings change.
//! * Nothing is saved or restored: settings belong to whoever runs the process.

mod config;
mod control;
mod hook;
mod stage;
#[cfg(test)]
mod tests;

pub use config::DelayConfig;
pub use control::DelayControl;
pub use hook::DelayHook;
pub use stage::Delay;
