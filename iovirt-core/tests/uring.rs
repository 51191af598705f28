//! The worker's ring: files, clients that leave with entries in flight, clients that reap one another's completions.
#![cfg(feature = "test-utils")]
#![expect(
    clippy::redundant_closure_for_method_calls,
    reason = "the method alone is not general enough in its lifetime"
)]

use iovirt_core::prelude::*;
use iovirt_core::worker::io_uring::{opcode, types};
use iovirt_core::worker::{Lane, Reaped, Turn, UringClient, UringPolicy};
use std::cell::RefCell;
use std::fs::File;
use std::io::{PipeReader, PipeWriter, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// A worker with a ring; `None`, with a word, on a host that permits none.
fn worker(entries: u32) -> Option<Worker> {
    let config = WorkerConfig { uring: UringPolicy::Auto { entries }, ..WorkerConfig::default() };
    let mut worker = Worker::new(config).unwrap();
    if worker.with_context(|cx| cx.uring()).is_none() {
        eprintln!("io_uring is not available on this host: nothing was tested");
        return None;
    }
    Some(worker)
}

fn client(worker: &mut Worker) -> UringClient {
    worker.with_context(|cx| cx.uring()).unwrap()
}

/// Runs until `enough`, and fails instead of hanging.
fn run_until(worker: &mut Worker, mut enough: impl FnMut() -> bool) {
    for _ in 0..6000 {
        if enough() {
            return;
        }
        worker.run_within(Duration::from_millis(10)).unwrap();
    }
    panic!("nothing happened any more");
}

fn reap(worker: &mut Worker, client: &UringClient, count: usize) -> Vec<Reaped> {
    let mut reaped = Vec::new();
    run_until(worker, || {
        client.reap(&mut reaped);
        reaped.len() >= count
    });
    reaped.sort_by_key(|entry| entry.slot);
    reaped
}

/// A file that is gone when the test is.
fn temporary(name: &str) -> File {
    let path = std::env::temp_dir().join(format!("iovirt-uring-{name}-{}", std::process::id()));
    let file = File::options().create(true).truncate(true).read(true).write(true).open(&path).unwrap();
    std::fs::remove_file(path).unwrap();
    file
}

fn push_write(client: &UringClient, slot: u32, fd: RawFd, data: &[u8], offset: u64) {
    let entry = opcode::Write::new(types::Fd(fd), data.as_ptr(), data.len() as u32).offset(offset).build();
    // SAFETY: every caller keeps the data and the file until it has reaped the completion.
    unsafe { client.push(slot, entry) };
}

fn push_read(client: &UringClient, slot: u32, fd: RawFd, data: &mut [u8], offset: u64) {
    let entry = opcode::Read::new(types::Fd(fd), data.as_mut_ptr(), data.len() as u32).offset(offset).build();
    // SAFETY: every caller keeps the data and the file until it has reaped the completion, or gives the data to `close`.
    unsafe { client.push(slot, entry) };
}

#[test]
fn a_file_is_written_and_read() {
    let Some(mut worker) = worker(4) else { return };
    let (file, client) = (temporary("file"), client(&mut worker));
    let data: Vec<Vec<u8>> = (0..32_u8).map(|byte| vec![byte; 512]).collect();
    // Eight times as many as the submission queue has room for.
    for (slot, data) in (0..).zip(&data) {
        push_write(&client, slot, file.as_raw_fd(), data, u64::from(slot) * 512);
    }
    assert_eq!(client.in_flight(), 32);
    worker.with_context(|_| ());
    let wanted: Vec<_> = (0..32).map(|slot| Reaped { slot, result: 512 }).collect();
    assert_eq!(reap(&mut worker, &client, 32), wanted);
    assert_eq!(client.in_flight(), 0);

    let fixed = client.register_file(&file);
    let mut back = vec![0; 32 * 512];
    let (fd, pointer, len) = (file.as_raw_fd(), back.as_mut_ptr(), back.len() as u32);
    let entry = match fixed {
        Some(fixed) => opcode::Read::new(types::Fixed(fixed.0), pointer, len).build(),
        None => opcode::Read::new(types::Fd(fd), pointer, len).build(),
    };
    // SAFETY: the buffer and the file are kept until the completion is reaped below.
    unsafe { client.push(7, entry) };
    worker.with_context(|_| ());
    assert_eq!(reap(&mut worker, &client, 1), [Reaped { slot: 7, result: 32 * 512 }]);
    assert_eq!(back, data.concat());
    if let Some(fixed) = fixed {
        client.unregister_file(fixed);
        assert_eq!(client.register_file(&file), Some(fixed), "the place is free again");
    }
}

/// What is submitted at once need not wait for the end of the round.
#[test]
fn what_is_submitted_is_done_before_the_round_ends() {
    let Some(mut worker) = worker(4) else { return };
    let (file, client) = (temporary("at-once"), client(&mut worker));
    worker.with_context(|_| {
        push_write(&client, 3, file.as_raw_fd(), b"data", 0);
        assert_eq!(file.metadata().unwrap().len(), 0, "not before it is submitted");
        client.submit();
        let end = Instant::now() + Duration::from_secs(20);
        while file.metadata().unwrap().len() < 4 {
            assert!(Instant::now() < end, "nothing was written");
        }
    });
    assert_eq!(reap(&mut worker, &client, 1), [Reaped { slot: 3, result: 4 }]);
}

/// A client that leaves in the very turn in which it wrote: its place among the registered files is not given to another
/// before the kernel has seen the write.
#[test]
fn a_write_that_waits_in_the_queue_reaches_its_own_file() {
    let Some(mut worker) = worker(8) else { return };
    let (first, second) = (temporary("first"), temporary("second"));
    let (leaving, other) = (client(&mut worker), client(&mut worker));
    let Some(fixed) = leaving.register_file(&first) else { return };
    let data = Box::new([7_u8; 16]);
    let entry = opcode::Write::new(types::Fixed(fixed.0), data.as_ptr(), 16).build();
    // SAFETY: the data is given to `close`.
    unsafe { leaving.push(0, entry) };
    leaving.unregister_file(fixed);
    leaving.close(data);
    let again = other.register_file(&second);
    worker.with_context(|_| ());
    run_until(&mut worker, || {
        first.metadata().unwrap().len() == 16 || second.metadata().unwrap().len() == 16
    });
    assert_eq!((first.metadata().unwrap().len(), second.metadata().unwrap().len()), (16, 0));
    assert!(again.is_some());
}

/// Memory that says when it goes.
struct Buffer {
    data: [u8; 16],
    gone: Arc<AtomicBool>,
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.gone.store(true, Ordering::SeqCst);
    }
}

