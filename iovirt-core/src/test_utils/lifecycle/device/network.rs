//! The load of a network card above a network on which frames come back on the pair on which they were sent: numbered
//! frames, each of which comes once at most, and in order.

use super::guest::{BUFFERS, Guest};
use super::ring::Piece;
use super::world::Load;
use crate::test_utils::rng::Rng;
use std::collections::{BTreeMap, VecDeque};

const PAIRS: usize = 2;
const CONTROL: usize = PAIRS * 2;
const HEADER: usize = 12;
/// Bytes of guest memory for each buffer.
const SLOT: u64 = 0x1000;
/// Receive buffers of a pair at most.
const BUFFERS_MOST: usize = 12;
/// Frames of a pair that are sent at once at most.
const FRAMES_MOST: usize = 8;
const MRG_RXBUF: u64 = 1 << 15;

struct Buffer {
    address: u64,
    len: u32,
}

#[derive(Default)]
struct Pair {
    buffers: BTreeMap<u16, Buffer>,
    sending: BTreeMap<u16, u64>,
    free: Vec<u64>,
    /// Sent, and not known to have come or to be lost: number and content.
    under_way: VecDeque<(u32, Vec<u8>)>,
    /// Of a probe: frames that have to come.
    awaited: usize,
    /// Buffers of a frame that is spread over several, of which not all have come back.
    partial: Vec<u8>,
    missing: u16,
}

/// What was sent, and what may come.
pub(super) struct NetLoad {
    pairs: [Pair; PAIRS],
    next: u32,
    mergeable: bool,
    /// The answer to the command that sets the pairs in use.
    command: Option<u16>,
    finished: u64,
    lost: u64,
}

impl NetLoad {
    pub(super) fn new() -> Self {
        let mut load = Self {
            pairs: Default::default(),
            next: 1,
            mergeable: false,
            command: None,
            finished: 0,
            lost: 0,
        };
        load.forget();
        load
    }

    fn offer(&mut self, guest: &mut Guest, rng: &mut Rng, at: usize) {
        let pair = &mut self.pairs[at];
        if pair.buffers.len() >= BUFFERS_MOST {
            return;
        }
        let Some(address) = pair.free.pop() else { return };
        let len = if self.mergeable { [300, 700, 1536][rng.index(3)] } else { 1536 };
        match guest.offer(at * 2, &[Piece::Device(address, len)]) {
            Some(head) => drop(pair.buffers.insert(head, Buffer { address, len })),
            None => pair.free.push(address),
        }
    }

    fn send(&mut self, guest: &mut Guest, rng: &mut Rng, at: usize) -> bool {
        let pair = &mut self.pairs[at];
        if pair.sending.len() >= FRAMES_MOST {
            return false;
        }
        let Some(address) = pair.free.pop() else { return false };
        let number = self.next;
        let len = 18 + rng.below(1400) as usize;
        let mut frame: Vec<u8> = (0..len as u32).map(|byte| (byte ^ number.wrapping_mul(37)) as u8).collect();
        frame[..6].fill(0xff);
        frame[6..14].copy_from_slice(&[0x52, 0x54, 0, 0, 0, 1, 0x88, 0xb5]);
        frame[14..18].copy_from_slice(&number.to_be_bytes());
        guest.write(address, &[&[0; HEADER], frame.as_slice()].concat());
        let cut = rng.between(1, len as u64 - 1) as u32;
        let data = address + HEADER as u64;
        let pieces = [
            Piece::Driver(address, HEADER as u32),
            Piece::Driver(data, cut),
            Piece::Driver(data + u64::from(cut), len as u32 - cut),
        ];
        let Some(head) = guest.offer(at * 2 + 1, &pieces) else {
            pair.free.push(address);
            return false;
        };
        self.next += 1;
        pair.sending.insert(head, address);
        pair.under_way.push_back((number, frame));
        true
    }

