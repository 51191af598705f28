//! `fault`: fails requests, or leaves them unanswered, by rule and by chance from a seed.
//!
//! ```text
//! virtio-blk -> fault,fail=read,every=10 -> memory,size=1G
//! ```
//!
//! | option | default | meaning |
//! |---|---|---|
//! | `fail` | `all` | the kinds of request that it may strike: `all`, or names with `+` between them |
//! | `kind` | `error` | what becomes of a request that is struck: `error`, `stall`, `hang`, `drop` |
//! | `every` | `0` | strikes every so-many-th of these requests on each queue; 0 for none |
//! | `permille` | `0` | strikes each of these with this probability in thousandths |
//! | `seed` | `1` | where chance begins |
//!
//! It stands above any stack of any family of requests. Without `every` and `permille` it changes nothing until its control
//! handle says so:
//!
//! ```
//! use iovirt_backends::block::memory::{MemoryBackend, MemoryConfig};
//! use iovirt_backends::interposers::fault::{Fault, FaultConfig, FaultControl};
//! use iovirt_core::pipeline::{BoxBackend, Pipeline};
//! use iovirt_core::request::block::BlockRequest;
//!
//! let disk = MemoryBackend::new(&MemoryConfig::default())?;
//! let fault = Fault::<BlockRequest>::new(&FaultConfig::default())?.layer();
//! let stack = BoxBackend::new(Pipeline::top().stage(fault).backend(disk)?);
//!
//! let control = stack.list_stages().control::<FaultControl>("fault").unwrap();
//! control.set(&FaultConfig { fail: "write+flush".parse()?, every: 3, ..FaultConfig::default() })?;
//! assert_eq!(control.snapshot().errors, 0);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Promises
//! * The same requests in the same order on the same queue are struck in the same way: queues are counted, and have their
//!   chance, in the order in which they are opened.
//! * A request that fails here never reached what is below: a write that failed changed nothing.
//! * A stalled request goes on when the queue drains or [`FaultControl::release`] is called; while a queue drains nothing is
//!   stalled or dropped. What hangs goes on only by that call, and keeps its queue from rest.
//! * Nothing shared is written but for a request that is struck; no lock but when the settings change.
//! * Nothing is saved or restored: settings belong to whoever runs the process.

mod config;
mod control;
mod hook;
mod stage;
#[cfg(test)]
mod tests;

pub use config::{FaultConfig, FaultKind};
pub use control::{FaultControl, FaultSnapshot};
pub use hook::FaultHook;
pub use stage::Fault;
