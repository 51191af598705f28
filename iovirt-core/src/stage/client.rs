//! The submitting side of a queue, as every front-end needs it: tags, contexts, pooled memory, and requests that a stage
//! lost.

use super::slots::{SlotTable, TagPool};
use crate::backend::{Mode, Queue};
use crate::dma::{DmaView, SgLimits, SgList, SgPool};
use crate::log::LogLimiter;
use crate::pipeline::BoxQueue;
use crate::request::{Completions, Depth, Request, Tag};
use crate::worker::WorkerContext;
use std::fmt;
use std::sync::Arc;

/// Bits of an armed list's number that hold the tag: enough for [`Depth::MAX`] tags. The others hold its generation.
const TAG_BITS: u32 = 20;
const GENERATIONS_AT: u32 = 1 << TAG_BITS;
const GENERATIONS: u32 = 1 << (32 - TAG_BITS);
const _: () = assert!(Depth::MAX <= GENERATIONS_AT);

/// Submits requests to a queue, each with a context of type `T` that comes back with its completion.
pub struct Client<R: Request, T> {
    queue: BoxQueue<R>,
    tags: TagPool,
    contexts: SlotTable<T>,
    done: Completions<R>,
    pool: SgPool,
    lost: Vec<u32>,
    /// How often each tag was given out, in [`GENERATIONS`]: tells a list that was lost from the next one of its tag.
    generations: Vec<u32>,
    complaints: LogLimiter,
}

/// A request that came home.
#[derive(Debug)]
pub struct Finished<'a, R: Request, T> {
    /// What was given along.
    pub context: T,
    /// The request; `None` where a stage lost it.
    pub request: Option<&'a mut R>,
    /// What became of it.
    pub output: R::Output,
}

impl<R: Request, T> Client<R, T> {
    /// A client of that queue, which was opened with that depth. Lost requests wake the calling context's lane.
    pub fn new(cx: &WorkerContext<'_>, queue: BoxQueue<R>, depth: Depth, limits: SgLimits) -> Self {
        let waker = cx.waker();
        let mut pool = SgPool::new(depth.get(), limits);
        pool.set_lost_waker(Some(Arc::new(move || waker.wake())));
        Self {
            queue,
            tags: TagPool::new(depth),
            contexts: SlotTable::new(depth),
            done: Completions::with_depth(depth),
            pool,
            lost: Vec::new(),
            generations: vec![0; depth.get()],
            complaints: LogLimiter::default(),
        }
    }

    /// A tag and an empty scatter-gather list for one more request; `None` at full depth.
    #[inline]
    pub fn begin(&mut self) -> Option<(Tag, Box<SgList>)> {
        let tag = self.tags.take()?;
        let mut sg = self.pool.take();
        let generation = &mut self.generations[tag.index()];
        *generation = (*generation + 1) % GENERATIONS;
        sg.arm(*generation << TAG_BITS | tag.get());
        Some((tag, sg))
    }

    /// Gives back what [`Client::begin`] gave, where there is no request after all.
    pub fn abandon(&mut self, tag: Tag, sg: Box<SgList>) {
        self.pool.put(sg);
        self.tags.put(tag);
    }

    /// Submits a request that has the tag and the list of [`Client::begin`].
    #[inline]
    pub fn submit(&mut self, cx: &mut WorkerContext<'_>, request: R, context: T) {
        self.contexts.insert(request.tag(), context);
        self.queue.submit(cx, request);
    }

    /// Ends a batch.
    #[inline]
    pub fn kick(&mut self, cx: &mut WorkerContext<'_>) {
        self.queue.kick(cx);
    }

    /// Hands every request that came home to `finished`; says how many did.
    #[inline]
    pub fn poll(
        &mut self,
        cx: &mut WorkerContext<'_>,
        mut finished: impl FnMut(&mut WorkerContext<'_>, Finished<'_, R, T>),
    ) -> usize {
        self.queue.poll(cx, &mut self.done);
        let count = self.done.len();
        for mut completion in self.done.drain() {
            let tag = completion.request.tag();
            // Without a context the request came home twice, which no safe stage can make it do: a request is not
            // `Clone`. Its memory is kept all the same.
            if let Some(context) = self.contexts.take(tag) {
                let request = Some(&mut completion.request);
                finished(cx, Finished { context, request, output: completion.output });
                self.tags.put(tag);
            }
            if let Some(sg) = completion.request.into_memory() {
                self.pool.put(sg);
            }
        }
        if self.pool.take_lost(&mut self.lost) > 0 { count + self.finish_lost(cx, finished) } else { count }
    }

    #[cold]
    fn finish_lost(
        &mut self,
        cx: &mut WorkerContext<'_>,
        mut finished: impl FnMut(&mut WorkerContext<'_>, Finished<'_, R, T>),
    ) -> usize {
        let mut count = 0;
        for armed in self.lost.drain(..) {
            let (tag, generation) = (Tag::new(armed & (GENERATIONS_AT - 1)), armed >> TAG_BITS);
            // A stage may complete a request with another list than it came with, and drop that one later.
            if self.generations[tag.index()] != generation {
                continue;
            }
            let Some(context) = self.contexts.take(tag) else { continue };
            count += 1;
            if let Some(suppressed) = self.complaints.admit() {
                let family = R::FAMILY;
                tracing::warn!(?tag, family, suppressed, "a stage dropped a request; it counts as aborted");
            }
            finished(cx, Finished { context, request: None, output: R::aborted() });
            self.tags.put(tag);
        }
        count
    }

    /// Lets idle memory follow a new map of guest memory; see [`SgPool::refresh`].
    pub fn refresh(&mut self, view: &DmaView) {
        self.pool.refresh(view);
    }

    /// The queue, for its life cycle.
    pub fn queue(&mut self) -> &mut BoxQueue<R> {
        &mut self.queue
    }

    /// Where the queue stands.
    pub fn mode(&self) -> Mode {
        self.queue.mode()
    }

    /// Whether [`Client::begin`] would refuse.
    pub fn is_full(&self) -> bool {
        self.tags.available() == 0
    }

    /// Requests that have not come home.
    pub fn in_flight(&self) -> usize {
        self.contexts.len()
    }

    /// The contexts of the requests that have not come home, in the order of their tags.
    pub fn contexts(&self) -> impl Iterator<Item = &T> {
        self.contexts.iter().map(|(_, context)| context)
    }
}

impl<R: Request, T> fmt::Debug for Client<R, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("mode", &self.mode())
            .field("in_flight", &self.in_flight())
            .field("depth", &self.tags.depth())
            .finish_non_exhaustive()
    }
}
