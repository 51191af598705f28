//! What does the work and what sits between: back-ends and interposers for iovirt pipelines.
//!
//! | module | holds |
//! |---|---|
//! | [`block`] | back-ends for block requests |
//!
//! Every stage has a folder with the same files: `mod.rs` (what it is), `config.rs` (how it is set up), `backend.rs` or
//! `stage.rs` (its control plane), `queue.rs` (its data plane), `tests.rs`.

pub mod block;

#[cfg(test)]
mod rig;
