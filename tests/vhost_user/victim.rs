//! What is attacked: which rings it has, and what a driver that is nearly honest has in them.

use super::raw::{longs, words};
use iovirt_core::test_utils::Rng;
use std::fs::File;
use std::os::unix::fs::FileExt;

/// Entries of a ring, and offsets of its parts and its buffers.
pub(crate) const SIZE: u16 = 64;
pub(crate) const AVAIL: u64 = 0x1000;
pub(crate) const USED: u64 = 0x2000;
const BUFFERS: u64 = 0x1_0000;
/// Distance of two rings, and of two buffers.
pub(crate) const RING: u64 = 0x2_0000;
const BUFFER: u64 = 0x1000;
/// Chains of a ring of a card that are under way at once, and descriptors of each.
const UNDER_WAY: u16 = 16;
const PIECES: u16 = SIZE / UNDER_WAY;
/// Length of the header before a frame.
const HEADER: usize = 12;

/// Bits of a card's features: whatever a driver may leave to be done to frames or take undone, frames in several buffers, the queue for control and
/// what it sets, several pairs.
const CARD: [u32; 13] = [0, 1, 2, 5, 7, 8, 11, 12, 15, 17, 18, 22, 23];

/// A disk with two queues, or a card with two pairs of queues and one for control.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Victim {
    Disk,
    Card,
}

impl Victim {
    pub(crate) fn roles(self) -> &'static [Role] {
        match self {
            Self::Disk => &[Role::Read; 2],
            Self::Card => &[
                Role::OfCard(Chains::Receive),
                Role::OfCard(Chains::Send),
                Role::OfCard(Chains::Receive),
                Role::OfCard(Chains::Send),
                Role::OfCard(Chains::Control),
            ],
        }
    }

    /// Bits of the features of its own that a driver may take.
    pub(crate) fn feature_bits(self) -> &'static [u32] {
        match self {
            Self::Disk => &[],
            Self::Card => &CARD,
        }
    }

    /// Whether it keeps a record of chains in flight.
    pub(crate) fn keeps_record(self) -> bool {
        self == Self::Disk
    }

    /// The protocol features that it may offer.
    pub(crate) fn protocol(self) -> u64 {
        if self.keeps_record() { u64::MAX } else { !INFLIGHT_SHMFD }
    }
}

/// `VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD`.
const INFLIGHT_SHMFD: u64 = 1 << 12;

/// What a ring is for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Role {
    /// Reads of a disk.
    Read,
    OfCard(Chains),
}

/// What the chains of a card's ring are.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Chains {
    Receive,
    Send,
    Control,
}

/// One ring: the file with its memory, where that begins for the guest, and where the ring is in both.
pub(crate) struct Ring<'a> {
    pub(crate) file: &'a File,
    pub(crate) guest: u64,
    pub(crate) at: u64,
}

