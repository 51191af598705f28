//! A virtio-mmio register file in front of a virtio-pci function: drivers and suites that know the one drive the other.
//!
//! It does what a driver of virtio-pci does (VIRTIO 1.2, section 4.1): finds the structures by their capabilities, lets the
//! function reach memory, gives each queue a vector, takes a queue back by its reset register.

use crate::doorbell::DoorbellSpec;
use crate::frontend::{Access, Frontend, RegionKind, RegionSpec, Ticket};
use crate::irq::{Interrupt, MsiMessage, MsiSink};
use crate::pipeline::Stages;
use crate::state::StateError;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

/// The configuration space of a function: how it is read and written.
pub trait PciConfigAccess: Send + Sync {
    /// Reads.
    fn read(&self, offset: u16, data: &mut [u8]);
    /// Writes.
    fn write(&self, offset: u16, data: &[u8]) -> Access;
}

/// Takes a function's messages: vector 0 is for changes of the configuration, the others are the queues'.
#[derive(Debug)]
pub struct Messages {
    pending: AtomicU32,
    next: Arc<dyn Interrupt>,
    address: Option<u64>,
}

impl Messages {
    /// Passes each on as an interrupt.
    pub fn new(next: Arc<dyn Interrupt>) -> Arc<Self> {
        Arc::new(Self { pending: AtomicU32::new(0), next, address: Some(MESSAGE_ADDRESS) })
    }

    /// The same for a driver that writes any address into the table.
    pub fn anywhere(next: Arc<dyn Interrupt>) -> Arc<Self> {
        Arc::new(Self { pending: AtomicU32::new(0), next, address: None })
    }
}

impl MsiSink for Messages {
    fn signal(&self, message: MsiMessage) {
        let here = self.address.is_none_or(|address| address == message.address);
        assert!(here, "a message went elsewhere: {message:?}");
        self.pending.fetch_or(if message.data == 0 { INT_CONFIG } else { INT_USED }, Ordering::SeqCst);
        self.next.trigger();
    }
}

const MESSAGE_ADDRESS: u64 = 0xfee0_0000;
const INT_USED: u32 = 1;
const INT_CONFIG: u32 = 2;
const NO_QUEUE: u32 = 0;
/// What a driver writes first, once it has enabled the function.
const ACKNOWLEDGE: u32 = 1;
const RING_RESET_HIGH: u32 = 1 << 8;

// virtio-mmio.
mod mmio {
    pub(super) const MAGIC: u64 = 0x000;
    pub(super) const VERSION: u64 = 0x004;
    pub(super) const DEVICE_ID: u64 = 0x008;
    pub(super) const DEVICE_FEATURES: u64 = 0x010;
    pub(super) const DEVICE_FEATURES_SEL: u64 = 0x014;
    pub(super) const DRIVER_FEATURES: u64 = 0x020;
    pub(super) const DRIVER_FEATURES_SEL: u64 = 0x024;
    pub(super) const QUEUE_SEL: u64 = 0x030;
    pub(super) const QUEUE_NUM_MAX: u64 = 0x034;
    pub(super) const QUEUE_NUM: u64 = 0x038;
    pub(super) const QUEUE_READY: u64 = 0x044;
    pub(super) const QUEUE_NOTIFY: u64 = 0x050;
    pub(super) const INTERRUPT_STATUS: u64 = 0x060;
    pub(super) const INTERRUPT_ACK: u64 = 0x064;
    pub(super) const STATUS: u64 = 0x070;
    pub(super) const ADDRESSES: u64 = 0x080;
    pub(super) const ADDRESSES_END: u64 = 0x0a8;
    pub(super) const SHM: u64 = 0x0b0;
    pub(super) const SHM_END: u64 = 0x0c0;
    pub(super) const CONFIG_GENERATION: u64 = 0x0fc;
    pub(super) const CONFIG: u64 = 0x100;
    pub(super) const LEN: u64 = 0x1000;
}

