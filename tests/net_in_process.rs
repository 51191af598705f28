//! virtio-net in this process: driven by `virtio-drivers` as a guest would, and by bare rings for everything else.

mod common;

use common::raw::{BUFFERS, Piece, RawDriver, SIZE};
use iovirt::backends::interposers::stats::StatsControl;
use iovirt::backends::net::loopback::{LoopbackBackend, LoopbackConfig, LoopbackControl};
use iovirt::core::pipeline::BoxBackend;
use iovirt::core::request::net::{MacAddr, NetRequest};
use iovirt::core::test_utils::Rng;
use iovirt::core::{Worker, WorkerConfig, WorkerThread};
use iovirt::frontends::virtio::VirtioDevice;
use iovirt::frontends::virtio::net::{NetConfig, NetCounters, NetSnapshot, VirtioNet};
use iovirt::frontends::virtio::transport::mmio::MmioDevice;
use iovirt::registry::Registry;
use iovirt_core::irq::CountingInterrupt;
use iovirt_core::test_utils::virtio::virtio_drivers::device::net::VirtIONetRaw;
use iovirt_core::test_utils::virtio::{Arena, ArenaHal, Pump, RegisterTransport};
use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

const MRG_RXBUF: u64 = 1 << 15;
const CTRL: u64 = 1 << 17 | 1 << 18 | 1 << 23;
const MQ: u64 = 1 << 22;
const EVENT_IDX: u64 = 1 << 29;
const HEADER: usize = 12;
const RX: u16 = 0;
const TX: u16 = 1;
const GUEST: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x56];

/// A frame with that number, to that station.
fn frame_to(to: [u8; 6], number: u32, len: usize) -> Vec<u8> {
    let mut frame: Vec<u8> = (0..len.max(18) as u32).map(|at| (at ^ number.wrapping_mul(31)) as u8).collect();
    frame[..6].copy_from_slice(&to);
    frame[6..14].copy_from_slice(&[0x52, 0x54, 0, 0, 0, 1, 0x88, 0xb5]);
    frame[14..18].copy_from_slice(&number.to_be_bytes());
    frame
}

fn frame(number: u32, len: usize) -> Vec<u8> {
    frame_to(GUEST, number, len)
}

fn loopback(mtu: u16) -> BoxBackend<NetRequest> {
    BoxBackend::new(LoopbackBackend::new(&LoopbackConfig { mtu, ..LoopbackConfig::default() }).unwrap())
}

fn config(pairs: u16) -> NetConfig {
    NetConfig { mac: Some(MacAddr(GUEST)), pairs, queue_size: SIZE, ..NetConfig::default() }
}

/// A card above a loopback, and its counters.
fn card(pairs: u16, mtu: u16) -> (Arc<VirtioNet>, Arc<NetCounters>) {
    let card = VirtioNet::new(config(pairs), loopback(mtu)).unwrap();
    let counters = card.counters();
    (Arc::new(card), counters)
}

/// Where buffer `index` of 4 KiB lies; those for sending are apart from those for receiving.
fn buffer(index: usize) -> u64 {
    BUFFERS + index as u64 * 4096
}

/// Sends a frame on a transmit queue, its header and its data in pieces of their own.
fn send(driver: &mut RawDriver, queue: u16, slot: usize, frame: &[u8]) {
    let address = buffer(1000 + slot);
    driver.write(address, &[0; HEADER]);
    driver.write(address + 64, frame);
    let half = frame.len() as u32 / 2;
    let pieces = [
        Piece::Driver(address, HEADER as u32),
        Piece::Driver(address + 64, half),
        Piece::Driver(address + 64 + u64::from(half), frame.len() as u32 - half),
    ];
    driver.offer(queue, &pieces);
}

fn send_now(driver: &mut RawDriver, frame: &[u8]) {
    send(driver, TX, 0, frame);
    driver.ring(TX);
    assert_eq!(driver.used(TX).len(), 1);
}

/// Offers receive buffers of that length, and gives their addresses by head.
fn offer(driver: &mut RawDriver, slots: std::ops::Range<usize>, len: u32) -> Vec<(u16, u64)> {
    let slots = slots.map(|slot| (driver.offer(RX, &[Piece::Device(buffer(slot), len)]), buffer(slot)));
    slots.collect()
}

fn address_of(offered: &[(u16, u64)], head: u16) -> u64 {
    offered.iter().find(|(known, _)| *known == head).unwrap().1
}

