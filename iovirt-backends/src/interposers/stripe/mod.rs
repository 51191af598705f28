//! `stripe`: one disk out of several, its data spread over them in chunks (RAID 0).
//!
//! ```text
//! virtio-blk -> stripe,chunk=64K [file,path=a.img | file,path=b.img]
//! ```
//!
//! | option | default | meaning |
//! |---|---|---|
//! | `name` | `stripe` | what the stage is called |
//! | `chunk` | `64K` | how much goes to one back-end before the next: a multiple of the block size, not more than 1G |
//!
//! Chunk `k` of the disk is chunk `k / n` of back-end `k % n`. What of a request lies on one back-end is contiguous there,
//! so that each gets one request, whose memory is in pieces. (Several, one after another, where these would be too many.)
//!
//! The disk has the capacity of `n` times its smallest back-end, in whole chunks. A back-end that fails takes the disk with
//! it: nothing is stored twice.
//!
//! # Promises
//! * No copy, no lock, no allocation per request.
//! * A flush goes to all back-ends and completes when all have flushed. The disk promises the least of what they promise.
//! * Parts of a write that fails may have been written, as on any disk.

mod config;
mod queue;
mod stage;
#[cfg(test)]
mod tests;

pub use config::StripeConfig;
pub use queue::StripeFan;
pub use stage::Stripe;