// virtio-pci, the common structure.
mod pci {
    pub(super) const DEVICE_FEATURES_SEL: u64 = 0x00;
    pub(super) const DEVICE_FEATURES: u64 = 0x04;
    pub(super) const DRIVER_FEATURES_SEL: u64 = 0x08;
    pub(super) const DRIVER_FEATURES: u64 = 0x0c;
    pub(super) const CONFIG_VECTOR: u64 = 0x10;
    pub(super) const NUM_QUEUES: u64 = 0x12;
    pub(super) const STATUS: u64 = 0x14;
    pub(super) const CONFIG_GENERATION: u64 = 0x15;
    pub(super) const QUEUE_SEL: u64 = 0x16;
    pub(super) const QUEUE_SIZE: u64 = 0x18;
    pub(super) const QUEUE_VECTOR: u64 = 0x1a;
    pub(super) const QUEUE_ENABLE: u64 = 0x1c;
    pub(super) const QUEUE_NOTIFY_OFF: u64 = 0x1e;
    pub(super) const ADDRESSES: u64 = 0x20;
    pub(super) const QUEUE_RESET: u64 = 0x3a;
}

/// Where a structure is.
#[derive(Clone, Copy, Debug, Default)]
struct Place {
    region: usize,
    offset: u64,
}

/// The structures of a function.
#[derive(Clone, Copy, Debug, Default)]
struct Places {
    common: Place,
    notify: Place,
    multiplier: u64,
    isr: Place,
    device: Place,
    msix_table: Place,
}

/// A virtio-pci function that looks like a virtio-mmio device.
pub struct MmioOverPci {
    function: Arc<dyn Frontend>,
    config: Box<dyn PciConfigAccess>,
    messages: Option<Arc<Messages>>,
    places: Places,
    device_id: u32,
    max_sizes: Vec<u32>,
    /// What was read of the interrupt status, which reading clears.
    pending: AtomicU32,
    /// The driver has asked for a reset and has not seen yet that it is over.
    resetting: AtomicBool,
}

impl MmioOverPci {
    /// In front of that function. With `messages`, which must be the function's sink, interrupts are messages, otherwise the
    /// status is polled and the pin is not looked at.
    ///
    /// # Panics
    /// Where the function lacks a structure.
    pub fn new(
        function: Arc<dyn Frontend>,
        config: impl PciConfigAccess + 'static,
        messages: Option<Arc<Messages>>,
    ) -> Self {
        let mut device = [0; 2];
        config.read(2, &mut device);
        let places = find_structures(&config, function.regions().len(), messages.is_some());
        let mut this = Self {
            function,
            config: Box::new(config),
            messages,
            places,
            device_id: u32::from(u16::from_le_bytes(device)) - 0x1040,
            max_sizes: Vec::new(),
            pending: AtomicU32::new(0),
            resetting: AtomicBool::new(false),
        };
        this.enable();
        let queues = this.get(pci::NUM_QUEUES, 2);
        for index in 0..queues {
            let _ = this.put(pci::QUEUE_SEL, index, 2);
            let size = this.get(pci::QUEUE_SIZE, 2);
            this.max_sizes.push(size);
        }
        let _ = this.put(pci::QUEUE_SEL, 0, 2);
        this
    }

    /// The function behind.
    pub fn function(&self) -> &Arc<dyn Frontend> {
        &self.function
    }

    /// Memory decoding and bus master on; vectors, where they are used.
    fn enable(&self) {
        if self.messages.is_some() {
            let Place { region, offset } = self.places.msix_table;
            let vectors = self.get(pci::NUM_QUEUES, 2) + 1;
            for vector in 0..vectors {
                let at = offset + u64::from(vector) * 16;
                let _ = self.function.write(region, at, &MESSAGE_ADDRESS.to_le_bytes());
                let _ = self.function.write(region, at + 8, &vector.to_le_bytes());
                let _ = self.function.write(region, at + 12, &[0; 4]);
            }
            let at = capabilities(&*self.config).into_iter().find(|at| byte(&*self.config, *at) == 0x11);
            let control = at.expect("an MSI-X capability") + 2;
            let mut old = [0; 2];
            self.config.read(control, &mut old);
            let _ = self.config.write(control, &(u16::from_le_bytes(old) | 1 << 15).to_le_bytes());
        }
        let _ = self.config.write(4, &6_u16.to_le_bytes());
    }

    fn get(&self, register: u64, len: usize) -> u32 {
        let mut bytes = [0; 4];
        let Place { region, offset } = self.places.common;
        self.function.read(region, offset + register, &mut bytes[..len]);
        u32::from_le_bytes(bytes)
    }

    fn put(&self, register: u64, value: u32, len: usize) -> Access {
        let Place { region, offset } = self.places.common;
        self.function.write(region, offset + register, &value.to_le_bytes()[..len])
    }

    fn interrupt_status(&self) -> u32 {
        let mut isr = [0];
        self.function.read(self.places.isr.region, self.places.isr.offset, &mut isr);
        let messages =
            self.messages.as_ref().map_or(0, |messages| messages.pending.swap(0, Ordering::SeqCst));
        let new = u32::from(isr[0]) | messages;
        self.pending.fetch_or(new, Ordering::SeqCst) | new
    }

