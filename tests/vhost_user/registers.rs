//! What a monitor does with the registers of its guest's virtio-mmio device: what it keeps, and the messages that the rest becomes.

use super::raw::{code, duplicate, longs, number, words};
use iovirt_core::test_utils::hostile::{feature, register, status};
use serde::{Deserialize, Serialize};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use vmm_sys_util::eventfd::EventFd;

/// Where the guest's memory is in the front-end: anything but its physical address.
const USER: u64 = 0x5500_0000_0000;
/// What is not the driver's to choose: the log, and that protocol features were negotiated.
const TRANSPORT: u64 = 1 << 26 | 1 << 30;
const PROTOCOL_FEATURES: u64 = 1 << 30;

/// A message with its descriptors.
pub(crate) struct Message {
    pub(crate) code: u32,
    pub(crate) payload: Vec<u8>,
    fds: Vec<OwnedFd>,
}

impl Message {
    pub(crate) fn new(code: u32, payload: Vec<u8>) -> Self {
        Self { code, payload, fds: Vec::new() }
    }

    pub(crate) fn with(code: u32, payload: Vec<u8>, fds: Vec<OwnedFd>) -> Self {
        Self { code, payload, fds }
    }

    pub(crate) fn fds(&self) -> Vec<BorrowedFd<'_>> {
        self.fds.iter().map(OwnedFd::as_fd).collect()
    }
}

/// Where a ring stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Stand {
    /// The device does not have it yet.
    #[default]
    Fresh,
    Started,
    /// The device gave it back, and told its base.
    Stopped,
}

/// The registers of a queue.
#[derive(Clone, Copy, Default, Serialize, Deserialize)]
pub(crate) struct QueueRegisters {
    size: u32,
    addresses: [u64; 3],
    pub(crate) ready: bool,
    pub(crate) stand: Stand,
    /// Where the device begins, or goes on.
    pub(crate) base: u32,
}

impl QueueRegisters {
    /// Where the index of the used ring lies.
    pub(crate) fn used_index(&self) -> u64 {
        self.addresses[2] + 2
    }

    fn set_address(&mut self, offset: u64, value: u32) {
        let places = [register::QUEUE_DESC, register::QUEUE_DRIVER, register::QUEUE_DEVICE];
        for (address, place) in self.addresses.iter_mut().zip(places) {
            if offset == place {
                *address = *address & !0xffff_ffff | u64::from(value);
            } else if offset == place + 4 {
                *address = *address & 0xffff_ffff | u64::from(value) << 32;
            }
        }
    }

    /// Has a device take ring `index`, with these doorbells and interrupts.
    pub(crate) fn start(&self, index: usize, (kick, call): (&EventFd, &EventFd)) -> Vec<Message> {
        let (ring, event) = (index as u32, longs(&[index as u64]));
        let [desc, avail, used] = self.addresses.map(|address| address.wrapping_add(USER));
        let places = [words(&[ring, 0]), longs(&[desc, used, avail, 0])].concat();
        vec![
            Message::new(code::SET_VRING_NUM, words(&[ring, self.size])),
            Message::new(code::SET_VRING_ADDR, places),
            Message::new(code::SET_VRING_BASE, words(&[ring, self.base])),
            Message::with(code::SET_VRING_CALL, event.clone(), vec![duplicate(call)]),
            Message::with(code::SET_VRING_KICK, event, vec![duplicate(kick)]),
            Message::new(code::SET_VRING_ENABLE, words(&[ring, 1])),
        ]
    }
}

/// The register file.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Registers {
    offered: u64,
    max_size: u32,
    feature_page: u32,
    driver_page: u32,
    chosen: u64,
    pub(crate) selected: usize,
    pub(crate) queues: Vec<QueueRegisters>,
    pub(crate) status: u32,
    /// Interrupts that the driver has not acknowledged.
    pub(crate) pending: u32,
}

impl Registers {
    /// Of a device that answered `features` to a question for them, with so many queues, which all have that size at most.
    pub(crate) fn new(features: &[u8], queues: usize, max_size: u32) -> Self {
        Self {
            offered: number(features) & !TRANSPORT,
            max_size,
            feature_page: 0,
            driver_page: 0,
            chosen: 0,
            selected: 0,
            queues: vec![QueueRegisters::default(); queues],
            status: 0,
            pending: 0,
        }
    }

    pub(crate) fn read(&self, offset: u64) -> u32 {
        let queue = self.queues.get(self.selected);
        match offset {
            register::DEVICE_FEATURES => (self.offered >> (32 * self.feature_page.min(1))) as u32,
            register::QUEUE_NUM_MAX if queue.is_some() => self.max_size,
            register::QUEUE_READY => queue.is_some_and(|queue| queue.ready).into(),
            register::INTERRUPT_STATUS => self.pending,
            register::STATUS => self.status,
            _ => 0,
        }
    }

    /// A write that changes nothing but registers.
    pub(crate) fn write(&mut self, offset: u64, value: u32) {
        let queue = self.queues.get_mut(self.selected);
        match offset {
            register::DEVICE_FEATURES_SEL => self.feature_page = value,
            register::DRIVER_FEATURES_SEL => self.driver_page = value,
            register::DRIVER_FEATURES if self.driver_page < 2 => {
                let shift = 32 * self.driver_page;
                self.chosen = self.chosen & !(0xffff_ffff << shift) | u64::from(value) << shift;
            }
            register::QUEUE_SEL => self.selected = value as usize,
            register::INTERRUPT_ACK => self.pending &= !value,
            register::QUEUE_NUM => queue.into_iter().for_each(|queue| queue.size = value),
            register::QUEUE_READY => queue.into_iter().for_each(|queue| queue.ready = value == 1),
            _ => queue.into_iter().for_each(|queue| queue.set_address(offset, value)),
        }
    }

    /// Whether a driver may have what it chose.
    pub(crate) fn are_features_known(&self) -> bool {
        self.chosen & !self.offered == 0 && self.chosen & feature::VERSION_1 != 0
    }

    pub(crate) fn set_features(&self) -> Message {
        Message::new(code::SET_FEATURES, longs(&[self.chosen | PROTOCOL_FEATURES]))
    }

    pub(crate) fn is_live(&self) -> bool {
        self.status & status::DRIVER_OK != 0
    }

    /// As after power-on.
    pub(crate) fn reset(&mut self) {
        self.queues.fill(QueueRegisters::default());
        (self.status, self.pending, self.chosen) = (0, 0, 0);
    }
}

/// Tells of guest memory: base, length and file of each piece.
pub(crate) fn memory_table<'a>(pieces: impl Iterator<Item = (u64, u64, BorrowedFd<'a>)>) -> Message {
    let (mut table, mut fds) = (Vec::new(), Vec::new());
    for (base, len, file) in pieces {
        table.extend(longs(&[base, len, USER + base, 0]));
        fds.push(file.try_clone_to_owned().expect("a descriptor"));
    }
    Message::with(code::SET_MEM_TABLE, [words(&[fds.len() as u32, 0]), table].concat(), fds)
}
