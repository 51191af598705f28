//! Back-ends for network requests.
//!
//! | back-end | what it is | lives in |
//! |---|---|---|
//! | [`loopback`] | what is sent comes back | nothing |
//! | [`tap`] | a tap device of the host | the host's network |

pub mod loopback;
pub mod tap;

mod finished;
#[cfg(test)]
pub(crate) mod rig;

use iovirt_core::BackendError;
use iovirt_core::request::net::NetCaps;

/// The most pairs of queues of one back-end.
pub const MAX_PAIRS: u16 = 32;

/// Refuses what no network can have.
fn check(mtu: u16, pairs: u16) -> Result<(), BackendError> {
    let least = NetCaps::MIN_MTU;
    if mtu < least {
        return Err(BackendError::config(format!(
            "a network cannot have an MTU of {mtu} bytes: {least} to 65535 are allowed"
        )));
    }
    if pairs == 0 || pairs > MAX_PAIRS {
        return Err(BackendError::config(format!(
            "a network cannot have {pairs} pairs of queues: 1 to {MAX_PAIRS} are allowed"
        )));
    }
    Ok(())
}
