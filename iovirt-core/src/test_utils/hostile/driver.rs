//! A driver that writes registers, descriptors and rings by hand.

use super::{Buffer, Exchange, Split, Target, ensure};
use crate::dma::DmaView;
use crate::frontend::{Access, Frontend, Ticket};
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a device may take for what it must do, before it counts as hanging; no case depends on it otherwise.
pub(super) const HANG: Duration = Duration::from_secs(20);

/// Register offsets (VIRTIO 1.2, section 4.2.2).
pub mod register {
    #![allow(missing_docs, reason = "named as in the specification")]
    pub const DEVICE_FEATURES: u64 = 0x010;
    pub const DEVICE_FEATURES_SEL: u64 = 0x014;
    pub const DRIVER_FEATURES: u64 = 0x020;
    pub const DRIVER_FEATURES_SEL: u64 = 0x024;
    pub const QUEUE_SEL: u64 = 0x030;
    pub const QUEUE_NUM_MAX: u64 = 0x034;
    pub const QUEUE_NUM: u64 = 0x038;
    pub const QUEUE_READY: u64 = 0x044;
    pub const QUEUE_NOTIFY: u64 = 0x050;
    pub const INTERRUPT_STATUS: u64 = 0x060;
    pub const INTERRUPT_ACK: u64 = 0x064;
    pub const STATUS: u64 = 0x070;
    pub const QUEUE_DESC: u64 = 0x080;
    pub const QUEUE_DRIVER: u64 = 0x090;
    pub const QUEUE_DEVICE: u64 = 0x0a0;
    pub const CONFIG_GENERATION: u64 = 0x0fc;
    pub const CONFIG: u64 = 0x100;
}

/// Bits of the device status (VIRTIO 1.2, section 2.1).
pub mod status {
    #![allow(missing_docs, reason = "named as in the specification")]
    pub const ACKNOWLEDGE: u32 = 1;
    pub const DRIVER: u32 = 2;
    pub const DRIVER_OK: u32 = 4;
    pub const FEATURES_OK: u32 = 8;
    pub const NEEDS_RESET: u32 = 64;
    pub const FAILED: u32 = 128;
}

/// Feature bits that every device class has (VIRTIO 1.2, section 6).
pub mod feature {
    #![allow(missing_docs, reason = "named as in the specification")]
    pub const INDIRECT_DESC: u64 = 1 << 28;
    pub const EVENT_IDX: u64 = 1 << 29;
    pub const VERSION_1: u64 = 1 << 32;
    /// Everything that this driver can do, and all bits of the device class.
    pub const ALL: u64 = 0xff_ffff | INDIRECT_DESC | EVENT_IDX | VERSION_1;
}

/// Flags of a descriptor (VIRTIO 1.2, section 2.7.5).
pub(super) mod flag {
    pub(in super::super) const NEXT: u16 = 1;
    pub(in super::super) const WRITE: u16 = 2;
    pub(in super::super) const INDIRECT: u16 = 4;
}

/// Where the driver keeps what in its memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// The queue that the rings are for.
    pub queue: u32,
    /// The descriptor table: room for 1024.
    pub desc: u64,
    /// The available ring.
    pub avail: u64,
    /// The used ring.
    pub used: u64,
    /// Indirect tables.
    pub table: u64,
    /// Buffers, to the end.
    pub buffers: u64,
    /// The first address behind it all.
    pub end: u64,
}

impl Layout {
    /// Bytes of memory that a driver uses.
    pub const LEN: u64 = 0x10_0000;

    /// The layout of memory that begins there, for a driver of that queue.
    pub fn new(queue: u32, base: u64) -> Self {
        Self {
            queue,
            desc: base,
            avail: base + 0x4000,
            used: base + 0x6000,
            table: base + 0xa000,
            buffers: base + 0x4_0000,
            end: base + Self::LEN,
        }
    }
}

/// The registers of one queue, as a driver writes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueSetup {
    /// Which queue.
    pub queue: u32,
    /// Its size.
    pub size: u32,
    /// The descriptor table.
    pub desc: u64,
    /// The available ring.
    pub avail: u64,
    /// The used ring.
    pub used: u64,
}

impl QueueSetup {
    /// The driver's queue as it should be.
    pub fn good(layout: &Layout, size: u32) -> Self {
        Self { queue: layout.queue, size, desc: layout.desc, avail: layout.avail, used: layout.used }
    }
}

