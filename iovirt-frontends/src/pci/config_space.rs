//! The configuration space of one function: a type 0 header, BARs and a list of capabilities (section 6).

use super::{CONFIG_LEN, PciError};
use iovirt_core::frontend::RegionKind;

pub(super) const COMMAND: usize = 0x04;
pub(super) const STATUS: usize = 0x06;
const REVISION: usize = 0x08;
const CLASS: usize = 0x09;
const CACHE_LINE_SIZE: usize = 0x0c;
pub(super) const HEADER_TYPE: usize = 0x0e;
pub(super) const BARS: usize = 0x10;
const SUBSYSTEM: usize = 0x2c;
const CAPABILITIES: usize = 0x34;
const INTERRUPT_LINE: usize = 0x3c;
const INTERRUPT_PIN: usize = 0x3d;
/// The first byte behind the header.
const HEADER_LEN: usize = 0x40;
pub(super) const BAR_COUNT: usize = 6;

const STATUS_CAPABILITIES: u16 = 1 << 4;
/// Bit of the status register: the function asks for an interrupt by its line.
const STATUS_INTERRUPT: u8 = 1 << 3;

const BAR_IO: u32 = 1;
const BAR_64_BIT: u32 = 1 << 2;
const BAR_PREFETCHABLE: u32 = 1 << 3;

/// Who a function says it is (section 6.2.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The vendor's number.
    pub vendor: u16,
    /// The device's number.
    pub device: u16,
    /// Class, subclass and programming interface, from the top: `0x01_08_02` is an NVMe controller.
    pub class: u32,
    /// The revision.
    pub revision: u8,
    /// Vendor and number of the subsystem.
    pub subsystem: (u16, u16),
}

/// Bits of the command register (section 6.2.2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Command(u16);

impl Command {
    const IO: u16 = 1;
    const MEMORY: u16 = 1 << 1;
    const BUS_MASTER: u16 = 1 << 2;
    const INTX_DISABLE: u16 = 1 << 10;
    /// These, and parity errors and `SERR#`, which drivers switch and nothing comes of.
    const WRITABLE: u16 = Self::IO | Self::MEMORY | Self::BUS_MASTER | Self::INTX_DISABLE | 1 << 6 | 1 << 8;

    /// The function answers in its port windows.
    pub fn io(self) -> bool {
        self.0 & Self::IO != 0
    }

    /// The function answers in its memory windows.
    pub fn memory(self) -> bool {
        self.0 & Self::MEMORY != 0
    }

    /// The function may reach memory: without this no DMA, and no message-signalled interrupt either.
    pub fn bus_master(self) -> bool {
        self.0 & Self::BUS_MASTER != 0
    }

    /// The function must not raise its interrupt line.
    pub fn intx_disable(self) -> bool {
        self.0 & Self::INTX_DISABLE != 0
    }
}

/// A window of registers that the guest places (section 6.2.5). Sizes are powers of two, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bar {
    /// In memory below 4 GiB.
    Memory32(u64),
    /// Anywhere in memory; takes two registers.
    Memory64(u64),
    /// In memory, and reading has no side effects; takes two registers.
    Prefetchable64(u64),
    /// Among the ports.
    Io(u64),
}

impl Bar {
    /// Bytes of the window.
    pub fn size(self) -> u64 {
        match self {
            Self::Memory32(size) | Self::Memory64(size) | Self::Prefetchable64(size) | Self::Io(size) => size,
        }
    }

    /// Where it lives.
    pub fn kind(self) -> RegionKind {
        if matches!(self, Self::Io(_)) { RegionKind::Pio } else { RegionKind::Mmio }
    }

    fn is_64_bit(self) -> bool {
        matches!(self, Self::Memory64(_) | Self::Prefetchable64(_))
    }

    fn flags(self) -> u32 {
        match self {
            Self::Memory32(_) => 0,
            Self::Memory64(_) => BAR_64_BIT,
            Self::Prefetchable64(_) => BAR_64_BIT | BAR_PREFETCHABLE,
            Self::Io(_) => BAR_IO,
        }
    }

