//! Each request comes home exactly once, out of `poll`, with the tag and the memory that it had.

use super::{Bench, Profile, Rule, ensure, new_driver, words};
use crate::backend::{Backend, Queue};
use crate::dma::{Access, DmaSpace, DmaView, SgLimits, SgPool};
use crate::pipeline::{BoxBackend, BoxQueue};
use crate::request::block::{BlockOp, BlockOutput, BlockRequest, SECTOR};
use crate::request::{Completions, Depth, Request, Tag};
use crate::stage::SlotTable;
use crate::test_utils::rng::Rng;
use crate::test_utils::workload::{Workload, WorkloadConfig};
use crate::worker::{Worker, WorkerConfig};
use std::time::{Duration, Instant};

/// The rules of this module.
pub const RULES: &[Rule] =
    &[("once/each", each), ("once/full-depth", full_depth), ("once/many-workers", many_workers)];

/// A client that keeps its own books and trusts nobody.
struct Strict {
    worker: Worker,
    queue: BoxQueue<BlockRequest>,
    view: DmaView,
    pool: SgPool,
    books: SlotTable<Entry>,
    done: Completions<BlockRequest>,
    block: u64,
    patience: Duration,
}

/// A request as it was submitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    op: BlockOp,
    offset: u64,
    len: u64,
    /// Where its memory begins: a request is known by it even under another tag.
    memory: Option<*mut u8>,
}

impl Entry {
    fn of(request: &BlockRequest) -> Self {
        let memory = request.sg().as_iovecs().first().map(crate::dma::IoVec::as_ptr);
        Self { op: request.op(), offset: request.offset(), len: request.len(), memory }
    }
}

impl Strict {
    fn open(backend: &BoxBackend<BlockRequest>, depth: u32, profile: &Profile) -> Result<Self, String> {
        let depth = Depth::new(depth).ok_or("no such depth")?;
        let block = u64::from(backend.caps().logical_block);
        let space = DmaSpace::anonymous(&[(0, block * depth.get() as u64)]).map_err(words)?;
        let mut worker = Worker::new(WorkerConfig::default()).map_err(words)?;
        let queue = worker.with_context(|cx| backend.open(cx, depth)).map_err(words)?;
        Ok(Self {
            worker,
            queue,
            view: space.view(),
            pool: SgPool::new(depth.get(), SgLimits::default()),
            books: SlotTable::new(depth),
            done: Completions::with_depth(depth),
            block,
            patience: profile.patience,
        })
    }

    fn submit(&mut self, tag: Tag, op: BlockOp) -> Result<(), String> {
        let mut sg = self.pool.take();
        sg.arm(tag.get());
        let access = if op == BlockOp::Read { Access::Write } else { Access::Read };
        let request = if op == BlockOp::Flush {
            BlockRequest::flush(tag, sg)
        } else {
            let addr = self.block * tag.index() as u64;
            sg.push(&self.view, addr, self.block, access).map_err(words)?;
            BlockRequest::transfer(op, tag, 0, sg).map_err(|refused| refused.error.to_string())?
        };
        self.books.insert(tag, Entry::of(&request));
        let Self { worker, queue, .. } = self;
        worker.with_context(|cx| queue.submit(cx, request));
        self.check_count("after a submission")
    }

    fn check_count(&self, when: &str) -> Result<(), String> {
        let (theirs, ours) = (self.queue.in_flight(), self.books.len());
        ensure!(theirs == ours, "{when} the queue counts {theirs} requests in flight where {ours} are");
        Ok(())
    }

    /// One poll; says how many came home.
    fn poll(&mut self) -> Result<usize, String> {
        let Self { worker, queue, done, books, pool, .. } = self;
        worker.with_context(|cx| {
            queue.kick(cx);
            queue.poll(cx, done);
        });
        let count = done.len();
        for completion in done.drain() {
            let (tag, found) = (completion.request.tag(), Entry::of(&completion.request));
            let entry = books
                .take(tag)
                .ok_or_else(|| format!("a request came home under tag {tag:?}, which is not in flight"))?;
            ensure!(entry == found, "under tag {tag:?} {entry:?} was submitted and {found:?} came home");
            ensure!(completion.output == BlockOutput::Done, "{found:?} gave {:?}", completion.output);
            pool.put(completion.request.into_sg());
        }
        let mut lost = Vec::new();
        pool.take_lost(&mut lost);
        ensure!(lost.is_empty(), "the requests with the tags {lost:?} were dropped instead of completed");
        self.check_count("after a poll")?;
        Ok(count)
    }

