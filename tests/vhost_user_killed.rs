//! The example `vhost-user`, killed with SIGKILL under asynchronous load, again and again over one image: its driver comes back with the
//! record of chains in flight, and finds each request done once, and no trace of the dead.
//!
//! ```text
//!   driver: two queues, all slots busy        first daemon ── file ── image
//!     │ each slot writes its own extent,         │ killed: what it began may still be
//!     │ now and then reads it back               ▼ on its way to the disk
//!     │ reconnects; what was in flight ──►    second daemon ── file ── the same image
//!     └ completes, and is written over at once
//! ```
//!
//! The hazard is in the last line: a write of the dead that lands after the newer one of the living would bring old data back, and a read of
//! the dead would overwrite a buffer that has another use by now. The lock of the image keeps the next daemon waiting until nothing of
//! the dead can come any more. Every other daemon is therefore started without waiting for the end of the one before, and once it is ready
//! that one must have let go of the image. [`Host::Slow`] makes writes outlive their process for certain.
//!
//! Each sector says which write put it there (`test_utils::stamp`). A seed brings back the load, not the scheduling of the host.

#[path = "vhost_user_daemon/process.rs"]
#[allow(dead_code, reason = "each test uses what it needs")]
mod process;

use std::fs::{self, File};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, ScopedJoinHandle};
use std::time::{Duration, Instant};

use iovirt::backends::block::file::{Direct, FileBackend, FileConfig};
use iovirt_core::test_utils::rng::Seed;
use iovirt_core::test_utils::stamp::{Content, read_stamp, stamped};
use iovirt_core::test_utils::{Rng, rounds_or, seed_or, skipped};
use iovirt_core::worker::io_uring::IoUring;
use process::Daemon;
use tempfile::TempDir;
use vhost_user_driver::{BlkDriver, BlkQueue, BlkRequest, Error, Operation, Options};

/// How long anything may take that must happen.
const PATIENCE: Duration = Duration::from_secs(30);
/// Kills of each pipeline.
const KILLS: u64 = 25;
const QUEUES: u16 = 2;
/// Requests in flight on each queue.
const SLOTS: u16 = 64;
const QUEUE_SIZE: u16 = 256;
/// Sectors that belong to a slot: as many as a request takes at most.
const EXTENT: u64 = 256;
const SECTORS: u64 = QUEUES as u64 * SLOTS as u64 * EXTENT;

/// Bytes behind the disk that are written to hold the image up: so many take longer than a process needs to start.
const HOLD: usize = 256 << 20;

/// How long it takes at most until that write has begun.
const HELD_SOON: Duration = Duration::from_millis(5);
/// How long it takes at most until a daemon is gone that waits for nothing.
const GONE_SOON: Duration = Duration::from_millis(30);

/// What the host does at a kill.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Host {
    /// It goes on with what the daemon began.
    Quick,
    /// The image is in use meanwhile, so that what the daemon began waits, and the dead with it.
    Slow,
}

/// What a slot is about.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Doing {
    Nothing,
    /// Writes these of its sectors as this version.
    Write(Range<u64>, u64),
    Read,
    Flush,
}

/// A slot and the extent that nobody else touches.
struct Slot {
    /// Its first sector.
    first: u64,
    /// The version of each sector; of a write that is in flight the one before.
    holds: Vec<u64>,
    doing: Doing,
    /// What a daemon that was killed may still be writing: written over as soon as the slot is free.
    chased: Option<Range<u64>>,
    /// It is read next.
    suspect: bool,
}

/// The guest's side of one queue.
struct Guest {
    slots: Vec<Slot>,
    rng: Rng,
    version: u64,
}

impl Guest {
    fn new(number: u16, rng: Rng) -> Self {
        let slot = |slot: u16| Slot {
            first: (u64::from(number) * u64::from(SLOTS) + u64::from(slot)) * EXTENT,
            holds: vec![0; EXTENT as usize],
            doing: Doing::Nothing,
            chased: None,
            suspect: false,
        };
        Self { slots: (0..SLOTS).map(slot).collect(), rng, version: 0 }
    }

