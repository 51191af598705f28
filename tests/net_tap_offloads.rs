//! Offloads of virtio-net over a real tap, in a network namespace of the test's own: the host's network stack cuts and sums up what
//! the guest leaves to it, and leaves to the guest what that takes.
//!
//! Without root these tests say that they were skipped.

mod common;

use common::netns::{enter, ip};
use common::raw::{BUFFERS, Piece, RawDriver, SIZE};
use common::tcp::{
    self, ACK, CSUM, End, GUEST_CSUM, GUEST_TSO4, HEADER, HEADERS, HOST_TSO4, PSH, SYN, Said, Segment,
};
use iovirt::backends::net::tap::TapControl;
use iovirt::core::request::net::MacAddr;
use iovirt::frontends::virtio::VirtioDevice;
use iovirt::registry::Registry;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(30);
const MRG_RXBUF: u64 = 1 << 15;
const ALL: u64 = CSUM | HOST_TSO4 | GUEST_CSUM | GUEST_TSO4;
const RX: u16 = 0;
const TX: u16 = 1;
/// Where frames to be sent lie, each in a place of its own.
const SENT: u64 = BUFFERS + (8 << 20);
const PLACE: u64 = 72 << 10;

const GUEST: End =
    End { mac: [0x52, 0x54, 0, 0x12, 0x34, 0x56], address: Ipv4Addr::new(10, 9, 0, 2), port: 7 };