    /// Takes a receive buffer back; a frame when it is whole.
    fn received(&mut self, guest: &Guest, at: usize, (head, len): (u16, u32)) -> Result<(), String> {
        let pair = &mut self.pairs[at];
        let Buffer { address, len: room } =
            pair.buffers.remove(&head).ok_or("a receive buffer came back twice")?;
        pair.free.push(address);
        if len > room {
            return Err(format!("{len} bytes in a receive buffer of {room}"));
        }
        let bytes = guest.bytes(address, len as usize);
        if pair.missing == 0 {
            pair.missing = u16::from_le_bytes([bytes[10], bytes[11]]);
            pair.partial = bytes[HEADER..].to_vec();
        } else {
            pair.partial.extend(bytes);
        }
        pair.missing = pair.missing.checked_sub(1).ok_or("a frame in no buffer")?;
        if pair.missing > 0 {
            return Ok(());
        }
        let frame = std::mem::take(&mut pair.partial);
        let number = frame.get(14..18).map(|bytes| u32::from_be_bytes([0, 1, 2, 3].map(|byte| bytes[byte])));
        // Those before it are lost, as frames may be; should one of them come, it is not known any more.
        let place = pair.under_way.iter().position(|(known, _)| Some(*known) == number);
        let place = place.ok_or_else(|| format!("frame {number:?} came twice, or after a later one"))?;
        self.lost += place as u64;
        let (_, sent) = pair.under_way.drain(..=place).next_back().ok_or("no frame")?;
        if sent != frame {
            return Err(format!("frame {number:?} came changed"));
        }
        pair.awaited = pair.awaited.saturating_sub(1);
        self.finished += 1;
        Ok(())
    }
}

impl Load for NetLoad {
    /// Has the card use all pairs.
    fn start(&mut self, guest: &mut Guest, features: u64) {
        self.mergeable = features & MRG_RXBUF != 0;
        let address = BUFFERS - 0x100;
        guest.write(address, &[4, 0, PAIRS as u8, 0, 0xee]);
        self.command = guest.offer(CONTROL, &[Piece::Driver(address, 4), Piece::Device(address + 4, 1)]);
    }

    fn submit(&mut self, guest: &mut Guest, rng: &mut Rng) {
        for _ in 0..rng.between(1, 4) {
            let at = rng.index(PAIRS);
            self.offer(guest, rng, at);
            let at = rng.index(PAIRS);
            self.send(guest, rng, at);
        }
    }

    fn take(&mut self, guest: &mut Guest, rng: &mut Rng, back: Vec<Vec<(u16, u32)>>) -> Result<(), String> {
        let mut freed = [0; PAIRS];
        for (queue, heads) in back.into_iter().enumerate() {
            let at = queue / 2;
            for (head, len) in heads {
                if queue == CONTROL {
                    if self.command.take() != Some(head) || guest.bytes(BUFFERS - 0x100 + 4, 1) != [0] {
                        return Err("the command that sets the pairs was not done".into());
                    }
                } else if queue % 2 == 1 {
                    let pair = &mut self.pairs[at];
                    let address = pair.sending.remove(&head).ok_or("a sent frame came back twice")?;
                    pair.free.push(address);
                    self.finished += 1;
                } else {
                    self.received(guest, at, (head, len))?;
                    freed[at] += 1;
                }
            }
        }
        // Now, as a head that is offered again must not be taken for one that came back.
        for (at, freed) in freed.into_iter().enumerate() {
            for _ in 0..rng.below(freed + 1) {
                self.offer(guest, rng, at);
            }
        }
        Ok(())
    }

    fn awaits(&self) -> bool {
        self.command.is_some() || self.pairs.iter().any(|pair| !pair.sending.is_empty() || pair.awaited > 0)
    }

    fn forget(&mut self) {
        self.command = None;
        for (at, pair) in self.pairs.iter_mut().enumerate() {
            self.lost += pair.under_way.len() as u64;
            let slots = (BUFFERS_MOST + FRAMES_MOST) as u64;
            let first = BUFFERS + at as u64 * slots * SLOT;
            *pair = Pair { free: (0..slots).map(|slot| first + slot * SLOT).collect(), ..Pair::default() };
        }
    }

    /// On a network where nothing is under way, frames that are sent come.
    fn probe(&mut self, guest: &mut Guest, rng: &mut Rng, round: u64) -> bool {
        for at in 0..PAIRS {
            // Two buffers take the longest frame where they are mergeable, but for one of the least.
            while self.pairs[at].buffers.len() < BUFFERS_MOST {
                self.offer(guest, rng, at);
            }
            if round == 0 {
                // With buffers there, what waited for them comes first.
                continue;
            }
            self.pairs[at].under_way.clear();
            for _ in 0..2 {
                self.pairs[at].awaited += usize::from(self.send(guest, rng, at));
            }
        }
        round < 4
    }

    fn finished(&self) -> u64 {
        self.finished
    }
}