    fn read_register(&self, offset: u64) -> u32 {
        match offset {
            mmio::MAGIC => 0x7472_6976,
            mmio::VERSION => 2,
            mmio::DEVICE_ID => self.device_id,
            mmio::DEVICE_FEATURES => self.get(pci::DEVICE_FEATURES, 4),
            mmio::QUEUE_NUM_MAX => {
                let queue = self.get(pci::QUEUE_SEL, 2) as usize;
                self.max_sizes.get(queue).copied().unwrap_or(NO_QUEUE)
            }
            mmio::QUEUE_READY => self.get(pci::QUEUE_ENABLE, 2),
            mmio::INTERRUPT_STATUS => self.interrupt_status(),
            mmio::STATUS => self.status(),
            mmio::SHM..mmio::SHM_END => u32::MAX,
            mmio::CONFIG_GENERATION => self.get(pci::CONFIG_GENERATION, 1),
            _ => 0,
        }
    }

    fn write_register(&self, offset: u64, value: u32) -> Access {
        match offset {
            mmio::DEVICE_FEATURES_SEL => self.put(pci::DEVICE_FEATURES_SEL, value, 4),
            mmio::DRIVER_FEATURES_SEL => self.put(pci::DRIVER_FEATURES_SEL, value, 4),
            mmio::DRIVER_FEATURES => {
                // Needed to take a queue back.
                let own = if self.get(pci::DRIVER_FEATURES_SEL, 4) == 1 { RING_RESET_HIGH } else { 0 };
                self.put(pci::DRIVER_FEATURES, value | own, 4)
            }
            // What does not fit into the register is no queue.
            mmio::QUEUE_SEL => self.put(pci::QUEUE_SEL, value.min(0xffff), 2),
            mmio::QUEUE_NUM => self.put(pci::QUEUE_SIZE, if value > 0xffff { 0 } else { value }, 2),
            mmio::QUEUE_READY if value & 1 == 0 => self.put(pci::QUEUE_RESET, 1, 2),
            mmio::QUEUE_READY => {
                let queue = self.get(pci::QUEUE_SEL, 2);
                let _ = self.put(pci::QUEUE_VECTOR, queue + 1, 2);
                self.put(pci::QUEUE_ENABLE, 1, 2)
            }
            mmio::QUEUE_NOTIFY => self.notify(value),
            mmio::INTERRUPT_ACK => {
                self.interrupt_status();
                self.pending.fetch_and(!value, Ordering::SeqCst);
                Access::Done
            }
            mmio::STATUS => self.set_status(value),
            mmio::ADDRESSES..mmio::ADDRESSES_END => {
                // Pairs of registers, 16 bytes apart there and 8 bytes here.
                let (pair, half) = ((offset - mmio::ADDRESSES) / 16, (offset - mmio::ADDRESSES) % 16);
                if half < 8 { self.put(pci::ADDRESSES + pair * 8 + half, value, 4) } else { Access::Done }
            }
            _ => Access::Done,
        }
    }

    fn set_status(&self, value: u32) -> Access {
        if value == ACKNOWLEDGE {
            self.enable();
        }
        let access = self.put(pci::STATUS, value & 0xff, 1);
        if value == 0 {
            self.resetting.store(true, Ordering::SeqCst);
            self.forget_interrupts();
        } else {
            let _ = self.put(pci::CONFIG_VECTOR, 0, 2);
        }
        access
    }

    /// A function may send messages until its reset is over, which the driver learns here.
    fn status(&self) -> u32 {
        let status = self.get(pci::STATUS, 1);
        if status == 0 && self.resetting.swap(false, Ordering::SeqCst) {
            self.forget_interrupts();
        }
        status
    }

    fn forget_interrupts(&self) {
        self.interrupt_status();
        self.pending.store(0, Ordering::SeqCst);
    }

    /// Rings the doorbell of a queue at its own place, as a driver does that has read where that is.
    fn notify(&self, queue: u32) -> Access {
        if queue as usize >= self.max_sizes.len() {
            return Access::Done;
        }
        let selected = self.get(pci::QUEUE_SEL, 2);
        let _ = self.put(pci::QUEUE_SEL, queue, 2);
        let at = u64::from(self.get(pci::QUEUE_NOTIFY_OFF, 2)) * self.places.multiplier;
        let _ = self.put(pci::QUEUE_SEL, selected, 2);
        let Place { region, offset } = self.places.notify;
        self.function.write(region, offset + at, &(queue as u16).to_le_bytes())
    }
}

