//! What a device on the bus is.

use super::LineInput;
use iovirt_core::Frontend;
use iovirt_core::frontend::Access;

/// An interrupt pin (section 2.2.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IntxPin {
    /// `INTA#`, which a device with one function uses.
    A = 1,
    /// `INTB#`.
    B,
    /// `INTC#`.
    C,
    /// `INTD#`.
    D,
}

/// A function on a PCI bus: a device with configuration space. Its regions are its BARs, in order.
///
/// As with every front-end, all methods are callable from any thread and none blocks.
pub trait PciFunction: Frontend {
    /// A read of the configuration space. What is not there reads as zeroes.
    fn read_config(&self, offset: u16, data: &mut [u8]);

    /// A write of the configuration space. What is not writable stays. Afterwards the bus asks where the windows are.
    fn write_config(&self, offset: u16, data: &[u8]) -> Access;

    /// Where each region is decoded now; `None` where it is not.
    fn decoded(&self) -> Vec<Option<u64>>;

    /// The pin it raises where it is not allowed to send messages, if it has one.
    fn interrupt_pin(&self) -> Option<IntxPin>;

    /// The bus connects the pin.
    fn connect_line(&self, line: LineInput);
}
