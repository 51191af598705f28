//! What the daemon can be told over its control socket (`--control SOCKET`).
//!
//! `request` has the requests, `operator` carries them out.

mod operator;
mod request;

pub(crate) use operator::{Operator, Reach};
