//! The `file` back-end.

mod backend;
mod config;
mod control;
mod disk;
mod inline;
mod lock;
mod probe;
mod queue;
mod sys;
mod task;
mod threads;
mod uring;

#[cfg(test)]
mod tests;

pub use backend::{FileBackend, FileQueue};
pub use config::{Cache, Direct, Discard, Engine, FileAccess, FileConfig, Inline, Lock};
pub use control::FileControl;
