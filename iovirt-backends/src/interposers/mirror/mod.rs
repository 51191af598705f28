//! `mirror`: the same data on several back-ends.
//!
//! ```text
//! virtio-blk -> mirror,write-quorum=2 [file,path=a.img | file,path=b.img | file,path=c.img]
//! ```
//!
//! | option | default | meaning |
//! |---|---|---|
//! | `name` | `mirror` | what its control handle is found by |
//! | `write-quorum` | all | on how many replicas a write must succeed |
//! | `read` | `first` | where reads go: to the `first` replica that has not failed, or to each in turn (`round-robin`) |
//!
//! What changes the disk, and flushes, go to every replica that has not failed; reads go to one, and to the next where it
//! cannot read.
//!
//! # Failures
//!
//! A replica on which a write (or a flush, a discard, a write-zeroes) failed that succeeded on another has **failed**: it is
//! neither read nor written any more, since its content is not what was written. The [`MirrorControl`] shows it and an
//! [`Event::CapsChanged`](iovirt_core::pipeline::Event::CapsChanged) tells of it. The request succeeds if enough replicas
//! did it. There is no resync yet. A request that failed on all replicas fails, and no replica is worse than another. With
//! fewer replicas left than the quorum the disk is read-only.
//!
//! A read that fails makes no replica fail; it is counted.
//!
//! # Promises
//! * A request comes home when all replicas that it went to have answered (or dropped it), also where the quorum is reached
//!   before: a replica that never answers holds up what went to it,
//!   and writes that overlap that.
//! * A guest that changes memory while it is being written does not make replicas differ: what goes to several is copied
//!   once, and the copy written. Data that goes to one replica is not copied.
//! * Writes that overlap, of any queue, are done one after another, so that all replicas end with the same.
//! * Durable is what is durable on every replica that has not failed; the disk promises the least of what they promise.
//!
//! # Limits
//! After a loss of power replicas may differ in what was written and not flushed, as each of them may keep it or not. With
//! `read=first` the disk is consistent all the same, as long as the first replica does not fail; with `round-robin`, write
//! such ranges again first.

mod config;
mod control;
mod queue;
mod stage;
#[cfg(test)]
mod tests;

pub use config::{MirrorConfig, ReadPolicy};
pub use control::{MirrorControl, ReplicaSnapshot};
pub use queue::{Answers, MirrorFan};
pub use stage::Mirror;
