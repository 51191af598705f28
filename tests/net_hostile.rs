//! Drivers of virtio-net that break the rules: the hostile-driver suite over each kind of queue, and random chains with random
//! bytes on all queues.

mod common;

use common::busy::BusyNetwork;
use common::raw::{BUFFERS, Piece, RawDriver, SIZE};
use iovirt::registry::Registry;
use iovirt_core::dma::DmaSpace;
use iovirt_core::irq::CountingInterrupt;
use iovirt_core::pipeline::BoxBackend;
use iovirt_core::test_utils::hostile::{self, Direction, Exchange, Layout, Profile, Target};
use iovirt_core::test_utils::{Rng, rounds_or, seed_or};
use iovirt_core::{Worker, WorkerConfig};
use iovirt_frontends::virtio::VirtioDevice;
use iovirt_frontends::virtio::net::{NetConfig, VirtioNet};
use iovirt_frontends::virtio::transport::mmio::MmioDevice;
use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// Where the guest's memory begins.
const BASE: u64 = 0x10_0000;
/// Commands that one turn takes from the ring.
const TURN: u16 = 64;
/// Frames that one turn takes from a ring.
const SEND_TURN: u16 = 256;
/// The frame that always comes: to everybody, with zeroes behind.
const FRAME: [u8; 60] = {
    let mut frame = [0; 60];
    let mut at = 0;
    while at < 6 {
        frame[at] = 0xff;
        at += 1;
    }
    frame
};

fn card(line: &str) -> Arc<dyn VirtioDevice> {
    let registry = Registry::standard();
    registry.build_virtio(&registry.parse(line).unwrap()).unwrap()
}

fn target(device: Arc<dyn VirtioDevice>, queue: u32) -> Target {
    let config = WorkerConfig { rounds: 1, ..WorkerConfig::default() };
    let worker = Rc::new(RefCell::new(Worker::new(config).unwrap()));
    let space = DmaSpace::anonymous(&[(0, 0x1000), (BASE, Layout::LEN)]).unwrap();
    let handle = worker.borrow().handle();
    let frontend = MmioDevice::new(device, &space, Arc::new(CountingInterrupt::new()), &[handle]).unwrap();
    let counted = worker.clone();
    Target {
        frontend: Arc::new(frontend),
        space,
        base: BASE,
        queue,
        step: Box::new(move || worker.borrow_mut().run_within(Duration::from_millis(1)).unwrap()),
        lanes: Some(Box::new(move || counted.borrow().lanes())),
    }
}

/// The suite over one queue of a card; it negotiates every bit of the card's own that is on offer.
fn run(factory: impl Fn() -> Target, profile: &Profile) {
    let report = hostile::run(&factory, profile);
    report.assert_passed();
    println!("{}: {} cases, {} tries", profile.name, report.results().len(), report.tries());
}

fn commands() -> Vec<Exchange> {
    let command = |name: &'static str, command: &[u8], answer: u8| {
        Exchange::new(name, command.to_vec(), 1, move |bytes: &[u8]| {
            if bytes == [answer] { Ok(()) } else { Err(format!("the answer is {bytes:?}, not {answer}")) }
        })
    };
    vec![
        command("promiscuous", &[0, 0, 1], 0),
        command("tables", &[1, 0, 1, 0, 0, 0, 2, 2, 2, 2, 2, 2, 0, 0, 0, 0], 0),
        command("half a command", &[0], 1),
        command("tables cut short", &[1, 0, 255, 255, 255, 255, 2, 2], 1),
        command("unknown", &[99; 700], 1),
    ]
}

/// Where the control queue is depends on the pairs that were negotiated.
#[test]
fn the_control_queue_under_the_hostile_driver_suite() {
    for (pairs, queue) in [(1, 2), (2, 4)] {
        let line = format!("virtio-net,mac=52:54:00:12:34:56,queues={pairs},queue-size=1024 -> loopback");
        let name = format!("virtio-net, control queue ({queue}) of {pairs} pairs");
        let profile = Profile { step_bound: Some(TURN), ..Profile::new(name, commands()) };
        run(|| target(card(&line), queue), &profile);
    }
}

