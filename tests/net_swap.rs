//! A network exchanged under a running card: no token is lost, no frame doubled, and frames flow at once.

mod common;

use common::raw::{BUFFERS, Piece, RawDriver, SIZE};
use iovirt::backends::interposers::stats::{Stats, StatsConfig};
use iovirt::backends::net::loopback::{LoopbackBackend, LoopbackConfig, LoopbackControl};
use iovirt::core::frontend::{Frontend, Outcome, Ticket};
use iovirt::core::pipeline::{BoxBackend, Event, Pipeline, SwapControl};
use iovirt::core::request::net::{Link, MacAddr, NetCaps, NetOutput, NetRequest, Offloads};
use iovirt::core::{Worker, WorkerConfig};
use iovirt::frontends::virtio::VirtioDevice;
use iovirt::frontends::virtio::net::{NetConfig, NetCounters, VirtioNet};
use iovirt::registry::Registry;
use iovirt_core::test_utils::{ManualBackend, Rng, seed_or};
use std::collections::BTreeSet;
use std::sync::Arc;

const HEADER: usize = 12;
const RX: u16 = 0;
const TX: u16 = 1;
const GUEST: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x56];
const MQ: u64 = 1 << 17 | 1 << 22;

type Net = BoxBackend<NetRequest>;

fn loopback(mtu: u16) -> Net {
    BoxBackend::new(LoopbackBackend::new(&LoopbackConfig { mtu, ..LoopbackConfig::default() }).unwrap())
}

/// What a guest above a loopback was told.
fn told() -> NetCaps {
    NetCaps { tx_offloads: Offloads::all(), rx_offloads: Offloads::all(), ..NetCaps::new(1500, 32) }
}

fn counted(below: Net) -> Net {
    let stats = Stats::new(&StatsConfig::default()).layer();
    BoxBackend::new(Pipeline::top().stage(stats).backend(below).unwrap())
}

/// A card above `swappable -> loopback`, as a description builds it.
struct Card {
    driver: RawDriver,
    control: Arc<SwapControl<NetRequest>>,
    counters: Arc<NetCounters>,
    sent: u32,
    /// Numbers of the frames that came, in their order.
    came: Vec<u32>,
    offered: Vec<(u16, u64)>,
    next_buffer: u64,
}

impl Card {
    fn new(pairs: u16, features: u64) -> Self {
        let stack = Registry::standard().build_net(&"swappable -> loopback".parse().unwrap()).unwrap();
        let config = NetConfig { mac: Some(MacAddr(GUEST)), pairs, queue_size: SIZE, ..NetConfig::default() };
        let card = VirtioNet::new(config, stack).unwrap();
        let (control, counters) = (card.stages().control("swappable").unwrap(), card.counters());
        // One round at a time, so that a test sees what is half way.
        let worker = Worker::new(WorkerConfig { rounds: 1, ..WorkerConfig::default() }).unwrap();
        let driver = RawDriver::with_worker(Arc::new(card), features, worker);
        Self { driver, control, counters, sent: 0, came: Vec::new(), offered: Vec::new(), next_buffer: 0 }
    }

    /// Offers receive buffers.
    fn offer(&mut self, count: usize) {
        for _ in 0..count {
            let address = BUFFERS + self.next_buffer % u64::from(SIZE) * 2048;
            self.next_buffer += 1;
            let head = self.driver.offer(RX, &[Piece::Device(address, 2048)]);
            self.offered.push((head, address));
        }
        let _ = self.driver.register(0x050, RX.into());
    }

    /// Sends a numbered frame, without giving the device a turn.
    fn send(&mut self) {
        let address = BUFFERS + (1 << 20) + u64::from(self.sent % u32::from(SIZE)) * 2048;
        let mut frame = vec![self.sent as u8; 60];
        frame[..6].copy_from_slice(&GUEST);
        frame[14..18].copy_from_slice(&self.sent.to_be_bytes());
        self.driver.write(address, &[&[0; HEADER], frame.as_slice()].concat());
        self.driver.offer(TX, &[Piece::Driver(address, 72)]);
        let _ = self.driver.register(0x050, TX.into());
        self.sent += 1;
    }

    /// One turn of the worker; takes what came.
    fn turn(&mut self) {
        self.driver.worker.run().unwrap();
        for (head, len) in self.driver.used(RX) {
            let at = self.offered.iter().position(|(known, _)| *known == head).expect("a buffer used twice");
            let (_, address) = self.offered.remove(at);
            assert_eq!(len, 72);
            let bytes = self.driver.read(address + HEADER as u64 + 14, 4);
            self.came.push(u32::from_be_bytes(bytes.try_into().unwrap()));
        }
    }