    fn wait(&mut self, target: usize) -> Result<(), String> {
        let mut since = Instant::now();
        while self.books.len() > target {
            if self.poll()? > 0 {
                since = Instant::now();
                continue;
            }
            let left = self.books.len();
            ensure!(since.elapsed() < self.patience, "{left} requests did not come home: {:?}", self.first());
            self.worker.run_within(Duration::from_millis(1)).map_err(words)?;
        }
        Ok(())
    }

    fn first(&self) -> Option<(Tag, Entry)> {
        self.books.iter().next().map(|(tag, entry)| (tag, *entry))
    }

    /// Nothing more comes home than was submitted.
    fn expect_silence(&mut self) -> Result<(), String> {
        for _ in 0..8 {
            ensure!(self.poll()? == 0, "something came home with nothing in flight");
            self.worker.run().map_err(words)?;
        }
        Ok(())
    }
}

fn pick_op(rng: &mut Rng, read_only: bool) -> BlockOp {
    match rng.below(4) {
        0 => BlockOp::Flush,
        1 | 2 if !read_only => BlockOp::Write,
        _ => BlockOp::Read,
    }
}

fn each(bench: &mut Bench<'_>) -> Result<u64, String> {
    let backend = bench.backend();
    let (read_only, depth) = (backend.caps().read_only, bench.profile.depth);
    let mut client = Strict::open(&backend, depth, bench.profile)?;
    let mut submitted = 0;
    while submitted < bench.profile.rounds * 16 {
        for _ in 0..bench.rng.between(1, 4) {
            let tag = Tag::new(bench.rng.below(u64::from(depth)) as u32);
            if client.books.get(tag).is_none() {
                client.submit(tag, pick_op(&mut bench.rng, read_only))?;
                submitted += 1;
            }
        }
        client.poll()?;
        if client.books.len() == depth as usize {
            client.wait(depth as usize / 2)?;
        }
    }
    client.wait(0)?;
    client.expect_silence()?;
    Ok(submitted)
}

fn full_depth(bench: &mut Bench<'_>) -> Result<u64, String> {
    let backend = bench.backend();
    let read_only = backend.caps().read_only;
    let mut cases = 0;
    for depth in [1, 2, bench.profile.depth] {
        let mut client = Strict::open(&backend, depth, bench.profile)?;
        let mut tags: Vec<u32> = (0..depth).collect();
        for _ in 0..bench.profile.rounds.div_ceil(8) {
            bench.rng.shuffle(&mut tags);
            for &tag in &tags {
                client.submit(Tag::new(tag), pick_op(&mut bench.rng, read_only))?;
            }
            client.wait(0)?;
            cases += u64::from(depth);
        }
        client.expect_silence()?;
    }
    Ok(cases)
}

fn many_workers(bench: &mut Bench<'_>) -> Result<u64, String> {
    let (backend, profile) = (bench.backend(), bench.profile);
    let caps = (*backend.caps()).clone();
    let block = u64::from(caps.logical_block) / SECTOR;
    let share = (caps.capacity / SECTOR / block / profile.workers as u64).min(256) * block;
    if caps.read_only || share == 0 {
        return Ok(0);
    }
    let work = |index: usize, seed: u64| -> Result<u64, String> {
        let mut driver = new_driver(seed, profile)?;
        driver.open(&backend, profile.depth).map_err(words)?;
        let first = index as u64 * share;
        let config = WorkloadConfig {
            sectors: first..first + share,
            keeps_data: profile.keeps_data,
            ..WorkloadConfig::new(&caps, 1)
        };
        let mut load = Workload::new(config, &caps, seed);
        load.run(&mut driver, profile.rounds * 4).map_err(words)?;
        load.finish(&mut driver).map_err(words)?;
        if profile.keeps_data {
            load.verify(&mut driver).map_err(words)?;
        }
        Ok(load.finished())
    };
    let seeds: Vec<u64> = (0..profile.workers).map(|_| bench.rng.next_u64()).collect();
    std::thread::scope(|scope| {
        let work = &work;
        let spawn = |(index, &seed): (usize, &u64)| scope.spawn(move || super::guarded(|| work(index, seed)));
        let threads: Vec<_> = seeds.iter().enumerate().map(spawn).collect();
        let mut cases = 0;
        for (index, thread) in threads.into_iter().enumerate() {
            let result = thread.join().map_err(|_| "a worker's thread panicked".to_string())?;
            cases += result.map_err(|error| format!("worker {index}: {error}"))?;
        }
        Ok(cases)
    })
}
