//! MSI-X: a table of messages, pending bits, and masks (section 6.8.2).

use super::{Bar, ConfigSpace, PciError};
use iovirt_core::irq::{MsiMessage, MsiSink};
use iovirt_core::sync::{Arc, Mutex, MutexGuard, PoisonError};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::sync::atomic::{AtomicU8, Ordering};

const CAPABILITY_ID: u8 = 0x11;
const LARGEST: usize = 2048;
const ENTRY_LEN: u64 = 16;
const PAGE: u64 = 4096;

// Bits of the message control register.
const CONTROL_ENABLE: u16 = 1 << 15;
const CONTROL_MASK: u16 = 1 << 14;

// What must hold so that a message may leave.
const ENABLED: u8 = 1;
const UNMASKED: u8 = 2;
const BUS_MASTER: u8 = 4;
const OPEN: u8 = ENABLED | UNMASKED | BUS_MASTER;

/// The vectors of one function.
///
/// A message leaves at once where nothing masks it; otherwise its pending bit is set and it leaves when the last mask goes.
/// Each vector has a lock of its own, taken once per interrupt; once a write that masks has returned, no message leaves.
pub struct Msix {
    vectors: Box<[Mutex<Vector>]>,
    /// Bits that must all be set so that messages leave.
    gate: AtomicU8,
    sink: Arc<dyn MsiSink>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Vector {
    address: u64,
    data: u32,
    masked: bool,
    pending: bool,
}

impl Vector {
    /// Section 6.8.2.9: masked, and otherwise undefined.
    const FRESH: Self = Self { address: 0, data: 0, masked: true, pending: false };
}

/// What is saved of the table. Enable and mask bits are in the configuration space.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MsixState {
    vectors: Vec<Vector>,
}

impl Msix {
    /// That many vectors, whose messages go to `sink`.
    ///
    /// # Errors
    /// Unless there are 1 to 2048.
    pub fn new(vectors: usize, sink: Arc<dyn MsiSink>) -> Result<Self, PciError> {
        if !(1..=LARGEST).contains(&vectors) {
            return Err(PciError::Vectors(vectors));
        }
        let vectors = (0..vectors).map(|_| Mutex::new(Vector::FRESH)).collect();
        Ok(Self { vectors, gate: AtomicU8::new(UNMASKED), sink })
    }

    /// How many vectors there are.
    pub fn len(&self) -> usize {
        self.vectors.len()
    }

    /// Never: there is at least one vector.
    pub fn is_empty(&self) -> bool {
        self.vectors.is_empty()
    }

    /// The window that holds the table and, in a page of their own, the pending bits.
    pub fn bar(&self) -> Bar {
        Bar::Memory64((self.pending_offset() + PAGE).next_power_of_two())
    }

    fn pending_offset(&self) -> u64 {
        (self.vectors.len() as u64 * ENTRY_LEN).next_multiple_of(PAGE)
    }

    /// Adds the capability, for a table in BAR `bar`. Gives its offset.
    ///
    /// # Errors
    /// Where no room is left.
    pub fn add_capability(&self, space: &mut ConfigSpace, bar: u8) -> Result<usize, PciError> {
        let mut body = [0; 10];
        body[..2].copy_from_slice(&(self.vectors.len() as u16 - 1).to_le_bytes());
        body[2..6].copy_from_slice(&u32::from(bar).to_le_bytes());
        body[6..].copy_from_slice(&(self.pending_offset() as u32 | u32::from(bar)).to_le_bytes());
        space.add_capability(CAPABILITY_ID, &body, &(CONTROL_ENABLE | CONTROL_MASK).to_le_bytes())
    }

    /// Follows the configuration space, where the capability is at `offset`.
    pub fn follow(&self, space: &ConfigSpace, offset: usize) {
        let control = u16::from_le_bytes(space.get(offset + 2));
        let mut gate = 0;
        for (bit, set) in [
            (ENABLED, control & CONTROL_ENABLE != 0),
            (UNMASKED, control & CONTROL_MASK == 0),
            (BUS_MASTER, space.command().bus_master()),
        ] {
            gate |= if set { bit } else { 0 };
        }
        if self.gate.swap(gate, Ordering::SeqCst) != gate {
            // Whoever held a vector's lock before this has sent; whoever takes it later sees the new gate.
            (0..self.vectors.len()).for_each(|index| self.settle(&mut self.vector(index)));
        }
    }

