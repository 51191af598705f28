//! A client for the tests of this crate: one request at a time, in host memory.

use iovirt_core::dma::{SgLimits, SgList, SgPool};
use iovirt_core::pipeline::{BoxBackend, BoxQueue};
use iovirt_core::request::block::{BlockError, BlockOp, BlockOutput, BlockRequest};
use iovirt_core::{Backend, Completions, Depth, Mode, Queue, Tag, Worker, WorkerConfig};

pub(crate) const DEPTH: u32 = 8;

pub(crate) struct Rig {
    pub(crate) worker: Worker,
    queue: BoxQueue<BlockRequest>,
    done: Completions<BlockRequest>,
    pool: SgPool,
    next: u32,
}

impl Rig {
    pub(crate) fn new(backend: &BoxBackend<BlockRequest>) -> Self {
        Self::with_worker(backend, WorkerConfig::default())
    }

    pub(crate) fn with_worker(backend: &BoxBackend<BlockRequest>, config: WorkerConfig) -> Self {
        let depth = Depth::new(DEPTH).unwrap();
        let mut worker = Worker::new(config).unwrap();
        let queue = worker.with_context(|cx| backend.open(cx, depth)).unwrap();
        let pool = SgPool::new(depth.get(), SgLimits::default());
        Self { worker, queue, done: Completions::with_depth(depth), pool, next: 0 }
    }

    /// Submits and kicks. Data of a read or a write is zeroes.
    pub(crate) fn submit(&mut self, op: BlockOp, offset: u64, len: u64) -> Tag {
        let data = vec![0; if matches!(op, BlockOp::Read | BlockOp::Write) { len as usize } else { 0 }];
        self.start(op, offset, len, &data)
    }

    fn start(&mut self, op: BlockOp, offset: u64, len: u64, data: &[u8]) -> Tag {
        let tag = Tag::new(self.next);
        self.next = (self.next + 1) % DEPTH;
        let mut sg = self.pool.take();
        // Two pieces, so that nobody gets by with looking at the first.
        sg.push_host(data.len() / 2).unwrap();
        sg.push_host(data.len() - data.len() / 2).unwrap();
        sg.copy_from(0, data).unwrap();
        let request = match op {
            BlockOp::Flush => BlockRequest::flush(tag, sg),
            BlockOp::Read | BlockOp::Write => BlockRequest::transfer(op, tag, offset, sg).unwrap(),
            BlockOp::Discard | BlockOp::WriteZeroes => {
                BlockRequest::ranged(op, tag, offset, len, sg).unwrap()
            }
        };
        let queue = &mut self.queue;
        self.worker.with_context(|cx| {
            queue.submit(cx, request);
            queue.kick(cx);
        });
        tag
    }

    /// Polls once: the outputs by tag, and the data of each.
    pub(crate) fn poll(&mut self) -> Vec<(Tag, BlockOutput, Vec<u8>)> {
        let Self { worker, queue, done, pool, .. } = self;
        worker.with_context(|cx| queue.poll(cx, done));
        done.drain()
            .map(|completion| {
                let (tag, sg) =
                    (iovirt_core::Request::tag(&completion.request), completion.request.into_sg());
                let data = bytes(&sg);
                pool.put(sg);
                (tag, completion.output, data)
            })
            .collect()
    }

    fn finish(&mut self) -> (BlockOutput, Vec<u8>) {
        let (_, output, data) = self.poll().pop().expect("the request completes at once");
        (output, data)
    }

    pub(crate) fn write(&mut self, offset: u64, data: &[u8]) -> BlockOutput {
        self.start(BlockOp::Write, offset, data.len() as u64, data);
        self.finish().0
    }

    /// Reads into a buffer that holds `before`.
    pub(crate) fn read_into(&mut self, offset: u64, before: &[u8]) -> Result<Vec<u8>, BlockError> {
        self.start(BlockOp::Read, offset, before.len() as u64, before);
        match self.finish() {
            (BlockOutput::Done, data) => Ok(data),
            (BlockOutput::Failed(error), _) => Err(error),
        }
    }

    pub(crate) fn range(&mut self, op: BlockOp, offset: u64, len: u64) -> BlockOutput {
        self.start(op, offset, len, &[]);
        self.finish().0
    }

    pub(crate) fn drain(&mut self) {
        let Self { worker, queue, .. } = self;
        worker.with_context(|cx| queue.drain(cx));
    }

    pub(crate) fn resume(&mut self) {
        let Self { worker, queue, .. } = self;
        worker.with_context(|cx| queue.resume(cx));
    }

    pub(crate) fn mode(&self) -> Mode {
        self.queue.mode()
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.queue.in_flight()
    }
}

fn bytes(sg: &SgList) -> Vec<u8> {
    let mut bytes = vec![0; sg.len() as usize];
    sg.copy_to(0, &mut bytes).unwrap();
    bytes
}
