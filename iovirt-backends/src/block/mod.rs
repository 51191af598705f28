//! Block back-ends: what a virtual disk is stored in.

pub mod align;
pub mod file;