/// Sends a control command and gives the answer.
fn command(driver: &mut RawDriver, queue: u16, class: u8, number: u8, data: &[u8]) -> u8 {
    let address = buffer(2000);
    driver.write(address, &[class, number]);
    driver.write(address + 16, data);
    driver.write(address + 8, &[0xee]);
    let mut pieces = vec![Piece::Driver(address, 2)];
    if !data.is_empty() {
        pieces.push(Piece::Driver(address + 16, data.len() as u32));
    }
    pieces.push(Piece::Device(address + 8, 1));
    driver.offer(queue, &pieces);
    driver.ring(queue);
    assert_eq!(driver.used(queue).len(), 1, "every command is answered");
    driver.read(address + 8, 1)[0]
}

type Guest = VirtIONetRaw<ArenaHal, RegisterTransport, 64>;

/// Sends frames and takes them back by `virtio-drivers`, in batches, and checks content and order.
fn exchange(guest: &mut Guest, step: &dyn Fn(), batches: u32) {
    let mut buffers = vec![vec![0u8; 2048]; 32];
    let mut number = 0;
    for batch in 0..batches {
        let count = 1 + batch as usize % 32;
        // SAFETY: the buffers stay where they are, and are not touched, until `receive_complete` below.
        let tokens: Vec<u16> = buffers[..count]
            .iter_mut()
            .map(|buffer| unsafe { guest.receive_begin(buffer) }.unwrap())
            .collect();
        step();
        let frames: Vec<Vec<u8>> =
            (0..count as u32).map(|at| frame(number + at, 60 + at as usize * 45)).collect();
        let sent: Vec<Vec<u8>> =
            frames.iter().map(|frame| [&[0; HEADER], frame.as_slice()].concat()).collect();
        // SAFETY: as above, until `transmit_complete`.
        let sending: Vec<u16> =
            sent.iter().map(|packet| unsafe { guest.transmit_begin(packet) }.unwrap()).collect();
        let start = Instant::now();
        for (token, packet) in sending.into_iter().zip(&sent) {
            while guest.poll_transmit() != Some(token) {
                assert!(start.elapsed() < Duration::from_secs(30), "frame {number} was not sent");
                step();
            }
            // SAFETY: the buffer that was given with that token.
            unsafe { guest.transmit_complete(token, packet) }.unwrap();
        }
        for ((token, buffer), wanted) in tokens.into_iter().zip(&mut buffers).zip(&frames) {
            while guest.poll_receive() != Some(token) {
                assert!(start.elapsed() < Duration::from_secs(30), "frame {number} did not come");
                step();
            }
            // SAFETY: the buffer that was given with that token.
            let (header, len) = unsafe { guest.receive_complete(token, buffer) }.unwrap();
            assert_eq!(&buffer[header..header + len], wanted, "frame {number} of batch {batch}");
            assert_eq!(buffer[10..12], [1, 0], "num_buffers");
            number += 1;
        }
    }
}

#[test]
fn virtio_drivers_own_card_driver_works() {
    let description = Registry::standard()
        .parse("virtio-net,mac=52:54:00:12:34:56,queue-size=64 -> stats -> loopback")
        .unwrap();
    let card = Registry::standard().build_virtio(&description).unwrap();
    let worker = Rc::new(RefCell::new(Worker::new(WorkerConfig::default()).unwrap()));
    let interrupts = Arc::new(CountingInterrupt::new());
    let handle = worker.borrow().handle();
    let device = Arc::new(MmioDevice::new(card, Arena::get().space(), interrupts, &[handle]).unwrap());
    let pump = worker.clone();
    let step = move || worker.borrow_mut().run().unwrap();
    let pump = Pump::new(move || pump.borrow_mut().run().unwrap());
    let mut guest = Guest::new(RegisterTransport::new(device.clone(), pump)).unwrap();
    assert_eq!(guest.mac_address(), GUEST);
    exchange(&mut guest, &step, 200);
    let stages = iovirt::core::Frontend::stages(&*device);
    let stats = stages.control::<StatsControl>("stats").unwrap().snapshot();
    let sent: u64 = (0..200).map(|batch| 1 + batch % 32).sum();
    assert_eq!((stats.kinds[0].name, stats.kinds[0].ops, stats.kinds[1].ops), ("transmit", sent, sent));
    assert_eq!((stats.kinds[0].bytes, stats.kinds[1].failures), (stats.kinds[1].bytes, 0));
    assert_eq!(stages.control::<LoopbackControl>("loopback").unwrap().snapshot().dropped, 0);
}

