//! The driver against a server that others wrote: QEMU's storage daemon.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use iovirt_core::test_utils::skipped;
use tempfile::TempDir;
use vhost_user_driver::options::feature;
use vhost_user_driver::{BlkDriver, BlkQueue, BlkRequest, Error, MemoryMap, Operation, Options};

const DISK: u64 = 64 << 20;
const PATIENCE: Duration = Duration::from_secs(30);
/// The status of a request of an unknown type.
const UNSUPPORTED: u8 = 2;
/// The status of a request that failed.
const FAILED: u8 = 1;

/// A folder with an image, and the daemon that serves it.
struct Daemon {
    folder: TempDir,
    child: Child,
}

impl Daemon {
    /// Starts it; nothing where it is not installed.
    fn start() -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        File::create(folder.path().join("disk.img")).unwrap().set_len(DISK).unwrap();
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

/// Data that tells its place and its round.
fn pattern(sector: u64, round: u8, len: usize) -> Vec<u8> {
    (0..len).map(|at| (sector as usize * 7 + at / 3 + usize::from(round) * 101) as u8).collect()
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
    for (round, (features, memory_map)) in sets.into_iter().enumerate() {
        let mut driver = daemon.connect(&Options { features, memory_map, ..Options::blk() });
        let wanted = features & (feature::EVENT_IDX | feature::INDIRECT_DESC);
        assert_eq!(driver.session.features() & (feature::EVENT_IDX | feature::INDIRECT_DESC), wanted);
        assert_eq!(driver.capacity().unwrap(), DISK / 512);
        let queue = &mut driver.queues[0];
        for (sector, len) in [(0, 512), (9, 4096), (1000, 128 << 10)] {
            let data = pattern(sector, round as u8, len);
            queue.write(sector, &data).unwrap();
            queue.flush().unwrap();
            let mut back = vec![0; len];
            queue.read(sector, &mut back).unwrap();
            assert_eq!(back, data);
        }
        assert!(!queue.id().unwrap().is_empty());
        let read_beyond = queue.read(DISK / 512, &mut [0; 512]);
        assert!(matches!(read_beyond, Err(Error::Status(FAILED))), "{read_beyond:?}");
        let unknown = queue.request(BlkRequest { operation: Operation::Other(77), sector: 0, len: 512 });
        assert!(matches!(unknown, Err(Error::Status(UNSUPPORTED))), "{unknown:?}");
    }
}

#[test]
fn ranges_are_zeroed_and_discarded() {
    let Some(daemon) = Daemon::start() else { return };
    let mut driver = daemon.connect(&Options::blk());
    let queue = &mut driver.queues[0];
    queue.write(8, &[0xaa; 4096]).unwrap();
    queue.range(Operation::WriteZeroes, 8, 4).unwrap();
    let mut back = [1; 4096];
    queue.read(8, &mut back).unwrap();
    assert!(back[..2048].iter().all(|byte| *byte == 0) && back[2048..].iter().all(|byte| *byte == 0xaa));
    queue.range(Operation::Discard, 8, 8).unwrap();
}

/// Writes a queue's own part of the disk with all slots in flight, then reads it back; sleeping or polling.
fn work(queue: &mut BlkQueue, number: u64, sleeps: bool) {
    let sectors = 4096 / 512;
    let first = number * 2000 * sectors;
    for operation in [Operation::Write, Operation::Read] {
        let (mut next, mut done) = (0u64, 0u64);
        let mut at = vec![0; usize::from(queue.slots())];
        let mut free: Vec<u16> = (0..queue.slots()).collect();
        while done < 1000 {
            while next < 1000
                && let Some(slot) = free.pop()
            {
                let sector = first + next * sectors;
                at[usize::from(slot)] = sector;
                if operation == Operation::Write {
                    queue.fill(slot, &pattern(sector, number as u8, 4096));
                } else {
                    queue.fill(slot, &[0; 4096]);
                }
                queue.submit(slot, BlkRequest { operation, sector, len: 4096 });
                next += 1;
            }
            queue.publish().unwrap();
            let completion =
                if sleeps { Some(queue.next(PATIENCE).unwrap()) } else { queue.complete().unwrap() };
            let Some(completion) = completion else {
                queue.queue_mut().ring_mut().refuse_interrupts();
                std::hint::spin_loop();
                continue;
            };
            assert_eq!(completion.status, 0);
            if operation == Operation::Read {
                let mut back = [0; 4096];
                queue.copy_out(completion.slot, &mut back);
                assert_eq!(back.as_slice(), pattern(at[usize::from(completion.slot)], number as u8, 4096));
            }
            free.push(completion.slot);
            done += 1;
        }
    }
}

#[test]
fn several_queues_work_at_once_sleeping_and_polling() {
    let Some(daemon) = Daemon::start() else { return };
    let mut driver = daemon.connect(&Options { queues: 4, queue_size: 64, slots: 64, ..Options::blk() });
    assert!(driver.session.most_queues() >= 4);
    thread::scope(|scope| {
        for (number, queue) in (0u64..).zip(&mut driver.queues) {
            scope.spawn(move || work(queue, number, number.is_multiple_of(2)));
        }
    });
    let notifications: Vec<_> = driver.queues.iter().map(|queue| queue.queue().notifications()).collect();
    assert!(notifications.iter().all(|[kicks, _]| *kicks > 0), "{notifications:?}");
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

#[test]
fn requests_in_flight_survive_a_killed_daemon() {
    let Some(mut daemon) = Daemon::start() else { return };
    let mut driver = daemon.connect(&Options { queues: 2, ..Options::blk() });
    for round in 1..4u8 {
        for (number, queue) in (0u64..).zip(&mut driver.queues) {
            for slot in 0..queue.slots() {
                let sector = (number * 128 + u64::from(slot)) * 8;
                queue.fill(slot, &pattern(sector, round, 4096));
                queue.submit(slot, BlkRequest { operation: Operation::Write, sector, len: 4096 });
            }
            queue.publish().unwrap();
        }
        // Some may be done by now and some not.
        let first = driver.queues[0].next(PATIENCE).unwrap();
        assert_eq!(first.status, 0);
        daemon.kill();
        let mut last = [1u16, 0];
        let gone = loop {
            match driver.queues[1].next(PATIENCE) {
                Ok(completion) => assert_eq!((completion.status, last[1] += 1), (0, ())),
                Err(error) => break error,
            }
        };
        assert!(matches!(gone, Error::Gone), "{gone:?}");
        daemon.start_again();
        driver.reconnect(&daemon.socket()).unwrap();
        for (queue, done) in driver.queues.iter_mut().zip(&mut last) {
            while *done < queue.slots() {
                assert_eq!(queue.next(PATIENCE).unwrap().status, 0);
                *done += 1;
            }
        }
        let mut back = [0; 4096];
        for number in 0..256u64 {
            driver.queues[0].read(number * 8, &mut back).unwrap();
            assert_eq!(back.as_slice(), pattern(number * 8, round, 4096));
        }
    }
}
