//! The control plane.

use super::config::{Engine, FileConfig};
use super::control::FileControl;
use super::disk::Disk;
use super::probe;
use super::queue::DiskQueue;
use super::threads::Pool;
use super::uring::Ring;
use crate::block::align::{AlignConfig, AlignLayer, Aligned, AlignedQueue};
use iovirt_core::pipeline::{EventListener, Stages};
use iovirt_core::request::block::{BlockCaps, BlockRequest};
use iovirt_core::state::{StageStates, StateError};
use iovirt_core::{
    Backend, BackendError, BackendErrorKind, Completions, Depth, Interposer, Mode, Queue, WorkerContext,
};
use std::fs;
use std::sync::Arc;

/// A file, as the file system has it: what a [`FileBackend`] is without alignment.
#[derive(Debug)]
pub(super) struct DiskBackend {
    disk: Arc<Disk>,
    pool: Arc<Pool>,
    control: Arc<FileControl>,
}

impl DiskBackend {
    pub(super) fn open(file: fs::File, config: FileConfig) -> Result<Self, BackendError> {
        let threads = config.threads;
        let disk = Arc::new(Disk::open(file, config)?);
        let control = Arc::new(FileControl::new(disk.clone()));
        Ok(Self { disk, pool: Arc::new(Pool::new(threads)), control })
    }

    fn ring(&self, cx: &mut WorkerContext<'_>, depth: Depth) -> Result<Option<Ring>, BackendError> {
        let client = match self.disk.config().engine {
            Engine::Threads => return Ok(None),
            Engine::Auto | Engine::Uring => cx.uring(),
        };
        if client.is_none() && self.disk.config().engine == Engine::Uring {
            return Err(BackendError::new(
                BackendErrorKind::Unsupported,
                "engine=uring, but this worker has no io_uring: engine=auto or engine=threads does without",
            ));
        }
        Ok(client.map(|client| Ring::new(client, &self.disk, depth)))
    }
}

impl Backend<BlockRequest> for DiskBackend {
    type Queue = DiskQueue;

    fn caps(&self) -> Arc<BlockCaps> {
        self.disk.caps()
    }

    fn open(&self, cx: &mut WorkerContext<'_>, depth: Depth) -> Result<DiskQueue, BackendError> {
        let ring = self.ring(cx, depth)?;
        let pool = self.pool.client(&self.disk, cx.waker(), depth);
        Ok(DiskQueue::new(&self.disk, ring, pool, depth))
    }

    fn stages(&self, stages: &mut Stages) {
        stages.push_controlled("file", self.control.clone());
    }

    fn subscribe(&self, listener: &Arc<dyn EventListener>) {
        self.disk.listeners.add(listener);
    }

    fn save(&self, _: &mut StageStates) -> Result<(), StateError> {
        // All state is in the file.
        Ok(())
    }

    fn restore(&self, _: &mut StageStates) -> Result<(), StateError> {
        Ok(())
    }
}
/// A file or a block device as a disk; see [`file`](super).
#[derive(Debug)]
pub struct FileBackend {
    stack: Stack,
}

#[derive(Debug)]
enum Stack {
    Plain(DiskBackend),
    Aligned(Aligned<DiskBackend>),
}

impl FileBackend {
    /// Opens the file and locks it.
    ///
    /// # Errors
    /// Where the configuration is not allowed, the file cannot be opened or is no disk, or somebody else has it
    /// ([`BackendErrorKind::Busy`]).
    pub fn open(config: FileConfig) -> Result<Self, BackendError> {
        config.validate()?;
        let file = probe::open(&config)?;
        Self::assemble(file, config)
    }

    /// Takes a file that is open already, for an embedder that is handed descriptors; the configured path stands in
    /// messages only. The descriptor must have been opened as configured: for reading, and for writing unless read-only;
    /// with `O_DIRECT` if and only if that is configured; without `O_APPEND`, and without `O_NONBLOCK`, with which io_uring
    /// holds the worker on file systems that have no way not to wait.
    ///
    /// The lock belongs to the open file description, so that duplicates of the descriptor share it.
    ///
    /// # Errors
    /// As [`FileBackend::open`], and where the descriptor was opened otherwise.
    pub fn from_file(file: fs::File, config: FileConfig) -> Result<Self, BackendError> {
        config.validate()?;
        probe::check_descriptor(&file, &config)?;
        Self::assemble(file, config)
    }

