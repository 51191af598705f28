//! The built-in guest.

mod layout;
mod program;
