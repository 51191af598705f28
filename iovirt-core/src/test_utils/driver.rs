//! The submitting side: a small front-end for tests.

use super::guest::{Guest, Shape};
use super::io::{BlockIo, IoDone, IoId};
use super::rng::Rng;
use crate::backend::{Backend, Mode, Queue};
use crate::dma::{DmaSpace, SgLimits};
use crate::error::BackendError;
use crate::pipeline::{BoxBackend, BoxQueue};
use crate::request::Depth;
use crate::request::block::{BlockError, BlockFlags, BlockOp, BlockOutput, BlockRequest};
use crate::stage::{Client, Finished, open_with_fua};
use crate::worker::{Worker, WorkerConfig};
use std::fmt;
use std::io;
use std::time::{Duration, Instant};
use thiserror::Error;

/// Submits block requests out of guest memory and drives the worker until they come home, or says what is stuck.
///
/// One queue at a time, opened by [`Driver::open`]; opening another drops the one before.
pub struct Driver {
    // Before the worker, whose ring waits for what the queue left in flight.
    client: Option<Client<BlockRequest, Submitted>>,
    worker: Worker,
    guest: Guest,
    rng: Rng,
    shape: Shape,
    patience: Duration,
    next_id: u64,
}

struct Submitted {
    id: IoId,
    io: BlockIo,
}

/// The longest request of a [`Driver`], in bytes.
pub const MAX_IO: u64 = 256 << 10;

/// The deepest queue that a [`Driver`] has memory for.
pub const MAX_DEPTH: u32 = 256;

/// Nothing came home for as long as the driver's patience lasts.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "stuck: nothing happened for {patience:?} with {in_flight} requests in flight ({mode:?}), the first of \
     them {first}"
)]
pub struct Stuck {
    /// How long it was waited.
    pub patience: Duration,
    /// Requests that have not come home.
    pub in_flight: usize,
    /// Where the queue stands.
    pub mode: Mode,
    /// One of the requests, in words.
    pub first: String,
}