    /// Keeps all slots busy until it is told that the daemon was killed. What is in flight then stays so.
    fn work(&mut self, queue: &mut BlkQueue, done: &AtomicU64, killed: &AtomicBool) {
        while !killed.load(Ordering::Relaxed) {
            for slot in 0..SLOTS {
                if self.slots[usize::from(slot)].doing == Doing::Nothing {
                    let what = self.choose(slot);
                    self.begin(queue, slot, what);
                }
            }
            queue.publish().expect("a doorbell");
            match queue.next(Duration::from_millis(5)) {
                Ok(completion) => self.end(queue, completion.slot, completion.status),
                Err(Error::TimedOut) => continue,
                // The socket of the dead closes with its last thread, which may be long after.
                Err(Error::Gone) => break,
                Err(error) => panic!("with a request in each slot: {error}"),
            }
            done.fetch_add(1, Ordering::Relaxed);
        }
        self.note_the_kill();
    }

    fn choose(&mut self, slot: u16) -> Doing {
        let slot = &mut self.slots[usize::from(slot)];
        if let Some(range) = slot.chased.take() {
            slot.suspect = true;
            self.version += 1;
            return Doing::Write(range, self.version);
        }
        if std::mem::take(&mut slot.suspect) {
            return Doing::Read;
        }
        match self.rng.below(8) {
            0 => Doing::Flush,
            1 | 2 => Doing::Read,
            _ => {
                // Large ones keep the disk busy for longer than a process needs to start.
                let len = [1, 8, EXTENT, EXTENT][self.rng.index(4)];
                let start = self.rng.below(EXTENT / len) * len;
                self.version += 1;
                Doing::Write(start..start + len, self.version)
            }
        }
    }

    fn begin(&mut self, queue: &mut BlkQueue, number: u16, what: Doing) {
        let slot = &mut self.slots[usize::from(number)];
        let (operation, sectors) = match &what {
            Doing::Nothing => return,
            Doing::Write(sectors, version) => {
                let sectors = slot.first + sectors.start..slot.first + sectors.end;
                queue.fill(number, &stamped(sectors.start, sectors.end - sectors.start, *version));
                (Operation::Write, sectors)
            }
            Doing::Read => (Operation::Read, slot.first..slot.first + EXTENT),
            Doing::Flush => (Operation::Flush, 0..0),
        };
        let len = (sectors.end - sectors.start) * 512;
        slot.doing = what;
        queue.submit(number, BlkRequest { operation, sector: sectors.start, len: len as u32 });
    }

    fn end(&mut self, queue: &BlkQueue, number: u16, status: u8) {
        let slot = &mut self.slots[usize::from(number)];
        let what = std::mem::replace(&mut slot.doing, Doing::Nothing);
        assert_eq!(status, 0, "{what:?} of slot {number}");
        match what {
            Doing::Write(sectors, version) => {
                slot.holds[sectors.start as usize..sectors.end as usize].fill(version);
            }
            Doing::Read => {
                let mut bytes = vec![0; EXTENT as usize * 512];
                queue.copy_out(number, &mut bytes);
                slot.check(&bytes);
            }
            Doing::Flush => {}
            // The ring returns nothing that is not in flight.
            Doing::Nothing => panic!("slot {number} was done twice"),
        }
    }

    fn note_the_kill(&mut self) {
        for slot in &mut self.slots {
            match &slot.doing {
                Doing::Write(sectors, _) => slot.chased = Some(sectors.clone()),
                // Its buffer is another request's next.
                Doing::Read => slot.chased = Some(0..EXTENT),
                Doing::Nothing | Doing::Flush => {}
            }
        }
    }

    /// Waits for all that is in flight, and reads everything.
    fn finish(&mut self, queue: &mut BlkQueue) {
        self.wait_for_all(queue);
        for slot in 0..SLOTS {
            self.begin(queue, slot, Doing::Read);
        }
        queue.publish().expect("a doorbell");
        self.wait_for_all(queue);
    }

    fn wait_for_all(&mut self, queue: &mut BlkQueue) {
        while queue.queue().ring().in_flight() > 0 {
            let completion = queue.next(PATIENCE).expect("what is in flight completes");
            self.end(queue, completion.slot, completion.status);
        }
        assert!(self.slots.iter().all(|slot| slot.doing == Doing::Nothing));
    }
}

impl Slot {
    /// Checks what the extent holds, with nothing in flight.
    fn check(&self, bytes: &[u8]) {
        for ((sector, bytes), version) in (self.first..).zip(bytes.chunks(512)).zip(&self.holds) {
            let wanted = if *version == 0 { Content::Zero } else { Content::Version(*version) };
            let found = read_stamp(sector, bytes);
            assert_eq!(found, Ok(wanted), "sector {sector}");
        }
    }
}

/// What was in flight at the kills.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    kills: u64,
    done: u64,
    /// Not returned, as the driver knows it.
    lost: u64,
    /// Of those the ones that the daemon had begun, as it had noted.
    begun: u64,
    /// Daemons that still had the image open when others of their kind would have been gone.
    outlived: u64,
}

