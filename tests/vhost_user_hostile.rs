//! Hostile front-ends: messages that no VMM sends, with descriptors that no VMM has, in any order, between honest requests, and cut
//! anywhere. Whatever came, the server is there, holds nothing of it, and serves the next front-end.
//!
//! Descriptors, mappings and lines of the log are counted for the whole process, so the tests of this file run one after another.

#[path = "vhost_user/attacker.rs"]
mod attacker;
#[path = "vhost_user/cut.rs"]
#[allow(dead_code, reason = "each test uses what it needs")]
mod cut;
#[path = "vhost_user/frames.rs"]
mod frames;
#[path = "vhost_user/raw.rs"]
#[allow(dead_code, reason = "each test uses what it needs")]
mod raw;
#[path = "vhost_user/rig.rs"]
#[allow(dead_code, reason = "each test uses what it needs")]
mod rig;
#[path = "vhost_user/victim.rs"]
mod victim;

use attacker::{Attacker, Odd};
use cut::{Cutter, Shared};
use iovirt_core::test_utils::{Rng, rounds_or, seed_or};
use raw::{NEED_REPLY, Raw, code, longs, memory, words};
use rig::{DISK, PATIENCE, POLL, Served, small, wait_until, within_limit};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, Once, PoisonError};
use std::time::{Duration, Instant};
use tracing::span;
use vhost_user_driver::net::NetDriver;
use vhost_user_driver::{BlkDriver, BlkRequest, MemoryMap, Operation, Options, exercise};
use victim::Victim;

/// One test at a time.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    static COUNTED: Once = Once::new();
    COUNTED.call_once(|| tracing::subscriber::set_global_default(Lines).expect("the first one"));
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

static LINES: AtomicUsize = AtomicUsize::new(0);

/// Counts the lines that a log would have.
struct Lines;

impl tracing::Subscriber for Lines {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        *metadata.level() <= tracing::Level::INFO
    }
    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }
    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn event(&self, _: &tracing::Event<'_>) {
        LINES.fetch_add(1, Ordering::Relaxed);
    }
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}
}

/// Descriptors of this process, and mappings of shared memory and devices.
fn held() -> (usize, usize) {
    let fds = std::fs::read_dir("/proc/self/fd").unwrap().count();
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let shared = |line: &&str| line.contains("memfd:") || line.contains("/dev/") || line.contains("/tmp/");
    (fds, maps.lines().filter(shared).count())
}

/// Resident memory in bytes.
fn resident() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    pages.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

fn is_free(served: &Served) {
    wait_until("the front-end is let go of", || !served.device().is_connected());
}

fn is_card(served: &Served) -> bool {
    served.device().name() == "virtio-net"
}

fn card_driver(path: &Path) -> NetDriver {
    let options = Options { queue_size: 64, slots: 64, ..frames::options(4) };
    NetDriver::connect(path, &options).unwrap()
}

/// That an honest front-end of a card sends, and gets back, over each pair.
const FRAMES: u32 = 50;

/// An honest front-end of a disk or a card gets what it wants.
fn serves(served: &Served) {
    if is_card(served) {
        frames::round_trips(&mut card_driver(&served.socket()), FRAMES);
    } else {
        let mut driver = served.connect(&small(2));
        for queue in &mut driver.queues {
            exercise::requests(queue, exercise::SECTORS, 1);
        }
    }
    is_free(served);
}

#[test]
fn whatever_a_front_end_sends_to_a_disk_the_next_one_is_served() {
    attack(Victim::Disk, "virtio-blk,queues=2,queue-size=256 -> delay,time=20us -> memory,size=64M");
}

#[test]
fn whatever_a_front_end_sends_to_a_card_the_next_one_is_served() {
    attack(Victim::Card, "virtio-net,queues=2,queue-size=256 -> delay,time=20us -> loopback");
}

fn attack(victim: Victim, description: &'static str) {
    let _alone = alone();
    let seed = seed_or(0xf0e5);
    println!("seed {seed:#x}");
    within_limit("a hostile front-end", move || {
        for poll in [Duration::ZERO, POLL] {
            let served = Served::new(description, 2, poll);
            let odd = Odd::new();
            serves(&served);
            let (before, memory_before, lines_before) = (held(), resident(), LINES.load(Ordering::Relaxed));
            let (mut sent, mut honest) = (0, 1);
            let rounds = rounds_or(600);
            for round in 0..rounds {
                let mut rng = Rng::new(seed.wrapping_add(round));
                sent += Attacker::new(&served.socket(), victim, &odd, &mut rng).attack();
                if round % 50 == 49 {
                    is_free(&served);
                    serves(&served);
                    honest += 1;
                    let now = held();
                    assert!(
                        now.0 <= before.0 && now.1 <= before.1,
                        "round {round}: {before:?} and then {now:?}"
                    );
                }
            }
            is_free(&served);
            serves(&served);
            let grown = resident().saturating_sub(memory_before);
            let lines = LINES.load(Ordering::Relaxed) - lines_before;
            println!("{poll:?}: {sent} messages, {grown} bytes more, {lines} lines in the log");
            assert!(grown < 64 << 20, "{grown} bytes more");
            assert!(lines < 400, "{lines} lines in the log");
            if is_card(&served) && rounds >= 100 {
                // It got frames of its own, and had commands obeyed.
                let [receive, .., control] = &*served.device().counters() else { panic!("several queues") };
                assert!(receive.chains > (honest + 1) * FRAMES as u64, "{receive:?}, {honest} honest ones");
                assert!(control.chains > 0);
            }
        }
    });
}

