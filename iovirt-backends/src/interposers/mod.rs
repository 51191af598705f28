//! Stages that stand between a device and a back-end.
//!
//! | stage | what it does | families |
//! |---|---|---|
//! | [`delay`] | holds requests for a time | all |
//! | [`fault`] | fails requests, or leaves them unanswered, by rule and by chance | all |
//! | [`stats`] | counts requests and bytes, and measures latency | all |

pub mod delay;
pub mod fault;
pub mod stats;

mod chance;
mod kinds;
mod live;

pub use kinds::{Kinds, UnknownKind};
