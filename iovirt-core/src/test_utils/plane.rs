//! The submitting side as small as can be: one data plane on a worker of its own, and books that trust nobody.

use crate::backend::{Backend, Mode, Queue};
use crate::dma::{SgLimits, SgList, SgPool};
use crate::error::BackendError;
use crate::pipeline::{BoxBackend, BoxQueue};
use crate::request::{Completions, Depth, Request, Tag};
use crate::stage::{SlotTable, TagPool};
use crate::worker::{Worker, WorkerContext};
use std::fmt;

/// One data plane of any family, driven by hand. Nothing happens but what is asked for: it kicks, polls and lets its worker
/// run only when told to.
pub struct Plane<R: Request> {
    // Before the worker, whose ring waits for what the queue left in flight.
    queue: BoxQueue<R>,
    worker: Worker,
    done: Completions<R>,
    pool: SgPool,
    tags: TagPool,
    /// The kind of each request in flight.
    books: SlotTable<usize>,
    broken: Option<String>,
}

impl<R: Request> Plane<R> {
    /// A data plane of that back-end, on that worker.
    ///
    /// # Errors
    /// As [`Backend::open`].
    pub fn open(mut worker: Worker, backend: &BoxBackend<R>, depth: Depth) -> Result<Self, BackendError> {
        let queue = worker.with_context(|cx| backend.open(cx, depth))?;
        Ok(Self {
            queue,
            worker,
            done: Completions::with_depth(depth),
            pool: SgPool::new(depth.get(), SgLimits::default()),
            tags: TagPool::new(depth),
            books: SlotTable::new(depth),
            broken: None,
        })
    }

    /// Submits what `make` makes of a tag and an empty list; `None` at full depth.
    pub fn submit(&mut self, make: impl FnOnce(Tag, Box<SgList>) -> R) -> Option<Tag> {
        let tag = self.tags.take()?;
        let mut sg = self.pool.take();
        sg.arm(tag.get());
        let request = make(tag, sg);
        self.books.insert(tag, request.kind());
        self.call(|queue, cx| queue.submit(cx, request));
        Some(tag)
    }

    /// Ends a batch.
    pub fn kick(&mut self) {
        self.call(Queue::kick);
    }

    /// Polls once, and gives what `each` makes of what came home.
    pub fn poll<T>(&mut self, mut each: impl FnMut(&mut R, R::Output) -> T) -> Vec<T> {
        let Self { queue, worker, done, pool, tags, books, broken } = self;
        worker.with_context(|cx| queue.poll(cx, done));
        let mut home = Vec::with_capacity(done.len());
        for completion in done.drain() {
            let mut request = completion.request;
            let (tag, kind) = (request.tag(), request.kind());
            home.push(each(&mut request, completion.output));
            if books.take(tag) == Some(kind) {
                tags.put(tag);
                request.into_memory().into_iter().for_each(|sg| pool.put(sg));
            } else {
                *broken =
                    Some(format!("a {} came home under {tag:?}, where none is in flight", R::KINDS[kind]));
            }
        }
        home
    }

    /// What must hold at any time: requests came home under their tags, none was dropped, and the queue counts right.
    ///
    /// # Errors
    /// What did not hold, in words.
    pub fn check(&mut self) -> Result<(), String> {
        let mut lost = Vec::new();
        self.pool.take_lost(&mut lost);
        if !lost.is_empty() {
            return Err(format!("the requests with the tags {lost:?} were dropped instead of completed"));
        }
        let (ours, theirs) = (self.books.len(), self.queue.in_flight());
        if ours != theirs {
            return Err(format!("the queue counts {theirs} requests in flight where {ours} are"));
        }
        if self.queue.mode() == Mode::Quiesced && ours > 0 {
            return Err(format!("the queue says it rests with {ours} requests in flight"));
        }
        self.broken.take().map_or(Ok(()), Err)
    }

    /// Calls the queue itself.
    pub fn call<T>(&mut self, action: impl FnOnce(&mut BoxQueue<R>, &mut WorkerContext<'_>) -> T) -> T {
        let Self { worker, queue, .. } = self;
        worker.with_context(|cx| action(queue, cx))
    }

    /// Asks the queue to come to rest.
    pub fn drain(&mut self) {
        self.call(Queue::drain);
    }

    /// The way back.
    pub fn resume(&mut self) {
        self.call(Queue::resume);
    }

    /// Where the queue stands.
    pub fn mode(&self) -> Mode {
        self.queue.mode()
    }

    /// Requests in flight by the queue's count.
    pub fn in_flight(&self) -> usize {
        self.queue.in_flight()
    }

    /// Requests in flight by the books.
    pub fn awaited(&self) -> usize {
        self.books.len()
    }

    /// The worker.
    pub fn worker(&mut self) -> &mut Worker {
        &mut self.worker
    }
}

impl<R: Request> fmt::Debug for Plane<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Plane").field("awaited", &self.awaited()).finish_non_exhaustive()
    }
}
