//! A worker with a thread of its own.

use super::run::{Worker, WorkerConfig, WorkerHandle};
use std::io;
use std::sync::mpsc;
use std::thread::JoinHandle;

/// A worker on a thread of its own. Dropping it stops the worker and waits for the thread.
#[derive(Debug)]
pub struct WorkerThread {
    handle: WorkerHandle,
    thread: Option<JoinHandle<()>>,
}

impl WorkerThread {
    /// Starts a worker on a thread of that name (up to 15 bytes are shown by the host).
    ///
    /// # Errors
    /// Where the host has no thread or descriptor left.
    pub fn spawn(name: &str, config: WorkerConfig) -> io::Result<Self> {
        let (sender, receiver) = mpsc::sync_channel(1);
        let thread = std::thread::Builder::new().name(name.into()).spawn(move || {
            let mut worker = match Worker::new(config) {
                Ok(worker) => worker,
                Err(error) => {
                    // The receiver waits right below.
                    let _ = sender.send(Err(error));
                    return;
                }
            };
            let _ = sender.send(Ok(worker.handle()));
            if let Err(error) = worker.run_until_stopped() {
                tracing::error!(%error, "a worker ended because the host failed to poll");
            }
        })?;
        let handle = receiver.recv().map_err(|_| io::Error::other("the worker's thread ended at once"))??;
        Ok(Self { handle, thread: Some(thread) })
    }

    /// Reaches the worker.
    pub fn handle(&self) -> &WorkerHandle {
        &self.handle
    }
}

impl Drop for WorkerThread {
    fn drop(&mut self) {
        self.handle.stop();
        if let Some(thread) = self.thread.take() {
            // A panic on the worker's thread has been reported there.
            let _ = thread.join();
        }
    }
}
