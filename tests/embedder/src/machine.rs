//! A machine: guest memory, the I/O thread, and devices at windows of registers.

use crate::event_loop::IoThread;
use crate::line::Line;
use crate::{Error, PATIENCE, stages};
use iovirt::core::dma::DmaSpace;
use iovirt::core::doorbell::DoorbellSpec;
use iovirt::core::frontend::{Access, Frontend, Outcome, Ticket};
use iovirt::frontends::virtio::VirtioDevice;
use iovirt::frontends::virtio::transport::mmio::MmioDevice;
use iovirt::registry::Registry;
use std::sync::Arc;
use vm_memory::bitmap::AtomicBitmap;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// The guest's memory, with a bitmap of what was written: the embedder's own, which devices mark as well.
pub type Memory = GuestMemoryMmap<AtomicBitmap>;

/// Bytes of guest memory of each machine.
pub const MEMORY: usize = 32 << 20;

/// A machine without processors.
#[derive(Debug)]
pub struct Machine {
    memory: Arc<Memory>,
    space: DmaSpace,
    registry: Registry,
    io: IoThread,
}

impl Machine {
    /// A machine with fresh memory.
    pub fn new() -> Result<Self, Error> {
        let memory = Arc::new(Memory::from_ranges(&[(GuestAddress(0), MEMORY)])?);
        let space = DmaSpace::from_guest_memory(&memory)?;
        Ok(Self { memory, space, registry: stages::registry()?, io: IoThread::spawn()? })
    }

    /// A machine whose memory holds what that of another one held: the far end of a migration.
    pub fn with_content(content: &[u8]) -> Result<Self, Error> {
        let machine = Self::new()?;
        machine.memory.write_slice(content, GuestAddress(0))?;
        Ok(machine)
    }

    /// What its memory holds.
    pub fn content(&self) -> Result<Vec<u8>, Error> {
        let mut content = vec![0; MEMORY];
        self.memory.read_slice(&mut content, GuestAddress(0))?;
        Ok(content)
    }

    /// The guest's memory.
    pub fn memory(&self) -> &Arc<Memory> {
        &self.memory
    }

    /// The stages that a description can name here.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Plugs in a device that is described by a line.
    pub fn plug(&self, description: &str) -> Result<Window, Error> {
        let description = self.registry.parse(description)?;
        self.plug_device(self.registry.build_virtio(&description)?)
    }

    /// Plugs in a device that was put together by types.
    pub fn plug_device(&self, device: Arc<dyn VirtioDevice>) -> Result<Window, Error> {
        let line = Arc::new(Line::new()?);
        self.io.add_line(&line)?;
        let workers = [self.io.worker().clone()];
        let device = MmioDevice::new(device, &self.space, line.clone(), &workers)?;
        let doorbells = device.doorbells();
        Ok(Window { device, line, doorbells })
    }
}

/// Where a device's registers are, as a vCPU reaches them.
#[derive(Debug)]
pub struct Window {
    device: MmioDevice,
    line: Arc<Line>,
    doorbells: Vec<DoorbellSpec>,
}

impl Window {
    /// The device, for its life cycle and its stages.
    pub fn device(&self) -> &MmioDevice {
        &self.device
    }

    /// Its interrupt.
    pub fn line(&self) -> &Line {
        &self.line
    }

    /// A vCPU reads four bytes.
    pub fn read(&self, offset: u64) -> u32 {
        let mut bytes = [0; 4];
        self.device.read(0, offset, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    /// A vCPU writes four bytes. A doorbell goes the way of an ioeventfd: to its eventfd and not to the device. A write that
    /// takes effect later keeps the vCPU until then.
    pub fn write(&self, offset: u64, value: u32) -> Result<(), Error> {
        let rings = |spec: &&DoorbellSpec| {
            spec.offset == offset
                && spec.width == 4
                && spec.value.is_none_or(|wanted| wanted == u64::from(value))
        };
        if let Some(spec) = self.doorbells.iter().find(rings) {
            rustix::io::write(&spec.doorbell, &1u64.to_ne_bytes())?;
            return Ok(());
        }
        match self.device.write(0, offset, &value.to_le_bytes()) {
            Access::Done => Ok(()),
            Access::Deferred(ticket) => finish(&ticket),
        }
    }
}

/// Waits until an operation of a device's life cycle is done.
pub fn finish(ticket: &Ticket) -> Result<(), Error> {
    match ticket.wait(PATIENCE) {
        Some(Outcome::Done) => Ok(()),
        Some(Outcome::Cancelled) => Err("another operation took over".into()),
        None => Err("requests in flight do not come home".into()),
    }
}
