//! The data plane: takes requests, hands each to whoever makes its system calls, and brings it home.

use super::disk::Disk;
use super::inline;
use super::task::{Start, Task};
use super::threads::{Finished, PoolClient};
use super::uring::{Left, Ring};
use iovirt_core::request::block::{BlockCaps, BlockError, BlockOutput, BlockRequest};
use iovirt_core::{Completion, Completions, Depth, Mode, Queue, Request, WorkerContext};
use std::collections::VecDeque;
use std::sync::Arc;

/// How many bytes the worker moves itself in one turn at most. At the speed of memory, a fifth of a millisecond.
const INLINE_BYTES: usize = 1 << 20;

/// What a small transfer counts as, in bytes, since each is a system call.
const INLINE_LEAST: usize = 4096;

/// The data plane of a file on one worker.
#[derive(Debug)]
pub(super) struct DiskQueue {
    disk: Arc<Disk>,
    caps: Arc<BlockCaps>,
    generation: u64,
    depth: Depth,
    busy: Box<[bool]>,
    ring: Option<Ring>,
    pool: PoolClient,
    /// Transfers that the worker makes itself.
    inline: VecDeque<(u32, Task)>,
    /// Whether this turn has had its share of inline transfers.
    had_share: bool,
    finished: Vec<Finished>,
    ready: Vec<Completion<BlockRequest>>,
    in_flight: usize,
    /// Something completed that a flush has to cover.
    dirt: bool,
    rest: Rest,
    /// The sync that a drain ends with is under way.
    settling: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rest {
    Running,
    Draining,
    /// What was written could not be made durable: the queue does not come to rest.
    Stuck,
    Quiesced,
}

impl DiskQueue {
    pub(super) fn new(disk: &Arc<Disk>, ring: Option<Ring>, pool: PoolClient, depth: Depth) -> Self {
        // The caps may be newer than the generation; then they are asked for once more.
        let generation = disk.generation();
        let room = if disk.is_inline() { depth.get() } else { 0 };
        Self {
            caps: disk.caps(),
            generation,
            depth,
            busy: vec![false; depth.get()].into_boxed_slice(),
            ring,
            pool,
            inline: VecDeque::with_capacity(room),
            had_share: false,
            finished: Vec::with_capacity(depth.get() + 1),
            ready: Vec::with_capacity(depth.get()),
            in_flight: 0,
            dirt: false,
            rest: Rest::Running,
            settling: false,
            disk: disk.clone(),
        }
    }

    /// The slot of the sync at the end of a drain.
    fn settle_slot(&self) -> u32 {
        self.depth.get() as u32
    }

    #[inline]
    fn refresh(&mut self) {
        let generation = self.disk.generation();
        if generation != self.generation {
            self.caps = self.disk.caps();
            self.generation = generation;
        }
    }

    /// Hands a task to whoever makes its next call.
    #[inline]
    fn route(&mut self, slot: u32, task: Task) {
        if self.disk.is_inline() && task.is_transfer() {
            self.inline.push_back((slot, task));
            return;
        }
        let left = match &mut self.ring {
            Some(ring) => ring.start(slot, task),
            None => Some(task),
        };
        if let Some(task) = left {
            self.pool.push(task);
        }
    }

    #[inline]
    fn complete(&mut self, request: BlockRequest, output: BlockOutput) {
        self.ready.push(Completion { request, output });
    }

    #[inline]
    fn finish(&mut self, task: Task, output: BlockOutput) {
        self.dirt |= task.leaves_dirt(&self.disk);
        match task.into_request() {
            Some(request) => {
                self.busy[request.tag().index()] = false;
                self.complete(request, output);
            }
            None => {
                self.settling = false;
                if self.rest == Rest::Draining && output != BlockOutput::Done {
                    self.rest = Rest::Stuck;
                }
            }
        }
    }

