//! A disk driver with many requests in flight.

use super::arena::{Arena, ArenaHal};
use super::transport::{Pump, RegisterTransport};
use crate::frontend::Frontend;
use std::fmt;
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::{Duration, Instant};
use thiserror::Error;
use virtio_drivers::queue::VirtQueue;
use virtio_drivers::transport::{DeviceStatus, Transport};
use virtio_drivers::{BufferDirection, Hal, PAGE_SIZE};

/// Entries of the ring. A request takes three, as the driver does without indirect tables: those would be allocated.
const SIZE: usize = 256;
/// Requests in flight at most.
const SLOTS: usize = SIZE / 3;
/// Header, status and padding before the data of a slot, in bytes.
const DATA_AT: usize = 512;
/// How long a request is waited for.
const LIMIT: Duration = Duration::from_secs(30);

/// A request type (VIRTIO 1.2, section 5.2.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlkOp {
    /// `VIRTIO_BLK_T_IN`
    In,
    /// `VIRTIO_BLK_T_OUT`
    Out,
    /// `VIRTIO_BLK_T_FLUSH`
    Flush,
    /// `VIRTIO_BLK_T_GET_ID`
    GetId,
    /// `VIRTIO_BLK_T_DISCARD`; the data are the range.
    Discard,
    /// `VIRTIO_BLK_T_WRITE_ZEROES`; the data are the range.
    WriteZeroes,
    /// Any number.
    Other(u32),
}

impl BlkOp {
    fn number(self) -> u32 {
        match self {
            Self::In => 0,
            Self::Out => 1,
            Self::Flush => 4,
            Self::GetId => 8,
            Self::Discard => 11,
            Self::WriteZeroes => 13,
            Self::Other(number) => number,
        }
    }

    fn reads(self) -> bool {
        matches!(self, Self::In | Self::GetId)
    }
}

/// The status byte of a request (VIRTIO 1.2, section 5.2.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlkStatus {
    /// `VIRTIO_BLK_S_OK`
    Ok,
    /// `VIRTIO_BLK_S_IOERR`
    IoError,
    /// `VIRTIO_BLK_S_UNSUPP`
    Unsupported,
    /// A number that the specification does not have.
    Unknown(u8),
}

/// What went wrong on the driver's side.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum DriverError {
    /// The device did not accept the features that were chosen from its offer.
    #[error("the device did not accept the features {0:#x}")]
    Features(u64),
    /// The device wants to be reset.
    #[error("the device needs a reset")]
    NeedsReset,
    /// `virtio-drivers` refused.
    #[error("virtio-drivers: {0}")]
    Driver(String),
    /// No answer in time.
    #[error("the device did not answer within {LIMIT:?}")]
    TimedOut,
}

impl From<virtio_drivers::Error> for DriverError {
    fn from(error: virtio_drivers::Error) -> Self {
        Self::Driver(error.to_string())
    }
}

/// A disk driver with up to 85 requests in flight, by `virtio_drivers::queue::VirtQueue`.
///
/// Requests live in slots: fill one, submit it, ring the doorbell when a batch is complete, poll.
pub struct BlkDriver {
    transport: RegisterTransport,
    queue: VirtQueue<ArenaHal, SIZE>,
    features: u64,
    slots: Vec<Slot>,
    idle: Vec<usize>,
    /// Which slot a chain's head belongs to.
    by_token: Vec<usize>,
    added: u16,
    rung: u16,
    max_data: usize,
}

struct Slot {
    physical: u64,
    memory: NonNull<u8>,
    pages: usize,
    in_flight: Option<(BlkOp, usize)>,
}