/// Transmit queues: of the first pair, and of one that is not in use.
#[test]
fn the_transmit_queue_under_the_hostile_driver_suite() {
    let send = |name, header: [u8; 12], len: usize| {
        Exchange::new(name, [&header[..], &vec![0xff; len]].concat(), 0, |_: &[u8]| Ok(()))
    };
    // The suite takes every feature that is on offer, so each of these would be done.
    let cut = [1, 1, 54, 0, 20, 0, 34, 0, 16, 0, 0, 0];
    let with = |at: usize, byte: u8| {
        let mut header = cut;
        header[at] = byte;
        header
    };
    let exchanges = || {
        vec![
            send("a frame", [0; 12], 60),
            send("a long frame", [0; 12], 1514),
            send("no frame", [0; 12], 0),
            send("a frame of one byte", [0; 12], 1),
            send("a frame that is too long", [0; 12], 60_000),
            send("to be cut, without headers that it is to be cut by", cut, 60),
            send("to be cut, and not summed up", with(0, 0), 60),
            send("to be cut in an unknown way", with(1, 0x7f), 60),
            send("to be cut into nothing", with(4, 0), 60),
            send("to be summed up from behind its end", with(7, 0xff), 60),
            send("to have its checksum behind its end", with(9, 0xff), 60),
            send("as long as a frame that is to be cut may be", cut, 65_554),
            send("longer", cut, 65_555),
        ]
    };
    for queue in [1, 3] {
        let line = "virtio-net,mac=52:54:00:12:34:56,queues=2,queue-size=1024 -> stats -> loopback";
        let profile = Profile {
            step_bound: Some(SEND_TURN),
            direction: Direction::Readable,
            ..Profile::new(format!("virtio-net, transmit queue ({queue})"), exchanges())
        };
        run(|| target(card(line), queue), &profile);
    }
}

/// The receive queue, with a network below on which there always is a frame.
#[test]
fn the_receive_queue_under_the_hostile_driver_suite() {
    let receive = |name, room: u32| {
        Exchange::new(name, Vec::new(), room, |bytes: &[u8]| {
            let (header, rest) = bytes.split_at(12);
            if header != [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0] {
                return Err(format!("the header is {header:?}"));
            }
            if rest.starts_with(&FRAME) { Ok(()) } else { Err("another frame came".into()) }
        })
    };
    let exact = 12 + FRAME.len() as u32;
    let profile = Profile {
        direction: Direction::Writable,
        ..Profile::new(
            "virtio-net, receive queue (0)",
            vec![receive("a frame", exact), receive("with room to spare", 1526)],
        )
    };
    let config = || NetConfig { queue_size: 256, ..NetConfig::default() };
    let busy = || BoxBackend::new(BusyNetwork::new(&FRAME));
    run(|| target(Arc::new(VirtioNet::new(config(), busy()).unwrap()), 0), &profile);
}

/// Random chains on every queue, in random memory. The device may ask for a reset; it must not panic, hang, or forget a
/// chain that it took.
#[test]
fn random_chains_on_every_queue() {
    let seed = seed_or(0x0ddf_ee7e);
    println!("IOVIRT_SEED={seed}");
    let mut rng = Rng::new(seed);
    let mut driver =
        RawDriver::new(card("virtio-net,queues=2,queue-size=64 -> stats -> filter -> loopback,mtu=9000"), 0);
    let mut resets = 0;
    for round in 0..rounds_or(3000) {
        if driver.status() & 0x40 != 0 || rng.one_in(40) {
            resets += 1;
            driver.reset();
            let class = [
                0,
                1 << 15,
                1 << 17 | 1 << 18,
                1 << 17 | 1 << 22,
                1 << 15 | 1 << 17 | 1 << 18 | 1 << 22 | 1 << 23,
                0x3b83,
                0x3b87 | 1 << 15 | 1 << 17,
            ];
            driver.set_up(class[rng.index(class.len())] | if rng.one_in(2) { 1 << 29 } else { 0 });
        }
        let queue = rng.below(5) as u16;
        for _ in 0..=rng.below(6) {
            let mut pieces = Vec::new();
            let readable = if queue.is_multiple_of(2) && queue < 4 { rng.below(2) } else { 1 + rng.below(3) };
            for at in 0..readable + rng.below(4) {
                let address = BUFFERS + rng.below(1 << 20);
                let len = [1, 2, 11, 12, 13, 26, 64, 100, 1526, 9000][rng.index(10)];
                pieces.push(if at < readable {
                    Piece::Driver(address, len)
                } else {
                    Piece::Device(address, len)
                });
            }
            if pieces.is_empty() {
                continue;
            }
            if rng.one_in(2) {
                // Something that looks like a header, a command, or an address at least.
                let mut bytes = [0; 32];
                rng.fill(&mut bytes[12..]);
                bytes[usize::from(rng.one_in(2))] = rng.below(6) as u8;
                if rng.one_in(3) {
                    bytes[..10].copy_from_slice(&[1, rng.below(6) as u8, 54, 0, 100, 0, 34, 0, 16, 0]);
                }
                bytes[12] &= 0xfe;
                driver.write(BUFFERS + rng.below(1 << 20), &bytes);
            }
            driver.offer(queue, &pieces);
        }
        driver.ring(queue);
        for queue in 0..5 {
            let used = driver.used(queue);
            assert!(used.len() <= usize::from(SIZE), "round {round}: {} chains came back", used.len());
        }
    }
    driver.reset();
    driver.set_up(0);
    driver.offer(0, &[Piece::Device(BUFFERS, 2048)]);
    driver.write(BUFFERS + 8192, &[0; 12]);
    driver.write(BUFFERS + 8204, &[0xff; 60]);
    driver.offer(1, &[Piece::Driver(BUFFERS + 8192, 72)]);
    driver.ring(1);
    assert_eq!(driver.used(0).len(), 1, "after {resets} resets the card is as good as new");
}