fn host_mac(tap: &str) -> [u8; 6] {
    let output = Command::new("ip").args(["-o", "link", "show", tap]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let word = text.split("link/ether ").nth(1).unwrap().split(' ').next().unwrap();
    word.parse::<MacAddr>().unwrap().0
}

/// A guest above a tap whose other end has the address .1 of that network.
struct Guest {
    driver: RawDriver,
    tap: Arc<TapControl>,
    posted: Vec<(u16, u64)>,
    room: u32,
    sent: u64,
}

impl Guest {
    fn new(tap: &str, network: u8, features: u64) -> Self {
        let line = format!("virtio-net,mac=52:54:00:12:34:56,queue-size={SIZE} -> stats -> tap,name={tap}");
        let registry = Registry::standard();
        let card: Arc<dyn VirtioDevice> = registry.build_virtio(&registry.parse(&line).unwrap()).unwrap();
        ip(&format!("addr add 10.{network}.0.1/24 dev {tap}"));
        ip(&format!("link set {tap} up"));
        ip(&format!("neigh add 10.{network}.0.2 lladdr 52:54:00:12:34:56 dev {tap} nud permanent"));
        let control = card.stages().control("tap").unwrap();
        let room = if features & MRG_RXBUF == 0 { 66 << 10 } else { 1526 };
        let driver = RawDriver::new(card, features);
        let mut guest = Self { driver, tap: control, posted: Vec::new(), room, sent: 0 };
        for slot in 0..u64::from(SIZE) {
            guest.post(BUFFERS + slot * PLACE);
        }
        guest.driver.ring(RX);
        guest
    }

    fn post(&mut self, place: u64) {
        let head = self.driver.offer(RX, &[Piece::Device(place, self.room)]);
        self.posted.push((head, place));
    }

    fn send(&mut self, header: [u8; HEADER], frame: &[u8]) {
        let place = SENT + self.sent % 16 * PLACE;
        self.sent += 1;
        self.driver.write(place, &[&header[..], frame].concat());
        let len = frame.len() as u32;
        let pieces = [
            Piece::Driver(place, HEADER as u32),
            Piece::Driver(place + HEADER as u64, 40),
            Piece::Driver(place + HEADER as u64 + 40, len - 40),
        ];
        self.driver.offer(TX, &pieces);
        self.driver.ring(TX);
        assert_eq!(self.driver.used(TX).len(), 1);
    }

    /// The frames that came, each behind its header; buffers that were used are offered again.
    fn take(&mut self) -> Vec<([u8; HEADER], Vec<u8>)> {
        let mut frames: Vec<([u8; HEADER], Vec<u8>)> = Vec::new();
        let mut missing = 0;
        for (head, len) in self.driver.used(RX) {
            let at = self.posted.iter().position(|(known, _)| *known == head).unwrap();
            let (_, place) = self.posted.remove(at);
            let mut bytes = self.driver.read(place, len as usize);
            if missing == 0 {
                let frame = bytes.split_off(HEADER);
                missing = u16::from_le_bytes([bytes[10], bytes[11]]) - 1;
                frames.push((bytes.try_into().unwrap(), frame));
            } else {
                missing -= 1;
                frames.last_mut().unwrap().1.extend(bytes);
            }
            self.post(place);
        }
        assert_eq!(missing, 0, "all buffers of a frame come at once");
        self.driver.ring(RX);
        frames
    }

    /// Segments to that port that came, and the gso_size of each; waits for one at least.
    fn segments(&mut self, port: u16) -> Vec<(u16, Said)> {
        let start = Instant::now();
        loop {
            assert!(start.elapsed() < LIMIT, "nothing came from the host");
            self.driver.worker.run_within(Duration::from_millis(10)).unwrap();
            let mut said = Vec::new();
            for (header, frame) in self.take() {
                if let Some(segment) = tcp::read(&frame, port, header[0] & 1 == 0) {
                    check_header(header, frame.len());
                    said.push((u16::from_le_bytes([header[4], header[5]]), segment));
                }
            }
            if !said.is_empty() {
                return said;
            }
        }
    }
}

/// A header of a frame of TCP over IPv4 that came from the host.
fn check_header(header: [u8; HEADER], len: usize) {
    if header[1] == 0 {
        assert!(len <= 1518, "a frame of {len} bytes that is not to be cut");
        return;
    }
    assert_eq!((header[0] & 1, header[1] & 0x7f), (1, 1));
    assert_eq!((header[6], header[7], header[8], header[9]), (34, 0, 16, 0));
}

/// A connection of the guest's to the host, without any loss: what the test's own driver knows of TCP.
struct Connection {
    peer: End,
    sequence: u32,
    acknowledged: u32,
    /// What came beside acknowledgements.
    early: Vec<(u16, Said)>,
}

impl Connection {
    fn say(&self, guest: &mut Guest, flags: u8, payload: &[u8]) {
        let (sequence, acknowledged) = (self.sequence, self.acknowledged);
        let frame = tcp::frame(GUEST, self.peer, Segment { sequence, acknowledged, flags, payload });
        let header = if frame.len() > 1514 { tcp::uncut(1460) } else { tcp::unsummed() };
        guest.send(header, &frame);
    }

    fn open(guest: &mut Guest, peer: End) -> Self {
        let mut connection = Self { peer, sequence: 0xffff_8000, acknowledged: 0, early: Vec::new() };
        connection.say(guest, SYN, &[]);
        let answer = guest.segments(GUEST.port).remove(0).1;
        assert_eq!((answer.flags, answer.acknowledged), (SYN | ACK, 0xffff_8001));
        connection.sequence = connection.sequence.wrapping_add(1);
        connection.acknowledged = answer.sequence.wrapping_add(1);
        connection.say(guest, ACK, &[]);
        connection
    }

    /// Sends a frame that is to be cut, and waits until all of it was acknowledged.
    fn give(&mut self, guest: &mut Guest, payload: &[u8]) {
        self.say(guest, ACK | PSH, payload);
        self.sequence = self.sequence.wrapping_add(payload.len() as u32);
        while self.early.iter().all(|(_, said)| said.acknowledged != self.sequence) {
            self.early.extend(guest.segments(GUEST.port));
        }
        self.early.retain(|(_, said)| !said.payload.is_empty());
    }

    /// Takes so many bytes, and gives the gso_size and length of each frame in which they came.
    fn take(&mut self, guest: &mut Guest, len: usize) -> (Vec<u8>, Vec<(u16, usize)>) {
        let (mut data, mut frames) = (Vec::new(), Vec::new());
        while data.len() < len {
            let mut said = std::mem::take(&mut self.early);
            if said.is_empty() {
                said = guest.segments(GUEST.port);
            }
            for (size, said) in said {
                if said.payload.is_empty() {
                    continue;
                }
                assert_eq!(said.sequence, self.acknowledged, "a frame is missing or came twice");
                self.acknowledged = self.acknowledged.wrapping_add(said.payload.len() as u32);
                frames.push((size, said.payload.len()));
                data.extend(said.payload);
            }
            self.say(guest, ACK, &[]);
        }
        (data, frames)
    }
}

fn both_ways(features: u64) {
    let mut guest = Guest::new("tap0", 9, features);
    let listener = TcpListener::bind("10.9.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let (up, down) = (tcp::noise(10 * 40_000, 1), tcp::noise(400_000, 2));
    let (expected, sent) = (up.clone(), down.clone());
    let host = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        let mut came = vec![0; expected.len()];
        stream.read_exact(&mut came).unwrap();
        assert!(came == expected, "the host received other bytes");
        stream.write_all(&sent).unwrap();
        // Until the guest has all of it.
        stream
    });
    let peer = End { mac: host_mac("tap0"), address: Ipv4Addr::new(10, 9, 0, 1), port };
    let mut connection = Connection::open(&mut guest, peer);
    for part in up.chunks(40_000) {
        connection.give(&mut guest, part);
    }
    let (came, frames) = connection.take(&mut guest, down.len());
    assert!(came == down, "the guest received other bytes");
    drop(host.join().unwrap());
    let cut: Vec<_> = frames.iter().filter(|(size, _)| *size > 0).collect();
    let longest = frames.iter().map(|(_, len)| *len).max().unwrap();
    if features & GUEST_TSO4 == 0 {
        assert!(cut.is_empty() && longest <= 1460, "{frames:?}");
    } else {
        assert!(cut.len() > 3 && longest > 10_000, "{frames:?}");
        assert!(cut.iter().all(|(size, len)| *size <= 1460 && len > &usize::from(*size)), "{frames:?}");
    }
    let snapshot = guest.tap.snapshot();
    assert_eq!((snapshot.too_long, snapshot.unfinished), (0, 0));
    println!("{} bytes each way; to the guest in {} frames, the longest {longest}", up.len(), frames.len());
}

