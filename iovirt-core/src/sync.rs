//! Locks and atomics for what is shared between threads: the standard library's, or, in a build with `--cfg loom`, those of
//! the model checker [loom](https://docs.rs/loom), which runs a test through every order of events.
//!
//! A protocol between threads that is written with these names can be checked as it stands, together with the wake-ups of the
//! [worker](crate::worker). What only one thread touches, and locks that are held for a plain copy, need not use them. The
//! checker knows a sequentially consistent access as an acquiring and releasing one: where an order between two variables
//! matters, both sides say so by a fence, or by an operation that reads and writes.
//!
//! In builds with debug assertions a mutex counts who takes it, so that a test can hold the data path to its few locks: see
//! [`LockCount`].
//!
//! Models stand beside what they check, in files named `model.rs`; `cargo xtask test --only loom` runs them.

#[cfg(not(loom))]
mod counted;

#[cfg(all(not(loom), debug_assertions))]
pub use counted::Mutex;
#[cfg(not(loom))]
pub use counted::{LockCount, count_locks};
#[cfg(loom)]
pub use loom::sync::{Mutex, MutexGuard, atomic};
#[cfg(all(not(loom), not(debug_assertions)))]
pub use std::sync::Mutex;
pub use std::sync::{Arc, PoisonError, Weak};
#[cfg(not(loom))]
pub use std::sync::{MutexGuard, atomic};