#[test]
fn a_card_whose_queues_are_on_different_workers_works() {
    let workers: Vec<_> =
        (0..2).map(|_| WorkerThread::spawn("net", WorkerConfig::default()).unwrap()).collect();
    let handles: Vec<_> = workers.iter().map(|worker| worker.handle().clone()).collect();
    let (card, _) = card(1, 1500);
    let network = card.stages().control::<LoopbackControl>("loopback").unwrap();
    let device =
        MmioDevice::new(card, Arena::get().space(), Arc::new(CountingInterrupt::new()), &handles).unwrap();
    let mut guest = Guest::new(RegisterTransport::new(Arc::new(device), Pump::threads())).unwrap();
    // Tokens go down once the driver is ready, on another thread; a frame before that is lost, as on any network.
    while network.snapshot().carried == 0 {
        guest.send(&frame(0, 60)).unwrap();
    }
    assert_eq!(guest.receive_wait(&mut [0; 2048]).unwrap(), (HEADER, 60));
    exchange(&mut guest, &std::thread::yield_now, 100);
}

#[test]
fn batches_cost_one_interrupt_each_way() {
    let (card, counters) = card(1, 1500);
    let mut driver = RawDriver::new(card, 0);
    let before = driver.interrupts.raised();
    offer(&mut driver, 0..16, 2048);
    for at in 0..16 {
        send(&mut driver, TX, at, &frame(at as u32, 60));
    }
    driver.ring(TX);
    assert_eq!((driver.used(RX).len(), driver.used(TX).len()), (16, 16));
    assert!(driver.interrupts.raised() - before <= 2, "{} interrupts", driver.interrupts.raised() - before);
    assert_eq!(counters.snapshot(), NetSnapshot { sent: 16, received: 16, ..NetSnapshot::default() });
}

#[test]
fn a_frame_is_spread_over_mergeable_buffers() {
    for features in [MRG_RXBUF, MRG_RXBUF | EVENT_IDX] {
        let (card, counters) = card(1, 9000);
        let mut driver = RawDriver::new(card, features);
        let mut rng = Rng::new(11);
        let mut received = 0;
        for round in 0..200u32 {
            // Three bytes, so that a frame of 20 bytes needs several, are not allowed: the header must fit.
            let len = [12, 13, 64, 300, 1526, 4096][rng.below(6) as usize];
            let wanted = frame(round, 20 + rng.below(if len < 300 { 400 } else { 3900 }) as usize);
            let count = (wanted.len() + HEADER).div_ceil(len as usize);
            let offered = offer(&mut driver, 0..count, len);
            send_now(&mut driver, &wanted);
            let used = driver.used(RX);
            assert_eq!(used.len(), count, "round {round}: {} bytes into buffers of {len}", wanted.len());
            let mut bytes = Vec::new();
            for (head, len) in &used {
                bytes.extend(driver.read(address_of(&offered, *head), *len as usize));
            }
            assert_eq!(bytes[..HEADER], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, count as u8, (count >> 8) as u8]);
            assert_eq!(bytes[HEADER..], wanted, "round {round}");
            received += 1;
        }
        assert_eq!(counters.snapshot().received, received);
    }
}

#[test]
fn a_frame_waits_for_buffers_and_order_is_kept() {
    for features in [0, MRG_RXBUF, EVENT_IDX, MRG_RXBUF | EVENT_IDX] {
        let (card, counters) = card(1, 1500);
        let mut driver = RawDriver::new(card, features);
        for number in 0..5 {
            send_now(&mut driver, &frame(number, 60 + number as usize));
        }
        assert_eq!(driver.used(RX), []);
        let offered = offer(&mut driver, 0..3, 2048);
        driver.ring(RX);
        let offered = [offered, offer(&mut driver, 3..8, 2048)].concat();
        driver.ring(RX);
        send_now(&mut driver, &frame(5, 65));
        for (number, (head, len)) in driver.used(RX).into_iter().enumerate() {
            let bytes = driver.read(address_of(&offered, head), len as usize);
            assert_eq!(bytes[HEADER..], frame(number as u32, 60 + number));
        }
        assert_eq!(counters.snapshot().received, 6);
    }
}

