//! The configuration space of a virtio function, and the way to its registers that leads through it.

#[allow(clippy::wildcard_imports, reason = "the registers of one table")]
use super::registers::*;
use crate::pci::{Bar, ConfigSpace, Identity, IntxPin, Msix, PciError};

/// Number of the BAR with the registers.
pub(super) const REGISTER_BAR: usize = 0;
/// Number of the BAR with the MSI-X table.
pub(super) const MSIX_BAR: usize = 2;
pub(super) const PIN: IntxPin = IntxPin::A;

/// The space with the offsets of what is found in it.
#[derive(Debug)]
pub(super) struct Space {
    pub(super) space: ConfigSpace,
    pub(super) msix: usize,
    /// The capability for accesses through the configuration space (section 4.1.4.9).
    access: usize,
}

/// An access of the registers that came through the configuration space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Indirect {
    pub(super) offset: u64,
}

impl Space {
    pub(super) fn new(device_id: u32, msix: &Msix) -> Result<Self, PciError> {
        let device = FIRST_DEVICE + device_id as u16;
        let class = class_of(device_id);
        let identity =
            Identity { vendor: VENDOR, device, class, revision: REVISION, subsystem: (VENDOR, device) };
        let mut space = ConfigSpace::new(&identity);
        space.set_interrupt_pin(PIN as u8);
        space.add_bar(REGISTER_BAR, Bar::Memory64(REGION_SIZE))?;
        space.add_bar(MSIX_BAR, msix.bar())?;
        let msix = msix.add_capability(&mut space, MSIX_BAR as u8)?;
        for (kind, offset) in [(CAP_COMMON, COMMON), (CAP_ISR, ISR), (CAP_DEVICE, DEVICE)] {
            let body = body(kind, offset, STRUCTURE_LEN, &[]);
            space.add_capability(CAP_VENDOR, &body, &[])?;
        }
        let doorbells = body(CAP_NOTIFY, NOTIFY, STRUCTURE_LEN, &NOTIFY_MULTIPLIER.to_le_bytes());
        space.add_capability(CAP_VENDOR, &doorbells, &[])?;
        let mut writable = vec![0; CAP_DATA + 4 - 2];
        writable[CAP_BAR - 2] = 0xff;
        writable[CAP_OFFSET - 2..].fill(0xff);
        let access = space.add_capability(CAP_VENDOR, &body(CAP_PCI, 0, 0, &[0; 4]), &writable)?;
        Ok(Self { space, msix, access })
    }

    /// Where an access of the configuration space is one of the registers: the data field, with the width, BAR and offset that
    /// the guest has put into the capability (section 4.1.4.9.1).
    pub(super) fn indirect(&self, register: u16, len: usize) -> Option<Indirect> {
        let word = |at: usize| u32::from_le_bytes(self.space.get(self.access + at));
        let (offset, wanted) = (u64::from(word(CAP_OFFSET)), word(CAP_LENGTH) as usize);
        let [bar] = self.space.get(self.access + CAP_BAR);
        let is_data = usize::from(register) == self.access + CAP_DATA;
        let possible = matches!(len, 1 | 2 | 4) && wanted == len && offset.is_multiple_of(len as u64);
        let inside = usize::from(bar) == REGISTER_BAR && offset + len as u64 <= REGION_SIZE;
        (is_data && possible && inside).then_some(Indirect { offset })
    }
}

/// A capability from its length on (section 4.1.4).
fn body(kind: u8, offset: u64, len: u64, rest: &[u8]) -> Vec<u8> {
    let mut body = vec![(CAP_DATA + rest.len()) as u8, kind, REGISTER_BAR as u8, 0, 0, 0];
    body.extend((offset as u32).to_le_bytes());
    body.extend((len as u32).to_le_bytes());
    body.extend(rest);
    body
}
