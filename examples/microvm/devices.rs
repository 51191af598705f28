//! Devices from their descriptions: pipeline, workers, registers, interrupt.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use iovirt::backends::block::file::FileControl;
use iovirt::backends::interposers::stats::{StatsControl, StatsSnapshot};
use iovirt::core::dma::DmaSpace;
use iovirt::core::frontend::{Access, Frontend, Outcome};
use iovirt::core::irq::{EventFdInterrupt, Interrupt};
use iovirt::core::{WorkerConfig, WorkerThread};
use iovirt::describe::{DescribeError, Description};
use iovirt::frontends::virtio::transport::mmio::{MmioDevice, REGION_SIZE};
use iovirt::registry::Registry;
use serde::Serialize;

use crate::bus::BusDevice;
use crate::error::MachineError;
use crate::machine::Machine;

/// How long a vCPU waits for a reset that waits for requests in flight, and the end of the process for a device.
const PATIENCE: Duration = Duration::from_secs(30);

/// A device, the workers that run it, and what it is called.
#[derive(Debug)]
pub(crate) struct Device {
    description: Description,
    mmio: Arc<MmioDevice>,
    // Behind the device, so that its queues outlive it no longer than they must.
    _workers: Vec<WorkerThread>,
}

/// Why a device cannot be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DeviceError {
    #[error("--device '{text}': {error}")]
    Description { text: String, error: DescribeError },
    #[error("--device '{text}': {reason}")]
    Host { text: String, reason: String },
}

/// What a device did.
#[derive(Debug, Serialize)]
pub(crate) struct DeviceReport {
    pub(crate) pipeline: String,
    pub(crate) queues: Vec<QueueReport>,
    pub(crate) stages: Vec<StageReport>,
}

/// What one queue did.
#[derive(Debug, Serialize)]
pub(crate) struct QueueReport {
    pub(crate) requests: u64,
    pub(crate) doorbells: u64,
    pub(crate) interrupts: u64,
}

/// What a stage of a pipeline measured.
#[derive(Debug, Serialize)]
pub(crate) struct StageReport {
    pub(crate) name: String,
    #[serde(flatten)]
    pub(crate) stats: StatsSnapshot,
}

impl Device {
    /// A device in that memory, with worker threads of its own: one for each queue, but no more than the host has
    /// processors.
    pub(crate) fn new(
        registry: &Registry,
        description: Description,
        space: &DmaSpace,
        interrupt: Arc<dyn Interrupt>,
    ) -> Result<Self, DeviceError> {
        let text = description.to_string();
        let host =
            |reason: &dyn ToString| DeviceError::Host { text: text.clone(), reason: reason.to_string() };
        let virtio = registry
            .build_virtio(&description)
            .map_err(|error| DeviceError::Description { text: text.clone(), error })?;
        let processors = thread::available_parallelism().map_or(1, usize::from);
        let workers = (0..virtio.queue_max_sizes().len().min(processors))
            .map(|_| WorkerThread::spawn("io-worker", WorkerConfig::default()))
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| host(&error))?;
        let handles: Vec<_> = workers.iter().map(|worker| worker.handle().clone()).collect();
        let mmio = MmioDevice::new(virtio, space, interrupt, &handles).map_err(|error| host(&error))?;
        Ok(Self { description, mmio: Arc::new(mmio), _workers: workers })
    }

    /// A device of a KVM machine: its window on the bus, an irqfd, and an ioeventfd for each queue.
    pub(crate) fn attach(
        registry: &Registry,
        description: Description,
        machine: &mut Machine,
    ) -> Result<Self, AttachDeviceError> {
        let interrupt = Arc::new(EventFdInterrupt::new().map_err(MachineError::host("make an interrupt"))?);
        let space = DmaSpace::from_guest_memory(machine.vm.memory()).map_err(|error| {
            MachineError::Memory { size: machine.vm.memory_size(), reason: error.to_string() }
        })?;
        let slot = machine.slots.take()?;
        machine.vm.irqfd(interrupt.event(), slot.gsi)?;
        let device = Self::new(registry, description, &space, interrupt)?;
        for (queue, spec) in (0..).zip(device.mmio.doorbells()) {
            machine.vm.queue_doorbell(spec.doorbell.event(), slot, queue)?;
        }
        let name = format!("{} {}", device.mmio.name(), slot.index);
        machine.mmio.insert(slot.address, REGION_SIZE, &name, Arc::new(Window(device.mmio.clone())))?;
        Ok(device)
    }

    /// The registers.
    pub(crate) fn mmio(&self) -> &Arc<MmioDevice> {
        &self.mmio
    }

    /// Whether what is written can be read again: everything but a null disk does.
    pub(crate) fn keeps_data(&self) -> bool {
        self.description.below.backend.stage.name() != "null"
    }

    /// Changes the size of the disk at the end of the pipeline, in bytes.
    pub(crate) fn resize(&self, bytes: u64) -> Result<(), String> {
        let stages = self.mmio.stages();
        let file = stages.control::<FileControl>("file").ok_or("no stage of its pipeline can be resized")?;
        file.resize(bytes).map(|_| ()).map_err(|error| error.to_string())
    }

    /// Finishes what is in flight and makes it durable.
    pub(crate) fn finish(&self) {
        if self.mmio.drain().wait(PATIENCE) != Some(Outcome::Done) {
            eprintln!("microvm: {}: requests were still in flight after {PATIENCE:?}", self.description);
        }
    }

    /// What the device did so far.
    pub(crate) fn report(&self) -> DeviceReport {
        let queue = |counters: iovirt::frontends::virtio::QueueCounters| QueueReport {
            requests: counters.chains,
            doorbells: counters.doorbells,
            interrupts: counters.interrupts,
        };
        let stages = self.mmio.stages();
        let stage = |(name, control): (&str, Arc<StatsControl>)| StageReport {
            name: name.to_owned(),
            stats: control.snapshot(),
        };
        DeviceReport {
            pipeline: self.description.to_string(),
            queues: self.mmio.counters().into_iter().map(queue).collect(),
            stages: stages.controls::<StatsControl>().map(stage).collect(),
        }
    }
}

impl DeviceReport {
    /// Sums over all queues: requests, doorbells, interrupts.
    pub(crate) fn totals(&self) -> [u64; 3] {
        self.queues.iter().fold([0; 3], |[requests, doorbells, interrupts], queue| {
            [requests + queue.requests, doorbells + queue.doorbells, interrupts + queue.interrupts]
        })
    }
}

/// Why a device cannot be part of a machine.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AttachDeviceError {
    #[error(transparent)]
    Device(#[from] DeviceError),
    #[error(transparent)]
    Machine(#[from] MachineError),
}

/// A device's registers on the bus.
struct Window(Arc<MmioDevice>);

impl BusDevice for Window {
    fn read(&self, offset: u64, data: &mut [u8]) {
        self.0.read(0, offset, data);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let Access::Deferred(ticket) = self.0.write(0, offset, data)
            && ticket.wait(PATIENCE).is_none()
        {
            eprintln!("microvm: a reset of {} goes on, though requests are still in flight", self.0.name());
        }
    }
}
