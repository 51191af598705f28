//! The worker's io_uring: one ring for all lanes, so that one system call submits what a whole round put into it.

use super::reactor::Reactor;
use io_uring::{IoUring, squeue, types};
use std::any::Any;
use std::cell::RefCell;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::rc::Rc;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// Whether a worker may use io_uring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UringPolicy {
    /// Where the host permits it, with a submission queue of that many entries (rounded up to a power of two).
    Auto {
        /// Size of the submission queue; the completion queue has eight times as many.
        entries: u32,
    },
    /// Never.
    Off,
}

impl Default for UringPolicy {
    fn default() -> Self {
        Self::Auto { entries: 256 }
    }
}

/// How many files can be registered with one worker's ring.
const FIXED_FILES: u32 = 1024;

/// A completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reaped {
    /// The number given to [`UringClient::push`].
    pub slot: u32,
    /// What the kernel returned: a count, or an error number negated.
    pub result: i32,
}

/// Index of a file registered with the worker's ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FixedFile(pub u32);

/// When the kernel puts completions into the ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TaskWork {
    /// When this thread asks for them: they come in batches, and interrupt nobody. Linux 6.1.
    Deferred,
    /// At this thread's next system call. Linux 6.0.
    Cooperative,
    /// At once, for which it interrupts this thread.
    Immediate,
}

impl TaskWork {
    fn ring(self, entries: u32) -> io::Result<IoUring> {
        let mut builder = IoUring::builder();
        builder.setup_cqsize(entries * 8).setup_clamp();
        match self {
            Self::Deferred => builder.setup_single_issuer().setup_taskrun_flag().setup_defer_taskrun(),
            Self::Cooperative => builder.setup_single_issuer().setup_taskrun_flag().setup_coop_taskrun(),
            Self::Immediate => &mut builder,
        };
        builder.build(entries)
    }
}

pub(super) struct Uring {
    ring: IoUring,
    task_work: TaskWork,
    event: EventFd,
    clients: Vec<ClientState>,
    free_files: Vec<u32>,
    /// Files to be forgotten once the kernel has seen every entry that may name them.
    retired_files: Vec<u32>,
    queued: usize,
    in_flight: usize,
}

struct ClientState {
    lane: usize,
    done: Vec<Reaped>,
    in_flight: usize,
    phase: Phase,
}

enum Phase {
    Open,
    /// The client is gone; this keeps what the kernel still works on.
    Closing(#[expect(dead_code, reason = "held for its drop")] Box<dyn Any>),
    Free,
}

impl Uring {
    /// The best ring that the host's kernel knows.
    pub(super) fn open(entries: u32, reactor: &Reactor) -> io::Result<Self> {
        Self::open_as(TaskWork::Deferred, entries, reactor)
            .or_else(|_| Self::open_as(TaskWork::Cooperative, entries, reactor))
            .or_else(|_| Self::open_as(TaskWork::Immediate, entries, reactor))
    }

    fn open_as(task_work: TaskWork, entries: u32, reactor: &Reactor) -> io::Result<Self> {
        let ring = task_work.ring(entries.clamp(1, 4096))?;
        let event = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        ring.submitter().register_eventfd(event.as_raw_fd())?;
        reactor.watch_uring(&event)?;
        // Without registered files every request names its descriptor: slower, and no reason to do without a ring.
        let free_files = match ring.submitter().register_files_sparse(FIXED_FILES) {
            Ok(()) => (0..FIXED_FILES).rev().collect(),
            Err(_) => Vec::new(),
        };
        Ok(Self {
            ring,
            event,
            task_work,
            clients: Vec::new(),
            free_files,
            retired_files: Vec::new(),
            queued: 0,
            in_flight: 0,
        })
    }

    /// Submits what was pushed; see [`Uring::has_backlog`].
    pub(super) fn flush(&mut self) {
        self.submit_queued();
        if self.queued == 0 && !self.retired_files.is_empty() {
            self.forget_files();
        }
    }

