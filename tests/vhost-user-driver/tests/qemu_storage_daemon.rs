//! The driver against a server that others wrote: QEMU's storage daemon.

use std::cell::RefCell;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use iovirt_core::test_utils::skipped;
use tempfile::TempDir;
use vhost_user_driver::exercise::{self, SECTORS};
use vhost_user_driver::options::feature;
use vhost_user_driver::{BlkDriver, MemoryMap, Options};

/// A folder with an image, and the daemon that serves it.
struct Daemon {
    folder: TempDir,
    child: Child,
}

impl Daemon {
    /// Starts it; nothing where it is not installed.
    fn start() -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        File::create(folder.path().join("disk.img")).unwrap().set_len(SECTORS * 512).unwrap();
        match spawn(folder.path()) {
            Ok(child) => Some(Self { folder, child }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                skipped("qemu-storage-daemon (Debian's qemu-utils) is not installed");
                None
            }
            Err(error) => panic!("qemu-storage-daemon: {error}"),
        }
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("socket")
    }

    fn connect(&self, options: &Options) -> BlkDriver {
        BlkDriver::connect(&self.socket(), options).unwrap()
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    fn start_again(&mut self) {
        std::fs::remove_file(self.socket()).unwrap();
        self.child = spawn(self.folder.path()).unwrap();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(folder: &Path) -> io::Result<Child> {
    let (image, socket) = (folder.join("disk.img"), folder.join("socket"));
    Command::new("qemu-storage-daemon")
        .args(["--object", "iothread,id=io", "--blockdev"])
        .arg(format!("driver=file,node-name=disk,filename={},aio=threads,discard=unmap", image.display()))
        .arg("--export")
        .arg(format!(
            "type=vhost-user-blk,id=export,node-name=disk,addr.type=unix,addr.path={},writable=on,num-queues=4,\
             iothread=io",
            socket.display()
        ))
        .stdin(Stdio::null())
        .spawn()
}

#[test]
fn what_is_written_is_read_back_with_every_set_of_features() {
    let Some(daemon) = Daemon::start() else { return };
    let all = Options::blk().features;
    let sets = [
        (all, MemoryMap::OneRegion),
        (all & !feature::EVENT_IDX, MemoryMap::TwoRegions),
        (all & !feature::INDIRECT_DESC, MemoryMap::OneRegion),
        (all & !(feature::INDIRECT_DESC | feature::EVENT_IDX), MemoryMap::TwoRegions),
    ];
    for (round, (features, memory_map)) in (0u8..).zip(sets) {
        let mut driver = daemon.connect(&Options { features, memory_map, ..Options::blk() });
        let of_the_ring = feature::EVENT_IDX | feature::INDIRECT_DESC;
        assert_eq!(driver.session.features() & of_the_ring, features & of_the_ring);
        assert_eq!(driver.capacity().unwrap(), SECTORS);
        exercise::requests(&mut driver.queues[0], SECTORS, round);
    }
}

#[test]
fn ranges_are_zeroed_and_discarded() {
    let Some(daemon) = Daemon::start() else { return };
    exercise::ranges(&mut daemon.connect(&Options::blk()).queues[0]);
}

#[test]
fn several_queues_work_at_once_sleeping_and_polling() {
    let Some(daemon) = Daemon::start() else { return };
    let mut driver = daemon.connect(&Options { queues: 4, queue_size: 64, slots: 64, ..Options::blk() });
    assert!(driver.session.most_queues() >= 4);
    exercise::queues_at_once(&mut driver);
}

#[test]
fn rings_stop_and_go_on_where_they_were() {
    let Some(daemon) = Daemon::start() else { return };
    let mut driver = daemon.connect(&Options { queues: 2, ..Options::blk() });
    for round in 0..3u8 {
        for queue in &mut driver.queues {
            queue.write(u64::from(round), &[round; 512]).unwrap();
        }
        assert_eq!(driver.restart().unwrap(), [u16::from(round) + 1; 2]);
    }
    let mut back = [9; 512];
    driver.queues[1].read(2, &mut back).unwrap();
    assert_eq!(back, [2; 512]);
}

/// QEMU's daemon does not note what it has begun, so this is the way without notes.
#[test]
fn requests_in_flight_survive_a_killed_daemon() {
    let Some(daemon) = Daemon::start() else { return };
    let daemon = RefCell::new(daemon);
    let mut driver = daemon.borrow().connect(&Options { queues: 2, ..Options::blk() });
    assert!(!driver.session.tracks_inflight());
    for round in 1..6 {
        let start = || {
            daemon.borrow_mut().start_again();
            daemon.borrow().socket()
        };
        exercise::killed_in_flight(&mut driver, round, || daemon.borrow_mut().kill(), start);
    }
}
