//! What does the work and what sits between: back-ends and interposers for iovirt pipelines.
//!
//! | module | holds |
//! |---|---|
//! | [`block`] | back-ends for block requests |
//! | [`net`] | back-ends for network requests |
//! | [`interposers`] | stages that stand between a device and a back-end |
//!
//! Every stage has a folder with the same files: `mod.rs` (what it is), `config.rs` (how it is set up), `backend.rs` or
//! `stage.rs` (its control plane), `queue.rs` (its data plane), `tests.rs`.

pub mod block;
pub mod interposers;
pub mod net;

#[cfg(test)]
mod rig;
