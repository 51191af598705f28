//! Signals while requests are in flight.

use super::process::Daemon;
use super::{Folder, PATIENCE};
use iovirt_core::test_utils::skipped;
use std::fs;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command};
use std::time::{Duration, Instant};
use vhost_user_driver::{BlkDriver, BlkRequest, Operation, Options, exercise};

const QUEUES: u16 = 2;
const SLOTS: u16 = 16;
const BLOCK: usize = 4096;

fn options() -> Options {
    Options { queues: QUEUES, queue_size: 64, slots: SLOTS, buffer: BLOCK, ..Options::blk() }
}

/// A write in each slot, of a block of its own; returns when the daemon has begun them all.
fn fill(driver: &mut BlkDriver) {
    for (number, queue) in (0..).zip(&mut driver.queues) {
        for slot in 0..SLOTS {
            let sector = sector(number, slot);
            queue.fill(slot, &exercise::pattern(sector, 1, BLOCK));
            queue.submit(slot, BlkRequest { operation: Operation::Write, sector, len: BLOCK as u32 });
        }
        queue.publish().expect("a doorbell");
    }
    let begun = Instant::now();
    while driver.session.begun().expect("a record") < usize::from(QUEUES * SLOTS) {
        assert!(begun.elapsed() < PATIENCE, "the requests are not begun");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn sector(queue: u64, slot: u16) -> u64 {
    (queue * u64::from(SLOTS) + u64::from(slot)) * 8
}

#[test]
fn what_was_begun_is_completed_whatever_the_signal() {
    for signal in ["TERM", "INT", "HUP", "QUIT"] {
        let folder = Folder::new();
        let (image, socket) = (folder.image("disk.img"), folder.path("s"));
        // A drain lets them go: the report comes long before the minute is over, or not within anybody's patience.
        let pipeline = format!(
            "virtio-blk,queues={QUEUES} -> stats -> delay,time=60s,kinds=write -> file,path={image},cache=write-back"
        );
        let daemon = Daemon::start(&["--socket", &folder.at("s"), "--device", &pipeline]);
        let mut driver = BlkDriver::connect(&socket, &options()).expect("a disk");
        fill(&mut driver);
        daemon.signal(signal);
        for queue in &mut driver.queues {
            for _ in 0..SLOTS {
                assert_eq!(queue.next(PATIENCE).expect("it was begun").status, 0, "SIG{signal}");
            }
        }
        assert_eq!(driver.session.begun().expect("a record"), 0);
        let (status, report, complaints) = daemon.end();
        assert_eq!((status.code(), &*complaints), (Some(0), ""), "SIG{signal}: {report}");
        assert!(report.starts_with(&format!("ended by SIG{signal} after ")), "{report}");
        assert!(report.contains("  32 requests on 2 queue(s): "), "{report}");
        let bytes = fs::read(&image).expect("the image");
        for (queue, slot) in
            (0..u64::from(QUEUES)).flat_map(|queue| (0..SLOTS).map(move |slot| (queue, slot)))
        {
            let sector = sector(queue, slot);
            let found = &bytes[sector as usize * 512..][..BLOCK];
            assert!(found == exercise::pattern(sector, 1, BLOCK), "SIG{signal}: sector {sector}");
        }
        assert_eq!(folder.list(), ["disk.img"]);
    }
}

/// Half a minute is what the daemon waits for.
#[test]
fn requests_that_never_come_home_are_named() {
    let folder = Folder::new();
    let socket = folder.path("s");
    let pipeline =
        format!("virtio-blk,queues={QUEUES} -> fault,fail=write,kind=hang,every=1 -> memory,size=1M");
    let daemon = Daemon::start(&["--socket", &folder.at("s"), "--device", &pipeline]);
    let mut driver = BlkDriver::connect(&socket, &options()).expect("a disk");
    fill(&mut driver);
    daemon.signal("TERM");
    let (status, report, complaints) = daemon.end();
    assert_eq!(status.code(), Some(1), "{report}");
    let says = format!(
        "vhost-user: device 0, {pipeline}, did not come to rest within 30s: requests are still in flight"
    );
    assert!(complaints.lines().any(|line| line == says), "{complaints}");
    assert!(report.starts_with("ended by SIGTERM after "), "{report}");
    assert_eq!(driver.session.begun().expect("a record"), usize::from(QUEUES * SLOTS), "none was returned");
    assert!(folder.list().is_empty());
}

/// A server of a disk that takes a minute for each write, on that socket; nothing where there is none.
fn slow_server(socket: &str) -> Option<Child> {
    let arguments = ["-f", "-U", socket, "--filter=delay", "memory", "1M", "delay-write=60"];
    let mut server = Command::new("nbdkit").args(arguments).spawn().ok()?;
    while UnixStream::connect(socket).is_err() {
        let ended = server.try_wait().expect("a child");
        assert!(ended.is_none(), "nbdkit ended: {ended:?}");
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    Some(server)
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let folder = Folder::new();
    let (server_socket, socket) = (folder.at("nbd"), folder.path("s"));
    let Some(mut server) = slow_server(&server_socket) else {
        skipped("nbdkit is not installed");
        return;
    };
    let pipeline = format!("virtio-blk -> nbd,socket={server_socket}");
    let daemon = Daemon::start(&["--socket", &socket.display().to_string(), "--device", &pipeline]);
    let mut driver = BlkDriver::connect(&socket, &Options::blk()).expect("a disk");
    let queue = &mut driver.queues[0];
    queue.submit(0, BlkRequest { operation: Operation::Write, sector: 0, len: 512 });
    queue.publish().expect("a doorbell");
    // Of another kind, as two of one kind may arrive as one. The first to be looked at is either.
    daemon.signal("TERM");
    daemon.signal("INT");
    let (status, report, _) = daemon.end();
    let code = status.code().expect("a code");
    assert!([128 + 2, 128 + 15].contains(&code), "{status}");
    assert_eq!(report, "");
    server.kill().expect("a child");
    server.wait().expect("a child");
}