#[test]
fn more_frames_than_tokens_are_dropped_by_the_network() {
    let (card, _) = card(1, 1500);
    let loopback = card.stages().control::<LoopbackControl>("loopback").unwrap();
    let mut driver = RawDriver::new(card, 0);
    for number in 0..u32::from(SIZE) + 10 {
        send_now(&mut driver, &frame(number, 60));
    }
    assert_eq!(loopback.snapshot().dropped, 10);
    // The tokens come back with the buffers.
    for round in 0..u32::from(SIZE) / 8 {
        offer(&mut driver, 0..8, 2048);
        driver.ring(RX);
        assert_eq!(driver.used(RX).len(), 8, "round {round}");
    }
    offer(&mut driver, 0..1, 2048);
    send_now(&mut driver, &frame(1000, 60));
    assert_eq!(driver.used(RX).len(), 1);
}

#[test]
fn what_fits_no_buffer_is_dropped_and_the_next_frame_comes() {
    let (card, counters) = card(1, 9000);
    let mut driver = RawDriver::new(card, 0);
    let offered = offer(&mut driver, 0..2, 100);
    send_now(&mut driver, &frame(1, 89));
    assert_eq!((driver.used(RX), counters.snapshot().no_fit), (vec![], 1));
    send_now(&mut driver, &frame(2, 88));
    let used = driver.used(RX);
    assert_eq!(
        used,
        [(offered[0].0, 100)],
        "the buffer that was too small for the first is there for the second"
    );
    assert_eq!(driver.read(offered[0].1 + 12, 88), frame(2, 88));
}

#[test]
fn too_few_mergeable_buffers_are_waited_for_but_not_for_ever() {
    for features in [MRG_RXBUF, MRG_RXBUF | EVENT_IDX] {
        let (card, counters) = card(1, 9000);
        let mut driver = RawDriver::new(card, features);
        offer(&mut driver, 0..2, 100);
        send_now(&mut driver, &frame(1, 250));
        assert_eq!(driver.used(RX), []);
        // One more is enough.
        offer(&mut driver, 2..3, 100);
        driver.ring(RX);
        assert_eq!(driver.used(RX).len(), 3);
        // Now nobody adds one: the frame is given up, and the next one comes.
        offer(&mut driver, 0..2, 100);
        send_now(&mut driver, &frame(2, 250));
        send_now(&mut driver, &frame(3, 60));
        assert_eq!((driver.used(RX), counters.snapshot().no_fit), (vec![], 0));
        let start = Instant::now();
        while counters.snapshot().no_fit == 0 {
            assert!(start.elapsed() < Duration::from_secs(30), "a frame that fits nowhere blocks the queue");
            driver.worker.run_within(Duration::from_millis(50)).unwrap();
        }
        driver.run();
        assert_eq!((driver.used(RX).len(), counters.snapshot().received), (1, 2));
    }
}

#[test]
fn malformed_chains_are_counted_and_given_back() {
    let (card, counters) = card(1, 1500);
    let mut driver = RawDriver::new(card, 0);
    offer(&mut driver, 0..4, 2048);
    let address = buffer(1000);
    driver.write(address, &[0; 4096]);
    driver.offer(TX, &[Piece::Driver(address, 11)]);
    driver.offer(TX, &[Piece::Driver(address, 12)]);
    driver.offer(TX, &[Piece::Device(address, 100)]);
    driver.write(address + 1024, &[1, 0, 0, 0, 0, 0, 34, 0, 16, 0, 0, 0]);
    driver.offer(TX, &[Piece::Driver(address + 1024, 100)]);
    driver.offer(TX, &[Piece::Driver(address, 12 + 13)]);
    driver.offer(TX, &[Piece::Driver(address, 12 + 1519)]);
    driver.ring(TX);
    assert_eq!(driver.used(TX).len(), 6);
    assert_eq!(driver.used(RX), []);
    let counted = counters.snapshot();
    assert_eq!((counted.malformed, counted.send_failed, counted.sent), (4, 2, 0));
    assert_eq!(driver.status() & 0x40, 0, "the device is fine");
    // A buffer without room for a header cannot even be given back as received.
    let (card, _) = self::card(1, 1500);
    let mut driver = RawDriver::new(card, MRG_RXBUF);
    offer(&mut driver, 0..1, 11);
    send_now(&mut driver, &frame(1, 60));
    assert_eq!(driver.status() & 0x40, 0x40, "the device needs a reset");
}

