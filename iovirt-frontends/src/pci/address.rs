//! Where a function is on the bus.

use super::{ECAM_FUNCTION_LEN, PciError};
use std::fmt;

/// A device (0 to 31) and a function (0 to 7) of bus 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PciAddress {
    device: u8,
    function: u8,
}

impl PciAddress {
    /// That device's function.
    ///
    /// # Errors
    /// Where there is no such device or function on a bus.
    pub fn new(device: u8, function: u8) -> Result<Self, PciError> {
        if device < 32 && function < 8 {
            Ok(Self { device, function })
        } else {
            Err(PciError::Address { device, function })
        }
    }

    /// The device's number on the bus.
    pub fn device(self) -> u8 {
        self.device
    }

    /// The function's number in its device.
    pub fn function(self) -> u8 {
        self.function
    }

    /// The function and the offset in its configuration space that an offset in ECAM selects (PCI Express 3.0,
    /// section 7.2.2).
    pub(super) fn from_ecam(offset: u64) -> Option<(Self, u16)> {
        let index = offset / ECAM_FUNCTION_LEN;
        let register = (offset % ECAM_FUNCTION_LEN) as u16;
        (index < 256).then_some((Self { device: (index >> 3) as u8, function: index as u8 & 7 }, register))
    }

    /// The function and the aligned offset that the address port selects, where it is enabled and bus 0 is meant
    /// (section 3.2.2.3.2).
    pub(super) fn from_port(address: u32) -> Option<(Self, u16)> {
        const ENABLE: u32 = 1 << 31;
        const BUS: u32 = 0xff << 16;
        let selected = Self { device: (address >> 11) as u8 & 31, function: (address >> 8) as u8 & 7 };
        (address & (ENABLE | BUS) == ENABLE).then_some((selected, address as u16 & 0xfc))
    }
}

impl fmt::Display for PciAddress {
    /// As `lspci` writes it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00:{:02x}.{}", self.device, self.function)
    }
}
