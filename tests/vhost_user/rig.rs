//! A served device in this process, and drivers for it.

use iovirt::registry::Registry;
use iovirt_core::{WorkerConfig, WorkerThread};
use iovirt_frontends::virtio::VirtioDevice;
use iovirt_frontends::virtio::transport::vhost_user::{Stopper, VhostUserDevice, VhostUserServer};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use vhost_user_driver::{BlkDriver, Options};

use super::raw::Raw;

/// How long anything may take that must happen.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
/// How long a worker looks for work where it polls.
pub(crate) const POLL: Duration = Duration::from_micros(50);
/// A disk as the driver's exercises need one.
pub(crate) const DISK: &str = "virtio-blk,queues=2,queue-size=256 -> memory,size=64M";

/// A device behind a socket. Dropped, the server is stopped first.
pub(crate) struct Served {
    device: Arc<VhostUserDevice>,
    folder: TempDir,
    stopper: Stopper,
    server: Option<JoinHandle<io::Result<()>>>,
    workers: Vec<WorkerThread>,
}

impl Served {
    /// A device from its description, on so many workers.
    pub(crate) fn new(description: &str, workers: usize, poll: Duration) -> Self {
        let device = Registry::standard().build_virtio(&description.parse().unwrap()).unwrap();
        Self::of(device, workers, poll)
    }

    /// That device.
    pub(crate) fn of(device: Arc<dyn VirtioDevice>, workers: usize, poll: Duration) -> Self {
        let config = || WorkerConfig { poll, ..WorkerConfig::default() };
        let workers: Vec<_> =
            (0..workers).map(|_| WorkerThread::spawn("worker", config()).unwrap()).collect();
        let handles: Vec<_> = workers.iter().map(|worker| worker.handle().clone()).collect();
        let device = Arc::new(VhostUserDevice::new(device, &handles).unwrap());
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let server = VhostUserServer::with_patience(&path, device.clone(), Duration::from_secs(1)).unwrap();
        let stopper = server.stopper();
        let server = Some(std::thread::spawn(move || server.run()));
        Self { device, folder, stopper, server, workers }
    }

    pub(crate) fn device(&self) -> &Arc<VhostUserDevice> {
        &self.device
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.path().join("socket")
    }

    pub(crate) fn connect(&self, options: &Options) -> BlkDriver {
        BlkDriver::connect(&self.socket(), options).unwrap()
    }

    pub(crate) fn raw(&self) -> Raw {
        Raw::connect(&self.socket())
    }

    /// Ends the workers under the device.
    pub(crate) fn lose_workers(&mut self) {
        self.workers.clear();
    }

    /// Stops the server and says how long that took.
    pub(crate) fn stop(&mut self) -> Duration {
        let begun = Instant::now();
        self.stopper.stop();
        if let Some(server) = self.server.take() {
            server.join().expect("the server did not panic").unwrap();
        }
        begun.elapsed()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.stopper.stop();
        if let Some(ended) = self.server.take().map(JoinHandle::join)
            && !std::thread::panicking()
        {
            ended.expect("the server did not panic").unwrap();
        }
    }
}

/// Waits for something that must happen.
pub(crate) fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Two queues with few requests, so that many drivers can be made.
pub(crate) fn small(queues: u16) -> Options {
    Options { queues, queue_size: 64, slots: 16, buffer: 128 << 10, ..Options::blk() }
}

/// Runs what must end: a test that hangs fails, and says where.
pub(crate) fn within_limit<T: Send + 'static>(what: &str, work: impl FnOnce() -> T + Send + 'static) -> T {
    let (sender, receiver) = std::sync::mpsc::channel();
    let thread = std::thread::spawn(move || {
        let result = work();
        // The receiver has given up where this fails.
        let _ = sender.send(result);
    });
    match receiver.recv_timeout(Duration::from_secs(120)) {
        Ok(result) => {
            thread.join().unwrap();
            result
        }
        Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => {
            std::panic::resume_unwind(thread.join().map(|()| "no result").unwrap_err())
        }
        Err(std::sync::mpsc::RecvTimeoutError::Timeout) => panic!("{what} hangs"),
    }
}
