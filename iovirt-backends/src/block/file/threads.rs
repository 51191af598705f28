//! A pool of threads that make system calls, shared by the queues of one back-end.
//!
//! Jobs lie in one ring with room for every request of every queue. A worker takes the pool's lock once per batch, and its
//! own outbox's once per poll that finds something there.

use super::disk::Disk;
use super::inline;
use super::outbox::Outbox;
use super::task::Task;
use iovirt_core::Depth;
use iovirt_core::request::block::{BlockError, BlockOutput};
use iovirt_core::worker::LaneWaker;
use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// The pool. Dropping it lets the threads end once the jobs are done.
#[derive(Debug)]
pub(super) struct Pool {
    shared: Arc<Shared>,
    max: usize,
}

#[derive(Debug, Default)]
struct Shared {
    jobs: Mutex<Jobs>,
    available: Condvar,
}

#[derive(Debug, Default)]
struct Jobs {
    list: VecDeque<Job>,
    /// The most that the clients can have here at once.
    room: usize,
    threads: usize,
    idle: usize,
    stop: bool,
}

/// A task, with the place its result goes to. It keeps the file open until the result is there, and no longer: whoever
/// has the result and closes the file can open it again at once.
#[derive(Debug)]
struct Job {
    task: Task,
    disk: Arc<Disk>,
    home: Arc<Outbox<Finished>>,
}

/// A task that is done.
#[derive(Debug)]
pub(super) struct Finished {
    pub(super) task: Task,
    pub(super) output: BlockOutput,
}

/// The place of one queue at the pool.
#[derive(Debug)]
pub(super) struct PoolClient {
    pool: Arc<Pool>,
    disk: Arc<Disk>,
    home: Arc<Outbox<Finished>>,
    room: usize,
    batch: Vec<Job>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pool {
    /// A pool of at most `max` threads, none of which is started yet.
    pub(super) fn new(max: usize) -> Self {
        Self { shared: Arc::default(), max }
    }

    /// A place for one queue.
    pub(super) fn client(self: &Arc<Self>, disk: &Arc<Disk>, waker: LaneWaker, depth: Depth) -> PoolClient {
        // One more: the sync at the end of a drain.
        let room = depth.get() + 1;
        lock(&self.shared.jobs).make_room(room);
        PoolClient {
            pool: self.clone(),
            disk: disk.clone(),
            home: Arc::new(Outbox::new(room, waker)),
            room,
            batch: Vec::with_capacity(room),
        }
    }

    fn submit(&self, batch: &mut Vec<Job>) {
        let mut jobs = lock(&self.shared.jobs);
        jobs.list.extend(batch.drain(..));
        let wanted = jobs.list.len().saturating_sub(jobs.idle).min(self.max - jobs.threads);
        for _ in 0..wanted {
            let shared = self.shared.clone();
            match std::thread::Builder::new().name("iovirt-file".into()).spawn(move || shared.work()) {
                Ok(_) => jobs.threads += 1,
                Err(error) => {
                    tracing::error!(%error, "the host refused a thread for file I/O");
                    break;
                }
            }
        }
        if jobs.threads == 0 {
            // Nobody is there to do it.
            for job in jobs.list.drain(..) {
                job.finish(BlockOutput::Failed(BlockError::Io));
            }
            return;
        }
        let wake = jobs.list.len().min(jobs.idle);
        drop(jobs);
        for _ in 0..wake {
            self.shared.available.notify_one();
        }
    }
}

impl Jobs {
    /// Room for one more client.
    fn make_room(&mut self, room: usize) {
        self.room += room;
        self.list.reserve(self.room.saturating_sub(self.list.len()));
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        lock(&self.shared.jobs).stop = true;
        self.shared.available.notify_all();
    }
}

impl Shared {
    /// What each thread does until the pool is gone.
    fn work(&self) {
        while let Some(mut job) = self.next() {
            let output = inline::run(&job.disk, &mut job.task);
            job.finish(output);
        }
    }

    fn next(&self) -> Option<Job> {
        let mut jobs = lock(&self.jobs);
        loop {
            if let Some(job) = jobs.list.pop_front() {
                return Some(job);
            }
            if jobs.stop {
                return None;
            }
            jobs.idle += 1;
            jobs = self.available.wait(jobs).unwrap_or_else(PoisonError::into_inner);
            jobs.idle -= 1;
        }
    }
}

impl Job {
    fn finish(self, output: BlockOutput) {
        let Self { task, disk, home } = self;
        drop(disk);
        home.put(Finished { task, output });
    }
}

impl PoolClient {
    /// Adds a task to the batch.
    pub(super) fn push(&mut self, task: Task) {
        self.batch.push(Job { task, disk: self.disk.clone(), home: self.home.clone() });
    }

    /// Hands the batch to the pool.
    #[inline]
    pub(super) fn flush(&mut self) {
        if !self.batch.is_empty() {
            self.pool.submit(&mut self.batch);
        }
    }

    fn is_ours(&self, job: &Job) -> bool {
        Arc::ptr_eq(&job.home, &self.home)
    }

    /// Takes what is done; `into` is empty and becomes the next outbox.
    #[inline]
    pub(super) fn reap(&mut self, into: &mut Vec<Finished>) {
        self.home.exchange(into);
    }
}

impl Drop for PoolClient {
    /// What no thread has begun is never done. What is under way keeps its memory until it is.
    fn drop(&mut self) {
        let mut cancelled = Vec::new();
        let mut jobs = lock(&self.pool.shared.jobs);
        jobs.room -= self.room;
        for _ in 0..jobs.list.len() {
            match jobs.list.pop_front() {
                Some(job) if self.is_ours(&job) => cancelled.push(job),
                Some(job) => jobs.list.push_back(job),
                None => break,
            }
        }
        drop(jobs);
        // Dropping a request tells its owner, who may be anybody: not under the lock.
        drop(cancelled);
    }
}