    /// Whether interrupts are messages and not a line.
    pub fn is_enabled(&self) -> bool {
        self.gate.load(Ordering::SeqCst) & ENABLED != 0
    }

    /// Raises that vector's interrupt; nothing happens where there is no such vector.
    pub fn trigger(&self, vector: u16) {
        if let Some(vector) = self.vectors.get(usize::from(vector)) {
            let mut vector = vector.lock().unwrap_or_else(PoisonError::into_inner);
            vector.pending = true;
            self.settle(&mut vector);
        }
    }

    /// Sends what is pending, if it may leave.
    fn settle(&self, vector: &mut Vector) {
        if vector.pending && !vector.masked && self.gate.load(Ordering::SeqCst) == OPEN {
            vector.pending = false;
            self.sink.signal(MsiMessage { address: vector.address, data: vector.data });
        }
    }

    fn vector(&self, index: usize) -> MutexGuard<'_, Vector> {
        self.vectors[index].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A read in the window.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        for (index, byte) in (0..).zip(data) {
            *byte = offset.checked_add(index).map_or(0, |at| self.byte(at));
        }
    }

    fn byte(&self, at: u64) -> u8 {
        let (index, within) = ((at / ENTRY_LEN) as usize, (at % ENTRY_LEN) as usize);
        if index < self.vectors.len() {
            let vector = *self.vector(index);
            let mut entry = [0; ENTRY_LEN as usize];
            entry[..8].copy_from_slice(&vector.address.to_le_bytes());
            entry[8..12].copy_from_slice(&vector.data.to_le_bytes());
            entry[12] = vector.masked.into();
            return entry[within];
        }
        let Some(first) = at.checked_sub(self.pending_offset()).and_then(|byte| byte.checked_mul(8)) else {
            return 0;
        };
        let pending = |bit: u64| {
            let index = usize::try_from(first + bit).unwrap_or(usize::MAX);
            index < self.vectors.len() && self.vector(index).pending
        };
        if first >= self.vectors.len() as u64 {
            0
        } else {
            (0..8).map(|bit| u8::from(pending(bit)) << bit).sum()
        }
    }

    /// A write in the window: 32 or 64 bits, aligned (section 6.8.2). Others change nothing, nor do writes of pending bits.
    pub fn write(&self, offset: u64, data: &[u8]) {
        let len = data.len() as u64;
        if !matches!(len, 4 | 8) || !offset.is_multiple_of(len) {
            return;
        }
        let index = offset / ENTRY_LEN;
        if index >= self.vectors.len() as u64 {
            return;
        }
        let mut vector = self.vector(index as usize);
        for (word, at) in data.chunks_exact(4).zip((offset % ENTRY_LEN..).step_by(4)) {
            let value = u32::from_le_bytes([word[0], word[1], word[2], word[3]]);
            match at {
                0 => vector.address = vector.address & !0xffff_ffff | u64::from(value),
                4 => vector.address = vector.address & 0xffff_ffff | u64::from(value) << 32,
                8 => vector.data = value,
                _ => vector.masked = value & 1 != 0,
            }
        }
        self.settle(&mut vector);
    }

    /// As after power-on; the configuration space is to be followed afterwards.
    pub fn reset(&self) {
        (0..self.vectors.len()).for_each(|index| *self.vector(index) = Vector::FRESH);
    }

    /// The table and the pending bits.
    pub fn save(&self) -> MsixState {
        MsixState { vectors: (0..self.vectors.len()).map(|index| *self.vector(index)).collect() }
    }

    /// Takes back what [`Msix::save`] gave, where it fits; what is pending leaves when the configuration space lets it.
    pub fn restore(&self, saved: &MsixState) {
        if saved.fits(self.vectors.len()) {
            for (index, vector) in saved.vectors.iter().enumerate() {
                let mut own = self.vector(index);
                *own = *vector;
                self.settle(&mut own);
            }
        }
    }
}

impl MsixState {
    /// Whether it is of a table with that many vectors.
    pub fn fits(&self, vectors: usize) -> bool {
        self.vectors.len() == vectors
    }
}

impl fmt::Debug for Msix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Msix")
            .field("vectors", &self.vectors.len())
            .field("gate", &self.gate)
            .finish_non_exhaustive()
    }
}