/// What a device answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// `DEVICE_NEEDS_RESET`.
    NeedsReset,
    /// A chain came back, with that last byte in the buffer that the case looks at.
    Returned(u8),
    /// Nothing.
    Ignored,
}

/// A driver without good manners. Everything is written as told; only [`RawDriver::exchange`] and what it needs know
/// how a ring works.
pub struct RawDriver {
    target: Target,
    layout: Layout,
    view: DmaView,
    size: u16,
    offered: u16,
    taken: u16,
    /// Where the byte is that [`RawDriver::answer`] looks at.
    look_at: u64,
    idle_steps: u32,
    hang: Duration,
}

impl RawDriver {
    /// A driver of that device; `idle_steps` without an answer count as none.
    pub fn new(target: Target, idle_steps: u32) -> Self {
        let layout = Layout::new(target.queue, target.base);
        let view = target.space.view();
        Self {
            target,
            layout,
            view,
            size: 16,
            offered: 0,
            taken: 0,
            look_at: layout.buffers,
            idle_steps,
            hang: HANG,
        }
    }

    /// How long the device may take from now on for what it must do, before it counts as hanging.
    pub fn set_hang(&mut self, hang: Duration) {
        self.hang = hang;
    }

    /// Where the driver keeps what.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// The device.
    pub fn frontend(&self) -> &Arc<dyn Frontend> {
        &self.target.frontend
    }

    /// The target.
    pub fn target(&mut self) -> &mut Target {
        &mut self.target
    }

    /// Lets the device work a little.
    pub fn step(&mut self) {
        (self.target.step)();
    }

    // Registers

