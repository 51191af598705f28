//! `tap`: the guest's frames go to a tap device of the host, and come from it.
//!
//! ```text
//! virtio-net -> tap,name=tap0
//! ```
//!
//! | option | default | meaning |
//! |---|---|---|
//! | `name` | required | the tap device: up to 15 characters; it is made where there is none and the host permits it |
//! | `queues` | `1` | pairs of queues: 1 to 32; above 1 the tap is opened as a multi-queue one |
//!
//! MTU and address are read from the host when the tap is opened. The address that the guest is offered is the host's end
//! of the tap with the local bit set and the last bit turned, as both ends of a link cannot have the same.
//!
//! # Limits
//! Linux only. A later change of the MTU on the host is not noticed: frames that are longer than the one that was read are
//! dropped and counted. A frame costs one system call.
//!
//! # Offloads
//! All, both ways: the host cuts and sums up what the guest left to it, and leaves to be done what tokens accept, over all
//! queues of the tap. A frame that it had ready for a receiver who accepted more is summed up here; one that is to be cut is
//! dropped and counted.
//!
//! # Promises
//! * Nothing blocks: the tap is read where tokens wait for frames, until it has none left, and each further frame wakes the
//!   lane that receives.
//! * Where no token waits, frames wait in the host's own queue (`txqueuelen`), and are dropped there when it is full.
//! * Frames are not copied but by the kernel: those that are sent go out of guest memory.
//! * A tap that vanishes leaves one line in the log. From then on transmits fail, receives come home as failed, and the link
//!   is down.
//! * Of a multi-queue tap the host gives frames only to the queues of pairs in use.
//! * No lock and no allocation for a frame, after the tokens' memory has grown to the longest.
//! * Nothing is saved: frames in the host's queue stay there.

mod backend;
mod config;
mod device;
mod queue;
mod sys;

pub use backend::{TapBackend, TapControl, TapSnapshot};
pub use config::TapConfig;
pub use queue::TapQueue;
