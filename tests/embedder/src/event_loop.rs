//! The embedder's event loop: one thread, one epoll, and on it an iovirt worker among other descriptors.

use crate::Error;
use crate::line::Line;
use iovirt::core::{Worker, WorkerConfig, WorkerHandle};
use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::event::{EventfdFlags, eventfd};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::{self, JoinHandle};

const WORKER: u64 = 0;
const STOP: u64 = 1;
/// Interrupt lines are numbered from here on.
const LINES: u64 = 2;

/// The thread that runs the loop; it ends when this is dropped.
#[derive(Debug)]
pub struct IoThread {
    shared: Arc<Shared>,
    worker: WorkerHandle,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    epoll: OwnedFd,
    stop: OwnedFd,
    lines: Mutex<Vec<Arc<Line>>>,
}

impl IoThread {
    /// Starts the loop.
    pub fn spawn() -> Result<Self, Error> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        let stop = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        epoll::add(&epoll, &stop, EventData::new_u64(STOP), EventFlags::IN)?;
        let shared = Arc::new(Shared { epoll, stop, lines: Mutex::default() });
        let (tell, told) = mpsc::channel();
        let thread = thread::Builder::new().name("embedder-io".into()).spawn({
            let shared = shared.clone();
            // A worker stays on the thread that made it; its handle goes anywhere.
            move || match Worker::new(WorkerConfig::default()) {
                Ok(worker) => {
                    let _ = tell.send(Ok(worker.handle()));
                    shared.run(worker);
                }
                Err(error) => {
                    let _ = tell.send(Err(error));
                }
            }
        })?;
        Ok(Self { shared, worker: told.recv()??, thread: Some(thread) })
    }

    /// Reaches the worker: for devices.
    pub fn worker(&self) -> &WorkerHandle {
        &self.worker
    }

    /// Has the loop deliver the interrupts of a line.
    pub fn add_line(&self, line: &Arc<Line>) -> Result<(), Error> {
        let mut lines = self.shared.lines.lock().unwrap_or_else(PoisonError::into_inner);
        let number = EventData::new_u64(LINES + lines.len() as u64);
        epoll::add(&self.shared.epoll, line.as_ref(), number, EventFlags::IN)?;
        lines.push(line.clone());
        Ok(())
    }
}

impl Drop for IoThread {
    fn drop(&mut self) {
        let _ = rustix::io::write(&self.shared.stop, &1u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    /// The loop. What the worker still has in flight at the end is waited for when it is dropped.
    fn run(&self, mut worker: Worker) {
        epoll::add(&self.epoll, worker.as_fd(), EventData::new_u64(WORKER), EventFlags::IN)
            .expect("a worker's descriptor can be polled");
        let mut events = Vec::with_capacity(16);
        loop {
            events.clear();
            match epoll::wait(&self.epoll, spare_capacity(&mut events), None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => panic!("epoll failed: {error}"),
            }
            for event in &events {
                match event.data.u64() {
                    // One step that does not block; where more is left, the descriptor stays readable.
                    WORKER => worker.run().expect("the worker can poll and time"),
                    STOP => return,
                    line => self.deliver((line - LINES) as usize),
                }
            }
        }
    }

    fn deliver(&self, index: usize) {
        let line = self.lines.lock().unwrap_or_else(PoisonError::into_inner).get(index).cloned();
        if let Some(line) = line {
            line.deliver();
        }
    }
}