    /// Reads a register.
    pub fn read(&self, offset: u64) -> u32 {
        let mut bytes = [0; 4];
        self.target.frontend.read(0, offset, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    /// Writes a register and does not wait.
    pub fn write_only(&self, offset: u64, value: u32) -> Access {
        self.target.frontend.write(0, offset, &value.to_le_bytes())
    }

    /// Writes a register, and waits where the access is deferred.
    ///
    /// # Panics
    /// Where the device hangs.
    pub fn write(&mut self, offset: u64, value: u32) {
        if let Access::Deferred(ticket) = self.write_only(offset, value) {
            self.wait_for(&ticket);
        }
    }

    /// Waits for a ticket.
    ///
    /// # Panics
    /// Where the device hangs.
    pub fn wait_for(&mut self, ticket: &Ticket) {
        let done = self.wait(|_| ticket.is_done());
        assert!(done.is_ok(), "a ticket was not completed");
    }

    /// The device status.
    pub fn status(&self) -> u32 {
        self.read(register::STATUS)
    }

    /// Resets the device and waits until it says so.
    ///
    /// # Errors
    /// Where it does not.
    pub fn reset(&mut self) -> Result<(), String> {
        self.write(register::STATUS, 0);
        let status = self.status();
        ensure!(status == 0, "the status after a reset is {status:#x}");
        let pending = self.read(register::INTERRUPT_STATUS);
        ensure!(pending == 0, "the interrupt status after a reset is {pending:#x}");
        Ok(())
    }

    /// What the device offers.
    pub fn offered_features(&mut self) -> u64 {
        self.write(register::DEVICE_FEATURES_SEL, 0);
        let low = self.read(register::DEVICE_FEATURES);
        self.write(register::DEVICE_FEATURES_SEL, 1);
        u64::from(self.read(register::DEVICE_FEATURES)) << 32 | u64::from(low)
    }

    /// Writes the driver's features.
    pub fn choose_features(&mut self, features: u64) {
        self.write(register::DRIVER_FEATURES_SEL, 0);
        self.write(register::DRIVER_FEATURES, features as u32);
        self.write(register::DRIVER_FEATURES_SEL, 1);
        self.write(register::DRIVER_FEATURES, (features >> 32) as u32);
    }

    /// Resets the device and negotiates those of `wanted` that are on offer.
    ///
    /// # Errors
    /// Where the device refuses.
    pub fn negotiate(&mut self, wanted: u64) -> Result<(), String> {
        self.reset()?;
        self.write(register::STATUS, status::ACKNOWLEDGE);
        self.write(register::STATUS, status::ACKNOWLEDGE | status::DRIVER);
        let features = self.offered_features() & wanted;
        self.choose_features(features);
        let accepted = status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK;
        self.write(register::STATUS, accepted);
        let found = self.status();
        ensure!(found == accepted, "features {features:#x}: the status is {found:#x}");
        Ok(())
    }

    /// Writes the registers of a queue, all but the one that makes it ready.
    pub fn place_queue(&mut self, setup: &QueueSetup) {
        self.write(register::QUEUE_SEL, setup.queue);
        self.write(register::QUEUE_NUM, setup.size);
        let areas = [
            (register::QUEUE_DESC, setup.desc),
            (register::QUEUE_DRIVER, setup.avail),
            (register::QUEUE_DEVICE, setup.used),
        ];
        for (offset, address) in areas {
            self.write(offset, address as u32);
            self.write(offset + 4, (address >> 32) as u32);
        }
    }

    /// Writes the registers of a queue and makes it ready; the rings begin empty.
    pub fn set_queue(&mut self, setup: &QueueSetup) {
        self.place_queue(setup);
        self.forget_rings(setup.size as u16);
        self.write(register::QUEUE_READY, 1);
    }

    /// Begins with empty rings of that size.
    pub fn forget_rings(&mut self, size: u16) {
        (self.size, self.offered, self.taken) = (size.max(1), 0, 0);
        self.store(self.layout.avail, 0);
        self.store(self.layout.avail + 2, 0);
        self.store(self.layout.used, 0);
        self.store(self.layout.used + 2, 0);
    }

    /// Says that the driver is ready.
    pub fn driver_ok(&mut self) {
        let before = self.status();
        self.write(register::STATUS, before | status::DRIVER_OK);
    }

    /// Resets the device, negotiates and sets a queue up.
    ///
    /// # Errors
    /// Where the device does not follow.
    pub fn start(&mut self, wanted: u64, setup: &QueueSetup) -> Result<(), String> {
        self.negotiate(wanted)?;
        self.set_queue(setup);
        self.driver_ok();
        Ok(())
    }

    /// Rings the doorbell of the driver's queue.
    pub fn kick(&mut self) {
        self.notify(self.layout.queue);
    }

    /// Rings a doorbell.
    pub fn notify(&mut self, queue: u32) {
        self.write(register::QUEUE_NOTIFY, queue);
    }

    // Memory

    /// Writes guest memory; what is not there is left out.
    pub fn put(&self, addr: u64, bytes: &[u8]) {
        // A map without this memory is what some cases are about.
        let _ = self.view.write(addr, bytes);
    }

    /// Reads guest memory; what is not there reads as zeroes.
    pub fn get(&self, addr: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        let _ = self.view.read(addr, &mut bytes);
        bytes
    }

    /// Writes 16 bits of guest memory.
    pub fn store(&self, addr: u64, value: u16) {
        self.put(addr, &value.to_le_bytes());
    }

    /// Reads 16 bits of guest memory.
    pub fn load(&self, addr: u64) -> u16 {
        u16::from_le_bytes(self.view.read_array(addr).unwrap_or_default())
    }

    /// Follows a new memory map.
    pub fn refresh(&mut self) {
        self.view.refresh();
    }

    /// Writes a descriptor at an address: of the ring's table or of an indirect one.
    pub fn desc_at(&self, addr: u64, buffer: (u64, u32), flags: u16, next: u16) {
        let rest = u64::from(buffer.1) | u64::from(flags) << 32 | u64::from(next) << 48;
        self.put(addr, &(u128::from(buffer.0) | u128::from(rest) << 64).to_le_bytes());
    }

    /// Writes a descriptor of the ring's table.
    pub fn desc(&self, index: u16, buffer: (u64, u32), flags: u16, next: u16) {
        self.desc_at(self.layout.desc + 16 * u64::from(index), buffer, flags, next);
    }

    /// Makes a chain available.
    pub fn offer(&mut self, head: u16) {
        let slot = u64::from(self.offered % self.size);
        self.store(self.layout.avail + 4 + 2 * slot, head);
        self.offered = self.offered.wrapping_add(1);
        std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
        self.store(self.layout.avail + 2, self.offered);
    }

    /// How many chains the device has returned.
    pub fn used_index(&self) -> u16 {
        self.load(self.layout.used + 2)
    }

    /// How many chains were made available and not taken back by [`RawDriver::take_used`].
    pub fn outstanding(&self) -> u16 {
        self.offered.wrapping_sub(self.taken)
    }

    /// Takes the next chain that came back: its head, and the bytes written.
    pub fn take_used(&mut self) -> Option<(u32, u32)> {
        if self.used_index() == self.taken {
            return None;
        }
        let slot = u64::from(self.taken % self.size);
        let element = self.view.read_array(self.layout.used + 4 + 8 * slot).unwrap_or_default();
        let element = u64::from_le_bytes(element);
        self.taken = self.taken.wrapping_add(1);
        Some((element as u32, (element >> 32) as u32))
    }

    // Requests

    /// Writes a request's bytes, and its descriptors from `first` on (or in the indirect table); does not offer it.
    /// Returns the buffers.
    pub fn lay_out(&mut self, exchange: &Exchange, split: &Split, first: u16) -> Vec<Buffer> {
        let buffers = split.buffers(exchange, self.layout.buffers);
        let mut readable = &exchange.readable[..];
        for buffer in &buffers {
            if buffer.writable {
                self.put(buffer.addr, &vec![0xee; buffer.len as usize]);
            } else {
                let (now, rest) = readable.split_at(buffer.len as usize);
                self.put(buffer.addr, now);
                readable = rest;
            }
        }
        self.chain(&buffers, split.indirect, first);
        if let Some(last) = buffers.iter().rev().find(|buffer| buffer.writable && buffer.len > 0) {
            self.look_at = last.addr + u64::from(last.len) - 1;
        }
        buffers
    }

    /// Writes the descriptors of a chain of these buffers.
    pub fn chain(&self, buffers: &[Buffer], indirect: bool, first: u16) {
        let (table, start) = if indirect { (self.layout.table, 0) } else { (self.layout.desc, first) };
        for (index, buffer) in (start..).zip(buffers) {
            let more = if usize::from(index - start) + 1 < buffers.len() { flag::NEXT } else { 0 };
            let flags = more | if buffer.writable { flag::WRITE } else { 0 };
            self.desc_at(table + 16 * u64::from(index), (buffer.addr, buffer.len), flags, index + 1);
        }
        if indirect {
            self.desc(first, (self.layout.table, 16 * buffers.len() as u32), flag::INDIRECT, 0);
        }
    }

    /// Makes a request and gives back what the device wrote.
    ///
    /// # Errors
    /// Where nothing comes back, or the wrong chain, or a length that the device cannot have written.
    pub fn exchange(&mut self, exchange: &Exchange, split: &Split) -> Result<Vec<u8>, String> {
        let buffers = self.lay_out(exchange, split, 0);
        self.offer(0);
        self.kick();
        let mut used = None;
        self.wait(|driver| {
            used = driver.take_used();
            used.is_some() || driver.status() & status::NEEDS_RESET != 0
        })
        .map_err(|error| format!("{}: {error}", exchange.name))?;
        let (head, len) = used.ok_or_else(|| format!("{}: the device needs a reset", exchange.name))?;
        ensure!(head == 0, "{}: chain {head} came back", exchange.name);
        ensure!(len <= exchange.writable, "{}: {len} bytes of {}", exchange.name, exchange.writable);
        let mut answer = Vec::new();
        for buffer in buffers.iter().filter(|buffer| buffer.writable) {
            answer.extend(self.get(buffer.addr, buffer.len as usize));
        }
        Ok(answer)
    }

    /// Lets the device work until `done`.
    ///
    /// # Errors
    /// Where the device hangs.
    pub fn wait(&mut self, mut done: impl FnMut(&mut Self) -> bool) -> Result<(), String> {
        let start = Instant::now();
        while !done(self) {
            ensure!(start.elapsed() < self.hang, "the device hangs");
            self.step();
        }
        Ok(())
    }

    /// Lets the device work and says what it answered, if it did.
    pub fn answer(&mut self) -> Answer {
        for _ in 0..self.idle_steps {
            if self.status() & status::NEEDS_RESET != 0 {
                return Answer::NeedsReset;
            }
            if self.take_used().is_some() {
                return Answer::Returned(self.get(self.look_at, 1)[0]);
            }
            self.step();
        }
        Answer::Ignored
    }

    /// Which byte [`RawDriver::answer`] looks at.
    pub fn look_at(&mut self, addr: u64) {
        self.look_at = addr;
    }
}

impl fmt::Debug for RawDriver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RawDriver")
            .field("layout", &self.layout)
            .field("offered", &self.offered)
            .field("taken", &self.taken)
            .finish_non_exhaustive()
    }
}
