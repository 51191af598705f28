//! Devices from their descriptions: pipeline, workers, socket.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};

use iovirt::core::pipeline::Stages;
use iovirt::core::{WorkerConfig, WorkerHandle, WorkerThread};
use iovirt::describe::{Chain, Description};
use iovirt::frontends::virtio::VirtioDevice;
use iovirt::registry::Registry;
use serde::Serialize;

use crate::common::pipeline::{Piped, put_below};
use crate::common::report::{self, QueueReport, StageReport};
use crate::cpu::CpuClock;
use crate::error::Failure;
use crate::options::Place;
use iovirt::frontends::virtio::transport::vhost_user::VhostUserDevice;

/// How long the queues of a device may take to open what is below them.
const OPENING: Duration = Duration::from_secs(60);

/// A device whose files are open, and that nobody runs yet: it has no thread.
#[derive(Debug)]
pub(crate) struct Built {
    place: Place,
    virtio: Arc<dyn VirtioDevice>,
}

/// A device, the workers that run it, and where it is to be found.
#[derive(Debug)]
pub(crate) struct Device {
    /// What it is made of now: an exchange below a stage changes it.
    description: Mutex<Description>,
    socket: PathBuf,
    device: Arc<VhostUserDevice>,
    /// The clocks of its workers, and when they began.
    clocks: Vec<CpuClock>,
    began: Instant,
    // Behind the device, so that its queues outlive it no longer than they must.
    _workers: Vec<WorkerThread>,
}

/// What a device did.
#[derive(Debug, Serialize)]
pub(crate) struct DeviceReport {
    pub(crate) pipeline: String,
    pub(crate) socket: PathBuf,
    /// Front-ends that connected so far.
    pub(crate) connections: u64,
    pub(crate) connected: bool,
    pub(crate) workers: Vec<WorkerReport>,
    pub(crate) queues: Vec<QueueReport>,
    pub(crate) stages: Vec<StageReport>,
}

/// What a worker thread took of the processors. Nothing is told where the host does not tell.
#[derive(Debug, Serialize)]
pub(crate) struct WorkerReport {
    /// How long it has had one, in seconds.
    pub(crate) cpu_seconds: Option<f64>,
    /// The share of one that this is, since it began.
    pub(crate) cpu_share: Option<f64>,
}

impl WorkerReport {
    fn new(time: Option<Duration>, elapsed: Duration) -> Self {
        let share = |time: Duration| time.as_secs_f64() / elapsed.as_secs_f64();
        Self { cpu_seconds: time.map(|time| time.as_secs_f64()), cpu_share: time.map(share) }
    }
}

impl Built {
    /// Opens what a description names.
    pub(crate) fn build(registry: &Registry, place: Place) -> Result<Self, Failure> {
        match registry.build_virtio(&place.description) {
            Ok(virtio) => Ok(Self { place, virtio }),
            Err(error) => Err(Failure::Build { text: place.description.to_string(), error }),
        }
    }

    /// Starts its workers: one for each queue, but no more than `processors`. Returns once each queue has opened what is below
    /// it.
    pub(crate) fn start(self, processors: usize, poll: Duration) -> Result<Device, Failure> {
        let Self { place: Place { socket, description }, virtio } = self;
        let text = description.to_string();
        let began = Instant::now();
        let host = |reason: &dyn ToString| Failure::Host { text: text.clone(), reason: reason.to_string() };
        let workers = (0..virtio.queue_max_sizes().len().min(processors))
            .map(|_| WorkerThread::spawn("io-worker", WorkerConfig { poll, ..WorkerConfig::default() }))
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| host(&error))?;
        let handles: Vec<_> = workers.iter().map(|worker| worker.handle().clone()).collect();
        let device = VhostUserDevice::new(virtio, &handles).map_err(|error| host(&error))?;
        let clocks = settle(&handles).ok_or_else(|| host(&"its queues could not be opened in time"))?;
        let (description, device) = (Mutex::new(description), Arc::new(device));
        Ok(Device { description, socket, device, clocks, began, _workers: workers })
    }
}

/// Waits until each worker has done what it was told so far, and gives their clocks.
fn settle(workers: &[WorkerHandle]) -> Option<Vec<CpuClock>> {
    let clock = |worker: &WorkerHandle| {
        let (sender, receiver) = mpsc::sync_channel(1);
        worker.add_lane(move |_| {
            // The receiver waits below, or has given up.
            let _ = sender.send(CpuClock::of_this_thread());
            None
        });
        receiver.recv_timeout(OPENING).ok()
    };
    workers.iter().map(clock).collect()
}

impl Device {
    /// The device behind its socket.
    pub(crate) fn vhost_user(&self) -> &Arc<VhostUserDevice> {
        &self.device
    }

    /// Where it is to be found.
    pub(crate) fn socket(&self) -> &PathBuf {
        &self.socket
    }

    /// The time that each of its workers has had a processor.
    pub(crate) fn worker_times(&self) -> impl Iterator<Item = Option<Duration>> {
        self.clocks.iter().map(CpuClock::read)
    }

    /// What the device did so far.
    pub(crate) fn report(&self) -> DeviceReport {
        let elapsed = self.began.elapsed();
        DeviceReport {
            pipeline: self.description().to_string(),
            socket: self.socket.clone(),
            connections: self.device.connections(),
            connected: self.device.is_connected(),
            workers: self.worker_times().map(|time| WorkerReport::new(time, elapsed)).collect(),
            queues: self.device.counters().into_iter().map(QueueReport::from).collect(),
            stages: report::stages(&self.stages()),
        }
    }
}

impl Piped for Device {
    fn description(&self) -> Description {
        self.description.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn stages(&self) -> Stages {
        self.device.stages()
    }

    fn now_below(&self, stage: &str, chain: Chain) {
        let mut description = self.description.lock().unwrap_or_else(PoisonError::into_inner);
        put_below(&mut description.below, stage, chain);
    }
}
