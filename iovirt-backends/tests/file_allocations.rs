//! The `file` back-end allocates nothing per request once it is warm, whoever makes its system calls.

use iovirt_backends::block::file::{Cache, Direct, Engine, FileBackend, FileConfig, Inline};
use iovirt_core::dma::{SgLimits, SgPool};
use iovirt_core::prelude::*;
use iovirt_core::request::block::{BlockOp, BlockOutput, BlockRequest};
use iovirt_core::test_utils::{CountingAllocator, count_all_allocations};
use std::time::Duration;

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator::new();

const DEPTH: u32 = 16;

/// Reads and writes at full depth, and a flush after each round.
fn rounds(
    count: u64,
    worker: &mut Worker,
    queue: &mut impl Queue<BlockRequest>,
    pool: &mut SgPool,
    done: &mut Completions<BlockRequest>,
) {
    for round in 0..count {
        worker.with_context(|cx| {
            for tag in 0..DEPTH {
                let mut sg = pool.take();
                let tag_of = Tag::new(tag);
                let request = if tag == DEPTH - 1 {
                    BlockRequest::flush(tag_of, sg)
                } else {
                    let op = if (u64::from(tag) + round).is_multiple_of(2) {
                        BlockOp::Read
                    } else {
                        BlockOp::Write
                    };
                    // Not aligned, for direct I/O to go through a copy.
                    sg.push_host(8192 + 512 + 8).expect("room");
                    sg.trim_front(8);
                    BlockRequest::transfer(op, tag_of, u64::from(tag) * 16384 + 512, sg).expect("a range")
                };
                queue.submit(cx, request);
            }
            queue.kick(cx);
            queue.poll(cx, done);
        });
        while queue.in_flight() > 0 {
            worker.run_within(Duration::from_millis(20)).expect("run");
            worker.with_context(|cx| queue.poll(cx, done));
        }
        for completion in done.drain() {
            assert_eq!(completion.output, BlockOutput::Done);
            pool.put(completion.request.into_sg());
        }
    }
}

#[test]
fn nothing_is_allocated_per_request() {
    let disk = tempfile::tempdir().expect("a folder");
    let memory = tempfile::tempdir_in("/dev/shm").ok();
    let ways = [
        (Some(&disk), Engine::Auto, Inline::Off, Direct::Off),
        (Some(&disk), Engine::Threads, Inline::Off, Direct::Off),
        (Some(&disk), Engine::Auto, Inline::On, Direct::Off),
        (Some(&disk), Engine::Auto, Inline::Off, Direct::On),
        (memory.as_ref(), Engine::Auto, Inline::Auto, Direct::Off),
    ];
    for (folder, engine, inline, direct) in ways {
        let Some(folder) = folder else { continue };
        let path = folder.path().join("disk.img");
        std::fs::File::create(&path).expect("an image").set_len(1 << 20).expect("a size");
        let cache = Cache::WriteBack;
        let config = FileConfig { direct, cache, engine, inline, ..FileConfig::new(&path) };
        let backend = FileBackend::open(config).expect("a back-end");
        let depth = Depth::new(DEPTH).expect("a depth");
        let mut worker = Worker::new(WorkerConfig::default()).expect("a worker");
        let mut queue = worker.with_context(|cx| backend.open(cx, depth)).expect("a queue");
        let mut pool = SgPool::new(depth.get(), SgLimits::default());
        let mut done = Completions::with_depth(depth);
        // Threads start, and lists grow to what came at once so far, for some time: a window without any allocation has to
        // come soon.
        let counts: Vec<_> = (0..20)
            .map(|_| count_all_allocations(|| rounds(50, &mut worker, &mut queue, &mut pool, &mut done)).0)
            .collect();
        let quiet = counts.iter().filter(|count| count.allocations == 0).count();
        assert!(quiet >= 10, "{engine:?} {inline:?} {direct:?}: {counts:?}");
    }
}
