//! No heap allocation per request after warm-up: counted on the worker's own thread, over the boxed path that users run.

mod common;

use common::{ALL, Rig};
use iovirt::describe::Description;
use iovirt::registry::Registry;
use iovirt_core::test_utils::virtio::{BlkDriver, BlkOp, BlkStatus};
use iovirt_core::test_utils::{CountingAllocator, count_allocations};
use iovirt_frontends::virtio::blk::BlkConfig;

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator::new();

const DEPTH: u64 = 32;

/// One batch, pushed through by hand: the worker's part of it is counted.
fn batch(rig: &Rig, driver: &mut BlkDriver, op: BlkOp, from: u64) -> u64 {
    let data = [7; 4096];
    for request in 0..DEPTH {
        driver.submit(op, (from + request) * 8, &data).unwrap();
    }
    driver.ring();
    let mut allocations = 0;
    while !driver.batch_is_home() {
        let mut worker = rig.worker.borrow_mut();
        let (counted, result) = count_allocations(|| worker.run());
        result.unwrap();
        allocations += counted.allocations;
    }
    driver.poll(|_, status, _| assert_eq!(status, BlkStatus::Ok)).unwrap();
    allocations
}

fn check(text: &str) {
    let description: Description = text.parse().unwrap();
    let stack = Registry::standard().build_block(&description.below).unwrap();
    let rig = Rig::new(BlkConfig::default(), stack);
    let mut driver = rig.driver(ALL, 4096);
    let round = |driver: &mut BlkDriver| -> u64 {
        (0..40)
            .map(|at| {
                let op = if at % 2 == 0 { BlkOp::Out } else { BlkOp::In };
                batch(&rig, driver, op, at / 2 * DEPTH)
            })
            .sum()
    };
    let warm_up = round(&mut driver);
    let after: u64 = (0..5).map(|_| round(&mut driver)).sum();
    println!(
        "{text}: {warm_up} allocations in the first {} requests, {after} in the next {}",
        40 * DEPTH,
        200 * DEPTH
    );
    assert_eq!(after, 0, "{text}");
}

#[test]
fn none_over_memory() {
    check("virtio-blk -> memory,size=64M");
}

#[test]
fn none_over_fan_outs() {
    check("virtio-blk -> mirror,read=round-robin [memory,size=64M | stats -> memory,size=64M]");
    check("virtio-blk -> stripe,chunk=1536 [memory,size=64M | memory,size=64M | memory,size=64M]");
    check("virtio-blk -> overlay,cluster=16K [memory,size=64M | memory,size=64M]");
}

#[test]
fn none_over_stats_and_file_by_every_engine() {
    // On a disk file system through the worker's io_uring or a pool of threads, and inline in memory.
    for (folder, options) in [
        ("/tmp", "engine=auto,inline=off,cache=write-back"),
        ("/tmp", "engine=threads,inline=off,cache=write-back"),
        ("/tmp", "engine=auto,inline=off"),
        ("/tmp", "direct=on"),
        ("/dev/shm", "inline=on"),
    ] {
        let image = tempfile::Builder::new().prefix("iovirt-").tempfile_in(folder).unwrap();
        image.as_file().set_len(64 << 20).unwrap();
        check(&format!("virtio-blk -> stats -> file,path={},{options}", image.path().display()));
    }
}

/// Frames through a card and back, 32 at once.
#[test]
fn none_over_virtio_net() {
    use common::raw::{BUFFERS, Piece, RawDriver, SIZE};
    for (below, features) in [("loopback", 0), ("stats -> filter -> loopback", 1 << 15)] {
        let line = format!("virtio-net,queue-size={SIZE} -> {below}");
        let description: Description = line.parse().unwrap();
        let card = Registry::standard().build_virtio(&description).unwrap();
        let mut driver = RawDriver::new(card, features);
        let mut round = |batches: u64| -> u64 {
            let mut allocations = 0;
            for _ in 0..batches {
                for at in 0..DEPTH {
                    let (receive, send) = (BUFFERS + at * 4096, BUFFERS + (100 + at) * 4096);
                    driver.write(send, &[0; 12]);
                    driver.write(send + 12, &[0xff; 64]);
                    driver.offer(0, &[Piece::Device(receive, 2048)]);
                    driver.offer(1, &[Piece::Driver(send, 76)]);
                }
                let _ = driver.register(0x050, 1);
                let (counted, result) = count_allocations(|| driver.worker.run());
                result.unwrap();
                allocations += counted.allocations;
                assert_eq!((driver.used(0).len() as u64, driver.used(1).len() as u64), (DEPTH, DEPTH));
            }
            allocations
        };
        let warm_up = round(40);
        let after = round(200);
        println!(
            "{line}: {warm_up} allocations in the first {} frames, {after} in the next {}",
            40 * DEPTH,
            200 * DEPTH
        );
        assert_eq!(after, 0, "{line}");
    }
}
