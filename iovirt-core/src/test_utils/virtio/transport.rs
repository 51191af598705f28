//! `virtio_drivers::Transport` over the registers of a virtio-mmio device (VIRTIO 1.2, section 4.2.2).

use crate::dma::DmaView;
use crate::frontend::{Access, Frontend, Ticket};
use std::cell::RefCell;
use std::fmt;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};
use virtio_drivers::transport::{DeviceStatus, DeviceType, InterruptStatus, Transport};
use virtio_drivers::{Error, PhysAddr, Result};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::Arena;

/// How long a deferred register access is waited for before the driver gives up.
const DEFERRED_LIMIT: Duration = Duration::from_secs(30);

/// Lets the device work while the driver waits: runs a worker of this thread, or sleeps a little where the worker has its
/// own.
#[derive(Clone)]
pub struct Pump(Rc<RefCell<dyn FnMut()>>);

impl Pump {
    /// Calls `step` while the driver waits.
    pub fn new(step: impl FnMut() + 'static) -> Self {
        Self(Rc::new(RefCell::new(step)))
    }

    /// For workers with threads of their own.
    pub fn threads() -> Self {
        Self::new(std::thread::yield_now)
    }

    /// Lets the device work a little.
    pub fn step(&self) {
        (self.0.borrow_mut())();
    }
}

impl fmt::Debug for Pump {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pump")
    }
}

/// Reaches a virtio-mmio device by register accesses, as a guest does.
#[derive(Debug)]
pub struct RegisterTransport {
    frontend: Arc<dyn Frontend>,
    pump: Pump,
    view: DmaView,
    /// Device areas of the queues that were set up: queue, size, address.
    used: Vec<(u16, u32, PhysAddr)>,
    doorbells: u64,
}

impl RegisterTransport {
    /// A way to that device.
    pub fn new(frontend: Arc<dyn Frontend>, pump: Pump) -> Self {
        let view = Arena::get().space().view();
        Self { frontend, pump, view, used: Vec::new(), doorbells: 0 }
    }

    /// Goes on with another device, as a guest does that was saved and restored.
    pub fn replace_frontend(&mut self, frontend: Arc<dyn Frontend>, pump: Pump) {
        self.frontend = frontend;
        self.pump = pump;
    }

    /// Lets the device work while the driver waits.
    pub fn pump(&self) -> &Pump {
        &self.pump
    }

    /// How often a doorbell was rung.
    pub fn doorbells(&self) -> u64 {
        self.doorbells
    }

    /// Where the device wants to be notified next: `avail_event` (VIRTIO 1.2, section 2.7.10).
    pub fn avail_event(&self, queue: u16) -> Option<u16> {
        let (_, size, address) = self.used.iter().find(|(index, ..)| *index == queue)?;
        self.view.read_array(address + 4 + 8 * u64::from(*size)).ok().map(u16::from_le_bytes)
    }

    fn read(&self, offset: u64) -> u32 {
        let mut bytes = [0; 4];
        self.frontend.read(0, offset, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    fn write(&self, offset: u64, value: u32) {
        if let Access::Deferred(ticket) = self.frontend.write(0, offset, &value.to_le_bytes()) {
            self.wait(&ticket);
        }
    }

    fn wait(&self, ticket: &Ticket) {
        let start = Instant::now();
        while !ticket.is_done() {
            assert!(
                start.elapsed() < DEFERRED_LIMIT,
                "a deferred register access did not end in {DEFERRED_LIMIT:?}"
            );
            self.pump.step();
        }
    }

    fn write_address(&self, offset: u64, address: u64) {
        self.write(offset, address as u32);
        self.write(offset + 4, (address >> 32) as u32);
    }
}

impl Transport for RegisterTransport {
    fn device_type(&self) -> DeviceType {
        DeviceType::try_from(self.read(0x008)).expect("a device number that virtio-drivers knows")
    }

    fn read_device_features(&mut self) -> u64 {
        self.write(0x014, 0);
        let low = self.read(0x010);
        self.write(0x014, 1);
        u64::from(self.read(0x010)) << 32 | u64::from(low)
    }

    fn write_driver_features(&mut self, features: u64) {
        self.write(0x024, 0);
        self.write(0x020, features as u32);
        self.write(0x024, 1);
        self.write(0x020, (features >> 32) as u32);
    }

    fn max_queue_size(&mut self, queue: u16) -> u32 {
        self.write(0x030, queue.into());
        self.read(0x034)
    }

    fn notify(&mut self, queue: u16) {
        self.doorbells += 1;
        self.write(0x050, queue.into());
    }

    fn get_status(&self) -> DeviceStatus {
        DeviceStatus::from_bits_retain(self.read(0x070))
    }

    fn set_status(&mut self, status: DeviceStatus) {
        self.write(0x070, status.bits());
    }

    fn set_guest_page_size(&mut self, _: u32) {}

    fn requires_legacy_layout(&self) -> bool {
        false
    }

    fn queue_set(&mut self, queue: u16, size: u32, desc: PhysAddr, driver: PhysAddr, device: PhysAddr) {
        self.write(0x030, queue.into());
        self.write(0x038, size);
        self.write_address(0x080, desc);
        self.write_address(0x090, driver);
        self.write_address(0x0a0, device);
        self.write(0x044, 1);
        self.used.push((queue, size, device));
    }

    fn queue_unset(&mut self, queue: u16) {
        self.write(0x030, queue.into());
        self.write(0x044, 0);
        self.used.retain(|(index, ..)| *index != queue);
    }

    fn queue_used(&mut self, queue: u16) -> bool {
        self.write(0x030, queue.into());
        self.read(0x044) != 0
    }

    fn ack_interrupt(&mut self) -> InterruptStatus {
        let pending = self.read(0x060);
        self.write(0x064, pending);
        InterruptStatus::from_bits_retain(pending)
    }

    fn read_config_generation(&self) -> u32 {
        self.read(0x0fc)
    }

    fn read_config_space<T: FromBytes + IntoBytes>(&self, offset: usize) -> Result<T> {
        let mut value = T::new_zeroed();
        self.frontend.read(0, 0x100 + offset as u64, value.as_mut_bytes());
        Ok(value)
    }

    fn write_config_space<T: IntoBytes + Immutable>(&mut self, offset: usize, value: T) -> Result<()> {
        match self.frontend.write(0, 0x100 + offset as u64, value.as_bytes()) {
            Access::Done => Ok(()),
            Access::Deferred(_) => Err(Error::Unsupported),
        }
    }
}