    /// Whether the kernel did not take all of it. It did not for want of memory or of room for completions, and nothing
    /// tells when it would: whoever flushed does so again.
    pub(super) fn has_backlog(&self) -> bool {
        self.queued > 0
    }

    fn submit_queued(&mut self) {
        while self.queued > 0 || self.ring.submission().cq_overflow() {
            match self.ring.submit() {
                Ok(submitted) => {
                    self.queued = self.queued.saturating_sub(submitted);
                    if submitted == 0 {
                        return;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Busy: completions must be reaped first. Or short of memory.
                Err(_) => {
                    self.collect();
                    return;
                }
            }
        }
    }

    /// Frees the places of retired files. Not before the queue is empty: an entry names a place, and the kernel looks up
    /// which file is there only when it takes the entry.
    #[cold]
    fn forget_files(&mut self) {
        for file in self.retired_files.drain(..) {
            if self.ring.submitter().register_files_update(file, &[-1]).is_ok() {
                self.free_files.push(file);
            }
        }
    }

    /// Sorts completions to their clients, and tells which lanes have some: also those that another client's reaping has
    /// sorted before.
    pub(super) fn collect_for_lanes(&mut self, mut ready: impl FnMut(usize)) {
        self.collect();
        for client in self.clients.iter().filter(|client| !client.done.is_empty()) {
            ready(client.lane);
        }
    }

    /// Whether the kernel has completions: a look at memory.
    pub(super) fn has_completions(&mut self) -> bool {
        !self.ring.completion().is_empty() || self.waits_to_be_asked()
    }

    /// Whether completions wait for this thread to enter the kernel, by whatever system call.
    pub(super) fn waits_for_a_call(&mut self) -> bool {
        self.task_work != TaskWork::Deferred && self.ring.submission().taskrun()
    }

    /// Whether the kernel keeps completions until [`IoUring::submit`], which asks for them where there are some.
    fn waits_to_be_asked(&mut self) -> bool {
        self.task_work == TaskWork::Deferred && self.ring.submission().taskrun()
    }

    fn collect(&mut self) {
        if self.waits_to_be_asked() {
            // Submits what is queued too. It fails over nothing else, and then there is a backlog, which comes back to this.
            let submitted = self.ring.submit().unwrap_or(0);
            self.queued = self.queued.saturating_sub(submitted);
        }
        let Self { ring, clients, in_flight, .. } = self;
        for entry in ring.completion() {
            let (client, slot) = split(entry.user_data());
            let Some(state) = clients.get_mut(client) else { continue };
            *in_flight -= 1;
            state.in_flight -= 1;
            match state.phase {
                Phase::Open => state.done.push(Reaped { slot, result: entry.result() }),
                Phase::Closing(_) if state.in_flight == 0 => state.phase = Phase::Free,
                Phase::Closing(_) | Phase::Free => {}
            }
        }
    }

    fn add_client(&mut self, lane: usize) -> usize {
        let state = ClientState { lane, done: Vec::new(), in_flight: 0, phase: Phase::Open };
        match self.clients.iter().position(|client| matches!(client.phase, Phase::Free)) {
            Some(free) => {
                self.clients[free] = state;
                free
            }
            None => {
                self.clients.push(state);
                self.clients.len() - 1
            }
        }
    }

    /// # Safety
    /// As [`UringClient::push`].
    unsafe fn push(&mut self, client: usize, slot: u32, entry: squeue::Entry) {
        let entry = entry.user_data(join(client, slot));
        loop {
            // SAFETY: the caller keeps what the entry points to until it is reaped.
            if unsafe { self.ring.submission().push(&entry) }.is_ok() {
                break;
            }
            self.make_room();
        }
        self.queued += 1;
        self.in_flight += 1;
        self.clients[client].in_flight += 1;
    }

    /// Empties a full submission queue.
    #[cold]
    fn make_room(&mut self) {
        self.flush();
        if self.queued > 0 {
            // The kernel is short of memory or the completion queue is full: wait for one completion.
            let _ = self.ring.submit_and_wait(1);
            self.queued = self.ring.submission().len();
        }
    }
}

impl Drop for Uring {
    fn drop(&mut self) {
        // The kernel may still write to memory that entries in flight point to: it goes only after the last of them.
        while self.in_flight > 0 {
            // A read of a socket or a pipe may never end by itself. Kernels before 6.0 cannot cancel this way: with them the
            // stage must not leave such reads behind.
            self.flush();
            let _ = self.ring.submitter().register_sync_cancel(None, types::CancelBuilder::any());
            self.collect();
            if self.in_flight == 0 {
                return;
            }
            if let Err(error) = self.ring.submit_and_wait(1)
                && error.kind() != io::ErrorKind::Interrupted
                && error.raw_os_error() != Some(libc::EBUSY)
            {
                tracing::error!(%error, "waiting for requests in flight failed; their memory is leaked");
                std::mem::forget(std::mem::take(&mut self.clients));
                return;
            }
            self.collect();
        }
    }
}

fn join(client: usize, slot: u32) -> u64 {
    (client as u64) << 32 | u64::from(slot)
}

fn split(user_data: u64) -> (usize, u32) {
    ((user_data >> 32) as usize, user_data as u32)
}

/// A place on the worker's ring, for one queue.
pub struct UringClient {
    ring: Rc<RefCell<Uring>>,
    client: usize,
}

impl UringClient {
    pub(super) fn new(ring: &Rc<RefCell<Uring>>, lane: usize) -> Self {
        let client = ring.borrow_mut().add_client(lane);
        Self { ring: ring.clone(), client }
    }

    /// Adds an entry to the ring; the worker submits it at the end of the round at the latest. `slot` comes back with the completion;
    /// the entry's user data is overwritten.
    ///
    /// # Safety
    /// Everything that the entry points to (buffers, the arrays that name them, an unregistered file) must stay valid and in
    /// place until the completion came out of [`UringClient::reap`], or be given to [`UringClient::close`]. The entry
    /// completes exactly once: it is neither multi-shot nor zero-copy, nor skips its completion.
    pub unsafe fn push(&self, slot: u32, entry: squeue::Entry) {
        // SAFETY: as promised by the caller.
        unsafe { self.ring.borrow_mut().push(self.client, slot, entry) };
    }

    /// Submits what was pushed now, and not at the end of the round: the kernel holds back what comes in one call until it has
    /// seen all of it, and a disk that could work on the first request idles meanwhile. What the kernel does not take stays in
    /// the ring.
    #[inline]
    pub fn submit(&self) {
        self.ring.borrow_mut().submit_queued();
    }

    /// Moves this client's completions to the end of `into`.
    #[inline]
    pub fn reap(&self, into: &mut Vec<Reaped>) {
        let mut ring = self.ring.borrow_mut();
        ring.collect();
        into.append(&mut ring.clients[self.client].done);
    }

    /// Entries pushed and not yet reaped.
    pub fn in_flight(&self) -> usize {
        let ring = self.ring.borrow();
        let state = &ring.clients[self.client];
        state.in_flight + state.done.len()
    }

    /// Registers a file, so that requests need not look it up; `None` where the ring has no place left.
    pub fn register_file(&self, file: &impl AsFd) -> Option<FixedFile> {
        let mut ring = self.ring.borrow_mut();
        let index = ring.free_files.pop()?;
        let fd = file.as_fd().as_raw_fd();
        if ring.ring.submitter().register_files_update(index, &[fd]).is_ok() {
            return Some(FixedFile(index));
        }
        ring.free_files.push(index);
        None
    }

    /// Forgets a registered file. Entries on it that were pushed before finish.
    pub fn unregister_file(&self, file: FixedFile) {
        let mut ring = self.ring.borrow_mut();
        ring.retired_files.push(file.0);
        ring.flush();
    }

    /// Leaves the ring with entries in flight: `keep` holds what they point to, until the last of them is done. It is then
    /// dropped by whoever has the ring at that moment, so its drop must not use the ring.
    pub fn close(self, keep: Box<dyn Any>) {
        self.leave(keep);
    }

    fn leave(&self, keep: Box<dyn Any>) {
        let mut ring = self.ring.borrow_mut();
        let state = &mut ring.clients[self.client];
        state.done = Vec::new();
        state.phase = if state.in_flight == 0 { Phase::Free } else { Phase::Closing(keep) };
    }
}

impl Drop for UringClient {
    fn drop(&mut self) {
        let open = matches!(self.ring.borrow().clients[self.client].phase, Phase::Open);
        if open {
            self.leave(Box::new(()));
        }
    }
}

impl fmt::Debug for UringClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UringClient").field("in_flight", &self.in_flight()).finish_non_exhaustive()
    }
}

impl fmt::Debug for Uring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Uring")
            .field("event", &self.event.as_raw_fd())
            .field("in_flight", &self.in_flight)
            .finish_non_exhaustive()
    }
}

