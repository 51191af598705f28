//! Tests against the host's real files, devices and tools.

mod conformance;
mod direct;
mod errors;
mod io;
mod life;
mod locks;

use super::*;
use iovirt_core::dma::{SgLimits, SgList, SgPool};
use iovirt_core::request::block::{BlockFlags, BlockOp, BlockOutput, BlockRequest};
use iovirt_core::test_utils::skipped;
use iovirt_core::worker::UringPolicy;
use iovirt_core::{
    Backend, BackendError, Completions, Depth, Mode, Queue, Request, Tag, Worker, WorkerConfig,
};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const DEPTH: u32 = 16;
const LIMIT: Duration = Duration::from_secs(20);

/// A worker with one queue, driven by hand.
struct Rig {
    // The queue goes before its worker.
    queue: FileQueue,
    worker: Worker,
    pool: SgPool,
    done: Completions<BlockRequest>,
    next: u32,
}

impl Rig {
    fn new(backend: &FileBackend) -> Self {
        Self::with_policy(backend, UringPolicy::default()).expect("a queue")
    }

    fn with_policy(backend: &FileBackend, uring: UringPolicy) -> Result<Self, BackendError> {
        let depth = Depth::new(DEPTH).expect("a depth");
        let mut worker = Worker::new(WorkerConfig { uring, ..WorkerConfig::default() }).expect("a worker");
        let queue = worker.with_context(|cx| backend.open(cx, depth))?;
        let pool = SgPool::new(depth.get(), SgLimits::default());
        Ok(Self { queue, worker, pool, done: Completions::with_depth(depth), next: 0 })
    }

    fn tag(&mut self) -> Tag {
        self.next = (self.next + 1) % DEPTH;
        Tag::new(self.next)
    }

    /// Host memory of `len` bytes that begins `skew` bytes behind a page, in `pieces` pieces.
    fn memory(&mut self, len: usize, skew: usize, pieces: usize) -> Box<SgList> {
        let mut list = self.pool.take();
        let mut left = len;
        for piece in (1..=pieces).rev() {
            let part = if piece == 1 { left } else { (left / piece).next_multiple_of(512).min(left) };
            let mut whole = SgList::new();
            whole.push_host(part + skew).expect("room");
            whole.trim_front(skew as u64);
            whole.slice_into(0, part as u64, &mut list).expect("room");
            left -= part;
        }
        list
    }

    fn submit(&mut self, request: BlockRequest) {
        let Self { worker, queue, .. } = self;
        worker.with_context(|cx| queue.submit(cx, request));
    }

    fn turn(&mut self) {
        let Self { worker, queue, done, .. } = self;
        worker.with_context(|cx| {
            queue.kick(cx);
            queue.poll(cx, done);
        });
    }

    /// Runs until nothing is in flight.
    fn finish(&mut self) {
        let end = Instant::now() + LIMIT;
        self.turn();
        while self.queue.in_flight() > 0 {
            assert!(Instant::now() < end, "requests do not come home: {:?}", self.queue);
            self.worker.run_within(Duration::from_millis(20)).expect("run");
            let Self { worker, queue, done, .. } = self;
            worker.with_context(|cx| queue.poll(cx, done));
        }
    }

    fn run(&mut self, request: BlockRequest) -> (BlockOutput, BlockRequest) {
        let tag = request.tag();
        self.submit(request);
        self.finish();
        let mut list = self.done.drain();
        let completion = list.next().expect("one completion");
        assert!(list.next().is_none());
        assert_eq!(completion.request.tag(), tag);
        (completion.output, completion.request)
    }

    fn write_skewed(&mut self, offset: u64, data: &[u8], skew: usize, pieces: usize) -> BlockOutput {
        self.write_flagged(offset, data, skew, pieces, BlockFlags::empty())
    }

