//! Stages that stand between a device and a back-end.
//!
//! | stage | what it does | families |
//! |---|---|---|
//! | [`mirror`] | the same data on several back-ends | block |
//! | [`overlay`] | copy-on-write over a base that is only read | block |
//! | [`stripe`] | one disk out of several | block |
//! | [`stats`] | counts requests and bytes, and measures latency | all |

pub mod mirror;
pub mod overlay;
pub mod stats;
pub mod stripe;
