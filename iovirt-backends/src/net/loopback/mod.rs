//! `loopback`: what is sent on a pair of queues comes back on the same pair. For tests, and for measuring what is above it.
//!
//! ```text
//! virtio-net -> loopback
//! ```
//!
//! | option | default | meaning |
//! |---|---|---|
//! | `mtu` | `1500` | largest payload of a frame in bytes: 68 to 65535 |
//! | `queues` | `32` | pairs of queues that are served: 1 to 32 |
//!
//! # Limits
//! Nothing is stored: a frame is copied into a receive token that waits, and where none does it is dropped and counted. A
//! guest therefore gets at most as many frames at once as its device has tokens. One data plane per pair receives; tokens of
//! a second one fail as unsupported.
//!
//! # Offloads
//! All, both ways. A frame that its receiver accepts as it is comes back as it was sent; where it does not, the checksum is
//! made here, and the frame is cut here, in software and under the pair's lock, into a token for each segment.
//!
//! # Promises
//! * Frames of a pair come back in the order in which they were sent, whichever workers the two sides are on.
//! * A frame is copied once, within `kick`, and once more where it is cut; it allocates only while the tokens' own memory grows.
//! * The state of a pair is behind a lock, taken once per batch of submissions, and once per batch of completions where there
//!   are any. It is held while the batch is copied; the only other one who wants it is the other side of the same pair.
//! * A queue that drains gives its tokens back as aborted; frames sent meanwhile are dropped.

mod backend;
mod config;
mod control;
#[cfg(all(test, loom))]
mod model;
mod pair;
mod queue;
#[cfg(test)]
mod tests;

pub use backend::LoopbackBackend;
pub use config::LoopbackConfig;
pub use control::{LoopbackControl, LoopbackSnapshot};
pub use queue::LoopbackQueue;