    fn refusal(self, index: usize, taken: &[Option<Bar>; BAR_COUNT]) -> Option<&'static str> {
        let (smallest, largest) = match self {
            Self::Io(_) => (4, 256),
            Self::Memory32(_) => (16, 1 << 31),
            Self::Memory64(_) | Self::Prefetchable64(_) => (16, 1 << 62),
        };
        let follower = |at: usize| at > 0 && taken[at - 1].is_some_and(Bar::is_64_bit);
        if index >= BAR_COUNT || self.is_64_bit() && index + 1 >= BAR_COUNT {
            Some("there are six registers, and a window of 64 bits takes two of them")
        } else if taken[index].is_some() || follower(index) {
            Some("the register is taken")
        } else if self.is_64_bit() && taken[index + 1].is_some() {
            Some("the register behind it is taken")
        } else if !self.size().is_power_of_two() || !(smallest..=largest).contains(&self.size()) {
            Some(
                "its size must be a power of two: 4 to 256 for ports, 16 bytes to 2 GiB for memory below 4 GiB",
            )
        } else {
            None
        }
    }
}

/// 256 bytes, of which a guest can write what is writable.
#[derive(Clone, Debug)]
pub struct ConfigSpace {
    bytes: [u8; CONFIG_LEN],
    /// Which bits a guest can write.
    writable: [u8; CONFIG_LEN],
    bars: [Option<Bar>; BAR_COUNT],
    /// Where the pointer to the next capability goes.
    link: usize,
    /// The first byte that no capability has.
    free: usize,
}

impl ConfigSpace {
    /// A type 0 header without BARs and capabilities.
    pub fn new(identity: &Identity) -> Self {
        let mut space = Self {
            bytes: [0; CONFIG_LEN],
            writable: [0; CONFIG_LEN],
            bars: [None; BAR_COUNT],
            link: CAPABILITIES,
            free: HEADER_LEN,
        };
        space.put(0x00, &identity.vendor.to_le_bytes());
        space.put(0x02, &identity.device.to_le_bytes());
        space.put(REVISION, &[identity.revision]);
        space.put(CLASS, &identity.class.to_le_bytes()[..3]);
        space.put(SUBSYSTEM, &identity.subsystem.0.to_le_bytes());
        space.put(SUBSYSTEM + 2, &identity.subsystem.1.to_le_bytes());
        space.writable[COMMAND..COMMAND + 2].copy_from_slice(&Command::WRITABLE.to_le_bytes());
        space.writable[CACHE_LINE_SIZE] = 0xff;
        space.writable[INTERRUPT_LINE] = 0xff;
        space
    }

    /// Has the function use an interrupt pin: 1 for `INTA#` to 4 for `INTD#`, 0 for none.
    pub fn set_interrupt_pin(&mut self, pin: u8) {
        self.put(INTERRUPT_PIN, &[pin]);
    }

    /// Adds a window in register `index`, and the next one where it has 64 bits.
    ///
    /// # Errors
    /// Where the register is taken or the size impossible.
    pub fn add_bar(&mut self, index: usize, bar: Bar) -> Result<(), PciError> {
        if let Some(reason) = bar.refusal(index, &self.bars) {
            return Err(PciError::Bar { index, bar: format!("{bar:?}"), reason });
        }
        let at = BARS + 4 * index;
        let mask = !(bar.size() - 1);
        self.put(at, &bar.flags().to_le_bytes());
        self.writable[at..at + 4].copy_from_slice(&(mask as u32).to_le_bytes());
        if bar.is_64_bit() {
            self.writable[at + 4..at + 8].copy_from_slice(&((mask >> 32) as u32).to_le_bytes());
        }
        self.bars[index] = Some(bar);
        Ok(())
    }

    /// Adds a capability: what follows its number and the pointer to the next one, and which of those bits a guest can
    /// write (missing ones it cannot). Gives the offset of its first byte.
    ///
    /// # Errors
    /// Where no room is left.
    pub fn add_capability(&mut self, id: u8, body: &[u8], writable: &[u8]) -> Result<usize, PciError> {
        let (at, len) = (self.free, body.len() + 2);
        if at + len > CONFIG_LEN {
            return Err(PciError::Capability { len });
        }
        self.put(at, &[id, 0]);
        self.put(at + 2, body);
        for (bits, wanted) in self.writable[at + 2..at + len].iter_mut().zip(writable) {
            *bits = *wanted;
        }
        self.bytes[self.link] = at as u8;
        self.put(STATUS, &STATUS_CAPABILITIES.to_le_bytes());
        self.link = at + 1;
        self.free = (at + len).next_multiple_of(4);
        Ok(at)
    }

