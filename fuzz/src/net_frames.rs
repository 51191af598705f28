//! Frames through a virtio network card on a network on which each comes back: headers, buffers and features as the input says.
//!
//! The first byte says which features the driver takes. Then come steps: buffers to be received into, frames to be sent, and
//! turns of the worker. What is received is compared with what was sent where the driver kept to the rules. In the end an honest
//! frame must come back.

use crate::chains::{self, buffer};
use crate::device;
use crate::input::Input;
use iovirt_core::dma::DmaSpace;
use iovirt_core::test_utils::hostile::{Buffer, Layout, QueueSetup, RawDriver, feature, status};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::sync::Arc;

/// Length of the header in front of a frame.
const HEADER: usize = 12;
/// Entries of each ring.
const SIZE: u16 = 16;
/// Frames may lie in several buffers (VIRTIO 1.2, section 5.1.3).
const MERGEABLE: u64 = 1 << 15;
/// What may be left to be done to frames that the driver receives: their checksums; cutting them, by IPv4 and IPv6, and with
/// explicit congestion notification (VIRTIO 1.2, section 5.1.3).
const TAKES_CSUM: u64 = 1 << 1;
const TAKES_TSO: [(u8, u64); 2] = [(1, 1 << 7), (4, 1 << 8)];
const TAKES_ECN: u64 = 1 << 9;
const TAKES: u64 = TAKES_CSUM | 1 << 7 | 1 << 8 | TAKES_ECN;
/// What the driver may leave to be done.
const LEAVES_CSUM: u64 = 1;
const LEAVES_TSO: u64 = 1 << 11 | 1 << 12 | 1 << 13;
const OPTIONAL: [u64; 8] = [
    MERGEABLE,
    feature::INDIRECT_DESC,
    feature::EVENT_IDX,
    1 << 22,
    TAKES,
    LEAVES_TSO,
    LEAVES_CSUM,
    1 << 8 | TAKES_ECN,
];

thread_local! {
    static CARD: RefCell<Option<Card>> = const { RefCell::new(None) };
}

/// Plays an input.
///
/// # Panics
/// Where the card does, loses a frame or changes it, or does not work any more.
pub fn run(data: &[u8]) {
    CARD.with_borrow_mut(|card| {
        let card = card.get_or_insert_with(Card::new);
        let mut input = Input::new(data);
        let refused = input.u8();
        let without = |(at, feature): (usize, &u64)| if refused >> at & 1 == 0 { 0 } else { *feature };
        let features = OPTIONAL.iter().enumerate().map(without).fold(feature::ALL, |all, one| all & !one);
        card.start(features);
        for _ in 0..32 {
            if input.is_empty() {
                break;
            }
            card.play(&mut input);
            if card.receive.status() & status::NEEDS_RESET != 0 {
                card.start(features);
            }
        }
        card.start(features);
        card.must_carry();
    });
}

/// A card with its driver: one for each queue of the first pair.
struct Card {
    receive: RawDriver,
    transmit: RawDriver,
    /// Buffers offered, by head. A head is free where there are none.
    room: Vec<Option<Vec<Buffer>>>,
    next: u16,
    features: u64,
}

impl Card {
    fn new() -> Self {
        // The rings and buffers of the two queues are apart.
        let apart = device::BASE + Layout::LEN + 0x20_0000;
        let space =
            DmaSpace::anonymous(&[(device::BASE, Layout::LEN), (apart, Layout::LEN)]).expect("memory");
        let target = device::card(0, Some(space));
        let mut other = device::card(1, None);
        other.frontend = Arc::clone(&target.frontend);
        other.space = target.space.clone();
        other.base = apart;
        other.step = Box::new(|| ());
        Self {
            receive: RawDriver::new(target, 4),
            transmit: RawDriver::new(other, 4),
            room: Vec::new(),
            next: 0,
            features: 0,
        }
    }

    fn start(&mut self, features: u64) {
        self.receive.negotiate(features).expect("the device starts after a reset");
        for driver in [&mut self.receive, &mut self.transmit] {
            let setup = QueueSetup::good(&driver.layout(), u32::from(SIZE));
            driver.set_queue(&setup);
        }
        self.receive.driver_ok();
        self.room = vec![None; usize::from(SIZE)];
        self.next = 0;
        self.features = features;
    }