    fn write_flagged(
        &mut self,
        offset: u64,
        data: &[u8],
        skew: usize,
        pieces: usize,
        flags: BlockFlags,
    ) -> BlockOutput {
        let mut sg = self.memory(data.len(), skew, pieces);
        sg.copy_from(0, data).expect("fits");
        let tag = self.tag();
        let request =
            BlockRequest::transfer(BlockOp::Write, tag, offset, sg).expect("a range").with_flags(flags);
        let (output, request) = self.run(request);
        self.pool.put(request.into_sg());
        output
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> BlockOutput {
        self.write_skewed(offset, data, 0, 1)
    }

    fn read_skewed(&mut self, offset: u64, len: usize, skew: usize, pieces: usize) -> (BlockOutput, Vec<u8>) {
        let sg = self.memory(len, skew, pieces);
        let tag = self.tag();
        let (output, request) =
            self.run(BlockRequest::transfer(BlockOp::Read, tag, offset, sg).expect("a range"));
        let mut bytes = vec![0; len];
        request.sg().copy_to(0, &mut bytes).expect("fits");
        self.pool.put(request.into_sg());
        (output, bytes)
    }

    fn read(&mut self, offset: u64, len: usize) -> Vec<u8> {
        let (output, bytes) = self.read_skewed(offset, len, 0, 1);
        assert_eq!(output, BlockOutput::Done);
        bytes
    }

    fn ranged(&mut self, op: BlockOp, offset: u64, len: u64, flags: BlockFlags) -> BlockOutput {
        let (tag, sg) = (self.tag(), self.pool.take());
        let request = BlockRequest::ranged(op, tag, offset, len, sg).expect("a range").with_flags(flags);
        let (output, request) = self.run(request);
        self.pool.put(request.into_sg());
        output
    }

    fn flush(&mut self) -> BlockOutput {
        let (tag, sg) = (self.tag(), self.pool.take());
        let (output, request) = self.run(BlockRequest::flush(tag, sg));
        self.pool.put(request.into_sg());
        output
    }

    fn drain(&mut self) {
        let Self { worker, queue, done, .. } = self;
        worker.with_context(|cx| queue.drain(cx));
        let end = Instant::now() + LIMIT;
        while queue.mode() != Mode::Quiesced {
            assert!(Instant::now() < end, "does not come to rest: {queue:?}");
            worker.run_within(Duration::from_millis(20)).expect("run");
            worker.with_context(|cx| queue.poll(cx, done));
        }
    }
}

/// Every way in which system calls are made, for a file in a folder on a disk or in memory.
fn engines() -> [(Engine, Inline, UringPolicy); 5] {
    [
        (Engine::Auto, Inline::Auto, UringPolicy::default()),
        (Engine::Auto, Inline::Off, UringPolicy::default()),
        (Engine::Auto, Inline::Off, UringPolicy::Off),
        (Engine::Threads, Inline::Off, UringPolicy::default()),
        (Engine::Auto, Inline::On, UringPolicy::default()),
    ]
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a folder")
}

/// A folder in memory, where the host has one.
fn memory_folder() -> Option<tempfile::TempDir> {
    tempfile::tempdir_in("/dev/shm").ok()
}

fn image(folder: &tempfile::TempDir, bytes: u64) -> PathBuf {
    let path = folder.path().join("disk.img");
    std::fs::File::create(&path).expect("an image").set_len(bytes).expect("a size");
    path
}

fn open(path: &Path) -> FileBackend {
    FileBackend::open(FileConfig::new(path)).expect("a back-end")
}

fn pattern(seed: usize, len: usize) -> Vec<u8> {
    (0..len).map(|index| (index.wrapping_mul(31) ^ (index >> 9) ^ seed.wrapping_mul(97)) as u8).collect()
}

fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|metadata| std::os::unix::fs::MetadataExt::uid(&metadata) == 0)
}

/// Runs a program; what it printed, and whether it succeeded. `None` where it is not installed.
fn tool(program: &str, arguments: &[&str]) -> Option<(bool, String)> {
    let output = std::process::Command::new(program).args(arguments).output().ok()?;
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    Some((output.status.success(), text))
}

/// A loop device over an image, gone with this value.
struct Loop {
    path: PathBuf,
}

impl Loop {
    /// `None`, with a line that says so, where this host does not allow one.
    fn new(image: &Path, block: u32) -> Option<Self> {
        if !is_root() {
            skipped("a loop device takes root");
            return None;
        }
        let (block, image) = (block.to_string(), image.to_string_lossy());
        match tool("losetup", &["--find", "--show", "--sector-size", &block, &image]) {
            Some((true, path)) => Some(Self { path: path.trim().into() }),
            other => {
                skipped(format_args!("this host gives no loop device: {other:?}"));
                None
            }
        }
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = tool("losetup", &["--detach", &self.path.to_string_lossy()]);
    }
}