#[test]
fn a_front_end_dropped_under_load_leaves_nothing() {
    dropped_under_load(
        "virtio-blk,queues=2,queue-size=256 -> delay,time=300us -> memory,size=64M",
        |path, map| {
            let mut driver = BlkDriver::connect(path, &Options { memory_map: map, ..small(2) }).unwrap();
            for queue in &mut driver.queues {
                for slot in 0..queue.slots() {
                    queue.submit(slot, BlkRequest { operation: Operation::Write, sector: 0, len: 4096 });
                }
                queue.publish().unwrap();
            }
            driver
        },
    );
}

/// Half of its frames are on their way, and its buffers for those that come are with the device.
#[test]
fn a_front_end_of_a_card_dropped_under_load_leaves_nothing() {
    dropped_under_load("virtio-net,queues=2,queue-size=256 -> delay,time=300us -> loopback", |path, map| {
        let options = Options { memory_map: map, queue_size: 64, slots: 64, ..frames::options(4) };
        let mut driver = NetDriver::connect(path, &options).unwrap();
        for (_, sender) in &mut driver.pairs {
            while sender.send(&frames::frame(0, 7)).unwrap() {}
            sender.publish().unwrap();
        }
        driver
    });
}

/// A front-end that comes with load and goes at once, again and again.
fn dropped_under_load<D: 'static>(description: &'static str, load: fn(&Path, MemoryMap) -> D) {
    let _alone = alone();
    within_limit("a front-end under load", move || {
        let served = Served::new(description, 2, POLL);
        serves(&served);
        let before = held();
        let mut most = before;
        for round in 0..rounds_or(60) {
            let map = if round % 2 == 0 { MemoryMap::OneRegion } else { MemoryMap::TwoRegions };
            let driver = load(&served.socket(), map);
            let now = held();
            most = (most.0.max(now.0), most.1.max(now.1));
            drop(driver);
            is_free(&served);
        }
        // The count sees what a front-end costs, and that all of it is gone.
        assert!(most.0 > before.0 && most.1 > before.1, "{before:?} {most:?}");
        wait_until("all is let go of", || held() == before);
        serves(&served);
    });
}

/// Files that are shortened while the device uses them: whoever touches what is gone goes on, and the session ends.
#[test]
fn a_file_cut_under_a_disk_ends_the_session_and_no_more() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let image = folder.path().join("disk.img");
    std::fs::File::create(&image).and_then(|file| file.set_len(64 << 20)).unwrap();
    cut(Victim::Disk, "memory,size=64M");
    // What the kernel copies is missed by the kernel.
    for options in ["", ",engine=threads", ",direct=on", ",inline=on"] {
        cut(Victim::Disk, &format!("file,path={}{options}", image.display()));
    }
}

/// The same: of a card the buffers of what it sends are files of their own.
#[test]
fn a_file_cut_under_a_card_ends_the_session_and_no_more() {
    cut(Victim::Card, "loopback");
}

fn cut(victim: Victim, below: &str) {
    let _alone = alone();
    let device = match victim {
        Victim::Disk => "virtio-blk",
        Victim::Card => "virtio-net",
    };
    let description = format!("{device},queues=2,queue-size=64 -> {below}");
    within_limit("files that are cut", move || {
        for poll in [Duration::ZERO, POLL] {
            let served = Served::new(&description, 2, poll);
            serves(&served);
            let before = held();
            for &shared in Shared::of(victim) {
                let mut cutter = Cutter::connect(&served.socket(), victim);
                wait_until("an honest request is served", || cutter.is_served());
                cutter.cut(shared);
                assert!(cutter.is_disconnected(), "{shared:?}, {description}");
                drop(cutter);
                is_free(&served);
                wait_until("all is let go of", || held() == before);
                serves(&served);
            }
        }
    });
}