#[cfg(all(test, feature = "test-utils", not(loom)))]
mod tests {
    use super::*;
    use io_uring::opcode;
    use std::io::{PipeReader, Write, pipe};
    use std::time::{Duration, Instant};

    const LANE: usize = 3;

    /// Does this with a ring of every kind, and a client of it that reads one byte from a pipe.
    fn with_each(test: impl Fn(&mut Reactor, &Rc<RefCell<Uring>>, &UringClient, &mut dyn FnMut())) {
        for task_work in [TaskWork::Deferred, TaskWork::Cooperative, TaskWork::Immediate] {
            let wake = EventFd::new(EFD_NONBLOCK).expect("an eventfd");
            let mut reactor = Reactor::new(&wake).expect("a reactor");
            let ring = match Uring::open_as(task_work, 4, &reactor) {
                Ok(ring) => Rc::new(RefCell::new(ring)),
                Err(error) => {
                    crate::test_utils::skipped(format!("no ring with {task_work:?} task work here: {error}"));
                    continue;
                }
            };
            let client = UringClient::new(&ring, LANE);
            let (reader, mut writer) = pipe().expect("a pipe");
            let mut byte = Box::new([0_u8]);
            push_read(&client, &reader, &mut byte);
            client.submit();
            test(&mut reactor, &ring, &client, &mut || writer.write_all(b"x").expect("written"));
            let mut reaped = Vec::new();
            client.reap(&mut reaped);
            assert_eq!((&*reaped, &*byte), (&[Reaped { slot: 9, result: 1 }][..], b"x"), "{task_work:?}");
        }
    }