/// Why a driver's call did not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum DriverError {
    /// The request failed.
    #[error("the request failed: {0}")]
    Failed(#[from] BlockError),
    /// Nothing happened any more.
    #[error(transparent)]
    Stuck(#[from] Stuck),
}

impl Driver {
    /// A driver on a worker of its own, with the host's clock.
    ///
    /// # Errors
    /// Where the host has no descriptor or memory left.
    pub fn new(seed: u64) -> io::Result<Self> {
        Self::with_config(seed, WorkerConfig::default())
    }

    /// A driver on a worker of that configuration.
    ///
    /// # Errors
    /// As [`Driver::new`].
    pub fn with_config(seed: u64, config: WorkerConfig) -> io::Result<Self> {
        Ok(Self {
            client: None,
            worker: Worker::new(config)?,
            guest: Guest::new(u64::from(MAX_DEPTH), MAX_IO).map_err(io::Error::other)?,
            rng: Rng::new(seed),
            shape: Shape::default(),
            patience: Duration::from_secs(30),
            next_id: 0,
        })
    }

    /// How memory is cut into segments from now on.
    pub fn set_shape(&mut self, shape: Shape) {
        self.shape = shape;
    }

    /// How long nothing may happen before [`Stuck`] is reported.
    pub fn set_patience(&mut self, patience: Duration) {
        self.patience = patience;
    }

    /// Starts the random choice of memory anew, so that what follows is the same whatever came before.
    pub fn reseed(&mut self, seed: u64) {
        self.rng = Rng::new(seed);
    }

    /// Opens a queue on that back-end.
    ///
    /// # Errors
    /// As [`Backend::open`].
    ///
    /// # Panics
    /// Where the depth is zero or above [`MAX_DEPTH`].
    pub fn open(&mut self, backend: &BoxBackend<BlockRequest>, depth: u32) -> Result<(), BackendError> {
        self.open_by(depth, |cx, depth| backend.open(cx, depth))
    }

    /// Opens a queue that honours [`BlockFlags::FUA`] whatever is below, as front-ends do.
    ///
    /// # Errors
    /// As [`Backend::open`].
    ///
    /// # Panics
    /// As [`Driver::open`].
    pub fn open_with_fua(
        &mut self,
        backend: &BoxBackend<BlockRequest>,
        depth: u32,
    ) -> Result<(), BackendError> {
        self.open_by(depth, |cx, depth| open_with_fua(backend, cx, depth))
    }

    fn open_by(
        &mut self,
        depth: u32,
        open: impl FnOnce(&mut crate::WorkerContext<'_>, Depth) -> Result<BoxQueue<BlockRequest>, BackendError>,
    ) -> Result<(), BackendError> {
        assert!(depth <= MAX_DEPTH, "a depth of {depth} is more than a driver has memory for");
        let depth = Depth::new(depth).expect("a depth of zero");
        self.close();
        let client = self.worker.with_context(|cx| {
            let queue = open(cx, depth)?;
            Ok::<_, BackendError>(Client::new(cx, queue, depth, SgLimits::default()))
        })?;
        self.client = Some(client);
        Ok(())
    }

    /// Drops the queue, with whatever is in flight on it.
    pub fn close(&mut self) {
        self.client = None;
    }

    /// Submits a request; it starts at the next [`Driver::turn`]. `None` at full depth.
    ///
    /// # Panics
    /// Where no queue is open, the request is longer than [`MAX_IO`], or its range ends beyond 2^63.
    pub fn submit(&mut self, io: BlockIo) -> Option<IoId> {
        let Self { client, worker, guest, rng, shape, .. } = self;
        let client = client.as_mut().expect("no queue is open");
        let (tag, mut sg) = client.begin()?;
        let moves = matches!(io.op, BlockOp::Read | BlockOp::Write);
        assert!(!moves || io.len <= guest.longest(), "a request of {} bytes is too long", io.len);
        guest
            .fill(u64::from(tag.get()), &io, *shape, rng, &mut sg)
            .expect("the driver's own memory is mapped");
        let request = match io.op {
            BlockOp::Read | BlockOp::Write => BlockRequest::transfer(io.op, tag, io.offset, sg),
            BlockOp::Flush => Ok(BlockRequest::flush(tag, sg)),
            BlockOp::Discard | BlockOp::WriteZeroes => {
                BlockRequest::ranged(io.op, tag, io.offset, io.len, sg)
            }
        };
        let request = request.expect("a range that a request can have").with_flags(io.flags);
        let id = IoId(self.next_id);
        self.next_id += 1;
        worker.with_context(|cx| client.submit(cx, request, Submitted { id, io }));
        Some(id)
    }

    /// Kicks, polls, and lets the worker do what it has to; says what came home. Does not wait.
    pub fn turn(&mut self) -> Vec<IoDone> {
        self.turn_within(Duration::ZERO)
    }

    fn turn_within(&mut self, limit: Duration) -> Vec<IoDone> {
        let mut done = self.poll();
        // Where nothing came home there is time to wait; otherwise the caller has something to do.
        let limit = if done.is_empty() { limit } else { Duration::ZERO };
        if let Err(error) = self.worker.run_within(limit) {
            panic!("the host failed to poll: {error}");
        }
        done.append(&mut self.poll());
        done
    }

    fn poll(&mut self) -> Vec<IoDone> {
        let Self { client: Some(client), worker, .. } = self else { return Vec::new() };
        let mut done = Vec::new();
        worker.with_context(|cx| {
            client.kick(cx);
            client.poll(cx, |_, finished| done.push(came_home(finished)));
        });
        done
    }

    /// Turns until `enough` says so, given what came home last. Nothing is lost where it is never satisfied: what came
    /// home was given to it.
    ///
    /// # Errors
    /// [`Stuck`] where nothing came home for as long as the driver's patience lasts.
    pub fn turn_until(
        &mut self,
        mut enough: impl FnMut(&mut Self, Vec<IoDone>) -> bool,
    ) -> Result<(), Stuck> {
        let mut since = Instant::now();
        let mut limit = Duration::ZERO;
        loop {
            let done = self.turn_within(limit);
            if !done.is_empty() {
                since = Instant::now();
            }
            if enough(self, done) {
                return Ok(());
            }
            if since.elapsed() >= self.patience {
                return Err(self.stuck());
            }
            limit = self.patience.saturating_sub(since.elapsed()).min(Duration::from_millis(10));
        }
    }

    /// Turns until nothing is in flight; gives all that came home.
    ///
    /// # Errors
    /// As [`Driver::turn_until`].
    pub fn wait_all(&mut self) -> Result<Vec<IoDone>, Stuck> {
        let mut all = Vec::new();
        self.turn_until(|driver, mut done| {
            all.append(&mut done);
            driver.in_flight() == 0
        })?;
        Ok(all)
    }

    /// Does one request and waits for it. Whatever else comes home meanwhile is dropped: for a queue with nothing in
    /// flight.
    ///
    /// # Errors
    /// As [`Driver::turn_until`].
    ///
    /// # Panics
    /// As [`Driver::submit`], or at full depth.
    pub fn run(&mut self, io: BlockIo) -> Result<IoDone, Stuck> {
        let id = self.submit(io).expect("the queue is full");
        let mut found = None;
        self.turn_until(|_, done| {
            found = found.take().or_else(|| done.into_iter().find(|done| done.id == id));
            found.is_some()
        })?;
        Ok(found.expect("the loop ends only with it"))
    }

    /// Reads.
    ///
    /// # Errors
    /// The request's error, or [`Stuck`].
    pub fn read(&mut self, offset: u64, len: u64) -> Result<Vec<u8>, DriverError> {
        Ok(self.run(BlockIo::read(offset, len))?.into_result()?)
    }

    /// Writes.
    ///
    /// # Errors
    /// As [`Driver::read`].
    pub fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), DriverError> {
        self.run(BlockIo::write(offset, data.into()))?.into_result()?;
        Ok(())
    }

    /// Writes with FUA.
    ///
    /// # Errors
    /// As [`Driver::read`].
    pub fn write_fua(&mut self, offset: u64, data: &[u8]) -> Result<(), DriverError> {
        self.run(BlockIo::write(offset, data.into()).with_flags(BlockFlags::FUA))?.into_result()?;
        Ok(())
    }

    /// Flushes.
    ///
    /// # Errors
    /// As [`Driver::read`].
    pub fn flush(&mut self) -> Result<(), DriverError> {
        self.run(BlockIo::flush())?.into_result()?;
        Ok(())
    }

    /// Asks the queue to come to rest, without waiting.
    pub fn drain(&mut self) {
        self.with_queue(Queue::drain);
    }

    /// The way back from [`Driver::drain`].
    pub fn resume(&mut self) {
        self.with_queue(Queue::resume);
    }

    /// Drains and waits until the queue rests; gives all that came home.
    ///
    /// # Errors
    /// As [`Driver::turn_until`].
    pub fn quiesce(&mut self) -> Result<Vec<IoDone>, Stuck> {
        self.drain();
        let mut all = Vec::new();
        self.turn_until(|driver, mut done| {
            all.append(&mut done);
            driver.mode() == Mode::Quiesced
        })?;
        Ok(all)
    }

    /// Calls the queue itself.
    ///
    /// # Panics
    /// Where no queue is open.
    pub fn with_queue<T>(
        &mut self,
        action: impl FnOnce(&mut BoxQueue<BlockRequest>, &mut crate::WorkerContext<'_>) -> T,
    ) -> T {
        let Self { client, worker, .. } = self;
        let client = client.as_mut().expect("no queue is open");
        worker.with_context(|cx| action(client.queue(), cx))
    }

    /// Where the queue stands; [`Mode::Quiesced`] without one.
    pub fn mode(&self) -> Mode {
        self.client.as_ref().map_or(Mode::Quiesced, Client::mode)
    }

    /// Requests that have not come home, by the driver's own count.
    pub fn in_flight(&self) -> usize {
        self.client.as_ref().map_or(0, Client::in_flight)
    }

    /// The worker.
    pub fn worker(&mut self) -> &mut Worker {
        &mut self.worker
    }

    /// The guest's memory.
    pub fn space(&self) -> &DmaSpace {
        self.guest.space()
    }

    fn stuck(&self) -> Stuck {
        let first = self.client.as_ref().and_then(|client| client.contexts().next());
        Stuck {
            patience: self.patience,
            in_flight: self.in_flight(),
            mode: self.mode(),
            first: first.map_or_else(|| "(none)".into(), |first| describe(&first.io)),
        }
    }
}

impl fmt::Debug for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Driver")
            .field("client", &self.client)
            .field("shape", &self.shape)
            .finish_non_exhaustive()
    }
}

/// A request in words.
pub(super) fn describe(io: &BlockIo) -> String {
    format!("{:?} of {} bytes at {} {:?}", io.op, io.len, io.offset, io.flags)
}

fn came_home(finished: Finished<'_, BlockRequest, Submitted>) -> IoDone {
    let Submitted { id, io } = finished.context;
    let Some(request) = finished.request else {
        return IoDone { id, io, output: finished.output, data: Vec::new(), lost: true, mangled: None };
    };
    let same = (request.op(), request.offset(), request.len(), request.flags())
        == (io.op, io.offset, io.len, io.flags);
    let mangled = (!same).then(|| format!("submitted as {}, came back as {request:?}", describe(&io)));
    let mut data = Vec::new();
    if io.op == BlockOp::Read && finished.output == BlockOutput::Done && mangled.is_none() {
        data = vec![0; request.sg().len() as usize];
        // The buffer is as long as the list, so nothing is out of range.
        let _ = request.sg().copy_to(0, &mut data);
    }
    IoDone { id, io, output: finished.output, data, lost: false, mangled }
}
