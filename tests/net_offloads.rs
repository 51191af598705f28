//! Offloads of virtio-net in this process: what is offered, what goes whole and what is cut, and headers that describe no frame.
//! `tests/net_tap.rs` has them with the host's network as the peer.

mod common;

use common::raw::{BUFFERS, Piece, RawDriver, SIZE};
use common::stacks::{NET_STAGES, stacks};
use common::tcp::{
    self, ACK, CSUM, CTRL_GUEST_OFFLOADS, End, GUEST_CSUM, GUEST_TSO4, HEADER, HEADERS, HOST_TSO4, PSH,
    Segment,
};
use iovirt::backends::interposers::filter::{FilterControl, Verdict};
use iovirt::backends::net::loopback::{LoopbackBackend, LoopbackConfig, LoopbackControl};
use iovirt::core::pipeline::BoxBackend;
use iovirt::core::request::net::{MacAddr, NetCaps, NetRequest, Offloads};
use iovirt::core::test_utils::{ManualBackend, Rng, rounds_or, seed_or};
use iovirt::frontends::virtio::VirtioDevice;
use iovirt::frontends::virtio::net::{NetConfig, NetCounters, VirtioNet};
use iovirt::registry::Registry;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

const RX: u16 = 0;
const TX: u16 = 1;
const CONTROL: u16 = 2;
const CTRL_VQ: u64 = 1 << 17;
const MRG_RXBUF: u64 = 1 << 15;
const HOST_ALL: u64 = CSUM | HOST_TSO4 | 1 << 12 | 1 << 13;
const GUEST_ALL: u64 = GUEST_CSUM | GUEST_TSO4 | 1 << 8 | 1 << 9;
const GUEST: End = End { mac: [2, 0, 0, 0, 0, 1], address: Ipv4Addr::new(10, 9, 0, 2), port: 7 };
const PEER: End = End { mac: [2, 0, 0, 0, 0, 2], address: Ipv4Addr::new(10, 9, 0, 1), port: 80 };

/// Where what is sent lies, and where buffers to be received into begin, each of 64 KiB and a bit.
const SENT: u64 = BUFFERS + (8 << 20);
const ROOM: u32 = 66 << 10;

fn config() -> NetConfig {
    NetConfig { mac: Some(MacAddr(GUEST.mac)), queue_size: SIZE, ..NetConfig::default() }
}

fn loopback() -> BoxBackend<NetRequest> {
    BoxBackend::new(LoopbackBackend::new(&LoopbackConfig::default()).unwrap())
}

fn driver(features: u64) -> (RawDriver, Arc<NetCounters>, Arc<LoopbackControl>) {
    let card = VirtioNet::new(config(), loopback()).unwrap();
    let (counters, control) = (card.counters(), card.stages().control("loopback").unwrap());
    (RawDriver::new(Arc::new(card), features), counters, control)
}

/// Sends a frame behind that header, in pieces.
fn send_slowly(driver: &mut RawDriver, header: [u8; HEADER], frame: &[u8]) {
    driver.write(SENT, &[&header[..], frame].concat());
    let len = (HEADER + frame.len()) as u32;
    let cuts = [0, HEADER as u32, len.min(40), len.min(5000), len];
    let pieces: Vec<_> = cuts
        .windows(2)
        .filter(|cut| cut[0] < cut[1])
        .map(|cut| Piece::Driver(SENT + u64::from(cut[0]), cut[1] - cut[0]))
        .collect();
    driver.offer(TX, &pieces);
    driver.ring(TX);
}

/// The same through stages that send at once.
fn send(driver: &mut RawDriver, header: [u8; HEADER], frame: &[u8]) {
    send_slowly(driver, header, frame);
    assert_eq!(driver.used(TX).len(), 1, "every chain comes back");
}

/// Offers so many buffers of that length.
fn offer(driver: &mut RawDriver, count: usize, len: u32) -> Vec<(u16, u64)> {
    let places = (0..count as u64).map(|at| BUFFERS + at * u64::from(len.next_multiple_of(64)));
    let offered = places.map(|place| (driver.offer(RX, &[Piece::Device(place, len)]), place)).collect();
    driver.ring(RX);
    offered
}

