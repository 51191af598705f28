//! Stages that stand between a device and a back-end, and those above several back-ends.
//!
//! | stage | what it does | families |
//! |---|---|---|
//! | [`delay`] | holds requests for a time | all |
//! | [`fault`] | fails requests, or leaves them unanswered, by rule and by chance | all |
//! | [`filter`] | lets frames pass or drops them, as a predicate says | net |
//! | [`mirror`] | the same data on several back-ends | block |
//! | [`overlay`] | copy-on-write over a base that is only read | block |
//! | [`stats`] | counts requests and bytes, and measures latency | all |
//! | [`stripe`] | one disk out of several | block |

pub mod delay;
pub mod fault;
pub mod filter;
pub mod mirror;
pub mod overlay;
pub mod stats;
pub mod stripe;

mod chance;
mod kinds;
mod live;

pub use kinds::{Kinds, UnknownKind};