    fn play(&mut self, input: &mut Input<'_>) {
        match input.u8() % 4 {
            0 => {
                // One descriptor for each head: more would overlap those of the next.
                let head = self.next % SIZE;
                if self.room[usize::from(head)].is_some() {
                    return;
                }
                let len = u32::from(input.u16() % 2048);
                let addr = self.receive.layout().buffers + u64::from(head) * 2048;
                let buffer = Buffer { addr, len, writable: input.u8() & 7 != 7 };
                self.receive.chain(&[buffer], false, head);
                self.receive.offer(head);
                self.room[usize::from(head)] = Some(vec![buffer]);
                self.next += 1;
            }
            1 => {
                chains::offer(&mut self.transmit, input, 0);
                self.transmit.kick();
                self.receive.step();
                self.take_sent();
            }
            2 => {
                self.receive.kick();
                self.receive.step();
            }
            _ => {
                let _ = self.receive.write_only(0x050, u32::from(input.u8() % 5));
                self.receive.step();
            }
        }
        self.take_received();
    }

    fn take_sent(&mut self) {
        if self.broken() {
            return;
        }
        let sent = self.transmit.take_used().expect("a frame is sent, or dropped, in one step");
        assert_eq!(sent, (0, 0), "nothing is written into what is sent");
    }

    fn broken(&self) -> bool {
        self.receive.status() & status::NEEDS_RESET != 0
    }

    /// Takes what came, and looks at its headers.
    fn take_received(&mut self) {
        if self.broken() {
            return;
        }
        let mut heads = VecDeque::new();
        while let Some((head, len)) = self.receive.take_used() {
            let place = self.room.get_mut(head as usize).expect("a head that was offered");
            let buffers = place.take().expect("a head that was offered once comes back once");
            heads.push_back((buffers[0], len));
        }
        while let Some((first, len)) = heads.pop_front() {
            assert!(
                first.writable && len as usize >= HEADER && len <= first.len,
                "{len} bytes of {}",
                first.len
            );
            let header = self.receive.get(first.addr, HEADER);
            let mut whole = len as usize;
            let count = u16::from_le_bytes([header[10], header[11]]);
            assert!(count == 1 || self.features & MERGEABLE != 0 && count > 1, "a frame in {count} buffers");
            for _ in 1..count {
                let (next, len) = heads.pop_front().expect("all buffers of a frame come at once");
                assert!(len > 0 && len <= next.len && next.writable, "{len} bytes of {}", next.len);
                whole += len as usize;
            }
            self.check_header(&header, whole - HEADER);
        }
    }

    /// What is left to be done to a frame of `len` bytes is what was negotiated, and makes sense.
    fn check_header(&self, header: &[u8], len: usize) {
        let has = |feature: u64| self.features & feature != 0;
        if header[..10] == [0; 10] {
            return;
        }
        assert!(has(TAKES_CSUM) && header[0] == 1, "an offload that was not negotiated: {header:?}");
        let word = |at: usize| usize::from(u16::from_le_bytes([header[at], header[at + 1]]));
        assert!(word(6) + word(8) + 2 <= len && word(6) >= 14, "a checksum behind the end: {header:?}");
        assert!(header[1] & 0x80 == 0 || has(TAKES_ECN), "ECN was not negotiated");
        if header[1] != 0 {
            let cut = TAKES_TSO.iter().find(|(cut, _)| header[1] & 0x7f == *cut);
            assert!(cut.is_some_and(|(_, feature)| has(*feature)), "cutting was not negotiated: {header:?}");
            assert!(word(4) > 0 && word(6) + 20 <= len, "a frame that cannot be cut: {header:?}");
        }
    }

