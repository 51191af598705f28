//! What can be wrong with a bus and what is put on it.

use super::PciAddress;
use thiserror::Error;

/// Why something could not be put on a bus or into a configuration space.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum PciError {
    /// No such place.
    #[error(
        "there is no PCI device {device}, function {function}: devices go from 0 to 31, functions from 0 to 7"
    )]
    Address {
        /// The device asked for.
        device: u8,
        /// The function asked for.
        function: u8,
    },
    /// Somebody is there.
    #[error("PCI address {0} is taken")]
    Taken(PciAddress),
    /// A guest looks for further functions only where it finds function 0.
    #[error("PCI address {0} needs function 0 of the same device to be there first")]
    NoFunctionZero(PciAddress),
    /// All 32 devices are there.
    #[error("all 32 devices of the PCI bus are taken")]
    Full,
    /// A BAR that cannot be.
    #[error("BAR {index} cannot be {bar}: {reason}")]
    Bar {
        /// Its number.
        index: usize,
        /// What was asked for.
        bar: String,
        /// Why not.
        reason: &'static str,
    },
    /// No room in a window.
    #[error("a BAR of {size:#x} bytes does not fit into the {window} window of the PCI bus any more")]
    Window {
        /// Bytes wanted.
        size: u64,
        /// Which window.
        window: &'static str,
    },
    /// No room behind the header.
    #[error("a capability of {len} bytes does not fit into the configuration space any more")]
    Capability {
        /// Its length.
        len: usize,
    },
    /// MSI-X has 1 to 2048 vectors.
    #[error("{0} MSI-X vectors were asked for; 1 to 2048 are possible")]
    Vectors(usize),
}