    /// Makes a share of the inline transfers.
    fn run_inline(&mut self, cx: &mut WorkerContext<'_>) {
        let mut share = INLINE_BYTES;
        while let Some((slot, mut task)) = self.inline.pop_front() {
            let (output, moved) = inline::step(&self.disk, &mut task, share);
            share = share.saturating_sub(moved.max(INLINE_LEAST));
            match output {
                Some(output) => self.finish(task, output),
                None if task.is_transfer() => self.inline.push_front((slot, task)),
                None => self.route(slot, task),
            }
            if share == 0 {
                break;
            }
        }
        if !self.inline.is_empty() {
            cx.run_again();
        }
    }

    fn reap(&mut self) {
        if let Some(mut ring) = self.ring.take() {
            ring.reap(|task, left| match left {
                Left::Done(output) => self.finish(task, output),
                Left::Elsewhere => self.pool.push(task),
            });
            self.ring = Some(ring);
        }
        let mut finished = std::mem::take(&mut self.finished);
        self.pool.reap(&mut finished);
        for Finished { task, output } in finished.drain(..) {
            self.finish(task, output);
        }
        self.finished = finished;
    }

    /// Goes on with a drain as far as it can now.
    fn settle(&mut self) {
        if self.rest != Rest::Draining || self.in_flight > 0 || self.settling {
            return;
        }
        match self.disk.flush_now() {
            Some(BlockOutput::Done) => self.rest = Rest::Quiesced,
            Some(BlockOutput::Failed(_)) => self.rest = Rest::Stuck,
            None => {
                self.settling = true;
                self.route(self.settle_slot(), Task::settle());
                self.pool.flush();
            }
        }
    }
}

impl Queue<BlockRequest> for DiskQueue {
    #[inline]
    fn submit(&mut self, _: &mut WorkerContext<'_>, request: BlockRequest) {
        self.refresh();
        self.in_flight += 1;
        if self.rest == Rest::Quiesced {
            self.rest = Rest::Draining;
        }
        if let Err(error) = self.caps.check(&request) {
            return self.complete(request, BlockOutput::Failed(error));
        }
        let tag = request.tag();
        match self.busy.get_mut(tag.index()) {
            Some(busy) if !*busy => *busy = true,
            _ => {
                debug_assert!(false, "tag {tag:?} is in use or beyond the depth");
                return self.complete(request, BlockOutput::Failed(BlockError::Io));
            }
        }
        match Task::start(&self.disk, request) {
            Start::Task(task) => self.route(tag.get(), task),
            Start::Ready(request, output) => {
                self.busy[tag.index()] = false;
                self.complete(request, output);
            }
        }
    }

    #[inline]
    fn kick(&mut self, cx: &mut WorkerContext<'_>) {
        if !self.inline.is_empty() {
            self.run_inline(cx);
            self.had_share = true;
        }
        self.pool.flush();
    }

    #[inline]
    fn poll(&mut self, cx: &mut WorkerContext<'_>, done: &mut Completions<BlockRequest>) {
        if !std::mem::take(&mut self.had_share) && !self.inline.is_empty() {
            self.run_inline(cx);
        }
        self.reap();
        self.pool.flush();
        if std::mem::take(&mut self.dirt) {
            self.disk.note_writes();
        }
        self.in_flight -= self.ready.len();
        done.append(&mut self.ready);
        self.settle();
    }

    fn drain(&mut self, _: &mut WorkerContext<'_>) {
        if self.rest == Rest::Running || self.rest == Rest::Stuck {
            self.rest = Rest::Draining;
            self.settle();
        }
    }

    fn resume(&mut self, _: &mut WorkerContext<'_>) {
        // A sync that is still under way finishes and is forgotten.
        self.rest = Rest::Running;
    }

    fn mode(&self) -> Mode {
        match self.rest {
            Rest::Running => Mode::Running,
            Rest::Draining | Rest::Stuck => Mode::Draining,
            Rest::Quiesced => Mode::Quiesced,
        }
    }

    fn in_flight(&self) -> usize {
        self.in_flight
    }
}