/// The daemons of one image, one after the other.
struct Daemons {
    pipeline: String,
    image: PathBuf,
    sockets: TempDir,
    count: u64,
    slowest: Duration,
}

impl Daemons {
    fn socket(&self) -> PathBuf {
        self.sockets.path().join(self.count.to_string())
    }

    /// The next one, on a socket of its own.
    fn start(&mut self) -> Daemon {
        self.count += 1;
        let begun = Instant::now();
        let socket = self.socket().display().to_string();
        let daemon = Daemon::start(&["--socket", &socket, "--device", &self.pipeline]);
        self.slowest = self.slowest.max(begun.elapsed());
        daemon
    }

    /// Kills one and starts the next, which must find nothing of it.
    fn replace(&mut self, daemon: &mut Daemon, (host, kill): (Host, u64), tally: &mut Tally) {
        let image = self.image.clone();
        let held = (host == Host::Slow).then(|| thread::spawn(move || hold(&image)));
        if held.is_some() {
            thread::sleep(HELD_SOON);
        }
        daemon.strike();
        if host == Host::Quick && kill % 2 == 1 {
            daemon.wait();
        }
        tally.kills += 1;
        if held.is_some() {
            thread::sleep(GONE_SOON);
            tally.outlived += u64::from(has_open(daemon.id(), &self.image));
        }
        let next = self.start();
        assert!(!has_open(daemon.id(), &self.image), "kill {kill}: the dead one is not done with the image");
        *daemon = next;
        if let Some(held) = held {
            held.join().expect("the image can be written");
        }
    }
}

/// One image, its daemons and its driver.
struct Campaign {
    host: Host,
    daemons: Daemons,
    guests: Vec<Guest>,
    rng: Rng,
    tally: Tally,
}

impl Campaign {
    fn new(below: &str, image: &Path, host: Host, seed: u64) -> Self {
        File::create(image).and_then(|file| file.set_len(SECTORS * 512)).expect("an image");
        let mut rng = Rng::new(seed);
        let below = below.replace("IMAGE", &image.display().to_string());
        let daemons = Daemons {
            pipeline: format!("virtio-blk,queues={QUEUES},queue-size={QUEUE_SIZE} -> stats -> {below}"),
            image: image.to_owned(),
            sockets: tempfile::tempdir().expect("a temporary folder"),
            count: 0,
            slowest: Duration::ZERO,
        };
        let guests = (0..QUEUES).map(|number| Guest::new(number, rng.fork())).collect();
        Self { host, daemons, guests, rng, tally: Tally::default() }
    }

    /// Works, has the daemon killed after so many completions, and another one started.
    fn work_until_killed(&mut self, driver: &mut BlkDriver, daemon: &mut Daemon) {
        let wanted = self.rng.below(4 * u64::from(SLOTS));
        let later = Duration::from_micros(self.rng.below(1500));
        let (done, killed) = (&AtomicU64::new(0), &AtomicBool::new(false));
        thread::scope(|scope| {
            let threads: Vec<_> = self
                .guests
                .iter_mut()
                .zip(&mut driver.queues)
                .map(|(guest, queue)| scope.spawn(move || guest.work(queue, done, killed)))
                .collect();
            let begun = Instant::now();
            while done.load(Ordering::Relaxed) < wanted && !threads.iter().any(ScopedJoinHandle::is_finished)
            {
                assert!(begun.elapsed() < PATIENCE, "{wanted} requests are not done");
                thread::sleep(Duration::from_micros(50));
            }
            thread::sleep(later);
            let kill = (self.host, self.tally.kills);
            self.daemons.replace(daemon, kill, &mut self.tally);
            killed.store(true, Ordering::Relaxed);
        });
        self.tally.done += done.load(Ordering::Relaxed);
        let lost = driver.queues.iter().map(|queue| u64::from(queue.queue().ring().in_flight()));
        self.tally.lost += lost.sum::<u64>();
        self.tally.begun += driver.session.begun().expect("the record") as u64;
    }

