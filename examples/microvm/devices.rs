//! Devices from their descriptions: pipeline, workers, registers, interrupt.

use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use iovirt::core::dma::DmaSpace;
use iovirt::core::frontend::{Access, Frontend, Outcome};
use iovirt::core::irq::{EventFdInterrupt, Interrupt};
use iovirt::core::pipeline::{Stages, SwapControl};
use iovirt::core::request::block::BlockRequest;
use iovirt::core::request::net::NetRequest;
use iovirt::core::{WorkerConfig, WorkerHandle, WorkerThread};
use iovirt::describe::{Chain, DescribeError, Description};
use iovirt::frontends::virtio::transport::TransportError;
use iovirt::frontends::virtio::transport::mmio::{MmioDevice, REGION_SIZE};
use iovirt::frontends::virtio::transport::pci::PciDevice;
use iovirt::frontends::virtio::{QueueCounters, VirtioDevice};
use iovirt::registry::Registry;
use serde::Serialize;

use crate::bus::BusDevice;
use crate::common::pipeline::{Piped, put_below};
use crate::common::report::{self, QueueReport, StageReport};
use crate::error::MachineError;
use crate::guest::GuestDevice;
use crate::machine::Machine;

/// How long a vCPU waits for a reset that waits for requests in flight, and the end of the process for a device.
const PATIENCE: Duration = Duration::from_secs(30);

/// A device, the workers that run it, and what it is called.
#[derive(Debug)]
pub(crate) struct Device {
    /// What it is made of now: an exchange below a stage changes it.
    description: Mutex<Description>,
    place: Place,
    registers: Registers,
    /// The name of its window, where it has one of its own.
    window: Option<String>,
    // Behind the device, so that its queues outlive it no longer than they must.
    _workers: Vec<WorkerThread>,
}

/// Where a device is to be found by the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// In a window of its own, announced by ACPI.
    Mmio,
    /// On the PCI bus.
    Pci,
}

impl Place {
    /// For a sentence.
    pub(crate) fn describe(self) -> &'static str {
        match self {
            Self::Mmio => "on virtio-mmio",
            Self::Pci => "on the PCI bus",
        }
    }
}

/// A device behind its transport.
#[derive(Clone, Debug)]
enum Registers {
    Mmio(Arc<MmioDevice>),
    Pci(Arc<PciDevice>),
}

impl Registers {
    fn frontend(&self) -> Arc<dyn Frontend> {
        match self {
            Self::Mmio(device) => device.clone(),
            Self::Pci(device) => device.clone(),
        }
    }

    fn counters(&self) -> Vec<QueueCounters> {
        match self {
            Self::Mmio(device) => device.counters(),
            Self::Pci(device) => device.counters(),
        }
    }
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
    /// The same pipeline as parts, for a picture of it.
    #[serde(skip)]
    pub(crate) description: Option<Description>,
    /// The name of its window among the machine's.
    #[serde(skip)]
    pub(crate) window: Option<String>,
    /// What the built-in guest made of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) guest: Option<GuestDevice>,
}

impl Device {
    /// A device in that memory behind virtio-mmio registers.
    pub(crate) fn new(
        registry: &Registry,
        description: Description,
        space: &DmaSpace,
        interrupt: Arc<dyn Interrupt>,
    ) -> Result<Self, DeviceError> {
        Self::make(registry, description, |virtio, workers| {
            let device = MmioDevice::new(virtio, space, interrupt, workers);
            device.map(|device| Registers::Mmio(Arc::new(device)))
        })
    }

    /// A device behind some registers, with worker threads of its own: one for each queue, but no more than the host has
    /// processors.
    fn make(
        registry: &Registry,
        description: Description,
        behind: impl FnOnce(Arc<dyn VirtioDevice>, &[WorkerHandle]) -> Result<Registers, TransportError>,
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
        let registers = behind(virtio, &handles).map_err(|error| host(&error))?;
        let place = match &registers {
            Registers::Mmio(_) => Place::Mmio,
            Registers::Pci(_) => Place::Pci,
        };
        let description = Mutex::new(description);
        Ok(Self { description, place, registers, window: None, _workers: workers })
    }

    /// A device of a KVM machine.
    pub(crate) fn attach(
        registry: &Registry,
        description: Description,
        place: Place,
        machine: &mut Machine,
    ) -> Result<Self, AttachDeviceError> {
        let space = DmaSpace::from_guest_memory(machine.vm.memory()).map_err(|error| {
            MachineError::Memory { size: machine.vm.memory_size(), reason: error.to_string() }
        })?;
        match place {
            Place::Mmio => Self::attach_mmio(registry, description, &space, machine),
            Place::Pci => Self::attach_pci(registry, description, &space, machine),
        }
    }