impl BlkDriver {
    /// Resets the device, negotiates the `wanted` features as far as they are on offer, and sets up queue 0 for requests of
    /// at most `max_data` bytes.
    ///
    /// # Errors
    /// Where the device refuses.
    pub fn connect(
        frontend: Arc<dyn Frontend>,
        pump: Pump,
        wanted: u64,
        max_data: usize,
    ) -> Result<Self, DriverError> {
        let mut transport = RegisterTransport::new(frontend, pump);
        transport.set_status(DeviceStatus::empty());
        transport.set_status(DeviceStatus::ACKNOWLEDGE | DeviceStatus::DRIVER);
        let features = transport.read_device_features() & wanted;
        transport.write_driver_features(features);
        let accepted = DeviceStatus::ACKNOWLEDGE | DeviceStatus::DRIVER | DeviceStatus::FEATURES_OK;
        transport.set_status(accepted);
        if !transport.get_status().contains(DeviceStatus::FEATURES_OK) {
            return Err(DriverError::Features(features));
        }
        let queue = VirtQueue::new(&mut transport, 0, false, features & 1 << 29 != 0)?;
        transport.set_status(accepted | DeviceStatus::DRIVER_OK);
        let pages = (DATA_AT + max_data).div_ceil(PAGE_SIZE);
        let slots = (0..SLOTS).map(|_| Slot::new(pages)).collect();
        let idle = (0..SLOTS).rev().collect();
        let by_token = vec![0; SIZE];
        Ok(Self { transport, queue, features, slots, idle, by_token, added: 0, rung: 0, max_data })
    }

    /// The negotiated features.
    pub fn features(&self) -> u64 {
        self.features
    }

    /// The way to the device's registers.
    pub fn transport(&mut self) -> &mut RegisterTransport {
        &mut self.transport
    }

    /// Sets the cache mode (VIRTIO 1.2, section 5.2.5.1): write-back, or write-through.
    pub fn set_writeback(&mut self, on: bool) {
        // The device takes the byte or leaves it; it does not answer.
        let _ = self.transport.write_config_space(32, u8::from(on));
    }

    /// Whether the cache mode is write-back.
    pub fn writeback(&self) -> bool {
        self.transport.read_config_space::<u8>(32).is_ok_and(|mode| mode != 0)
    }

    /// Capacity in sectors of 512 bytes.
    pub fn capacity(&self) -> u64 {
        self.transport.read_config_space(0).unwrap_or(0)
    }

    /// Requests that can be submitted now.
    pub fn idle(&self) -> usize {
        self.idle.len()
    }

    /// Submits a request and returns its slot; the doorbell is rung by [`BlkDriver::ring`]. `data` is what is sent, or for a
    /// request that reads, room of that length.
    ///
    /// # Errors
    /// Where no slot is idle.
    ///
    /// # Panics
    /// Where there are more data than was said at [`BlkDriver::connect`].
    pub fn submit(&mut self, op: BlkOp, sector: u64, data: &[u8]) -> Result<usize, DriverError> {
        assert!(data.len() <= self.max_data);
        let index = self.idle.pop().ok_or_else(|| DriverError::Driver("no slot is idle".into()))?;
        let slot = &mut self.slots[index];
        slot.prepare(op, sector, data);
        slot.in_flight = Some((op, data.len()));
        let (header, body, status) = slot.parts(data.len());
        // SAFETY: the slot's memory stays, and is not accessed, until `poll` has popped the request.
        let token = unsafe {
            match (op.reads(), body.is_empty()) {
                (_, true) => self.queue.add(&[header], &mut [status]),
                (true, false) => self.queue.add(&[header], &mut [body, status]),
                (false, false) => self.queue.add(&[header, body], &mut [status]),
            }
        }?;
        self.by_token[usize::from(token)] = index;
        self.added = self.added.wrapping_add(1);
        Ok(index)
    }

    /// Rings the doorbell if the device wants to hear of what was submitted since the last call.
    pub fn ring(&mut self) {
        let wanted = match self.transport.avail_event(0) {
            // VIRTIO 1.2, section 2.7.10: `vring_need_event`. (VirtQueue::should_notify compares without wrapping.)
            Some(event) if self.features & 1 << 29 != 0 => {
                self.added.wrapping_sub(event).wrapping_sub(1) < self.added.wrapping_sub(self.rung)
            }
            _ => self.added != self.rung && self.queue.should_notify(),
        };
        self.rung = self.added;
        if wanted {
            self.transport.notify(0);
        }
    }

    /// Whether everything that was submitted has come back and waits for [`BlkDriver::poll`]. A driver that looks before
    /// it takes anything moves the event index once per batch, and is interrupted once.
    pub fn batch_is_home(&self) -> bool {
        self.transport.used_index(0) == Some(self.added)
    }

