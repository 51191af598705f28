//! An honest driver's side of a split ring: it rings where the device asks for it, and looks where it was interrupted.

use crate::dma::DmaView;

/// Entries of each ring.
pub(super) const SIZE: u16 = 32;
/// Bytes from one ring to the next.
const STRIDE: u64 = 0x4000;
const AVAIL: u64 = 0x1000;
const USED: u64 = 0x2000;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
/// The device does not want a doorbell (VIRTIO 1.2, section 2.7.10).
const NO_NOTIFY: u16 = 1;

/// A piece of a chain: address, length, and who writes it.
#[derive(Clone, Copy, Debug)]
pub(super) enum Piece {
    Driver(u64, u32),
    Device(u64, u32),
}

/// One ring, with its place in guest memory.
#[derive(Debug)]
pub(super) struct GuestRing {
    base: u64,
    event_idx: bool,
    free: Vec<u16>,
    /// The descriptors of each chain that the device has, by head.
    out: Vec<Option<Vec<u16>>>,
    available: u16,
    used: u16,
}

impl GuestRing {
    /// The ring of queue `index`, empty.
    pub(super) fn new(view: &DmaView, index: u16, event_idx: bool) -> Self {
        let base = u64::from(index) * STRIDE;
        view.write(base, &[0; STRIDE as usize]).expect("rings are in memory");
        Self {
            base,
            event_idx,
            free: (0..SIZE).rev().collect(),
            out: vec![None; usize::from(SIZE)],
            available: 0,
            used: 0,
        }
    }

    /// Where its three areas are.
    pub(super) fn areas(&self) -> [u64; 3] {
        [self.base, self.base + AVAIL, self.base + USED]
    }

    fn load(view: &DmaView, at: u64) -> u16 {
        u16::from_le_bytes(view.read_array(at).expect("rings are in memory"))
    }

    fn store(view: &DmaView, at: u64, value: u16) {
        view.write(at, &value.to_le_bytes()).expect("rings are in memory");
    }

    /// Makes a chain available; `None` without enough descriptors. Gives its head, and whether the device wants a doorbell.
    pub(super) fn offer(&mut self, view: &DmaView, pieces: &[Piece]) -> Option<(u16, bool)> {
        if self.free.len() < pieces.len() {
            return None;
        }
        let chain: Vec<u16> = pieces.iter().filter_map(|_| self.free.pop()).collect();
        for (at, piece) in pieces.iter().enumerate() {
            let (address, len, write) = match *piece {
                Piece::Driver(address, len) => (address, len, 0),
                Piece::Device(address, len) => (address, len, WRITE),
            };
            let next = chain.get(at + 1);
            let flags = write | if next.is_some() { NEXT } else { 0 };
            let mut bytes = [0; 16];
            bytes[..8].copy_from_slice(&address.to_le_bytes());
            bytes[8..12].copy_from_slice(&len.to_le_bytes());
            bytes[12..14].copy_from_slice(&flags.to_le_bytes());
            bytes[14..].copy_from_slice(&next.unwrap_or(&0).to_le_bytes());
            view.write(self.base + u64::from(chain[at]) * 16, &bytes).expect("rings are in memory");
        }
        let head = chain[0];
        self.out[usize::from(head)] = Some(chain);
        let avail = self.base + AVAIL;
        Self::store(view, avail + 4 + u64::from(self.available % SIZE) * 2, head);
        let before = self.available;
        self.available = before.wrapping_add(1);
        Self::store(view, avail + 2, self.available);
        Some((head, self.wants_doorbell(view, before)))
    }

    fn wants_doorbell(&self, view: &DmaView, before: u16) -> bool {
        let used = self.base + USED;
        if self.event_idx {
            let event = Self::load(view, used + 4 + u64::from(SIZE) * 8);
            // VIRTIO 1.2, section 2.7.7.2: whether the event index lies in what was made available.
            self.available.wrapping_sub(event).wrapping_sub(1) < self.available.wrapping_sub(before)
        } else {
            Self::load(view, used) & NO_NOTIFY == 0
        }
    }

    /// Takes what came back, heads and lengths, until there is no more; asks for an interrupt at the next.
    pub(super) fn take(&mut self, view: &DmaView) -> Result<Vec<(u16, u32)>, String> {
        let used = self.base + USED;
        let mut back = Vec::new();
        loop {
            while self.used != Self::load(view, used + 2) {
                let at = used + 4 + u64::from(self.used % SIZE) * 8;
                let entry: [u8; 8] = view.read_array(at).expect("rings are in memory");
                let word = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|byte| entry[at + byte]));
                let chain = self.out.get_mut(word(0) as usize).and_then(Option::take);
                let chain = chain
                    .ok_or_else(|| format!("the device returned head {}, which it does not have", word(0)))?;
                self.free.extend(chain);
                self.used = self.used.wrapping_add(1);
                back.push((word(0) as u16, word(4)));
            }
            if !self.event_idx {
                return Ok(back);
            }
            Self::store(view, self.base + AVAIL + 4 + u64::from(SIZE) * 2, self.used);
            if self.used == Self::load(view, used + 2) {
                return Ok(back);
            }
        }
    }
}