    /// On the bus, which has its doorbells follow its windows.
    fn attach_pci(
        registry: &Registry,
        description: Description,
        space: &DmaSpace,
        machine: &mut Machine,
    ) -> Result<Self, AttachDeviceError> {
        let (bus, messages) = (machine.pci()?, machine.vm.messages());
        let device = Self::make(registry, description, |virtio, workers| {
            let device = PciDevice::new(virtio, space, messages, workers);
            device.map(|device| Registers::Pci(Arc::new(device)))
        })?;
        if let Registers::Pci(function) = &device.registers {
            bus.add_anywhere(function.clone()).map_err(MachineError::Pci)?;
        }
        Ok(device)
    }

    /// A window of its own, an irqfd, and an ioeventfd for each queue.
    fn attach_mmio(
        registry: &Registry,
        description: Description,
        space: &DmaSpace,
        machine: &mut Machine,
    ) -> Result<Self, AttachDeviceError> {
        let interrupt = Arc::new(EventFdInterrupt::new().map_err(MachineError::host("make an interrupt"))?);
        let slot = machine.slots.take()?;
        machine.vm.irqfd(interrupt.event(), slot.gsi)?;
        let mut device = Self::new(registry, description, space, interrupt)?;
        let frontend = device.frontend();
        for (queue, spec) in (0..).zip(frontend.doorbells()) {
            machine.vm.queue_doorbell(spec.doorbell.event(), slot, queue)?;
        }
        let name = format!("{} {}", frontend.name(), slot.index);
        machine.mmio.insert(slot.address, REGION_SIZE, &name, Arc::new(Window(frontend)))?;
        device.window = Some(name);
        Ok(device)
    }

    /// The registers.
    pub(crate) fn frontend(&self) -> Arc<dyn Frontend> {
        self.registers.frontend()
    }

    /// Where the guest finds it.
    pub(crate) fn place(&self) -> Place {
        self.place
    }

    /// Whether a stack was taken away and none is in its place.
    pub(crate) fn has_vacancy(&self) -> bool {
        let stages = self.frontend().stages();
        let mut disks = stages.controls::<SwapControl<BlockRequest>>();
        let mut networks = stages.controls::<SwapControl<NetRequest>>();
        disks.any(|(_, control)| control.is_vacant()) || networks.any(|(_, control)| control.is_vacant())
    }

    /// Whether what is written can be read again: everything but a null disk does.
    pub(crate) fn keeps_data(&self) -> bool {
        self.description().below.backend.stage.name() != "null"
    }

    /// Finishes what is in flight and makes it durable.
    pub(crate) fn finish(&self) {
        if self.frontend().drain().wait(PATIENCE) != Some(Outcome::Done) {
            eprintln!("microvm: {}: requests were still in flight after {PATIENCE:?}", self.description());
        }
    }

    /// What the device did so far.
    pub(crate) fn report(&self) -> DeviceReport {
        DeviceReport {
            pipeline: self.description().to_string(),
            queues: self.registers.counters().into_iter().map(QueueReport::from).collect(),
            stages: report::stages(&self.stages()),
            description: Some(self.description()),
            window: self.window.clone(),
            guest: None,
        }
    }
}

impl Piped for Device {
    fn description(&self) -> Description {
        self.description.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn stages(&self) -> Stages {
        self.frontend().stages()
    }

    fn now_below(&self, stage: &str, chain: Chain) {
        let mut description = self.description.lock().unwrap_or_else(PoisonError::into_inner);
        put_below(&mut description.below, stage, chain);
    }
}

impl DeviceReport {
    /// That of a device with one queue, for tests.
    #[cfg(test)]
    pub(crate) fn of_one_queue(pipeline: &str, queue: QueueReport) -> Self {
        Self {
            pipeline: pipeline.to_owned(),
            queues: vec![queue],
            stages: Vec::new(),
            description: None,
            window: None,
            guest: None,
        }
    }

    /// Sums over all queues: requests, doorbells, interrupts.
    pub(crate) fn totals(&self) -> [u64; 3] {
        report::totals(&self.queues)
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
struct Window(Arc<dyn Frontend>);

impl BusDevice for Window {
    fn read(&self, offset: u64, data: &mut [u8]) {
        self.0.read(0, offset, data);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        wait_for(self.0.write(0, offset, data));
    }
}

/// Has the vCPU wait where its access takes effect only once requests in flight have finished.
pub(crate) fn wait_for(access: Access) {
    if let Access::Deferred(ticket) = access
        && ticket.wait(PATIENCE).is_none()
    {
        eprintln!(
            "microvm: the guest goes on, though requests that its access waits for are still in flight"
        );
    }
}
