//! What the examples share: the control socket, what can be done to a pipeline over it, reports, sockets and signals.

pub(crate) mod control_socket;
pub(crate) mod pipeline;
pub(crate) mod report;
pub(crate) mod signals;
pub(crate) mod socket;