/// Pieces of a message that come slowly, and answers that nobody reads: the session ends, and the stop is heeded meanwhile.
#[test]
fn slow_front_ends_are_not_waited_for_without_end() {
    let _alone = alone();
    within_limit("a slow front-end", || {
        let mut served = Served::new(DISK, 1, Duration::ZERO);
        // A byte a second would do for eleven hours; here the server is stopped in the middle of it.
        let raw = served.raw();
        std::io::Write::write_all(&mut &raw.stream, &words(&[code::SET_MEM_TABLE, 1])).unwrap();
        std::thread::sleep(Duration::from_millis(100));
        assert!(served.device().is_connected());
        let took = served.stop();
        assert!(took < Duration::from_secs(8), "the stop took {took:?}");

        let mut served = Served::new(DISK, 1, Duration::ZERO);
        let raw = served.raw();
        // Asks and does not listen, until no answer goes out any more.
        raw.stream.set_write_timeout(Some(Duration::from_millis(300))).unwrap();
        while raw.send_as((code::GET_FEATURES, 1, 0), &[], &[]).is_ok() {}
        let took = served.stop();
        assert!(took < Duration::from_secs(8), "the stop took {took:?}");
    });
}

#[test]
fn a_message_that_comes_too_slowly_ends_the_session() {
    let _alone = alone();
    within_limit("a slow front-end", || {
        let served = Served::new(DISK, 1, Duration::ZERO);
        let raw = served.raw();
        let begun = Instant::now();
        let header = words(&[code::SET_MEM_TABLE, 1, 4000]);
        let mut ended = false;
        for byte in header.iter().chain(std::iter::repeat(&0)) {
            if std::io::Write::write_all(&mut &raw.stream, &[*byte]).is_err() {
                ended = true;
                break;
            }
            if begun.elapsed() > PATIENCE {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        assert!(ended, "the server still waits after {:?}", begun.elapsed());
        serves(&served);
    });
}

/// One message in small pieces, each with as many descriptors as a piece can have.
#[test]
fn descriptors_do_not_pile_up_behind_a_message() {
    let _alone = alone();
    within_limit("descriptors", || {
        let served = Served::new(DISK, 1, Duration::ZERO);
        serves(&served);
        let before = held();
        let fd = memory(4096);
        for _ in 0..10 {
            let raw = served.raw();
            let fds = [fd.as_fd(); 32];
            let mut most = 0;
            let header = words(&[code::SET_MEM_TABLE, 1, 4000]);
            for byte in header.iter().chain(&[0; 200]) {
                if iovirt_core::socket::send(&raw.stream, &[*byte], &fds).is_err() {
                    break;
                }
                most = most.max(held().0);
            }
            // Those in the socket count for nobody; those that were received are in this process.
            assert!(most < before.0 + 120, "{most} descriptors after {}", before.0);
        }
        is_free(&served);
        assert!(held().0 <= before.0 + 1);
        drop(fd);
        serves(&served);
    });
}

#[test]
fn coming_and_going_fills_no_log() {
    let _alone = alone();
    within_limit("a storm of connections", || {
        let served = Served::new(DISK, 1, Duration::ZERO);
        let before = LINES.load(Ordering::Relaxed);
        for round in 0..3000u32 {
            let raw = served.raw();
            if round % 3 == 0 {
                // Whether the server is faster does not matter.
                let _ = raw.send_as((round, NEED_REPLY, 0), &[], &[]);
            }
        }
        serves(&served);
        let lines = LINES.load(Ordering::Relaxed) - before;
        assert!(lines < 100, "{lines} lines in the log");
    });
}

/// Calls that would hold up whoever raises them: full, blocking, closed at the other end, or no eventfd at all.
#[test]
fn calls_that_block_hold_nobody_up() {
    let _alone = alone();
    within_limit("a call", || {
        let served = Served::new(DISK, 1, Duration::ZERO);
        let (odd, mut count) = (Odd::new(), 0);
        for fd in odd.all() {
            let mut driver = served.connect(&small(1));
            let raw = Raw::of(&mut driver);
            // No more than an eventfd, or what looks like one, is taken: a pipe would raise a signal where its other end is gone.
            let taken = raw.tell_with(code::SET_VRING_CALL, &longs(&[0]), &[fd]) == 0;
            assert_eq!(raw.tell_with(code::SET_VRING_ERR, &longs(&[0]), &[fd]) == 0, taken);
            count += u32::from(taken);
            if !taken {
                assert_eq!(raw.tell(code::SET_VRING_CALL, &longs(&[1 << 8])), 0);
            }
            let queue = &mut driver.queues[0];
            for _ in 0..20 {
                queue.submit(0, BlkRequest { operation: Operation::Read, sector: 0, len: 512 });
                queue.publish().unwrap();
                // Nobody interrupts the driver any more: it looks.
                wait_until("it is done", || queue.has_completions());
                assert_eq!(queue.complete().unwrap().map(|done| done.status), Some(0));
            }
        }
        // A full eventfd, an empty one, and an epoll instance.
        assert_eq!(count, 3);
        serves(&served);
    });
}
