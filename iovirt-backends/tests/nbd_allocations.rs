//! The `nbd` back-end allocates nothing per request once it is warm.

use iovirt_backends::block::nbd::{NbdAddress, NbdBackend, NbdConfig};
use iovirt_core::dma::{SgLimits, SgPool};
use iovirt_core::prelude::*;
use iovirt_core::request::block::{BlockOp, BlockOutput, BlockRequest};
use iovirt_core::test_utils::{CountingAllocator, count_all_allocations, skipped};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::Duration;

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator::new();

const DEPTH: u32 = 16;

fn request(tag: u32, mut sg: Box<iovirt_core::dma::SgList>) -> BlockRequest {
    if tag == DEPTH - 1 {
        return BlockRequest::flush(Tag::new(tag), sg);
    }
    // Writes are larger than what a socket takes at once, so that they wait for room.
    let (op, len) = if tag.is_multiple_of(2) { (BlockOp::Read, 4096) } else { (BlockOp::Write, 256 << 10) };
    // Lists come back in any order: each has the largest buffer from the beginning.
    sg.push_host(256 << 10).expect("room");
    sg.trim_back((256 << 10) - len);
    BlockRequest::transfer(op, Tag::new(tag), u64::from(tag) * 4096, sg).expect("a range")
}

#[test]
fn nothing_is_allocated_per_request() {
    let folder = tempfile::tempdir().expect("a folder");
    let socket = folder.path().join("s");
    let server = Command::new("nbdkit").arg("-f").arg("-U").arg(&socket).args(["memory", "1M"]).spawn();
    let Ok(mut server) = server else {
        skipped("nbdkit is not installed");
        return;
    };
    while UnixStream::connect(&socket).is_err() {
        std::thread::sleep(Duration::from_millis(5));
    }
    let backend = NbdBackend::connect(NbdConfig::new(NbdAddress::Unix(socket))).expect("a back-end");
    let depth = Depth::new(DEPTH).expect("a depth");
    let mut worker = Worker::new(WorkerConfig::default()).expect("a worker");
    let mut queue = worker.with_context(|cx| backend.open(cx, depth)).expect("a queue");
    let mut pool = SgPool::new(depth.get(), SgLimits::default());
    let mut done = Completions::with_depth(depth);
    let mut rounds = |count: u32| {
        for _ in 0..count {
            worker.with_context(|cx| {
                for tag in 0..DEPTH {
                    queue.submit(cx, request(tag, pool.take()));
                }
                queue.kick(cx);
                queue.poll(cx, &mut done);
            });
            while queue.in_flight() > 0 {
                worker.run_within(Duration::from_millis(20)).expect("run");
                worker.with_context(|cx| queue.poll(cx, &mut done));
            }
            for completion in done.drain() {
                assert_eq!(completion.output, BlockOutput::Done);
                pool.put(completion.request.into_sg());
            }
        }
    };
    rounds(20);
    let (count, ()) = count_all_allocations(|| rounds(100));
    assert_eq!(count.allocations, 0, "{count:?}");
    server.kill().expect("the server's end");
    server.wait().expect("the server's end");
}