    fn run(mut self, kills: u64) -> Tally {
        let mut daemon = self.daemons.start();
        let options = Options {
            queues: QUEUES,
            queue_size: QUEUE_SIZE,
            slots: SLOTS,
            buffer: EXTENT as usize * 512,
            ..Options::blk()
        };
        let mut driver = BlkDriver::connect(&self.daemons.socket(), &options).expect("a disk");
        assert!(driver.session.tracks_inflight());
        for _ in 0..kills {
            self.work_until_killed(&mut driver, &mut daemon);
            driver.reconnect(&self.daemons.socket()).expect("the daemon came back");
        }
        for (guest, queue) in self.guests.iter_mut().zip(&mut driver.queues) {
            guest.finish(queue);
        }
        daemon.signal("TERM");
        let (status, report, complaints) = daemon.end();
        assert_eq!((status.code(), &*complaints), (Some(0), ""), "{report}");
        let image = File::open(&self.daemons.image).expect("the image");
        let mut bytes = vec![0; EXTENT as usize * 512];
        for slot in self.guests.iter().flat_map(|guest| &guest.slots) {
            image.read_exact_at(&mut bytes, slot.first * 512).expect("the image");
            slot.check(&bytes);
        }
        // A daemon's start takes as long as it waits for what the one before has left.
        println!("{}: {:?}, slowest start {:?}", self.daemons.pipeline, self.tally, self.daemons.slowest);
        self.tally
    }
}

/// Keeps the image's inode for as long as one long write takes. The file is as long as before when that is over.
fn hold(image: &Path) {
    let file = File::options().write(true).open(image).expect("the image");
    file.write_at(&vec![0; HOLD], SECTORS * 512).expect("room");
    file.set_len(SECTORS * 512).expect("the image");
}

/// Whether a thread of that process still has the file.
fn has_open(process: u32, file: &Path) -> bool {
    let list = |path: PathBuf| fs::read_dir(path).into_iter().flatten().flatten();
    let has = |task: fs::DirEntry| {
        list(task.path().join("fd")).any(|fd| fs::read_link(fd.path()).is_ok_and(|open| open == file))
    };
    list(format!("/proc/{process}/task").into()).any(has)
}

/// Whoever is to hold the image up may begin too late where the machine has much else to do.
const TRIES: usize = 3;

/// Kills the daemon of that pipeline again and again, over an image in the folder of the build: what lies in memory has no hazard.
fn survive(below: &str) {
    survive_on(Host::Quick, below, KILLS);
}

fn survive_on(host: Host, below: &str, kills: u64) {
    let seed = seed_or(0x5_1911);
    println!("{}", Seed(seed));
    let mut tally = Tally::default();
    for _ in 0..TRIES {
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a temporary folder");
        let image = folder.path().join("disk.img");
        if let Err(reason) = available(below, &image) {
            return skipped(format_args!("{below}: {reason}"));
        }
        tally = Campaign::new(below, &image, host, seed).run(rounds_or(kills));
        assert!(tally.lost >= tally.kills && tally.begun >= tally.kills, "it was killed idle: {tally:?}");
        if host == Host::Quick || tally.outlived > 0 {
            return;
        }
    }
    panic!("nothing was held up: {tally:?}");
}

/// What the host lacks for that pipeline.
fn available(below: &str, probe: &Path) -> Result<(), String> {
    if below.contains("direct=on") {
        fs::write(probe, [0; 4096]).map_err(|error| error.to_string())?;
        let config = FileConfig { direct: Direct::On, ..FileConfig::new(probe) };
        FileBackend::open(config).map_err(|error| error.to_string())?;
    }
    if below.contains("engine=uring") {
        IoUring::new(2).map_err(|error| format!("no io_uring: {error}"))?;
    }
    Ok(())
}

#[test]
fn a_file_as_it_comes() {
    survive("file,path=IMAGE");
}

#[test]
fn a_file_with_threads() {
    survive("file,path=IMAGE,engine=threads");
}

#[test]
fn a_file_that_bypasses_the_cache() {
    survive("file,path=IMAGE,direct=on");
}

#[test]
fn a_file_that_bypasses_the_cache_with_threads() {
    survive("file,path=IMAGE,engine=threads,threads=32,direct=on");
}

#[test]
fn a_file_that_bypasses_the_cache_with_a_ring() {
    survive("file,path=IMAGE,engine=uring,direct=on");
}

/// With a cache of its own nothing holds a write up but its way to the disk.
#[test]
fn a_file_with_a_cache_that_is_flushed() {
    survive("file,path=IMAGE,engine=uring,direct=on,cache=write-back");
}

/// The dead one's writes wait in the kernel for the image, uninterruptibly, and land long after it was killed.
#[test]
fn a_write_that_outlives_its_daemon() {
    survive_on(Host::Slow, "file,path=IMAGE,engine=threads,threads=32,direct=on", 8);
    survive_on(Host::Slow, "file,path=IMAGE,engine=uring,direct=on", 8);
}
