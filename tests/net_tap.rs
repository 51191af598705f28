//! virtio-net over a real tap, in a network namespace of the test's own: the host's network stack is the peer.
//!
//! Without root these tests say that they were skipped.

mod common;

use common::netns::{enter, ip};
use common::raw::{BUFFERS, Piece, RawDriver, SIZE};
use common::stacks::{NET_STAGES, stacks};
use iovirt::core::frontend::Outcome;
use iovirt::core::pipeline::SwapControl;
use iovirt::core::request::net::NetRequest;
use iovirt::core::{Access, Frontend};
use iovirt::registry::Registry;
use std::net::UdpSocket;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

const HEADER: usize = 12;
const GUEST: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x56];
const LIMIT: Duration = Duration::from_secs(30);
const CTRL_MQ: u64 = 1 << 17 | 1 << 22;

/// A guest above `tap0`, which has an address and knows the guest's.
fn guest(stack: &str, queues: u16, features: u64) -> RawDriver {
    let line = format!("virtio-net,mac=52:54:00:12:34:56,queues={queues},queue-size={SIZE} -> {stack}");
    let registry = Registry::standard();
    let card = registry.build_virtio(&registry.parse(&line).unwrap()).unwrap();
    ip("link set lo up");
    ip("addr add 10.9.0.1/24 dev tap0");
    ip("link set tap0 up");
    ip("neigh add 10.9.0.2 lladdr 52:54:00:12:34:56 dev tap0 nud permanent");
    RawDriver::new(card, features)
}

fn buffer(slot: usize) -> u64 {
    BUFFERS + slot as u64 * 4096
}

/// A datagram of the guest's, from port 7 to that port of the host, as a frame for that station.
fn datagram(to: [u8; 6], port: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = [to.as_slice(), &GUEST, &[8, 0]].concat();
    let total = 28 + payload.len() as u16;
    let mut header = [0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0, 10, 9, 0, 2, 10, 9, 0, 1];
    header[2..4].copy_from_slice(&total.to_be_bytes());
    let words = header.chunks(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])));
    let sum: u32 = words.sum();
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    frame.extend(header);
    frame.extend(7u16.to_be_bytes());
    frame.extend(port.to_be_bytes());
    frame.extend((8 + payload.len() as u16).to_be_bytes());
    frame.extend([0, 0]);
    frame.extend(payload);
    frame
}

/// The payload of a datagram to the guest's port 7; `None` for anything else that the host sends of its own accord.
fn payload(frame: &[u8]) -> Option<Vec<u8>> {
    let is_ours = frame.get(12..14)? == [8, 0] && frame.get(23)? == &17 && frame.get(36..38)? == [0, 7];
    let len = usize::from(u16::from_be_bytes(frame.get(38..40)?.try_into().ok()?));
    is_ours.then(|| frame.get(42..34 + len).map(<[u8]>::to_vec))?
}

/// The guest's receive side: posts buffers and takes datagrams.
struct Receiver {
    queue: u16,
    posted: Vec<(u16, u64)>,
    next: usize,
}

impl Receiver {
    fn new(queue: u16) -> Self {
        Self { queue, posted: Vec::new(), next: usize::from(queue) * 100 }
    }

    fn post(&mut self, driver: &mut RawDriver, count: usize) {
        for _ in 0..count {
            let address = buffer(self.next);
            self.next = usize::from(self.queue) * 100 + (self.next + 1) % 100;
            let head = driver.offer(self.queue, &[Piece::Device(address, 2048)]);
            self.posted.push((head, address));
        }
        driver.ring(self.queue);
    }

    /// What has come, without anything that is no datagram for us; each buffer that was used is replaced.
    fn take(&mut self, driver: &mut RawDriver) -> Vec<Vec<u8>> {
        let mut came = Vec::new();
        for (head, len) in driver.used(self.queue) {
            let at = self.posted.iter().position(|(known, _)| *known == head).unwrap();
            let (_, address) = self.posted.remove(at);
            came.extend(payload(&driver.read(address, len as usize)[HEADER..]));
            self.post(driver, 1);
        }
        came
    }
}

fn wait(driver: &mut RawDriver, what: &str, mut done: impl FnMut(&mut RawDriver) -> bool) {
    let start = Instant::now();
    while !done(driver) {
        assert!(start.elapsed() < LIMIT, "{what} took too long");
        driver.worker.run_within(Duration::from_millis(10)).unwrap();
    }
}