fn byte(config: &dyn PciConfigAccess, at: u16) -> u8 {
    let mut byte = [0];
    config.read(at, &mut byte);
    byte[0]
}

/// Where the capabilities are.
fn capabilities(config: &dyn PciConfigAccess) -> Vec<u16> {
    let mut found = Vec::new();
    let mut at = byte(config, 0x34);
    while at != 0 && found.len() < 48 {
        found.push(u16::from(at));
        at = byte(config, u16::from(at) + 1);
    }
    found
}

fn find_structures(config: &dyn PciConfigAccess, regions: usize, messages: bool) -> Places {
    let word = |at: u16| {
        let mut word = [0; 4];
        config.read(at, &mut word);
        u32::from_le_bytes(word)
    };
    // Both windows have 64 bits, so the region is half the BAR's number.
    let region = |bar: u8| usize::from(bar) / 2;
    let (mut places, mut found) = (Places::default(), 0);
    for at in capabilities(config) {
        let place = Place { region: region(byte(config, at + 4)), offset: u64::from(word(at + 8)) };
        match (byte(config, at), byte(config, at + 3)) {
            (9, 1) => places.common = place,
            (9, 2) => (places.notify, places.multiplier) = (place, u64::from(word(at + 16))),
            (9, 3) => places.isr = place,
            (9, 4) => places.device = place,
            (0x11, _) if messages => {
                let table = word(at + 4);
                places.msix_table = Place { region: region(table as u8 & 7), offset: u64::from(table & !7) };
                continue;
            }
            _ => continue,
        }
        found += 1;
    }
    assert!(found == 4 && regions > 0, "a structure is missing: {places:?}");
    places
}

impl Frontend for MmioOverPci {
    fn name(&self) -> &str {
        self.function.name()
    }

    fn regions(&self) -> Vec<RegionSpec> {
        vec![RegionSpec { kind: RegionKind::Mmio, size: mmio::LEN }]
    }

    fn read(&self, region: usize, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if region != 0 {
            return;
        }
        if let Some(offset) = offset.checked_sub(mmio::CONFIG) {
            // The driver's accesses are of any width there, this side's of those that a bus has.
            let Place { region, offset: start } = self.places.device;
            for (index, byte) in (0..).zip(data) {
                if let Some(at) = offset.checked_add(index).filter(|at| *at < mmio::LEN) {
                    self.function.read(region, start + at, std::slice::from_mut(byte));
                }
            }
        } else if let Ok(word) = <&mut [u8; 4]>::try_from(data)
            && offset.is_multiple_of(4)
        {
            *word = self.read_register(offset).to_le_bytes();
        }
    }

    fn write(&self, region: usize, offset: u64, data: &[u8]) -> Access {
        if region != 0 {
            return Access::Done;
        }
        if let Some(at) = offset.checked_sub(mmio::CONFIG) {
            let Place { region, offset: start } = self.places.device;
            return if at < mmio::LEN { self.function.write(region, start + at, data) } else { Access::Done };
        }
        match <[u8; 4]>::try_from(data) {
            Ok(word) if offset.is_multiple_of(4) => self.write_register(offset, u32::from_le_bytes(word)),
            _ => Access::Done,
        }
    }

    fn doorbells(&self) -> Vec<DoorbellSpec> {
        let of_mmio = |(value, spec): (u64, DoorbellSpec)| DoorbellSpec {
            region: 0,
            offset: mmio::QUEUE_NOTIFY,
            width: 4,
            value: Some(value),
            ..spec
        };
        (0..).zip(self.function.doorbells()).map(of_mmio).collect()
    }

    fn drain(&self) -> Ticket {
        self.function.drain()
    }

    fn resume(&self) -> Ticket {
        self.function.resume()
    }

    fn reset(&self) -> Ticket {
        let ticket = self.function.reset();
        self.enable();
        ticket
    }

    fn save(&self) -> Result<Vec<u8>, StateError> {
        self.function.save()
    }

    fn restore(&self, saved: &[u8]) -> Result<(), StateError> {
        self.function.restore(saved)
    }

    fn stages(&self) -> Stages {
        self.function.stages()
    }
}

impl fmt::Debug for MmioOverPci {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MmioOverPci")
            .field("function", &self.function)
            .field("places", &self.places)
            .finish_non_exhaustive()
    }
}
