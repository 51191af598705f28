//! The whole matrix: each front-end over each stage over each back-end, with a driver in this process and data that is verified.
//!
//! A tap has its row in `tests/net_tap.rs`, as it needs a network namespace.

mod common;

use common::raw::{BUFFERS, Piece, RawDriver, SIZE as RING};
use common::stacks::{BACKENDS, NET_STAGES, TRANSPARENT, build, stacks};
use common::{ALL, NO_EVENT_IDX, Rig};
use iovirt::registry::Registry;
use iovirt_core::test_utils::virtio::{BlkDriver, BlkOp, BlkStatus};
use iovirt_core::test_utils::{Rng, seed_or};
use iovirt_frontends::virtio::blk::BlkConfig;
use std::time::{Duration, Instant};

const SECTOR: u64 = 512;
/// Longest request of a disk's driver, in bytes.
const MAX: usize = 64 << 10;
const HEADER: usize = 12;
const LIMIT: Duration = Duration::from_secs(30);

/// Requests to one disk, checked against what it must hold; how many.
fn disk_traffic(driver: &mut BlkDriver, keeps_data: bool, rng: &mut Rng) -> u64 {
    // Not that of each part: a stripe is as large as its parts together.
    let size = driver.capacity() * SECTOR;
    let mut shadow = vec![0; size as usize];
    let mut run = |op, at: u64, data: &mut [u8]| driver.run(op, at / SECTOR, data).expect("an answer");
    let mut count = 0;
    for round in 0..60 {
        // Whole pages: some of the stacks have larger blocks than a sector.
        let len = 4096 * rng.between(1, MAX as u64 / 4096);
        let at = 4096 * rng.below((size - len) / 4096 + 1);
        let range = at as usize..(at + len) as usize;
        match round % 4 {
            0 | 1 => {
                rng.fill(&mut shadow[range.clone()]);
                assert_eq!(run(BlkOp::Out, at, &mut shadow[range]), BlkStatus::Ok);
            }
            2 => assert_eq!(run(BlkOp::Flush, 0, &mut []), BlkStatus::Ok),
            _ => {
                let mut bytes = [0; 16];
                bytes[..8].copy_from_slice(&(at / SECTOR).to_le_bytes());
                bytes[8..12].copy_from_slice(&((len / SECTOR) as u32).to_le_bytes());
                match run(BlkOp::WriteZeroes, 0, &mut bytes) {
                    BlkStatus::Ok => shadow[range].fill(0),
                    status => assert_eq!(status, BlkStatus::Unsupported),
                }
            }
        }
        count += 1;
    }
    for (at, held) in (0..).step_by(MAX).zip(shadow.chunks(MAX)) {
        let mut read = vec![0xee; MAX];
        assert_eq!(run(BlkOp::In, at, &mut read), BlkStatus::Ok);
        assert!(!keeps_data || read == held, "other data at {at}");
        count += 1;
    }
    assert_eq!(run(BlkOp::In, size, &mut [0; 512]), BlkStatus::IoError, "behind the end");
    count + 1
}

#[test]
fn every_disk_stack() {
    let (mut stacks_run, mut requests) = (0, 0);
    let seed = seed_or(0x3a7_71c5);
    let mut rng = Rng::new(seed);
    for (backend, folder) in BACKENDS {
        for stack in stacks(TRANSPARENT, backend) {
            for features in [ALL, NO_EVENT_IDX] {
                let (below, _image) = build(&stack, folder);
                let rig = Rig::new(BlkConfig { queues: 2, ..BlkConfig::default() }, below);
                let mut driver = rig.driver(features, MAX);
                requests += disk_traffic(&mut driver, !backend.starts_with("null"), &mut rng);
            }
            stacks_run += 1;
        }
    }
    println!("virtio-blk: {stacks_run} stacks, {requests} requests verified, seed {seed:#x}");
    assert_eq!(stacks_run, BACKENDS.len() * (TRANSPARENT.len() + 1), "none is left out");
}

/// Frames that come back, compared byte by byte and in their order; how many.
fn network_traffic(driver: &mut RawDriver, rng: &mut Rng, mergeable: bool) -> u64 {
    let mut count = 0;
    for _ in 0..8 {
        let batch = rng.between(1, 12) as usize;
        let frames: Vec<Vec<u8>> = (0..batch)
            .map(|_| {
                let mut frame = vec![0; rng.between(60, 1514) as usize];
                rng.fill(&mut frame[6..]);
                frame[..6].fill(0xff);
                frame
            })
            .collect();
        let size = if mergeable { 512 } else { 1526 };
        let room = if mergeable { 3 * batch } else { batch };
        let place = |slot: usize| BUFFERS + slot as u64 * 2048;
        let mut offered: Vec<(u16, u64)> = (0..room.min(usize::from(RING)))
            .map(|slot| (driver.offer(0, &[Piece::Device(place(slot), size)]), place(slot)))
            .collect();
        driver.ring(0);
        for (at, frame) in frames.iter().enumerate() {
            let from = place(1000 + at);
            driver.write(from, &[&[0; HEADER], frame.as_slice()].concat());
            driver.offer(1, &[Piece::Driver(from, (HEADER + frame.len()) as u32)]);
        }
        driver.ring(1);
        let (mut came, mut sent, start) = (Vec::new(), 0, Instant::now());
        while came.len() < batch || sent < batch {
            assert!(start.elapsed() < LIMIT, "{} of {batch} frames came back, {sent} were sent", came.len());
            driver.worker.run_within(Duration::from_millis(1)).unwrap();
            sent += driver.used(1).len();
            let mut used = driver.used(0).into_iter();
            while let Some(first) = used.next() {
                came.push(take_frame(driver, &mut offered, first, &mut used));
            }
        }
        assert!(came == frames, "other frames came back, or in another order");
        count += batch as u64;
        // Buffers that are left over are taken back with the queue.
        driver.reset();
        driver.set_up(features(mergeable));
    }
    count
}

/// One frame out of as many buffers as its header says.
fn take_frame(
    driver: &RawDriver,
    offered: &mut Vec<(u16, u64)>,
    first: (u16, u32),
    rest: &mut impl Iterator<Item = (u16, u32)>,
) -> Vec<u8> {
    let mut read = |(head, len): (u16, u32)| {
        let at = offered.iter().position(|(known, _)| *known == head).expect("a buffer that was offered");
        driver.read(offered.remove(at).1, len as usize)
    };
    let mut bytes = read(first);
    let buffers = u16::from_le_bytes([bytes[10], bytes[11]]);
    (1..buffers).for_each(|_| bytes.extend(read(rest.next().expect("all buffers of a frame at once"))));
    bytes.split_off(HEADER)
}

fn features(mergeable: bool) -> u64 {
    if mergeable { 1 << 15 | 1 << 29 } else { 0 }
}

#[test]
fn every_network_stack() {
    let (mut stacks_run, mut frames) = (0, 0);
    let seed = seed_or(0x3a7_71c6);
    let mut rng = Rng::new(seed);
    for stack in stacks(NET_STAGES, "loopback") {
        for mergeable in [false, true] {
            let registry = Registry::standard();
            let line = format!("virtio-net,queue-size={RING} -> {stack}");
            let card = registry.build_virtio(&registry.parse(&line).unwrap()).unwrap();
            frames += network_traffic(&mut RawDriver::new(card, features(mergeable)), &mut rng, mergeable);
        }
        stacks_run += 1;
    }
    println!("virtio-net: {stacks_run} stacks, {frames} frames verified, seed {seed:#x}");
    assert_eq!(stacks_run, NET_STAGES.len() + 1, "none is left out");
}
