//! The load of a disk: requests of a few cells each, and what may be found in every cell.

use super::guest::{BUFFERS, Guest};
use super::ring::Piece;
use super::world::Load;
use crate::test_utils::rng::Rng;
use std::collections::BTreeMap;
use std::ops::Range;

/// Bytes that are written together.
const CELL: usize = 1024;
const CELLS: u64 = 128;
/// Cells of a request at most.
const MOST: u64 = 4;
/// Bytes of guest memory for each request: data first, then header and status.
const SLOT: u64 = 0x2000;
const HEADER: u64 = 0x1800;
const SLOTS: usize = 24;
/// `VIRTIO_BLK_T_*` (VIRTIO 1.2, section 5.2.6).
const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;

#[derive(Clone, Debug)]
struct Request {
    slot: usize,
    kind: u32,
    cells: Range<u64>,
    version: u64,
}

/// What was asked of the disk, and what may be there.
pub(super) struct DiskLoad {
    /// Versions that may be found, of each cell; more than one where a write was cut off.
    content: Vec<Vec<u64>>,
    /// By queue and head.
    out: BTreeMap<(usize, u16), Request>,
    free: Vec<usize>,
    next_version: u64,
    finished: u64,
}

impl DiskLoad {
    pub(super) fn new() -> Self {
        Self {
            content: vec![vec![0]; CELLS as usize],
            out: BTreeMap::new(),
            free: (0..SLOTS).collect(),
            next_version: 1,
            finished: 0,
        }
    }

    fn is_busy(&self, cells: &Range<u64>) -> bool {
        self.out.values().any(|other| other.cells.start < cells.end && cells.start < other.cells.end)
    }

    fn request(&mut self, guest: &mut Guest, rng: &mut Rng, kind: u32, cells: Range<u64>) -> bool {
        let Some(slot) = self.free.pop() else { return false };
        let base = BUFFERS + slot as u64 * SLOT;
        let version = self.next_version;
        let mut header = [0; 16];
        header[..4].copy_from_slice(&kind.to_le_bytes());
        header[8..].copy_from_slice(&(cells.start * (CELL as u64 / 512)).to_le_bytes());
        guest.write(base + HEADER, &header);
        guest.write(base + HEADER + 16, &[0xff]);
        let len = (cells.end - cells.start) as u32 * CELL as u32;
        let data: Vec<u8> = match kind {
            OUT => cells.clone().flat_map(|cell| stamp(cell, version)).collect(),
            _ => vec![0xee; len as usize],
        };
        guest.write(base, &data);
        let piece = |at: u32, len: u32| match kind {
            OUT => Piece::Driver(base + u64::from(at), len),
            _ => Piece::Device(base + u64::from(at), len),
        };
        let cut = rng.below(u64::from(len)) as u32;
        let mut pieces = vec![Piece::Driver(base + HEADER, 16)];
        match (len, cut) {
            (0, _) => {}
            (len, 0) => pieces.push(piece(0, len)),
            (len, cut) => pieces.extend([piece(0, cut), piece(cut, len - cut)]),
        }
        pieces.push(Piece::Device(base + HEADER + 16, 1));
        let queue = rng.index(guest.rings.len());
        let Some(head) = guest.offer(queue, &pieces) else {
            self.free.push(slot);
            return false;
        };
        self.next_version += 1;
        let request = Request { slot, kind, cells, version };
        assert!(self.out.insert((queue, head), request).is_none(), "a head is used twice");
        true
    }

    fn check(&mut self, guest: &Guest, request: &Request) -> Result<(), String> {
        let base = BUFFERS + request.slot as u64 * SLOT;
        let status = guest.bytes(base + HEADER + 16, 1)[0];
        if status != 0 {
            return Err(format!("{request:?} came back with status {status}"));
        }
        for (at, cell) in request.cells.clone().enumerate() {
            let allowed = &mut self.content[cell as usize];
            if request.kind == OUT {
                *allowed = vec![request.version];
                continue;
            }
            let data = guest.bytes(base + (at * CELL) as u64, CELL);
            let found = allowed.iter().copied().find(|version| data == stamp(cell, *version));
            let Some(found) = found else {
                let first = u64::from_le_bytes([0, 1, 2, 3, 4, 5, 6, 7].map(|byte| data[byte]));
                return Err(format!("cell {cell} has version {first}, not one of {allowed:?}"));
            };
            // Whatever became of a write that was cut off, it does not change any more.
            *allowed = vec![found];
        }
        Ok(())
    }
}

/// What a cell of that version has in it; zeroes for none.
fn stamp(cell: u64, version: u64) -> Vec<u8> {
    let words = (0..CELL as u64 / 8).map(|word| match (version, word) {
        (0, _) => 0,
        (_, 0) => version,
        _ => version << 32 ^ cell << 16 ^ word,
    });
    words.flat_map(u64::to_le_bytes).collect()
}

impl Load for DiskLoad {
    fn start(&mut self, _: &mut Guest, _: u64) {}

    fn submit(&mut self, guest: &mut Guest, rng: &mut Rng) {
        for _ in 0..rng.between(1, 4) {
            let first = rng.below(CELLS - MOST);
            let cells = first..first + rng.between(1, MOST);
            match rng.below(8) {
                0 => drop(self.request(guest, rng, FLUSH, 0..0)),
                _ if self.is_busy(&cells) => {}
                kind => drop(self.request(guest, rng, if kind < 4 { IN } else { OUT }, cells)),
            }
        }
    }

    fn take(&mut self, guest: &mut Guest, _: &mut Rng, back: Vec<Vec<(u16, u32)>>) -> Result<(), String> {
        for (queue, heads) in back.into_iter().enumerate() {
            for (head, _) in heads {
                let request = self.out.remove(&(queue, head)).ok_or("a request came back twice")?;
                self.check(guest, &request)?;
                self.free.push(request.slot);
                self.finished += 1;
            }
        }
        Ok(())
    }

    fn awaits(&self) -> bool {
        !self.out.is_empty()
    }

    fn forget(&mut self) {
        for request in std::mem::take(&mut self.out).into_values() {
            self.free.push(request.slot);
            if request.kind == OUT {
                for cell in request.cells {
                    self.content[cell as usize].push(request.version);
                }
            }
        }
    }

    /// Reads a part of the disk back.
    fn probe(&mut self, guest: &mut Guest, rng: &mut Rng, round: u64) -> bool {
        let step = CELLS / 16;
        for first in (round * step..(round + 1) * step).step_by(MOST as usize) {
            // There is room: nothing is in flight.
            self.request(guest, rng, IN, first..first + MOST);
        }
        round < 15
    }

    fn finished(&self) -> u64 {
        self.finished
    }
}