/// What came, each frame put together, behind its header.
fn take(driver: &mut RawDriver, offered: &[(u16, u64)]) -> Vec<([u8; HEADER], Vec<u8>)> {
    let mut frames = Vec::new();
    let mut used = driver.used(RX).into_iter();
    while let Some(first) = used.next() {
        let bytes = |driver: &RawDriver, (head, len): (u16, u32)| {
            let place = offered.iter().find(|(known, _)| *known == head).unwrap().1;
            driver.read(place, len as usize)
        };
        let mut whole = bytes(driver, first);
        let count = u16::from_le_bytes([whole[10], whole[11]]);
        for _ in 1..count {
            whole.extend(bytes(driver, used.next().expect("all buffers of a frame come at once")));
        }
        let frame = whole.split_off(HEADER);
        frames.push((whole.try_into().unwrap(), frame));
    }
    frames
}

fn command(driver: &mut RawDriver, class: u8, number: u8, data: &[u8]) -> u8 {
    driver.write(SENT, &[&[class, number], data, &[0xee]].concat());
    let len = data.len() as u32 + 2;
    driver.offer(CONTROL, &[Piece::Driver(SENT, len), Piece::Device(SENT + u64::from(len), 1)]);
    driver.ring(CONTROL);
    assert_eq!(driver.used(CONTROL).len(), 1);
    driver.read(SENT + u64::from(len), 1)[0]
}

/// A frame as long as many.
fn big(payload: &[u8]) -> Vec<u8> {
    let segment = Segment { sequence: 0xffff_f000, acknowledged: 1, flags: ACK | PSH, payload };
    tcp::frame(PEER, GUEST, segment)
}

#[test]
fn a_guest_is_offered_what_the_network_has() {
    let offered = |config: NetConfig, tx_offloads, rx_offloads| {
        let caps = NetCaps { tx_offloads, rx_offloads, ..NetCaps::new(1500, 1) };
        let network = BoxBackend::new(ManualBackend::<NetRequest>::new(caps).0);
        VirtioNet::new(config, network).unwrap().features() & (HOST_ALL | GUEST_ALL | CTRL_GUEST_OFFLOADS)
    };
    let (all, none) = (Offloads::all(), Offloads::empty());
    assert_eq!(offered(config(), none, none), 0);
    assert_eq!(offered(config(), all, none), HOST_ALL);
    assert_eq!(offered(config(), none, all), GUEST_ALL | CTRL_GUEST_OFFLOADS);
    assert_eq!(offered(config(), Offloads::CSUM, Offloads::CSUM), CSUM | GUEST_CSUM | CTRL_GUEST_OFFLOADS);
    assert_eq!(offered(config(), Offloads::TSO, Offloads::TSO), 0, "cutting goes with summing up only");
    assert_eq!(offered(NetConfig { offloads: none, ..config() }, all, all), 0);
    let one = NetConfig { offloads: Offloads::CSUM | Offloads::TSO4, ..config() };
    assert_eq!(offered(one, all, none), CSUM | HOST_TSO4);
    let registry = Registry::standard();
    let built = |line: &str| registry.build_virtio(&registry.parse(line).unwrap()).unwrap().features();
    assert_eq!(built("virtio-net -> stats -> filter -> loopback") & HOST_ALL, HOST_ALL);
    assert_eq!(built("virtio-net,offloads=off -> loopback") & (HOST_ALL | GUEST_ALL), 0);
}

#[test]
fn what_both_ends_take_goes_whole() {
    let payload = tcp::noise(40_000, 1);
    let frame = big(&payload);
    for (features, count, len) in [(0, 1, ROOM), (MRG_RXBUF, 30, 2048), (MRG_RXBUF, 2, ROOM)] {
        let (mut driver, counters, _) = driver(HOST_ALL | GUEST_ALL | features);
        // Flags of the receiving direction, and unknown ones, are not the sender's to set; the hint may be anything.
        let mut header = tcp::uncut(1460);
        header[0] |= 0xfe;
        header[2..4].copy_from_slice(&[0xff, 0xff]);
        send(&mut driver, header, &frame);
        let offered = offer(&mut driver, count, len);
        let came = take(&mut driver, &offered);
        assert_eq!(came.len(), 1);
        let buffers = (frame.len() + HEADER).div_ceil(len as usize) as u8;
        let mut wanted = tcp::uncut(1460);
        let [low, high] = (frame.len() as u16).to_le_bytes();
        (wanted[2], wanted[3], wanted[10]) = (low, high, buffers);
        assert_eq!(came[0].0, wanted);
        assert!(came[0].1 == frame, "the frame is another");
        let counted = counters.snapshot();
        assert_eq!((counted.sent, counted.received, counted.not_taken), (1, 1, 0));
    }
}

