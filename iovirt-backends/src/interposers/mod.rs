//! Stages that stand between a device and a back-end.
//!
//! | stage | what it does | families |
//! |---|---|---|
//! | [`filter`] | lets frames pass or drops them, as a predicate says | net |
//! | [`stats`] | counts requests and bytes, and measures latency | all |

pub mod filter;
pub mod stats;