    fn finish(&mut self, ticket: &Ticket) -> Outcome {
        for _ in 0..1000 {
            if let Some(outcome) = ticket.outcome() {
                return outcome;
            }
            self.turn();
        }
        panic!("an exchange that does not end");
    }

    /// A frame goes there and back, with no time passing that anybody waits for.
    fn works(&mut self) {
        let before = self.came.len();
        if self.offered.is_empty() {
            self.offer(1);
        }
        for _ in 0..4 {
            self.turn();
        }
        self.send();
        for _ in 0..4 {
            self.turn();
        }
        assert_eq!(self.came[before..], [self.sent - 1]);
    }
}

#[test]
fn exchanged_again_and_again_under_traffic() {
    let seed = seed_or(0x5e7);
    let mut rng = Rng::new(seed);
    let mut card = Card::new(1, 0);
    card.works();
    let (mut exchanges, mut cancelled) = (0, 0);
    let mut networks = vec![card.control.current()];
    while exchanges < 300 {
        let newcomer = match rng.below(3) {
            0 => card.control.current(),
            1 => loopback(1500),
            _ => counted(loopback(1500)),
        };
        networks.push(newcomer.clone());
        let ticket = card.control.swap(newcomer).unwrap();
        let cancel = rng.one_in(5);
        loop {
            for _ in 0..rng.below(4) {
                if rng.one_in(2) && card.offered.len() < 24 {
                    card.offer(1);
                }
                card.send();
            }
            card.turn();
            if cancel && rng.one_in(2) {
                card.control.cancel();
            }
            if ticket.is_done() {
                break;
            }
        }
        match ticket.outcome() {
            Some(Outcome::Done) => exchanges += 1,
            _ => cancelled += 1,
        }
        card.driver.used(TX);
        while card.offered.len() < 16 {
            card.offer(1);
        }
        for _ in 0..4 {
            card.turn();
        }
        card.works();
    }
    assert!(card.came.is_sorted_by(|before, after| before < after), "a frame twice, or out of order");
    let counters = card.counters.snapshot();
    assert_eq!((counters.sent, counters.send_failed, counters.receive_failed), (card.sent.into(), 0, 0));
    // A network drops what nobody waits for, and says so; the same one may stand in the list more than once.
    let mut known: Vec<Arc<LoopbackControl>> = Vec::new();
    for network in &networks {
        let control: Arc<LoopbackControl> = network.list_stages().control("loopback").unwrap();
        if !known.iter().any(|other| Arc::ptr_eq(other, &control)) {
            known.push(control);
        }
    }
    let (carried, dropped) = known.iter().fold((0, 0), |(carried, dropped), control| {
        let counted = control.snapshot();
        (carried + counted.carried, dropped + counted.dropped)
    });
    assert_eq!((carried, carried + dropped), (card.came.len() as u64, u64::from(card.sent)));
    assert!(cancelled > 0);
    println!(
        "seed {seed:#x}: {exchanges} exchanges, {cancelled} taken back, {} frames sent, {carried} came",
        card.sent
    );
}

#[test]
fn every_token_moves_and_none_twice() {
    let mut card = Card::new(1, 0);
    card.works();
    let (manual, handle) = ManualBackend::<NetRequest>::new(told());
    let ticket = card.control.swap(BoxBackend::new(manual)).unwrap();
    assert_eq!(card.finish(&ticket), Outcome::Done);
    for _ in 0..4 {
        card.turn();
    }
    let waiting = handle.in_flight();
    let tags: BTreeSet<_> = waiting.iter().map(|token| token.id.tag).collect();
    assert_eq!((waiting.len(), tags.len()), (usize::from(SIZE), usize::from(SIZE)));
    assert!(waiting.iter().all(|token| token.name == "receive" && token.cost.bytes == 0 && token.kicked));
    // They serve there.
    card.offer(1);
    let first = waiting[0].id;
    handle.with_request(first, |token| {
        let mut frame = [0; 60];
        frame[..6].copy_from_slice(&GUEST);
        frame[17] = 7;
        token.sg_mut().push_host(60).unwrap();
        token.sg_mut().copy_from(0, &frame).unwrap();
    });
    handle.complete(first, NetOutput::Done);
    card.turn();
    assert_eq!(card.came.last(), Some(&7));
}

