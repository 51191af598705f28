//! What the tests of network stages have in common.

use iovirt_core::pipeline::BoxBackend;
use iovirt_core::request::net::NetRequest;
use iovirt_core::test_utils::net::NetDriver;

pub(crate) use iovirt_core::test_utils::net::frame;

/// A data plane of that pair, eight requests deep.
pub(crate) fn rig(backend: &BoxBackend<NetRequest>, pair: u16) -> NetDriver {
    NetDriver::new(backend, pair, 8).expect("a data plane")
}
