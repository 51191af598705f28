//! `filter`: lets frames pass or drops them, as a predicate in Rust says, and counts both.
//!
//! ```text
//! virtio-net -> filter,drop=receive -> loopback
//! ```
//!
//! | option | default | meaning |
//! |---|---|---|
//! | `name` | `filter` | what its control handle is found by, where a pipeline has several |
//! | `drop` | `none` | what it drops until its control handle says otherwise: `none`, `transmit`, `receive` or `all` |
//!
//! The predicate is set, and changed while frames flow, through the control handle:
//!
//! ```
//! use iovirt_backends::interposers::filter::{Direction, Filter, FilterConfig, Frame, Verdict};
//! use iovirt_backends::net::loopback::{LoopbackBackend, LoopbackConfig};
//! use iovirt_core::pipeline::Pipeline;
//!
//! let filter = Filter::new(&FilterConfig::default());
//! let control = filter.handle();
//! let network = LoopbackBackend::new(&LoopbackConfig::default())?;
//! let stack = Pipeline::top().stage(filter.layer()).backend(network)?;
//! // No IPv6 into the guest.
//! control.set(|frame: &Frame<'_>| match (frame.direction, frame.bytes.get(12..14)) {
//!     (Direction::ToGuest, Some([0x86, 0xdd])) => Verdict::Drop,
//!     _ => Verdict::Pass,
//! });
//! assert_eq!(control.snapshot().dropped_to_guest, 0);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Limits
//! It is for tests and for small rules: the predicate looks at one frame at a time and keeps no connections. Offloads pass: a
//! frame that is still to be cut is judged as one.
//!
//! # Promises
//! * A frame to the guest is judged in host memory, before any guest can see it. The token of one that is dropped goes down
//!   again; the guest does not notice.
//! * A frame from the guest is copied into host memory before it is judged, and it is the copy that goes on: a guest cannot
//!   change it afterwards. One that is dropped completes as sent.
//! * Frames that pass stay in order.
//! * A new predicate is in force for every frame that a queue sees in the turn after it was set, and later.

mod config;
mod control;
mod hook;
mod stage;
#[cfg(test)]
mod tests;

pub use config::{Drops, FilterConfig};
pub use control::{Direction, FilterControl, FilterSnapshot, Frame, Verdict};
pub use hook::FilterHook;
pub use stage::Filter;
