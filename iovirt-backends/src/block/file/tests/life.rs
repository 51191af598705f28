//! Drain, resize, being dropped, and being run by a worker's thread.

use super::*;
use crate::block::file::disk::Disk;
use iovirt_core::WorkerThread;
use iovirt_core::pipeline::{BoxBackend, Event, EventListener};
use iovirt_core::request::block::BlockError;
use iovirt_core::worker::{Lane, Turn};
use iovirt_core::{Clock, WorkerContext};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};

const SIZE: u64 = 4 << 20;

#[test]
fn a_drained_queue_is_at_rest_and_comes_back() {
    for folder in [Some(folder()), memory_folder()].into_iter().flatten() {
        for (engine, inline, uring) in engines() {
            let path = image(&folder, SIZE);
            let config = FileConfig { engine, inline, cache: Cache::WriteBack, ..FileConfig::new(&path) };
            let backend = FileBackend::open(config).expect("a back-end");
            let mut rig = Rig::with_policy(&backend, uring).expect("a queue");
            assert_eq!(rig.queue.mode(), Mode::Running);
            for tag in 0..DEPTH {
                let sg = rig.memory(256 << 10, 0, 1);
                rig.submit(BlockRequest::transfer(BlockOp::Write, Tag::new(tag), 0, sg).expect("a range"));
            }
            rig.turn();
            rig.drain();
            assert_eq!((rig.queue.in_flight(), rig.done.len()), (0, DEPTH as usize));
            rig.done.drain().for_each(drop);
            // What comes now is still served, and the queue comes to rest again by itself.
            assert_eq!(rig.write(0, &[3; 512]), BlockOutput::Done);
            rig.drain();
            let Rig { worker, queue, .. } = &mut rig;
            worker.with_context(|cx| queue.resume(cx));
            assert_eq!(rig.queue.mode(), Mode::Running);
            assert_eq!(rig.read(0, 512), vec![3; 512]);
        }
    }
}

#[test]
fn a_queue_that_is_dropped_leaves_memory_to_the_host() {
    for direct in [Direct::Off, Direct::On] {
        for (engine, inline, uring) in engines() {
            let folder = folder();
            let path = image(&folder, SIZE);
            let config = FileConfig { direct, engine, inline, ..FileConfig::new(&path) };
            let backend = FileBackend::open(config).expect("a back-end");
            for _ in 0..10 {
                let mut rig = Rig::with_policy(&backend, uring).expect("a queue");
                for tag in 0..DEPTH {
                    let op = if tag % 2 == 0 { BlockOp::Read } else { BlockOp::Write };
                    let sg = rig.memory(64 << 10, (tag as usize % 3) * 512, 2);
                    rig.submit(BlockRequest::transfer(op, Tag::new(tag), 0, sg).expect("a range"));
                }
                rig.turn();
                let Rig { queue, worker, pool, .. } = rig;
                drop(queue);
                drop(pool);
                drop(worker);
            }
            let mut rig = Rig::with_policy(&backend, uring).expect("a queue");
            assert_eq!(rig.write(0, &[3; 512]), BlockOutput::Done);
        }
    }
}

#[derive(Debug, Default)]
struct Heard(AtomicUsize);

