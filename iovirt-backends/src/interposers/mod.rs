//! Stages that stand between a device and a back-end.
//!
//! | stage | what it does | families |
//! |---|---|---|
//! | [`stats`] | counts requests and bytes, and measures latency | all |

pub mod stats;