#[test]
fn what_the_receiver_does_not_take_is_cut_and_summed_up() {
    for features in [0, GUEST_CSUM] {
        let (mut driver, counters, control) = driver(HOST_ALL | features);
        let offered = offer(&mut driver, 40, 1526);
        let payload = tcp::noise(40_000, 2);
        send(&mut driver, tcp::uncut(1460), &big(&payload));
        let came = take(&mut driver, &offered);
        assert_eq!(came.len(), payload.len().div_ceil(1460));
        let mut data = Vec::new();
        for (at, (header, frame)) in came.iter().enumerate() {
            assert_eq!(header, &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
            let said = tcp::read(frame, GUEST.port, true).unwrap();
            assert_eq!(said.sequence, 0xffff_f000_u32.wrapping_add(data.len() as u32));
            assert_eq!(said.flags, if at + 1 == came.len() { ACK | PSH } else { ACK });
            data.extend(said.payload);
        }
        assert!(data == payload, "the payload is another");
        assert_eq!((control.snapshot().carried, counters.snapshot().received), (1, came.len() as u64));
        // Only to be summed up: by whoever the guest leaves it to.
        let (used, short) = (came.len(), big(&payload[..300]));
        send(&mut driver, tcp::unsummed(), &short);
        let came = take(&mut driver, &offered[used..]);
        let (header, frame) = &came[0];
        assert_eq!(header[0], u8::from(features != 0));
        assert_eq!(tcp::read(frame, GUEST.port, features == 0).unwrap().payload, payload[..300]);
    }
}

#[test]
fn headers_that_describe_no_frame_are_counted_and_harmless() {
    let frame = big(&tcp::noise(3000, 3));
    let (mut driver, counters, control) = driver(CSUM | HOST_TSO4);
    let offered = offer(&mut driver, 8, 4096);
    let set = |at: usize, bytes: &[u8]| {
        let mut header = tcp::uncut(1460);
        header[at..at + bytes.len()].copy_from_slice(bytes);
        header
    };
    let bad = [
        ("cut, not summed up", set(0, &[0])),
        ("TCP over IPv6, which was not negotiated", set(1, &[4])),
        ("ECN, which was not negotiated", set(1, &[0x81])),
        ("fragments of UDP", set(1, &[3])),
        ("an unknown way of cutting", set(1, &[0x7e])),
        ("ECN alone", set(1, &[0x80])),
        ("no payload", set(4, &[0, 0])),
        ("hardly any payload", set(4, &[7, 0])),
        ("a checksum in the Ethernet header", set(6, &[4, 0])),
        ("a checksum in the IP header", set(6, &[33, 0])),
        ("a checksum behind the frame", set(6, &[0xff, 0xff])),
        ("a checksum that ends behind the frame", set(8, &[0xd5, 0x0b])),
        ("a checksum far behind the frame", set(8, &[0xff, 0xff])),
        ("a checksum elsewhere in TCP", set(8, &[14, 0])),
    ];
    for (what, header) in bad {
        let before = counters.snapshot();
        send(&mut driver, header, &frame);
        let after = counters.snapshot();
        assert_eq!((after.malformed - before.malformed, after.sent - before.sent), (1, 0), "{what}");
    }
    // What only the network below can know is wrong: it refuses, or loses the frame.
    for (what, header) in
        [("a segment beyond the MTU", set(4, &[0xb5, 5])), ("too much", set(4, &[0xff, 0xff]))]
    {
        let before = counters.snapshot().send_failed;
        send(&mut driver, header, &frame);
        assert_eq!(counters.snapshot().send_failed - before, 1, "{what}");
    }
    let mut odd = frame.clone();
    odd[12..14].copy_from_slice(&[0x86, 0xdd]);
    send(&mut driver, tcp::uncut(1460), &odd);
    odd = frame.clone();
    odd[46] = 0xf0;
    odd.truncate(60);
    send(&mut driver, tcp::uncut(1460), &odd);
    assert_eq!(control.snapshot().dropped, 2, "frames that are not what they are to be cut by");
    assert_eq!(
        (driver.used(RX), driver.status() & 0x40),
        (vec![], 0),
        "nothing came, and the device is fine"
    );
    send(&mut driver, tcp::uncut(1460), &frame);
    assert_eq!(take(&mut driver, &offered).len(), 3);
}

#[test]
fn a_driver_changes_its_mind_about_what_it_takes() {
    let set = |driver: &mut RawDriver, offloads: u64| command(driver, 5, 0, &offloads.to_le_bytes());
    let features = HOST_ALL | GUEST_CSUM | GUEST_TSO4 | CTRL_GUEST_OFFLOADS | CTRL_VQ | MRG_RXBUF;
    let (mut driver, counters, _) = driver(features);
    let mut offered = offer(&mut driver, 6, 8192);
    let payload = tcp::noise(3000, 4);
    let count = |driver: &mut RawDriver, offered: &mut Vec<(u16, u64)>| {
        offered.extend(offer(driver, 3, 8192));
        send(driver, tcp::uncut(1460), &big(&payload));
        take(driver, offered).len()
    };
    assert_eq!(count(&mut driver, &mut offered), 1);
    for round in 0..20 {
        assert_eq!(set(&mut driver, 0), 0);
        assert_eq!(count(&mut driver, &mut offered), 3, "round {round}");
        assert_eq!(set(&mut driver, GUEST_CSUM | GUEST_TSO4), 0);
        assert_eq!(count(&mut driver, &mut offered), 1, "round {round}");
    }
    // What was not negotiated, lacks what it goes with, or is no offload, and a command cut short.
    for bad in [GUEST_CSUM | 1 << 8, GUEST_TSO4, GUEST_CSUM | 1 << 3, u64::MAX] {
        assert_eq!(set(&mut driver, bad), 1, "{bad:#x}");
    }
    assert_eq!((command(&mut driver, 5, 0, &[0; 7]), command(&mut driver, 5, 1, &[0; 8])), (1, 1));
    assert_eq!(count(&mut driver, &mut offered), 1, "a refused command changes nothing");
    assert_eq!(counters.snapshot().not_taken, 0);
    // It is saved, and a reset forgets it.
    assert_eq!(set(&mut driver, 0), 0);
    let mut driver = driver.migrate(Arc::new(VirtioNet::new(config(), loopback()).unwrap()));
    assert_eq!(count(&mut driver, &mut offered), 3);
    driver.reset();
    driver.set_up(features);
    assert_eq!(count(&mut driver, &mut Vec::new()), 1);
    // Not even negotiated.
    driver.reset();
    driver.set_up(features & !CTRL_GUEST_OFFLOADS);
    assert_eq!(set(&mut driver, 0), 1);
}

#[test]
fn a_filter_knows_what_is_left_to_be_done() {
    let registry = Registry::standard();
    let card =
        registry.build_virtio(&registry.parse("virtio-net,queue-size=64 -> filter -> loopback").unwrap());
    let card = card.unwrap();
    let control = card.stages().control::<FilterControl>("filter").unwrap();
    let seen = Arc::new(AtomicU64::new(0));
    let notes = seen.clone();
    control.set(move |frame| {
        assert_eq!((frame.offload.is_gso(), frame.bytes.len()), (true, 3000 + HEADERS));
        notes.fetch_add(1, Ordering::Relaxed);
        Verdict::Pass
    });
    let mut driver = RawDriver::new(card, HOST_ALL | GUEST_ALL);
    let offered = offer(&mut driver, 1, 4096);
    let frame = big(&tcp::noise(3000, 5));
    send(&mut driver, tcp::uncut(1460), &frame);
    let came = take(&mut driver, &offered);
    assert!(came.len() == 1 && came[0].1 == frame);
    assert_eq!(seen.load(Ordering::Relaxed), 2, "on both ways");
}

/// Whatever stands between, a frame comes whole to who takes it so, and cut to who does not.
#[test]
fn no_stage_loses_what_is_left_to_be_done() {
    let payload = tcp::noise(3000, 6);
    let frame = big(&payload);
    let mut count = 0;
    for stack in stacks(NET_STAGES, "loopback") {
        let line = format!("virtio-net,mac=02:00:00:00:00:01,queue-size={SIZE} -> {stack}");
        for takes in [GUEST_ALL, 0] {
            let card = Registry::standard().build_virtio(&line.parse().unwrap()).unwrap();
            assert_eq!(card.features() & (HOST_ALL | GUEST_ALL), HOST_ALL | GUEST_ALL, "{stack}");
            let mut driver = RawDriver::new(card, HOST_ALL | takes);
            for round in 0..20 {
                let offered = offer(&mut driver, 3, 4096);
                send_slowly(&mut driver, tcp::uncut(1460), &frame);
                let mut came = Vec::new();
                let start = Instant::now();
                while came.iter().map(|(_, frame): &(_, Vec<u8>)| frame.len() - HEADERS).sum::<usize>() < 3000
                {
                    assert!(start.elapsed() < Duration::from_secs(30), "{stack}: round {round} is lost");
                    driver.worker.run_within(Duration::from_millis(1)).unwrap();
                    came.extend(take(&mut driver, &offered));
                }
                if takes == 0 {
                    assert!(
                        came.len() == 3 && came.iter().all(|(header, _)| header[..10] == [0; 10]),
                        "{stack}"
                    );
                } else {
                    assert!(came[0].0[..10] == tcp::uncut(1460)[..10] && came[0].1 == frame, "{stack}");
                    // Buffers that are left are taken back by starting anew.
                    driver.reset();
                    driver.set_up(HOST_ALL | takes);
                }
            }
        }
        count += 1;
    }
    assert_eq!(count, NET_STAGES.len() + 1, "none is left out");
}

/// Any header in front of a sound frame or a broken one: each chain comes back, the device stays well, and what comes is as the
/// guest takes it.
#[test]
fn no_header_harms() {
    let seed = seed_or(0x0ff1_0ad5);
    println!("IOVIRT_SEED={seed}");
    let mut rng = Rng::new(seed);
    let (mut whole, mut cut) = (0, 0);
    for takes in [0, GUEST_CSUM, GUEST_CSUM | GUEST_TSO4, GUEST_ALL] {
        let (mut driver, counters, _) = driver(HOST_ALL | takes | MRG_RXBUF);
        for _ in 0..rounds_or(1500) {
            let payload = tcp::noise(rng.index(9000), rng.next_u64());
            let mut frame = big(&payload);
            let mut header = tcp::uncut([8, 536, 1460][rng.index(3)]);
            for _ in 0..rng.below(3) {
                header[rng.index(10)] = [0, 1, 2, 4, 16, 34, 0x81, 0xff][rng.index(8)];
            }
            for _ in 0..rng.below(3) {
                let at = rng.index(HEADERS);
                frame[at] = rng.next_u64() as u8;
            }
            frame.truncate(frame.len() - rng.index(2) * rng.index(frame.len()));
            let offered = offer(&mut driver, 16, 1526);
            send(&mut driver, header, &frame);
            for (header, frame) in take(&mut driver, &offered) {
                assert!(takes & GUEST_CSUM != 0 || header[..10] == [0; 10], "{header:?}");
                assert!(takes & GUEST_TSO4 != 0 || header[1] == 0 || header[1] & 0x7f == 4, "{header:?}");
                assert!(header[1] & 0x80 == 0 || takes & 1 << 9 != 0, "{header:?}");
                assert!(header[1] != 0 || frame.len() <= 1518);
                if header[1] == 0 { cut += 1 } else { whole += 1 }
            }
            assert_eq!(driver.status() & 0x40, 0, "the device is broken");
            // Buffers that are left are taken back by starting anew.
            driver.reset();
            driver.set_up(HOST_ALL | takes | MRG_RXBUF);
        }
        assert_eq!(counters.snapshot().not_taken, 0);
    }
    assert!(whole > 200 && cut > 2000, "{whole} frames came whole, {cut} did not");
}