impl Ring<'_> {
    /// Makes chains available behind those of before, `offered` of which there were; gives how many there are then.
    pub(crate) fn offer(&self, role: Role, offered: u16, rng: &mut Rng) -> u16 {
        match role {
            Role::Read => self.offer_reads(rng),
            Role::OfCard(chains) => self.offer_chains(chains, offered, rng),
        }
    }

    fn put(&self, offset: u64, bytes: &[u8]) {
        self.file.write_all_at(bytes, self.at + offset).unwrap();
    }

    fn descriptor(&self, (offset, len): (u64, u32), flags: u16, next: u16) -> Vec<u8> {
        let address = self.guest + self.at + offset;
        [longs(&[address]), words(&[len, u32::from(flags) | u32::from(next) << 16])].concat()
    }

    /// The same read of the disk again and again.
    fn offer_reads(&self, rng: &mut Rng) -> u16 {
        let table = [
            self.descriptor((BUFFERS, 16), 1, 1),
            self.descriptor((BUFFERS + 0x1000, 4096), 3, 2),
            self.descriptor((BUFFERS + 0x800, 1), 2, 0),
        ];
        self.put(0, &table.concat());
        self.put(BUFFERS, &longs(&[0, rng.below(1000)]));
        self.put(AVAIL + 4, &[0; 128]);
        let index = rng.below(64) as u16;
        self.put(AVAIL + 2, &index.to_le_bytes());
        index
    }

    /// Buffers, frames or commands of a card, hardly ever more than are free.
    fn offer_chains(&self, chains: Chains, offered: u16, rng: &mut Rng) -> u16 {
        let mut used = [0; 2];
        // Where the file was cut there is none.
        let _ = self.file.read_exact_at(&mut used, self.at + USED + 2);
        let under_way = offered.wrapping_sub(u16::from_le_bytes(used));
        let free = if rng.one_in(16) { UNDER_WAY } else { UNDER_WAY.saturating_sub(under_way) };
        let count = rng.below(u64::from(free) + 1) as u16;
        for index in (0..count).map(|at| offered.wrapping_add(at)) {
            let chain = index % UNDER_WAY;
            self.write_chain(chains, chain, rng);
            self.put(AVAIL + 4 + 2 * u64::from(index % SIZE), &(chain * PIECES).to_le_bytes());
        }
        let offered = offered.wrapping_add(count);
        self.put(AVAIL + 2, &offered.to_le_bytes());
        offered
    }

    fn write_chain(&self, chains: Chains, chain: u16, rng: &mut Rng) {
        let at = BUFFERS + u64::from(chain) * BUFFER;
        match chains {
            Chains::Receive => {
                // Without room for a header the device takes nothing more from the ring.
                let len =
                    if rng.one_in(64) { rng.below(12) } else { [12, 100, 1526, 1526, 4096][rng.index(5)] };
                self.link(chain, &pieces((at, len as u32), Access::DeviceWrites, rng));
            }
            Chains::Send => {
                let frame = sent(rng);
                self.put(at, &frame);
                self.link(chain, &pieces((at, frame.len() as u32), Access::DeviceReads, rng));
            }
            Chains::Control => {
                let command = command(rng);
                self.put(at, &command);
                let mut pieces = vec![((at, command.len() as u32), Access::DeviceReads)];
                if !rng.one_in(64) {
                    pieces.push(((at + BUFFER / 2, 1), Access::DeviceWrites));
                }
                self.link(chain, &pieces);
            }
        }
    }

    fn link(&self, chain: u16, pieces: &[((u64, u32), Access)]) {
        let first = chain * PIECES;
        let mut table = Vec::new();
        for (index, (place, access)) in (first + 1..).zip(pieces) {
            let is_last = usize::from(index - first) == pieces.len();
            let flags = u16::from(!is_last) | if *access == Access::DeviceWrites { 2 } else { 0 };
            table.extend(self.descriptor(*place, flags, index));
        }
        self.put(u64::from(first) * 16, &table);
    }
}

/// What the device may do to a buffer.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Access {
    DeviceReads,
    DeviceWrites,
}

/// A buffer, in one piece or several.
fn pieces((at, len): (u64, u32), access: Access, rng: &mut Rng) -> Vec<((u64, u32), Access)> {
    let mut cuts = vec![0, len];
    if len > 2 {
        cuts.extend((0..rng.below(3)).map(|_| 1 + rng.below(u64::from(len) - 1) as u32));
    }
    cuts.sort_unstable();
    cuts.dedup();
    let piece = |ends: &[u32]| ((at + u64::from(ends[0]), ends[1] - ends[0]), access);
    cuts.windows(2).map(piece).collect()
}

/// A header and a frame: honest, or garbage, or with something left to be done to it.
fn sent(rng: &mut Rng) -> Vec<u8> {
    let len = [0, 1, 13, 14, 60, 60, 60, 1000, 1514, 3000][rng.index(10)];
    let mut bytes = vec![0; HEADER + len];
    match rng.below(8) {
        0 => rng.fill(&mut bytes),
        1 => {
            rng.fill(&mut bytes[HEADER..]);
            // A checksum to be made; cut by TCP over IPv4 or IPv6; lengths that may fit.
            (bytes[0], bytes[1]) = (rng.below(4) as u8, [0, 1, 4, 0x81, 3][rng.index(5)]);
            for at in [2, 4, 6, 8] {
                bytes[at] = rng.below(80) as u8;
            }
        }
        _ => {}
    }
    if rng.one_in(16) {
        bytes.truncate(rng.index(HEADER + 1));
    } else if len >= 14 {
        bytes[HEADER..HEADER + 6].copy_from_slice(&[[0xff; 6], [2, 0, 0, 0, 1, 0]][rng.index(2)]);
    }
    bytes
}

/// A command that means something, or bytes.
fn command(rng: &mut Rng) -> Vec<u8> {
    let mut bytes = vec![0; 2 + rng.index(40)];
    rng.fill(&mut bytes);
    if rng.one_in(8) {
        return bytes;
    }
    let switch = rng.below(2) as u8;
    match rng.below(6) {
        // All frames, or all to many stations.
        0 | 1 => vec![0, rng.below(2) as u8, switch],
        // One station in the first table, and none in the second.
        2 => [vec![1, 0], vec![1, 0, 0, 0], vec![2, 0, 0, 0, 3, switch], vec![0; 4]].concat(),
        // An address.
        3 => vec![1, 1, 2, 0, 0, 0, 4, switch],
        // Pairs.
        4 => vec![4, 0, rng.below(4) as u8, 0],
        // What may be left to be done to frames.
        _ => [vec![5, 0], longs(&[rng.below(16) << 7 | 2])].concat(),
    }
}
