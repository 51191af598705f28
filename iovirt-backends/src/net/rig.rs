//! A client for the tests of network stages: one data plane on a worker of its own.

use iovirt_core::dma::{SgLimits, SgPool};
use iovirt_core::pipeline::{BoxBackend, BoxQueue};
use iovirt_core::request::net::{NetOp, NetOutput, NetRequest};
use iovirt_core::stage::TagPool;
use iovirt_core::{Backend, Completions, Depth, Mode, Queue, Request, Worker, WorkerConfig};

pub(crate) const DEPTH: u32 = 8;

/// What came home: what was asked for, what became of it, and the frame.
pub(crate) type Home = (NetOp, NetOutput, Vec<u8>);

pub(crate) struct NetRig {
    pub(crate) worker: Worker,
    queue: BoxQueue<NetRequest>,
    done: Completions<NetRequest>,
    pool: SgPool,
    tags: TagPool,
    pair: u16,
}

impl NetRig {
    pub(crate) fn new(backend: &BoxBackend<NetRequest>, pair: u16) -> Self {
        let depth = Depth::new(DEPTH).unwrap();
        let mut worker = Worker::new(WorkerConfig::default()).unwrap();
        let queue = worker.with_context(|cx| backend.open(cx, depth)).unwrap();
        let pool = SgPool::new(depth.get(), SgLimits::default());
        let done = Completions::with_depth(depth);
        Self { worker, queue, done, pool, tags: TagPool::new(depth), pair }
    }

    /// Posts so many tokens.
    pub(crate) fn post(&mut self, count: usize) {
        for _ in 0..count {
            let request = NetRequest::receive(self.tags.take().unwrap(), self.pair, self.pool.take());
            let queue = &mut self.queue;
            self.worker.with_context(|cx| queue.submit(cx, request));
        }
        self.kick();
    }

    /// Sends frames in one batch.
    pub(crate) fn send<'a>(&mut self, frames: impl IntoIterator<Item = &'a [u8]>) {
        for frame in frames {
            let mut sg = self.pool.take();
            // Two pieces, so that nobody gets by with looking at the first.
            sg.push_host(frame.len() / 2).unwrap();
            sg.push_host(frame.len() - frame.len() / 2).unwrap();
            sg.copy_from(0, frame).unwrap();
            let request = NetRequest::transmit(self.tags.take().unwrap(), self.pair, sg);
            let queue = &mut self.queue;
            self.worker.with_context(|cx| queue.submit(cx, request));
        }
        self.kick();
    }

    pub(crate) fn submit(&mut self, make: impl FnOnce(NetRequest) -> NetRequest) {
        let request = make(NetRequest::receive(self.tags.take().unwrap(), self.pair, self.pool.take()));
        let queue = &mut self.queue;
        self.worker.with_context(|cx| queue.submit(cx, request));
        self.kick();
    }

    fn kick(&mut self) {
        let queue = &mut self.queue;
        self.worker.with_context(|cx| queue.kick(cx));
    }

    pub(crate) fn poll(&mut self) -> Vec<Home> {
        let Self { worker, queue, done, pool, tags, .. } = self;
        worker.with_context(|cx| queue.poll(cx, done));
        done.drain()
            .map(|completion| {
                let (tag, op) = (completion.request.tag(), completion.request.op());
                let sg = completion.request.into_sg();
                let mut bytes = vec![0; sg.len() as usize];
                sg.copy_to(0, &mut bytes).unwrap();
                pool.put(sg);
                tags.put(tag);
                (op, completion.output, bytes)
            })
            .collect()
    }

    /// The frames of the receives that came home.
    pub(crate) fn received(&mut self) -> Vec<Vec<u8>> {
        let home = self.poll();
        let frames =
            home.into_iter().filter(|(op, output, _)| *op == NetOp::Receive && *output == NetOutput::Done);
        frames.map(|(_, _, frame)| frame).collect()
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

/// A frame with that number, from one station to another.
pub(crate) fn frame(number: u32, len: usize) -> Vec<u8> {
    let mut frame = vec![number as u8; len.max(18)];
    frame[..14].copy_from_slice(&[0x52, 0x54, 0, 0, 0, 2, 0x52, 0x54, 0, 0, 0, 1, 0x88, 0xb5]);
    frame[14..18].copy_from_slice(&number.to_be_bytes());
    frame
}