/// A read of a pipe that nobody writes to yet.
fn pending_read(client: &UringClient) -> (Box<Buffer>, Arc<AtomicBool>, PipeReader, PipeWriter) {
    let (reader, writer) = std::io::pipe().unwrap();
    let gone = Arc::new(AtomicBool::new(false));
    let mut buffer = Box::new(Buffer { data: [0; 16], gone: gone.clone() });
    push_read(client, 0, reader.as_raw_fd(), &mut buffer.data, 0);
    (buffer, gone, reader, writer)
}

#[test]
fn a_client_that_leaves_keeps_its_memory_until_the_kernel_is_done() {
    let Some(mut worker) = worker(8) else { return };
    let leaving = client(&mut worker);
    let (buffer, gone, _reader, mut writer) = pending_read(&leaving);
    worker.with_context(|_| ());
    leaving.close(buffer);
    for _ in 0..5 {
        worker.run_within(Duration::from_millis(1)).unwrap();
    }
    assert!(!gone.load(Ordering::SeqCst), "the kernel still has the memory");
    // Another client on the same ring is not disturbed, and does not get what was not for it.
    let (other, file) = (client(&mut worker), temporary("other"));
    push_write(&other, 3, file.as_raw_fd(), &[1; 16], 0);
    worker.with_context(|_| ());
    writer.write_all(b"at last").unwrap();
    run_until(&mut worker, || gone.load(Ordering::SeqCst));
    assert_eq!(reap(&mut worker, &other, 1), [Reaped { slot: 3, result: 16 }]);
}

#[test]
fn a_worker_goes_with_a_read_in_flight_that_would_never_end() {
    let Some(mut worker) = worker(8) else { return };
    let leaving = client(&mut worker);
    let (buffer, gone, _reader, _writer) = pending_read(&leaving);
    worker.with_context(|_| ());
    leaving.close(buffer);
    drop(worker);
    assert!(gone.load(Ordering::SeqCst));
}