    /// An honest frame comes back as it was sent.
    fn must_carry(&mut self) {
        let frame: Vec<u8> = (0..100).map(|at| if at < 6 { 0xff } else { at }).collect();
        let to = Buffer { addr: self.receive.layout().buffers, len: 1526, writable: true };
        let from = Buffer {
            addr: self.transmit.layout().buffers,
            len: (HEADER + frame.len()) as u32,
            writable: false,
        };
        self.receive.chain(&[to], false, 0);
        self.receive.offer(0);
        self.transmit.put(from.addr, &[&[0; HEADER], &frame[..]].concat());
        self.transmit.chain(&[from], false, 0);
        self.transmit.offer(0);
        self.transmit.kick();
        let len = (HEADER + frame.len()) as u32;
        let mut came = None;
        self.receive
            .wait(|driver| {
                came = driver.take_used();
                came.is_some()
            })
            .expect("an honest frame comes back");
        assert_eq!(came, Some((0, len)));
        assert_eq!(self.receive.get(to.addr + HEADER as u64, frame.len()), frame);
        assert_eq!(self.transmit.take_used(), Some((0, 0)));
    }
}

/// Frames into one buffer, into several, into too few, with odd headers, and without any room.
pub fn seeds() -> Vec<Vec<u8>> {
    let room = |len: u16| [&[0][..], &len.to_le_bytes(), &[0]].concat();
    let send = |header: [u8; 12], len: u16| {
        let start = [&header[..], &[0xff; 6], &[7; 100]].concat();
        [&[1, 0][..], &buffer(0, false, 12 + len), &[start.len() as u8], &start].concat()
    };
    let pieces = |lens: &[u16]| {
        let mut seed = vec![1, lens.len() as u8 - 1];
        let mut at = 0;
        for &len in lens {
            seed.extend(buffer(at, false, len));
            at += len;
        }
        seed.extend([26]);
        seed.extend([&[0; 12][..], &[0xff; 6], &[3; 8]].concat());
        seed
    };
    let plain = [0; 12];
    let mut offload = plain;
    (offload[0], offload[1], offload[10]) = (1, 1, 9);
    // A frame of TCP with 40 bytes of payload, to be cut in five.
    let mut tcp = [[0xff; 12].as_slice(), &[8, 0, 0x45, 0, 0, 80, 0, 1, 0x40, 0, 64, 6]].concat();
    tcp.extend([0, 0, 10, 9, 0, 1, 10, 9, 0, 2, 0, 80, 0, 80, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10]);
    tcp.extend([[0xff, 0xff, 0, 0, 0, 0].as_slice(), &[0x33; 40]].concat());
    let cut = |change: &dyn Fn(&mut [u8])| {
        let mut packet = [&[1, 1, 54, 0, 8, 0, 34, 0, 16, 0, 0, 0][..], &tcp].concat();
        change(&mut packet);
        let room = room(2000).repeat(6);
        let len = packet.len() as u16;
        [room, [1, 0].to_vec(), buffer(0, false, len).to_vec(), vec![len as u8], packet, vec![2]].concat()
    };
    let one = [room(1526), send(plain, 60), vec![2]].concat();
    let several = [room(100), room(100), room(200), room(2000), send(plain, 1400), vec![2]].concat();
    let few = [room(64), send(plain, 1400), vec![2], room(2000), vec![2]].concat();
    let mut seeds = Vec::new();
    for features in 0..4 {
        seeds.push([&[features], &one[..]].concat());
        seeds.push([&[features], &several[..]].concat());
        seeds.push([&[features], &few[..]].concat());
    }
    seeds.push([vec![0], room(1526), send(offload, 60)].concat());
    for refused in [0, 0x10, 0x20, 0x40, 0x11, 0x90] {
        seeds.push([vec![refused], cut(&|_| ())].concat());
        seeds.push([vec![refused], cut(&|packet| packet[1] = 0)].concat());
    }
    let spoil: [(usize, u8); 8] =
        [(0, 0), (1, 4), (1, 0x81), (4, 0), (7, 0xff), (9, 0xff), (12 + 46, 0xf0), (12 + 14, 0x4f)];
    for (at, byte) in spoil {
        seeds.push([vec![0], cut(&|packet| packet[at] = byte)].concat());
    }
    seeds.push([vec![0], send(plain, 60), send(plain, 0), send(plain, 1), room(12), vec![2]].concat());
    seeds.push(
        [vec![0], room(1526), pieces(&[1, 11, 14, 60]), pieces(&[12, 0, 60]), pieces(&[13, 13])].concat(),
    );
    seeds.push([vec![0], room(11), send(plain, 60)].concat());
    seeds
}