    fn push_read(client: &UringClient, reader: &PipeReader, byte: &mut Box<[u8; 1]>) {
        let entry = opcode::Read::new(types::Fd(reader.as_raw_fd()), byte.as_mut_ptr(), 1).build();
        // SAFETY: pipe and byte outlive the completion, which the caller reaps; if it does not come the test has failed, and
        // the drop of the ring waits for the read or cancels it.
        unsafe { client.push(9, entry) };
    }

    fn wait(reactor: &mut Reactor, timeout_ms: i32) -> bool {
        let mut completions = false;
        reactor.wait(timeout_ms, |_| (), || completions = true).expect("waited");
        completions
    }

    #[test]
    fn a_completion_wakes_who_sleeps() {
        with_each(|reactor, ring, _, complete| {
            assert!(!wait(reactor, 0), "before there is any");
            complete();
            assert!(wait(reactor, 20_000));
            let mut lanes = Vec::new();
            ring.borrow_mut().collect_for_lanes(|lane| lanes.push(lane));
            assert_eq!(lanes, [LANE]);
        });
    }

    #[test]
    fn a_completion_is_seen_by_who_looks() {
        with_each(|reactor, ring, client, complete| {
            complete();
            let end = Instant::now() + Duration::from_secs(20);
            while !ring.borrow_mut().has_completions() {
                assert!(Instant::now() < end, "nothing is seen");
                if ring.borrow_mut().waits_for_a_call() {
                    wait(reactor, 0);
                }
            }
            assert_eq!(client.in_flight(), 1);
        });
    }
}