    /// Takes what came back: calls `done` with the slot, the status and the data of each (what was read, or sent).
    ///
    /// # Errors
    /// Where the device is broken.
    pub fn poll(&mut self, mut done: impl FnMut(usize, BlkStatus, &[u8])) -> Result<usize, DriverError> {
        let mut count = 0;
        while let Some(token) = self.queue.peek_used() {
            let index = self.by_token[usize::from(token)];
            let slot = &mut self.slots[index];
            let (op, len) =
                slot.in_flight.take().ok_or_else(|| DriverError::Driver("a chain came back twice".into()))?;
            let (header, body, status) = slot.parts(len);
            // SAFETY: these are the buffers that `submit` added with this token.
            unsafe {
                match (op.reads(), body.is_empty()) {
                    (_, true) => self.queue.pop_used(token, &[header], &mut [status]),
                    (true, false) => self.queue.pop_used(token, &[header], &mut [body, status]),
                    (false, false) => self.queue.pop_used(token, &[header, body], &mut [status]),
                }
            }?;
            let (_, body, status) = slot.parts(len);
            let status = match status[0] {
                0 => BlkStatus::Ok,
                1 => BlkStatus::IoError,
                2 => BlkStatus::Unsupported,
                other => BlkStatus::Unknown(other),
            };
            done(index, status, body);
            self.idle.push(index);
            count += 1;
        }
        if count == 0 && self.transport.get_status().contains(DeviceStatus::DEVICE_NEEDS_RESET) {
            return Err(DriverError::NeedsReset);
        }
        Ok(count)
    }

    /// Submits one request and waits for it; what it reads goes into `data`.
    ///
    /// # Errors
    /// Where the device is broken or does not answer.
    pub fn run(&mut self, op: BlkOp, sector: u64, data: &mut [u8]) -> Result<BlkStatus, DriverError> {
        let slot = self.submit(op, sector, data)?;
        self.ring();
        let start = Instant::now();
        let mut answer = None;
        while answer.is_none() {
            if start.elapsed() > LIMIT {
                return Err(DriverError::TimedOut);
            }
            self.transport.pump().step();
            self.poll(|done, status, body| {
                if done == slot {
                    if op.reads() {
                        data.copy_from_slice(body);
                    }
                    answer = Some(status);
                }
            })?;
        }
        answer.ok_or(DriverError::TimedOut)
    }
}

impl Slot {
    fn new(pages: usize) -> Self {
        let (physical, memory) = ArenaHal::dma_alloc(pages, BufferDirection::Both);
        Self { physical, memory, pages, in_flight: None }
    }

    fn prepare(&mut self, op: BlkOp, sector: u64, data: &[u8]) {
        let (header, body, status) = self.parts(data.len());
        header[..4].copy_from_slice(&op.number().to_le_bytes());
        header[4..8].fill(0);
        header[8..].copy_from_slice(&sector.to_le_bytes());
        body.copy_from_slice(data);
        status[0] = 0xff;
    }

    fn parts(&mut self, len: usize) -> (&mut [u8], &mut [u8], &mut [u8]) {
        // SAFETY: the pages belong to this slot, the three ranges are disjoint and within them (the callers' lengths are
        // those checked by `submit`), and the device does not access them while the slot is not in flight.
        unsafe {
            let at = |offset: usize, len: usize| {
                std::slice::from_raw_parts_mut(self.memory.as_ptr().add(offset), len)
            };
            (at(0, 16), at(DATA_AT, len), at(16, 1))
        }
    }
}

impl Drop for BlkDriver {
    fn drop(&mut self) {
        // After the reset the device touches none of the memory that is given back below.
        self.transport.set_status(DeviceStatus::empty());
        for slot in &self.slots {
            // SAFETY: the pages came from `dma_alloc` and are given back once.
            unsafe { ArenaHal::dma_dealloc(slot.physical, slot.memory, slot.pages) };
        }
    }
}

impl fmt::Debug for BlkDriver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlkDriver")
            .field("features", &self.features)
            .field("idle", &self.idle.len())
            .field("space", Arena::get().space())
            .finish_non_exhaustive()
    }
}