impl EventListener for Heard {
    fn event(&self, event: Event) {
        assert_eq!(event, Event::Resized);
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

#[test]
fn a_disk_grows_and_shrinks_under_its_guest() {
    for direct in [Direct::Off, Direct::On] {
        let folder = folder();
        let path = image(&folder, SIZE);
        let backend = BoxBackend::new(
            FileBackend::open(FileConfig { direct, ..FileConfig::new(&path) }).expect("a back-end"),
        );
        let depth = Depth::new(DEPTH).expect("a depth");
        let control = backend.list_stages().control::<FileControl>("file").expect("a handle");
        let heard = Arc::new(Heard::default());
        let listener: Arc<dyn EventListener> = heard.clone();
        backend.subscribe(&listener);
        let mut worker = Worker::new(WorkerConfig::default()).expect("a worker");
        let mut queue = worker.with_context(|cx| backend.open(cx, depth)).expect("a queue");
        let mut pool = SgPool::new(1, SgLimits::default());
        let mut write_end = |offset: u64| {
            let mut sg = pool.take();
            sg.push_host(512).expect("room");
            let request = BlockRequest::transfer(BlockOp::Write, Tag::new(0), offset, sg).expect("a range");
            let mut done = Completions::with_depth(depth);
            worker.with_context(|cx| {
                queue.submit(cx, request);
                queue.kick(cx);
                queue.poll(cx, &mut done);
            });
            while done.is_empty() {
                worker.run_within(Duration::from_millis(20)).expect("run");
                worker.with_context(|cx| queue.poll(cx, &mut done));
            }
            done.drain().next().map(|completion| completion.output).expect("one")
        };
        assert_eq!(write_end(SIZE), BlockOutput::Failed(BlockError::OutOfRange));
        assert_eq!(control.resize(2 * SIZE).expect("grows"), 2 * SIZE);
        assert_eq!((heard.0.load(Ordering::SeqCst), backend.caps().capacity), (1, 2 * SIZE));
        assert_eq!(write_end(SIZE), BlockOutput::Done);
        assert_eq!(control.resize(SIZE / 2).expect("shrinks"), SIZE / 2);
        assert_eq!(write_end(SIZE / 2), BlockOutput::Failed(BlockError::OutOfRange));
        assert_eq!(std::fs::metadata(&path).expect("the image").len(), SIZE / 2);
        // From outside.
        let file = std::fs::OpenOptions::new().write(true).open(&path).expect("the image");
        file.set_len(SIZE + 100).expect("grows");
        assert_eq!(control.refresh().expect("a size"), SIZE);
        assert_eq!(control.refresh().expect("a size"), SIZE);
        assert_eq!(heard.0.load(Ordering::SeqCst), 3, "nothing is told twice");
        assert_eq!(write_end(SIZE - 512), BlockOutput::Done);
        for wrong in [0, 100, 513] {
            let error = control.resize(wrong).expect_err("refused").to_string();
            assert!(error.contains("multiples of"), "{error}");
        }
        assert!(control.resize(1 << 62).is_err(), "more than the file system takes");
        assert_eq!(control.capacity(), SIZE);
    }
}

#[test]
fn a_device_is_as_large_as_it_is() {
    let folder = folder();
    let path = image(&folder, SIZE);
    let Some(device) = Loop::new(&path, 512) else { return };
    let backend = open(&device.path);
    let control = backend.control();
    assert!(control.resize(SIZE * 2).expect_err("refused").to_string().contains("block device"));
    std::fs::OpenOptions::new().write(true).open(&path).expect("the image").set_len(SIZE * 2).expect("grows");
    let (fine, text) = tool("losetup", &["--set-capacity", &device.path.to_string_lossy()]).expect("runs");
    assert!(fine, "{text}");
    assert_eq!(control.refresh().expect("a size"), SIZE * 2);
    let mut rig = Rig::new(&backend);
    assert_eq!(rig.write(SIZE * 2 - 512, &[1; 512]), BlockOutput::Done);
}

/// Writes one sector after another, eight at a time, on a worker's own thread.
struct Writer {
    queue: FileQueue,
    pool: SgPool,
    done: Completions<BlockRequest>,
    next: u32,
    finished: u32,
    report: mpsc::Sender<u32>,
}

impl Writer {
    const ALL: u32 = 2000;

    fn submit(&mut self, cx: &mut WorkerContext<'_>, tag: Tag) {
        if self.next < Self::ALL {
            let mut sg = self.pool.take();
            sg.push_host(512).expect("room");
            sg.copy_from(0, &pattern(self.next as usize, 512)).expect("fits");
            let offset = u64::from(self.next) * 512;
            self.next += 1;
            self.queue.submit(cx, BlockRequest::transfer(BlockOp::Write, tag, offset, sg).expect("a range"));
        }
    }
}

impl Lane for Writer {
    fn turn(&mut self, cx: &mut WorkerContext<'_>) -> Turn {
        if self.next == 0 {
            (0..8).for_each(|tag| self.submit(cx, Tag::new(tag)));
        }
        self.queue.kick(cx);
        let mut done =
            std::mem::replace(&mut self.done, Completions::with_depth(Depth::new(8).expect("a depth")));
        self.queue.poll(cx, &mut done);
        let more = !done.is_empty();
        for completion in done.drain() {
            assert_eq!(completion.output, BlockOutput::Done);
            self.finished += 1;
            let tag = completion.request.tag();
            self.pool.put(completion.request.into_sg());
            self.submit(cx, tag);
        }
        if self.finished == Self::ALL {
            let _ = self.report.send(self.finished);
            return Turn::Finished;
        }
        if more { Turn::Again } else { Turn::Idle }
    }
}

#[test]
fn a_worker_is_woken_for_every_engine() {
    for folder in [Some(folder()), memory_folder()].into_iter().flatten() {
        for (engine, inline, uring) in engines() {
            let path = image(&folder, SIZE);
            let config = FileConfig { engine, inline, cache: Cache::WriteBack, ..FileConfig::new(&path) };
            let backend = Arc::new(FileBackend::open(config).expect("a back-end"));
            let thread = WorkerThread::spawn("test", WorkerConfig { uring, ..WorkerConfig::default() })
                .expect("a thread");
            let (report, reports) = mpsc::channel();
            thread.handle().add_lane(move |cx| {
                let depth = Depth::new(8).expect("a depth");
                let queue = backend.open(cx, depth).expect("a queue");
                let pool = SgPool::new(8, SgLimits::default());
                let done = Completions::with_depth(depth);
                Some(Box::new(Writer { queue, pool, done, next: 0, finished: 0, report }))
            });
            assert_eq!(reports.recv_timeout(LIMIT), Ok(Writer::ALL), "{engine:?} {inline:?}");
            drop(thread);
            let file = std::fs::read(&path).expect("the image");
            for sector in 0..Writer::ALL as usize {
                assert!(file[sector * 512..(sector + 1) * 512] == pattern(sector, 512));
            }
        }
    }
}

#[test]
fn the_worker_is_held_for_a_bounded_time() {
    let Some(folder) = memory_folder() else { return };
    let path = image(&folder, 256 << 20);
    let backend = open(&path);
    let mut rig = Rig::new(&backend);
    let clock = iovirt_core::worker::MonotonicClock::new();
    for tag in 0..8 {
        let sg = rig.memory(16 << 20, 0, 1);
        rig.submit(
            BlockRequest::transfer(BlockOp::Write, Tag::new(tag), u64::from(tag) << 24, sg).expect("a range"),
        );
    }
    rig.turn();
    assert!(rig.done.len() < 8 && rig.queue.in_flight() > 0, "the rest goes on in later turns");
    let start = clock.now();
    rig.finish();
    assert_eq!(rig.done.len(), 8);
    assert!(clock.now().since(start) < LIMIT);
}

#[test]
fn a_new_size_waits_for_a_flush() {
    let folder = folder();
    let path = image(&folder, SIZE);
    let file = std::fs::File::options().read(true).write(true).open(&path).expect("the image");
    let disk = Arc::new(Disk::open(file, FileConfig::new(&path)).expect("a disk"));
    if disk.is_memory() {
        skipped("what lies in memory needs no flush");
        return;
    }
    disk.synced(disk.writes());
    assert_eq!(disk.flush_now(), Some(BlockOutput::Done));
    FileControl::new(disk.clone()).resize(2 * SIZE).expect("grows");
    assert_eq!(disk.flush_now(), None);
}

/// With `O_NONBLOCK`, io_uring takes every file for one that can be asked not to wait, and waits for those that cannot.
#[test]
fn the_file_is_not_left_non_blocking() {
    let folder = folder();
    let path = image(&folder, SIZE);
    let _backend = open(&path);
    let flags = std::fs::read_dir("/proc/self/fd").expect("descriptors").flatten().find_map(|fd| {
        let is_it = std::fs::read_link(fd.path()).is_ok_and(|target| target == path);
        let info = std::fs::read_to_string(Path::new("/proc/self/fdinfo").join(fd.file_name())).ok()?;
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:"))?.trim().to_owned();
        is_it.then_some(flags)
    });
    let flags = i32::from_str_radix(&flags.expect("the file is open"), 8).expect("octal");
    assert_eq!(flags & libc::O_NONBLOCK, 0);
}
