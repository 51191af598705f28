//! Places windows as firmware would: by the registers, with no knowledge of the device (section 6.2.5.1).

use super::config_space::{BAR_COUNT, BARS};
use super::{PciError, PciFunction};
use std::ops::Range;

/// What is left of the address ranges that the bus forwards.
#[derive(Debug)]
pub(super) struct Windows {
    memory: Range<u64>,
    memory64: Range<u64>,
    ports: Range<u64>,
}

/// Smallest distance of two windows in memory: a page each, as guests map pages.
const PAGE: u64 = 4096;

impl Windows {
    pub(super) fn new(memory: Range<u64>, memory64: Range<u64>, ports: Range<u64>) -> Self {
        Self { memory, memory64, ports }
    }

    /// Gives each window of a function an address.
    pub(super) fn place(&mut self, function: &dyn PciFunction) -> Result<(), PciError> {
        let mut index = 0;
        while index < BAR_COUNT {
            let register = (BARS + 4 * index) as u16;
            let low = probe(function, register);
            let is_64_bit = low & 0b111 == 0b100;
            index += if is_64_bit { 2 } else { 1 };
            if low == 0 {
                continue;
            }
            if low & 1 != 0 {
                let size = u64::from((!(low & !3)).wrapping_add(1) & 0xffff);
                let address = take(&mut self.ports, size, 4, "port")?;
                let _ = function.write_config(register, &(address as u32).to_le_bytes());
                continue;
            }
            let high = if is_64_bit { probe(function, register + 4) } else { u32::MAX };
            let size = (!(u64::from(low & !15) | u64::from(high) << 32)).wrapping_add(1);
            let window =
                if is_64_bit && !self.memory64.is_empty() { &mut self.memory64 } else { &mut self.memory };
            let address = take(window, size, PAGE, "memory")?;
            let _ = function.write_config(register, &(address as u32).to_le_bytes());
            if is_64_bit {
                let _ = function.write_config(register + 4, &((address >> 32) as u32).to_le_bytes());
            }
        }
        Ok(())
    }
}

/// What a register reads as after ones were written: its fixed bits, and the size.
fn probe(function: &dyn PciFunction, register: u16) -> u32 {
    // The device has just been made: no request is in flight that the access would wait for.
    let _ = function.write_config(register, &[0xff; 4]);
    let mut word = [0; 4];
    function.read_config(register, &mut word);
    u32::from_le_bytes(word)
}

/// The next `size` bytes, aligned to their size.
fn take(window: &mut Range<u64>, size: u64, least: u64, name: &'static str) -> Result<u64, PciError> {
    let refused = PciError::Window { size, window: name };
    let align = size.max(least);
    let start = window.start.checked_next_multiple_of(align).ok_or(refused.clone())?;
    let end = start.checked_add(align).filter(|end| *end <= window.end).ok_or(refused)?;
    window.start = end;
    Ok(start)
}