    /// Reads; beyond the end there is nothing, which reads as zeroes.
    pub fn read(&self, offset: u16, data: &mut [u8]) {
        data.fill(0);
        let there = self.bytes.get(usize::from(offset)..).unwrap_or_default();
        data.iter_mut().zip(there).for_each(|(to, from)| *to = *from);
    }

    /// Writes what is writable of it.
    pub fn write(&mut self, offset: u16, data: &[u8]) {
        let from = usize::from(offset).min(CONFIG_LEN);
        let targets = self.bytes[from..].iter_mut().zip(&self.writable[from..]);
        for ((byte, writable), new) in targets.zip(data) {
            *byte = *byte & !writable | new & writable;
        }
    }

    /// Writes the device's own bytes, writable or not.
    ///
    /// # Panics
    /// Where they lie outside.
    pub fn put(&mut self, offset: usize, data: &[u8]) {
        self.bytes[offset..offset + data.len()].copy_from_slice(data);
    }

    /// That many bytes from there.
    ///
    /// # Panics
    /// Where they lie outside.
    pub fn get<const N: usize>(&self, offset: usize) -> [u8; N] {
        std::array::from_fn(|index| self.bytes[offset + index])
    }

    /// The command register.
    pub fn command(&self) -> Command {
        Command(u16::from_le_bytes(self.get(COMMAND)))
    }

    /// The windows in order, each with the number of its first register.
    pub fn bars(&self) -> impl Iterator<Item = (usize, Bar)> {
        self.bars.iter().enumerate().filter_map(|(index, bar)| Some((index, (*bar)?)))
    }

    /// Where the guest has put the window, where the function answers there: decoding is on, and the address is neither 0,
    /// which means not placed yet, nor does the window run over the end of its address space.
    pub fn decoded(&self, index: usize) -> Option<u64> {
        let bar = (*self.bars.get(index)?)?;
        let at = BARS + 4 * index;
        let low = u32::from_le_bytes(self.get(at));
        let (command, flags) =
            (self.command(), u64::from(if bar.kind() == RegionKind::Pio { 3u32 } else { 15 }));
        let (on, limit) = match bar {
            Bar::Io(_) => (command.io(), 0x1_0000),
            Bar::Memory32(_) => (command.memory(), 1 << 32),
            Bar::Memory64(_) | Bar::Prefetchable64(_) => (command.memory(), u64::MAX),
        };
        let high = if bar.is_64_bit() { u32::from_le_bytes(self.get(at + 4)) } else { 0 };
        let address = (u64::from(low) & !flags) | u64::from(high) << 32;
        let end = address.checked_add(bar.size())?;
        (on && address != 0 && end <= limit).then_some(address)
    }

    /// Sets the bit of the status register that says whether the function asks for an interrupt by its line.
    pub fn set_interrupt_status(&mut self, asks: InterruptStatus) {
        let bit = match asks {
            InterruptStatus::Asserted => STATUS_INTERRUPT,
            InterruptStatus::Quiet => 0,
        };
        self.bytes[STATUS] = self.bytes[STATUS] & !STATUS_INTERRUPT | bit;
    }

    /// What a guest has written: all writable bits.
    pub fn save(&self) -> Vec<u8> {
        self.bytes.iter().zip(&self.writable).map(|(byte, writable)| byte & writable).collect()
    }

    /// Takes back what [`ConfigSpace::save`] gave; bits that are not writable stay as they are.
    pub fn restore(&mut self, saved: &[u8]) {
        self.write(0, saved);
    }

    /// As after power-on: nothing that is writable is set.
    pub fn reset(&mut self) {
        self.write(0, &[0; CONFIG_LEN]);
    }
}

/// Whether a function asks for an interrupt by its line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InterruptStatus {
    /// It does.
    Asserted,
    /// It does not.
    Quiet,
}