fn send(driver: &mut RawDriver, queue: u16, frames: &[Vec<u8>]) {
    for (at, frame) in frames.iter().enumerate() {
        let address = buffer(2000 + at);
        driver.write(address, &[0; HEADER]);
        driver.write(address + HEADER as u64, frame);
        // In one piece, and in three.
        let len = (HEADER + frame.len()) as u32;
        if at % 2 == 0 {
            driver.offer(queue, &[Piece::Driver(address, len)]);
        } else {
            driver.offer(
                queue,
                &[
                    Piece::Driver(address, 12),
                    Piece::Driver(address + 12, 20),
                    Piece::Driver(address + 32, len - 32),
                ],
            );
        }
    }
    driver.ring(queue);
}

/// The host's own address of a tap.
fn host_address(tap: &str) -> [u8; 6] {
    let output = Command::new("ip").args(["-o", "link", "show", tap]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let word = text.split("link/ether ").nth(1).unwrap().split(' ').next().unwrap();
    word.parse::<iovirt::core::request::net::MacAddr>().unwrap().0
}

fn numbered(number: u32, len: usize) -> Vec<u8> {
    let mut payload = vec![number as u8; len.max(4)];
    payload[..4].copy_from_slice(&number.to_be_bytes());
    payload
}

#[test]
fn frames_go_both_ways_in_order() {
    if !enter("frames_go_both_ways_in_order") {
        return;
    }
    both_ways("stats -> filter -> tap,name=tap0", 100);
}

/// The tap's row of the matrix; see `tests/matrix.rs`.
#[test]
fn every_network_stage_over_a_tap() {
    if !enter("every_network_stage_over_a_tap") {
        return;
    }
    let (mut count, mut datagrams) = (0, 0);
    for stack in stacks(NET_STAGES, "tap,name=tap0") {
        datagrams += both_ways(&stack, 12);
        count += 1;
    }
    println!("virtio-net over a tap: {count} stacks, {datagrams} datagrams verified");
    assert_eq!(count, NET_STAGES.len() + 1, "none is left out");
}

/// Datagrams to the guest and back, in batches, in order; how many.
fn both_ways(stack: &str, rounds: u32) -> u32 {
    let mut driver = guest(stack, 1, 0);
    let socket = UdpSocket::bind("10.9.0.1:0").unwrap();
    socket.set_read_timeout(Some(LIMIT)).unwrap();
    let port = socket.local_addr().unwrap().port();
    let mut receiver = Receiver::new(0);
    receiver.post(&mut driver, 16);
    let (mut number, host) = (0, host_address("tap0"));
    for round in 0..rounds {
        let batch: Vec<_> = (0..=round % 16).map(|at| numbered(number + at, at as usize * 90)).collect();
        number += batch.len() as u32;
        for payload in &batch {
            socket.send_to(payload, "10.9.0.2:7").unwrap();
        }
        let mut came = Vec::new();
        wait(&mut driver, "a datagram to the guest", |driver| {
            came.extend(receiver.take(driver));
            came.len() >= batch.len()
        });
        assert_eq!(came, batch, "round {round}");
        let frames: Vec<_> = batch.iter().map(|payload| datagram(host, port, payload)).collect();
        send(&mut driver, 1, &frames);
        let mut sent = 0;
        wait(&mut driver, "a frame of the guest's", |driver| {
            sent += driver.used(1).len();
            sent == frames.len()
        });
        let mut bytes = [0; 2048];
        for payload in &batch {
            let len = socket.recv(&mut bytes).unwrap();
            assert_eq!(&bytes[..len], payload, "round {round}");
        }
    }
    2 * number
}

#[test]
fn frames_wait_in_the_host_until_the_guest_has_buffers() {
    if !enter("frames_wait_in_the_host_until_the_guest_has_buffers") {
        return;
    }
    let mut driver = guest("tap,name=tap0", 1, 0);
    let socket = UdpSocket::bind("10.9.0.1:0").unwrap();
    // More than the card has tokens; the rest is in the tap's own queue.
    let batch: Vec<_> = (0..200).map(|number| numbered(number, 64)).collect();
    for payload in &batch {
        socket.send_to(payload, "10.9.0.2:7").unwrap();
    }
    driver.run();
    let mut receiver = Receiver::new(0);
    receiver.post(&mut driver, 8);
    let mut came = Vec::new();
    wait(&mut driver, "what the host kept", |driver| {
        came.extend(receiver.take(driver));
        came.len() >= batch.len()
    });
    assert_eq!(came, batch);
}

#[test]
fn a_frame_that_the_filter_drops_never_reaches_the_guest() {
    if !enter("a_frame_that_the_filter_drops_never_reaches_the_guest") {
        return;
    }
    let mut driver = guest("filter,drop=receive -> tap,name=tap0", 1, 0);
    let control = driver
        .device
        .stages()
        .control::<iovirt::backends::interposers::filter::FilterControl>("filter")
        .unwrap();
    let mut receiver = Receiver::new(0);
    receiver.post(&mut driver, 8);
    let before = driver.memory();
    let socket = UdpSocket::bind("10.9.0.1:0").unwrap();
    for number in 0..200 {
        socket.send_to(&numbered(number, 512), "10.9.0.2:7").unwrap();
        driver.run();
    }
    wait(&mut driver, "the filter", |_| control.snapshot().dropped_to_guest >= 200);
    driver.run();
    assert!(driver.memory() == before, "a dropped frame left something in the guest's memory");
    control.set_drops(iovirt::backends::interposers::filter::Drops::Nothing);
    socket.send_to(&numbered(1, 512), "10.9.0.2:7").unwrap();
    let mut came = Vec::new();
    wait(&mut driver, "a frame that may pass", |driver| {
        came.extend(receiver.take(driver));
        !came.is_empty()
    });
    assert_eq!(came, [numbered(1, 512)]);
    assert!(driver.memory() != before, "the comparison above would have noticed");
}

#[test]
fn a_tap_that_vanishes_hangs_nothing() {
    if !enter("a_tap_that_vanishes_hangs_nothing") {
        return;
    }
    let mut driver = guest("tap,name=tap0", 1, 1 << 16);
    let link = |driver: &RawDriver| {
        let mut status = [0; 2];
        driver.device.read(0, 0x106, &mut status);
        status[0] & 1
    };
    let mut receiver = Receiver::new(0);
    receiver.post(&mut driver, 4);
    assert_eq!(link(&driver), 1);
    ip("link del tap0");
    wait(&mut driver, "the link going down", |driver| link(driver) == 0);
    send(&mut driver, 1, &[datagram([2; 6], 9, b"into nothing")]);
    assert_eq!(driver.used(1).len(), 1, "a frame that cannot be sent comes back all the same");
    let ticket = driver.device.drain();
    wait(&mut driver, "a drain", |_| ticket.is_done());
    let Access::Deferred(ticket) = driver.register(0x070, 0) else { return };
    wait(&mut driver, "a reset", |_| ticket.is_done());
}

#[test]
fn several_pairs_share_a_tap() {
    if !enter("several_pairs_share_a_tap") {
        return;
    }
    let mut driver = guest("tap,name=tap0,queues=4", 4, CTRL_MQ);
    let host = host_address("tap0");
    let answer = buffer(3000);
    let set_pairs = |driver: &mut RawDriver, pairs: u8| {
        driver.write(answer, &[4, 0, pairs, 0, 0xee]);
        driver.offer(8, &[Piece::Driver(answer, 4), Piece::Device(answer + 4, 1)]);
        driver.ring(8);
        assert_eq!((driver.used(8).len(), driver.read(answer + 4, 1)), (1, vec![0]));
    };
    let mut receivers = [0, 2, 4, 6].map(Receiver::new);
    for receiver in &mut receivers {
        receiver.post(&mut driver, 8);
    }
    for pairs in [1u8, 4, 2, 4, 1] {
        set_pairs(&mut driver, pairs);
        for flow in 0..16u32 {
            let socket = UdpSocket::bind("10.9.0.1:0").unwrap();
            socket.set_read_timeout(Some(LIMIT)).unwrap();
            let port = socket.local_addr().unwrap().port();
            let queue = flow as u16 % u16::from(pairs);
            send(&mut driver, queue * 2 + 1, &[datagram(host, port, &numbered(flow, 32))]);
            assert_eq!(driver.used(queue * 2 + 1).len(), 1);
            let mut bytes = [0; 64];
            assert_eq!(socket.recv(&mut bytes).unwrap(), 32);
            socket.send_to(&bytes[..32], "10.9.0.2:7").unwrap();
            let mut came = Vec::new();
            wait(&mut driver, "the answer", |driver| {
                for (pair, receiver) in receivers.iter_mut().enumerate() {
                    let new = receiver.take(driver);
                    assert!(
                        new.is_empty() || pair < usize::from(pairs),
                        "a frame on a pair that is not used"
                    );
                    came.extend(new);
                }
                !came.is_empty()
            });
            assert_eq!(came, [numbered(flow, 32)], "{pairs} pairs, flow {flow}");
        }
    }
}

#[test]
fn a_tap_is_exchanged_for_another_under_the_card() {
    if !enter("a_tap_is_exchanged_for_another_under_the_card") {
        return;
    }
    let mut driver = guest("swappable -> tap,name=tap0", 1, 0);
    let control: Arc<SwapControl<NetRequest>> = driver.device.stages().control("swappable").unwrap();
    let mut receiver = Receiver::new(0);
    receiver.post(&mut driver, 16);
    let build =
        |name: &str| Registry::standard().build_net(&format!("tap,name={name}").parse().unwrap()).unwrap();
    let (mut number, mut host) = (0, host_address("tap0"));
    for round in 0..20 {
        let socket = UdpSocket::bind("10.9.0.1:0").unwrap();
        socket.set_read_timeout(Some(LIMIT)).unwrap();
        let port = socket.local_addr().unwrap().port();
        for _ in 0..8 {
            send(&mut driver, 1, &[datagram(host, port, &numbered(number, 64))]);
            assert_eq!(driver.used(1).len(), 1);
            let mut bytes = [0; 128];
            assert_eq!(socket.recv(&mut bytes).unwrap(), 64);
            assert_eq!(bytes[..64], numbered(number, 64), "round {round}");
            socket.send_to(&bytes[..64], "10.9.0.2:7").unwrap();
            let mut came = Vec::new();
            wait(&mut driver, "the answer", |driver| {
                came.extend(receiver.take(driver));
                !came.is_empty()
            });
            assert_eq!(came, [numbered(number, 64)], "round {round}");
            number += 1;
        }
        // The guest's peer moves to the other tap, and so does the guest, which notices nothing.
        let (from, to) = if round % 2 == 0 { ("tap0", "tap1") } else { ("tap1", "tap0") };
        let newcomer = build(to);
        let ticket = control.swap(newcomer).unwrap();
        wait(&mut driver, "the exchange", |_| ticket.is_done());
        assert_eq!(ticket.outcome(), Some(Outcome::Done));
        driver.run();
        ip(&format!("link set {to} up"));
        // The one that was left went with its last queue.
        let gone = Command::new("ip").args(["link", "show", from]).output().unwrap();
        assert!(!gone.status.success(), "{from} is held by a stack that is not in use");
        ip(&format!("addr add 10.9.0.1/24 dev {to}"));
        ip(&format!("neigh add 10.9.0.2 lladdr 52:54:00:12:34:56 dev {to} nud permanent"));
        host = host_address(to);
    }
    ip("tuntap add dev big mode tap");
    ip("link set big mtu 9000");
    let error = control.swap(build("big")).unwrap_err().to_string();
    assert_eq!(error, "the stack cannot take the place of the one in use: its MTU is 9000 bytes, not 1500");
}

#[test]
fn what_the_host_refuses_is_one_sentence() {
    if !enter("what_the_host_refuses_is_one_sentence") {
        return;
    }
    let build = |line: &str| {
        let registry = Registry::standard();
        registry.build_virtio(&registry.parse(line).unwrap())
    };
    let first = build("virtio-net -> tap,name=tap0").unwrap();
    let error = build("virtio-net -> tap,name=tap0").unwrap_err().to_string();
    assert!(error.contains("the tap tap0 could not be opened: Device or resource busy"), "{error}");
    drop(first);
    let error = build("virtio-net -> tap,name=lo").unwrap_err().to_string();
    assert!(error.contains("the tap lo could not be opened"), "{error}");
    let error = build("virtio-net,queues=2 -> tap,name=tap1").unwrap_err().to_string();
    assert!(error.contains("queues=2 is not possible: the network below has 1"), "{error}");
    ip("tuntap add dev big mode tap");
    ip("link set big mtu 9000");
    let card = build("virtio-net -> tap,name=big").unwrap();
    let mut mtu = [0; 2];
    card.read_config(0, 10, &mut mtu);
    assert_eq!(u16::from_le_bytes(mtu), 9000);
}