    fn assemble(file: fs::File, config: FileConfig) -> Result<Self, BackendError> {
        let disk = DiskBackend::open(file, config)?;
        let facts = *disk.disk.facts();
        if !facts.is_direct() {
            return Ok(Self { stack: Stack::Plain(disk) });
        }
        let align = AlignConfig { memory: facts.memory_align, ..AlignConfig::default() };
        let aligned = AlignLayer::new(align).attach(disk).map_err(|error| {
            BackendError::new(
                BackendErrorKind::Unsupported,
                format!("direct=on is not possible here: {error}"),
            )
        })?;
        Ok(Self { stack: Stack::Aligned(aligned) })
    }

    fn disk(&self) -> &DiskBackend {
        match &self.stack {
            Stack::Plain(disk) => disk,
            Stack::Aligned(aligned) => aligned.below(),
        }
    }

    /// Control while it runs; in a pipeline, [`Stages::control`] finds it by the name `file`.
    pub fn control(&self) -> &Arc<FileControl> {
        &self.disk().control
    }
}

impl Backend<BlockRequest> for FileBackend {
    type Queue = FileQueue;

    fn caps(&self) -> Arc<BlockCaps> {
        match &self.stack {
            Stack::Plain(disk) => disk.caps(),
            Stack::Aligned(aligned) => aligned.caps(),
        }
    }

    fn open(&self, cx: &mut WorkerContext<'_>, depth: Depth) -> Result<FileQueue, BackendError> {
        let queue = match &self.stack {
            Stack::Plain(disk) => Either::Plain(disk.open(cx, depth)?),
            Stack::Aligned(aligned) => Either::Aligned(aligned.open(cx, depth)?),
        };
        Ok(FileQueue { queue })
    }

    fn stages(&self, stages: &mut Stages) {
        // The alignment is a part of this back-end, not a stage that anybody has put there.
        self.disk().stages(stages);
    }

    fn subscribe(&self, listener: &Arc<dyn EventListener>) {
        self.disk().subscribe(listener);
    }

    fn save(&self, states: &mut StageStates) -> Result<(), StateError> {
        self.disk().save(states)
    }

    fn restore(&self, states: &mut StageStates) -> Result<(), StateError> {
        self.disk().restore(states)
    }
}

/// The data plane of a [`FileBackend`].
#[derive(Debug)]
pub struct FileQueue {
    queue: Either,
}

#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "there is one for each queue, and it never moves")]
enum Either {
    Plain(DiskQueue),
    Aligned(AlignedQueue<DiskBackend>),
}

macro_rules! forward {
    ($self:ident, $queue:ident => $call:expr) => {
        match &mut $self.queue {
            Either::Plain($queue) => $call,
            Either::Aligned($queue) => $call,
        }
    };
}

impl Queue<BlockRequest> for FileQueue {
    #[inline]
    fn submit(&mut self, cx: &mut WorkerContext<'_>, request: BlockRequest) {
        forward!(self, queue => queue.submit(cx, request));
    }

    #[inline]
    fn kick(&mut self, cx: &mut WorkerContext<'_>) {
        forward!(self, queue => queue.kick(cx));
    }

    #[inline]
    fn poll(&mut self, cx: &mut WorkerContext<'_>, done: &mut Completions<BlockRequest>) {
        forward!(self, queue => queue.poll(cx, done));
    }

    fn drain(&mut self, cx: &mut WorkerContext<'_>) {
        forward!(self, queue => queue.drain(cx));
    }

    fn resume(&mut self, cx: &mut WorkerContext<'_>) {
        forward!(self, queue => queue.resume(cx));
    }

    fn mode(&self) -> Mode {
        match &self.queue {
            Either::Plain(queue) => queue.mode(),
            Either::Aligned(queue) => queue.mode(),
        }
    }

    fn in_flight(&self) -> usize {
        match &self.queue {
            Either::Plain(queue) => queue.in_flight(),
            Either::Aligned(queue) => queue.in_flight(),
        }
    }
}