#[test]
fn tcp_goes_both_ways_uncut() {
    if enter("tcp_goes_both_ways_uncut") {
        both_ways(ALL | MRG_RXBUF);
    }
}

#[test]
fn tcp_goes_both_ways_uncut_in_large_buffers() {
    if enter("tcp_goes_both_ways_uncut_in_large_buffers") {
        both_ways(ALL);
    }
}

#[test]
fn a_guest_that_takes_nothing_gets_frames_as_over_the_wire() {
    if enter("a_guest_that_takes_nothing_gets_frames_as_over_the_wire") {
        both_ways(CSUM | HOST_TSO4);
    }
}

/// From one tap through the host to another, whose guest takes nothing: the kernel cuts and sums up.
#[test]
fn the_kernel_cuts_what_one_guest_sends_another() {
    if !enter("the_kernel_cuts_what_one_guest_sends_another") {
        return;
    }
    std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
    let (mut from, mut to) = (Guest::new("tap0", 9, ALL), Guest::new("tap1", 8, 0));
    let gateway = End { mac: host_mac("tap0"), address: Ipv4Addr::new(10, 8, 0, 2), port: 80 };
    let mut total = 0;
    for (round, len) in [1, 1460, 1461, 9000, 40_000, 62_000].into_iter().enumerate() {
        let payload = tcp::noise(len, round as u64);
        let sequence = 0xffff_e000_u32.wrapping_add(total);
        let segment = Segment { sequence, acknowledged: 1, flags: ACK | PSH, payload: &payload };
        let frame = tcp::frame(GUEST, gateway, segment);
        let header = if len > 1460 { tcp::uncut(1460) } else { tcp::unsummed() };
        from.send(header, &frame);
        let mut data = Vec::new();
        while data.len() < len {
            for (size, said) in to.segments(gateway.port) {
                assert_eq!((size, said.sequence), (0, sequence.wrapping_add(data.len() as u32)));
                assert!(said.payload.len() <= 1460 && HEADERS + said.payload.len() <= 1514);
                data.extend(said.payload);
            }
        }
        assert!(data == payload, "{len} bytes became others");
        total = total.wrapping_add(len as u32);
    }
}

/// What a receiver that took more left in the host's queue does not reach one that takes less.
#[test]
fn a_driver_that_takes_less_never_sees_more() {
    if !enter("a_driver_that_takes_less_never_sees_more") {
        return;
    }
    let mut guest = Guest::new("tap0", 9, ALL);
    let listener = TcpListener::bind("10.9.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let host = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_write_timeout(Some(LIMIT)).unwrap();
        stream.write_all(&tcp::noise(30_000, 3)).unwrap();
        stream
    });
    let peer = End { mac: host_mac("tap0"), address: Ipv4Addr::new(10, 9, 0, 1), port };
    let connection = Connection::open(&mut guest, peer);
    assert!(connection.acknowledged != 0);
    // The host sends what fits its window while nobody looks, then the driver is another one.
    let stream = host.join().unwrap();
    guest.driver.reset();
    guest.driver.set_up(CSUM);
    guest.posted.clear();
    for slot in 0..u64::from(SIZE) {
        guest.post(BUFFERS + slot * PLACE);
    }
    guest.driver.ring(RX);
    // The host repeats what nobody acknowledged.
    let start = Instant::now();
    let mut came = 0;
    while came < 3 {
        assert!(start.elapsed() < LIMIT, "nothing came any more");
        guest.driver.worker.run_within(Duration::from_millis(10)).unwrap();
        for (header, frame) in guest.take() {
            assert_eq!((header[0], header[1]), (0, 0), "an offload that was not negotiated");
            assert!(frame.len() <= 1518);
            came += usize::from(tcp::read(&frame, GUEST.port, true).is_some());
        }
    }
    drop(stream);
}