#[test]
fn what_the_guest_was_told_is_checked() {
    let mut card = Card::new(2, 0);
    let refused = |card: &Card, newcomer: Net, why: &str| {
        let error = card.control.swap(newcomer).unwrap_err().to_string();
        assert_eq!(error, format!("the stack cannot take the place of the one in use: {why}"));
    };
    let of = |caps: NetCaps| BoxBackend::new(ManualBackend::<NetRequest>::new(caps).0);
    refused(&card, loopback(1400), "its MTU is 1400 bytes, not 1500");
    refused(&card, loopback(9000), "its MTU is 9000 bytes, not 1500");
    refused(&card, of(NetCaps::new(1500, 1)), "it has 1 pairs of queues, fewer than 32");
    let short = NetCaps { max_frame: 1514, ..told() };
    refused(&card, of(short), "its longest frame has 1514 bytes, fewer than 1518");
    let unsummed = NetCaps { tx_offloads: Offloads::empty(), ..told() };
    refused(&card, of(unsummed), "it lacks offloads of frames that are sent: CSUM, TSO4, TSO6, ECN");
    let summed = NetCaps { rx_offloads: Offloads::CSUM, ..told() };
    refused(&card, of(summed), "it lacks offloads of frames that are received: TSO4, TSO6, ECN");
    // The old one goes on.
    card.works();
}

#[test]
fn the_guest_hears_that_the_link_is_another() {
    let mut card = Card::new(1, 0);
    let link = |card: &Card| {
        let (mut status, mut generation) = ([0; 2], [0; 4]);
        card.driver.device.read(0, 0x106, &mut status);
        card.driver.device.read(0, 0x0fc, &mut generation);
        (u16::from_le_bytes(status), u32::from_le_bytes(generation))
    };
    let before = link(&card);
    assert_eq!(before.0, 1);
    let down = NetCaps { link: Link::Down, ..told() };
    let (manual, handle) = ManualBackend::<NetRequest>::new(down);
    let ticket = card.control.swap(BoxBackend::new(manual)).unwrap();
    assert_eq!(card.finish(&ticket), Outcome::Done);
    card.turn();
    let after = link(&card);
    assert!(after.0 == 0 && after.1 != before.1, "{before:?}, {after:?}");
    // Events of the one in place arrive as well.
    handle.set_caps(told(), Event::CapsChanged);
    assert!(link(&card).0 == 1 && link(&card).1 != after.1);
}

/// The cable is out, and in again at another network.
#[test]
fn a_card_whose_network_is_taken_away_has_no_link_until_one_is_put_back() {
    let mut card = Card::new(1, 0);
    card.works();
    let link = |card: &Card| {
        let mut status = [0; 2];
        card.driver.device.read(0, 0x106, &mut status);
        u16::from_le_bytes(status)
    };
    for round in 0..3 {
        assert_eq!(link(&card), 1);
        let ticket = card.control.remove().unwrap();
        assert_eq!(card.finish(&ticket), Outcome::Done);
        assert_eq!((card.control.is_vacant(), link(&card)), (true, 0));
        // What is sent is given back and goes nowhere; receive tokens wait, and are still there for the next network.
        let (sent, came) = (card.sent, card.came.len());
        card.offer(2);
        for _ in 0..8 {
            card.send();
            card.turn();
        }
        for _ in 0..4 {
            card.turn();
        }
        assert!(card.driver.used(TX).len() >= 8);
        let counters = card.counters.snapshot();
        assert_eq!((counters.send_failed, counters.receive_failed), (8 * (round + 1), 0));
        assert_eq!((card.sent - sent, card.came.len() - came), (8, 0));
        let (newcomer, why) = (loopback(9000), "its MTU is 9000 bytes, not 1500");
        assert!(card.control.insert(newcomer).unwrap_err().to_string().ends_with(why));
        let ticket = card.control.insert(loopback(1500)).unwrap();
        assert_eq!(card.finish(&ticket), Outcome::Done);
        card.works();
    }
}

#[test]
fn queues_that_no_driver_uses_do_not_hold_an_exchange_up() {
    // The driver knows of one pair: the second receive queue is its control queue, the third no queue at all.
    let mut card = Card::new(3, 0);
    let ticket = card.control.swap(loopback(1500)).unwrap();
    assert_eq!(card.finish(&ticket), Outcome::Done);
    card.works();
    // It knows of three and uses one.
    let mut card = Card::new(3, MQ);
    let ticket = card.control.swap(loopback(1500)).unwrap();
    assert_eq!(card.finish(&ticket), Outcome::Done);
    card.works();
    // It has gone.
    card.driver.reset();
    let ticket = card.control.swap(loopback(1500)).unwrap();
    for _ in 0..10 {
        card.driver.run();
    }
    assert_eq!(ticket.outcome(), Some(Outcome::Done));
}