#[test]
fn the_receive_mode_is_a_filter() {
    let (card, counters) = card(1, 1500);
    let control = 2;
    let mut driver = RawDriver::new(card, CTRL);
    let comes = |driver: &mut RawDriver, to: [u8; 6]| {
        offer(driver, 0..1, 2048);
        let before = driver.memory();
        send_now(driver, &frame_to(to, 1, 100));
        let came = driver.used(RX).len() == 1;
        if !came {
            // Its place is taken back by asking everybody.
            let sent = (buffer(1000) - BUFFERS) as usize;
            let mut after = driver.memory();
            after[sent..sent + 4096].copy_from_slice(&before[sent..sent + 4096]);
            assert!(before == after, "a frame that is not wanted is nowhere in the guest's memory");
            send_now(driver, &frame_to([0xff; 6], 1, 100));
            assert_eq!(driver.used(RX).len(), 1);
        }
        came
    };
    let (other, group) = ([0x52, 0x54, 0, 9, 9, 9], [1, 0, 0x5e, 0, 0, 1]);
    assert!(comes(&mut driver, other), "promiscuous before the driver chose");
    assert_eq!(command(&mut driver, control, 0, 0, &[0]), 0);
    assert!(comes(&mut driver, GUEST) && comes(&mut driver, [0xff; 6]));
    assert!(!comes(&mut driver, other) && !comes(&mut driver, group));
    assert_eq!(command(&mut driver, control, 0, 1, &[1]), 0);
    assert!(comes(&mut driver, group) && !comes(&mut driver, other));
    assert_eq!(command(&mut driver, control, 0, 1, &[0]), 0);
    let table = |unicast: &[[u8; 6]], multicast: &[[u8; 6]]| {
        let part = |list: &[[u8; 6]]| [&(list.len() as u32).to_le_bytes(), list.concat().as_slice()].concat();
        [part(unicast), part(multicast)].concat()
    };
    assert_eq!(command(&mut driver, control, 1, 0, &table(&[other], &[])), 0);
    assert!(comes(&mut driver, other) && !comes(&mut driver, group));
    assert_eq!(command(&mut driver, control, 1, 0, &table(&[], &[group])), 0);
    assert!(!comes(&mut driver, other) && comes(&mut driver, group));
    assert_eq!(command(&mut driver, control, 1, 0, &table(&[[2; 6]; 65], &[])), 0);
    assert!(comes(&mut driver, other), "a table that is too long is everybody");
    assert_eq!(command(&mut driver, control, 1, 0, &table(&[], &[])), 0);
    assert_eq!(command(&mut driver, control, 1, 1, &other), 0);
    assert!(comes(&mut driver, other) && !comes(&mut driver, GUEST));
    assert_eq!(counters.snapshot().refused_commands, 0);
}

#[test]
fn what_is_no_command_is_answered_as_an_error() {
    let (card, counters) = card(1, 1500);
    let mut driver = RawDriver::new(card, CTRL);
    let mut too_long = vec![0xff; 4];
    too_long.extend([0; 12]);
    let bad: [(u8, u8, &[u8]); 9] = [
        (0, 0, &[]),
        (0, 2, &[1]),
        (0, 99, &[1]),
        (1, 0, &[1, 0, 0, 0, 1, 2, 3, 4, 5, 6]),
        (1, 0, &too_long),
        (1, 1, &[1, 0, 0, 0, 0, 0]),
        (2, 0, &[1, 0]),
        (4, 0, &[1, 0]),
        (77, 0, &[]),
    ];
    for (class, number, data) in bad {
        assert_eq!(command(&mut driver, 2, class, number, data), 1, "{class}/{number}");
    }
    assert_eq!(counters.snapshot().refused_commands, bad.len() as u64);
    // Not even negotiated.
    let (card, _) = self::card(1, 1500);
    let mut driver = RawDriver::new(card, 1 << 17);
    assert_eq!(command(&mut driver, 2, 0, 0, &[0]), 1);
}

#[test]
fn pairs_are_used_once_the_driver_says_so() {
    let (card, _) = card(4, 1500);
    assert_eq!(card.queue_max_sizes().len(), 9);
    let control = 8;
    let mut driver = RawDriver::new(card, CTRL | MQ);
    let through = |driver: &mut RawDriver, pair: u16| {
        driver.offer(pair * 2, &[Piece::Device(buffer(10 + usize::from(pair)), 2048)]);
        send(driver, pair * 2 + 1, 0, &frame(pair.into(), 60));
        driver.ring(pair * 2 + 1);
        assert_eq!(driver.used(pair * 2 + 1).len(), 1);
        driver.used(pair * 2).len()
    };
    assert_eq!((through(&mut driver, 0), through(&mut driver, 1)), (1, 0));
    assert_eq!(command(&mut driver, control, 4, 0, &[4, 0]), 0);
    // The buffers of the attempt above are still there.
    assert_eq!([0, 1, 2, 3].map(|pair| through(&mut driver, pair)), [1; 4]);
    assert_eq!(command(&mut driver, control, 4, 0, &[2, 0]), 0);
    assert_eq!([0, 1, 2, 3].map(|pair| through(&mut driver, pair)), [1, 1, 0, 0]);
    for bad in [[0, 0], [5, 0], [0, 1]] {
        assert_eq!(command(&mut driver, control, 4, 0, &bad), 1);
    }
    driver.reset();
    // Without MQ, the control queue is the third.
    driver.set_up(CTRL);
    assert_eq!(command(&mut driver, 2, 0, 0, &[1]), 0);
    assert_eq!(through(&mut driver, 0), 1);
    assert!(
        VirtioNet::new(
            config(3),
            BoxBackend::new(LoopbackBackend::new(&LoopbackConfig { mtu: 1500, pairs: 2 }).unwrap())
        )
        .is_err()
    );
}

