//! The driver's checks of a disk's server, over ours.

use super::rig::{DISK, POLL, Served, within_limit};
use std::time::Duration;
use vhost_user_driver::exercise::{self, SECTORS};
use vhost_user_driver::options::feature;
use vhost_user_driver::{BlkDriver, Client, MemoryMap, Options};

/// Every kind of driver: with and without the event index, indirect tables, and protocol features.
fn options() -> Vec<Options> {
    let plain = feature::EVENT_IDX | feature::INDIRECT_DESC;
    vec![
        Options::blk(),
        Options { features: Options::blk().features & !feature::EVENT_IDX, ..Options::blk() },
        Options { memory_map: MemoryMap::TwoRegions, queue_size: 128, ..Options::blk() },
        Options { features: Options::blk().features & !plain, slots: 64, ..Options::blk() },
        // Without the answers to each message, and without what outlives the server.
        Options { protocol_features: 1 | 1 << 9, ..Options::blk() },
    ]
}

#[test]
fn every_kind_of_request_of_every_kind_of_driver() {
    for poll in [Duration::ZERO, POLL] {
        for options in options() {
            within_limit("a driver", move || {
                let served = Served::new(DISK, 1, poll);
                let mut driver = served.connect(&options);
                assert_eq!(driver.capacity().unwrap(), SECTORS);
                let queue = &mut driver.queues[0];
                exercise::requests(queue, SECTORS, 1);
                exercise::ranges(queue);
                for client in Client::ALL {
                    exercise::blocks(queue, 0, client);
                }
                let counters = served.device().counters();
                assert!(counters[0].chains > 2000 && counters[1].chains == 0, "{counters:?}");
                assert!(counters[0].doorbells > 0 && counters[0].interrupts > 0, "{counters:?}");
            });
        }
    }
}

#[test]
fn several_queues_on_two_workers() {
    for poll in [Duration::ZERO, POLL] {
        within_limit("four queues", move || {
            let served =
                Served::new("virtio-blk,queues=4,queue-size=256 -> stats -> memory,size=64M", 2, poll);
            let mut driver = served.connect(&Options { queues: 4, ..Options::blk() });
            assert_eq!(driver.session.most_queues(), 4);
            exercise::queues_at_once(&mut driver);
            assert!(served.device().counters().iter().all(|queue| queue.chains >= 2000));
        });
    }
}

/// No message says what the device would like: crosvm, for one, always has rings of 32768 entries.
#[test]
fn rings_larger_than_the_device_would_like() {
    for poll in [Duration::ZERO, POLL] {
        within_limit("large rings", move || {
            let served = Served::new(
                "virtio-blk,queues=2,queue-size=8 -> delay,time=20us,jitter=40us -> memory,size=64M",
                2,
                poll,
            );
            let mut driver = served.connect(&Options { queues: 2, queue_size: 32768, ..Options::blk() });
            exercise::queues_at_once(&mut driver);
            exercise::requests(&mut driver.queues[0], SECTORS, 3);
        });
    }
}

/// The file back-end has threads or a ring of its own, which wake the lane from elsewhere. Every second server has room for a few only of the
/// requests that were in flight.
#[test]
fn a_file_and_a_server_that_ends_in_the_middle() {
    for poll in [Duration::ZERO, POLL] {
        within_limit("a file", move || {
            let file = tempfile::NamedTempFile::new().unwrap();
            file.as_file().set_len(SECTORS * 512).unwrap();
            let path = file.path().display().to_string();
            let text = |size| {
                format!(
                    "virtio-blk,queues=2,queue-size={size} -> delay,time=50us -> file,path={path},lock=off,inline=off"
                )
            };
            let mut served = vec![Served::new(&text(256), 2, poll)];
            let mut driver: BlkDriver = served[0].connect(&Options { queues: 2, ..Options::blk() });
            exercise::queues_at_once(&mut driver);
            for round in 0..6 {
                let last = served.remove(0);
                served.push(Served::new(&text(if round % 2 == 0 { 8 } else { 256 }), 2, poll));
                let next = served[0].socket();
                exercise::killed_in_flight(&mut driver, round, || drop(last), || next);
            }
            exercise::requests(&mut driver.queues[1], SECTORS, 9);
        });
    }
}