#[test]
fn an_idle_client_leaves_at_once() {
    let Some(mut worker) = worker(8) else { return };
    let leaving = client(&mut worker);
    let gone = Arc::new(AtomicBool::new(false));
    leaving.close(Box::new(Buffer { data: [0; 16], gone: gone.clone() }));
    assert!(gone.load(Ordering::SeqCst));
}

/// A lane that writes a byte again and again, each time the last one is done.
struct Writer {
    client: UringClient,
    file: File,
    left: Rc<RefCell<u32>>,
    reaped: Vec<Reaped>,
    byte: Box<[u8; 1]>,
}

impl Lane for Writer {
    fn turn(&mut self, _: &mut WorkerContext<'_>) -> Turn {
        self.client.reap(&mut self.reaped);
        let mut left = self.left.borrow_mut();
        for reaped in self.reaped.drain(..) {
            assert_eq!(reaped, Reaped { slot: 0, result: 1 });
            *left -= 1;
        }
        if *left > 0 && self.client.in_flight() == 0 {
            push_write(&self.client, 0, self.file.as_raw_fd(), &self.byte[..], 0);
        }
        Turn::Idle
    }
}

thread_local! {
    static LEFT: [Rc<RefCell<u32>>; 3] = std::array::from_fn(|_| Rc::new(RefCell::new(300)));
}

#[test]
fn completions_that_another_client_reaped_find_their_lane() {
    let Some(mut worker) = worker(8) else { return };
    for index in 0..3 {
        worker.handle().add_lane(move |cx| {
            let left = LEFT.with(|left| left[index].clone());
            let client = cx.uring()?;
            let file = temporary(&format!("lane{index}"));
            Some(Box::new(Writer { client, file, left, reaped: Vec::new(), byte: Box::new([1]) }))
        });
    }
    let left: Vec<_> = LEFT.with(|left| left.to_vec());
    run_until(&mut worker, || left.iter().all(|left| *left.borrow() == 0));
}

#[test]
fn a_client_that_leaves_waits_for_its_last_entry() {
    let Some(mut worker) = worker(8) else { return };
    let leaving = client(&mut worker);
    let (first, first_gone, _first_reader, mut first_writer) = pending_read(&leaving);
    let (second, second_gone, _second_reader, mut second_writer) = pending_read(&leaving);
    worker.with_context(|_| ());
    leaving.close(Box::new((first, second)));
    first_writer.write_all(b"one").unwrap();
    for _ in 0..5 {
        worker.run_within(Duration::from_millis(1)).unwrap();
    }
    assert!(!first_gone.load(Ordering::SeqCst), "the other entry may still need what was kept");
    second_writer.write_all(b"two").unwrap();
    run_until(&mut worker, || second_gone.load(Ordering::SeqCst));
}

/// A lane that asks the kernel for nothing, once, and is finished when that is done.
struct Nop {
    client: UringClient,
    pushed: bool,
}

impl Lane for Nop {
    fn turn(&mut self, _: &mut WorkerContext<'_>) -> Turn {
        if !self.pushed {
            self.pushed = true;
            // SAFETY: the entry points to nothing.
            unsafe { self.client.push(0, opcode::Nop::new().build()) };
            return Turn::Idle;
        }
        let mut reaped = Vec::new();
        self.client.reap(&mut reaped);
        if reaped.is_empty() { Turn::Idle } else { Turn::Finished }
    }
}

#[test]
fn a_lane_hears_of_what_another_client_sorted_for_it() {
    let Some(mut worker) = worker(8) else { return };
    let other = client(&mut worker);
    worker.handle().add_lane(|cx| Some(Box::new(Nop { client: cx.uring()?, pushed: false })));
    // The round in which the lane pushes ends with the submission, at which the kernel completes it.
    worker.run().unwrap();
    assert_eq!(worker.lanes(), 1);
    other.reap(&mut Vec::new());
    for _ in 0..600 {
        worker.run_within(Duration::from_millis(10)).unwrap();
        if worker.lanes() == 0 {
            return;
        }
    }
    panic!("the lane was not told that its entry is done");
}