#[test]
fn a_reset_takes_tokens_back_and_the_card_works_again() {
    let (card, counters) = card(2, 1500);
    let mut driver = RawDriver::new(card, CTRL | MQ);
    for round in 0..20u32 {
        assert_eq!(command(&mut driver, 4, 4, 0, &[2, 0]), 0);
        // Frames that wait for buffers that never come.
        send_now(&mut driver, &frame(round, 60));
        driver.reset();
        driver.set_up(CTRL | MQ);
        let offered = offer(&mut driver, 0..2, 2048);
        send_now(&mut driver, &frame(1000 + round, 61));
        let used = driver.used(RX);
        assert_eq!(used, [(offered[0].0, 73)], "nothing of before the reset comes after it");
        assert_eq!(driver.read(offered[0].1 + 12, 61), frame(1000 + round, 61));
    }
    assert_eq!(counters.snapshot().receive_failed, 0);
}

#[test]
fn saved_in_one_card_and_restored_in_another() {
    let (first, _) = card(2, 1500);
    let mut driver = RawDriver::new(first, CTRL | MQ | MRG_RXBUF);
    assert_eq!(command(&mut driver, 4, 0, 0, &[0]), 0);
    assert_eq!(command(&mut driver, 4, 4, 0, &[2, 0]), 0);
    offer(&mut driver, 0..4, 2048);
    send_now(&mut driver, &frame(1, 60));
    assert_eq!(driver.used(RX).len(), 1);
    // Available, and not yet seen by the device: it has to find it by itself after the restore.
    send(&mut driver, TX, 0, &frame(2, 60));
    send(&mut driver, TX, 1, &frame_to([2; 6], 3, 60));
    let (second, counters) = card(2, 1500);
    let mut driver = driver.migrate(second);
    assert_eq!(driver.used(TX).len(), 2);
    assert_eq!(driver.used(RX).len(), 1, "the receive mode was restored");
    assert_eq!((counters.snapshot().filtered, counters.snapshot().received), (1, 1));
    driver.offer(2, &[Piece::Device(buffer(20), 2048)]);
    send(&mut driver, 3, 0, &frame(4, 60));
    driver.ring(3);
    assert_eq!(driver.used(2).len(), 1, "the pairs in use were restored");
    let (fewer, _) = card(1, 1500);
    let ticket = iovirt::core::Frontend::drain(&*driver.device);
    while !ticket.is_done() {
        driver.run();
    }
    let saved = iovirt::core::Frontend::save(&*driver.device).unwrap();
    let other = RawDriver::new(fewer, 0);
    assert!(iovirt::core::Frontend::restore(&*other.device, &saved).is_err());
}

#[test]
fn an_old_memory_map_is_let_go_of() {
    // Queue 2 is the control queue of a driver that does not use the second pair, and a receive queue of one that does.
    for (pairs, features, control) in [(1, CTRL, 2), (2, CTRL, 2), (2, CTRL | MQ, 4)] {
        let (card, _) = card(pairs, 1500);
        let mut driver = RawDriver::new(card, features | MRG_RXBUF);
        offer(&mut driver, 0..8, 4096);
        driver.ring(RX);
        (0..4).for_each(|number| send_now(&mut driver, &frame(number, 600)));
        assert_eq!(driver.used(RX).len(), 4);
        assert_eq!(command(&mut driver, control, 0, 0, &[1]), 0);
        let old = driver.replace_map();
        for queue in 0..=2 * pairs {
            driver.ring(queue);
        }
        assert_eq!(old.strong_count(), 0, "memory that was taken from the guest cannot be unmapped");
    }
}
