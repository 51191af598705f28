//! Any sequence of table writes, masks and interrupts, beside a model that keeps it simple.

use crate::input::Input;
use iovirt_core::irq::{MsiMessage, MsiSink};
use iovirt_frontends::pci::{ConfigSpace, Identity, Msix};
use std::sync::{Arc, Mutex};

const VECTORS: usize = 5;

#[derive(Debug, Default)]
struct Sent(Mutex<Vec<MsiMessage>>);

impl MsiSink for Sent {
    fn signal(&self, message: MsiMessage) {
        self.0.lock().expect("nobody panicked").push(message);
    }
}

/// The table as section 6.8 of the PCI Local Bus Specification 3.0 describes it.
#[derive(Default)]
struct Model {
    table: [[u32; 4]; VECTORS],
    pending: [bool; VECTORS],
    open: bool,
    sent: Vec<MsiMessage>,
}

impl Model {
    fn settle(&mut self) {
        for (entry, pending) in self.table.iter().zip(&mut self.pending) {
            if *pending && self.open && entry[3] & 1 == 0 {
                *pending = false;
                let address = u64::from(entry[1]) << 32 | u64::from(entry[0]);
                self.sent.push(MsiMessage { address, data: entry[2] });
            }
        }
    }

    fn write(&mut self, offset: usize, word: u32) {
        if let Some(entry) = self.table.get_mut(offset / 16) {
            entry[offset % 16 / 4] = if offset % 16 == 12 { word & 1 } else { word };
        }
    }

    fn word(&self, offset: usize) -> u32 {
        match self.table.get(offset / 16) {
            Some(entry) => entry[offset % 16 / 4],
            None if offset == 0x1000 => {
                self.pending.iter().rev().fold(0, |bits, bit| bits << 1 | u32::from(*bit))
            }
            None => 0,
        }
    }
}

/// Plays an input.
///
/// # Panics
/// Where table and model disagree.
pub fn run(data: &[u8]) {
    let sent = Arc::new(Sent::default());
    let msix = Msix::new(VECTORS, sent.clone()).expect("a table");
    let identity = Identity { vendor: 1, device: 1, class: 0, revision: 0, subsystem: (1, 1) };
    let mut space = ConfigSpace::new(&identity);
    let at = msix.add_capability(&mut space, 2).expect("room");
    let mut model = Model { table: [[0, 0, 0, 1]; VECTORS], ..Model::default() };
    let mut input = Input::new(data);
    for _ in 0..512 {
        if input.is_empty() {
            break;
        }
        match input.u8() % 6 {
            0 => {
                let (offset, word) = (usize::from(input.u8() % 32) * 4, input.u32());
                msix.write(offset as u64, &word.to_le_bytes());
                model.write(offset, word);
                model.settle();
            }
            1 => {
                let (offset, low, high) = (usize::from(input.u8() % 16) * 8, input.u32(), input.u32());
                msix.write(offset as u64, &(u64::from(high) << 32 | u64::from(low)).to_le_bytes());
                model.write(offset, low);
                model.write(offset + 4, high);
                model.settle();
            }
            2 => {
                let vector = usize::from(input.u8() % 8);
                msix.trigger(vector as u16);
                if let Some(pending) = model.pending.get_mut(vector) {
                    *pending = true;
                }
                model.settle();
            }
            3 => {
                let bits = input.u8();
                space.write(at as u16 + 2, &(u16::from(bits & 3) << 14).to_le_bytes());
                space.write(4, &[bits & 4]);
                msix.follow(&space, at);
                // Enabled, not masked as a whole, bus master.
                model.open = bits & 7 == 0b110;
                model.settle();
            }
            4 => {
                // Not aligned, or no word: nothing happens.
                let (offset, len) = (u64::from(input.u16()) | 1, usize::from(input.u8() % 17));
                msix.write(offset, input.bytes(len));
            }
            _ => {
                let saved = msix.save();
                msix.reset();
                msix.restore(&saved);
            }
        }
        for offset in (0..VECTORS * 16 + 32).step_by(4).chain([0x1000]) {
            let mut word = [0; 4];
            msix.read(offset as u64, &mut word);
            assert_eq!(u32::from_le_bytes(word), model.word(offset), "offset {offset:#x}");
        }
        assert_eq!(*sent.0.lock().expect("nobody panicked"), model.sent);
        model.sent.clear();
        sent.0.lock().expect("nobody panicked").clear();
    }
}

/// Set up, raised, masked, raised again, unmasked.
pub fn seeds() -> Vec<Vec<u8>> {
    let entry = |vector: u8| {
        [&[1, vector * 2][..], &0xfee0_0000_u64.to_le_bytes(), &[0, vector * 4 + 2, 0x41, 0, 0, 0]].concat()
    };
    let mask = |vector: u8, masked: u8| vec![0, vector * 4 + 3, masked, 0, 0, 0];
    vec![
        [entry(0), mask(0, 0), vec![3, 6, 2, 0, 3, 7, 2, 0, 3, 6]].concat(),
        [entry(1), mask(1, 0), vec![2, 1, 3, 2, 3, 6], mask(1, 1), vec![2, 1, 5], mask(1, 0)].concat(),
        [entry(4), vec![2, 4, 2, 5, 3, 6, 4, 3, 0, 4, 1, 1, 1, 1], mask(4, 0)].concat(),
    ]
}
