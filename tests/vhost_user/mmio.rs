//! A virtio-mmio register file in front of a vhost-user device: what a VMM does with its guest's registers, in messages. Suites that know
//! registers drive the device through it.

use super::raw::{ALL_PROTOCOL, Raw, code, config, duplicate, longs, number, words};
use super::rig::Served;
use iovirt_core::dma::{DmaSpace, Region, shared_memory};
use iovirt_core::doorbell::DoorbellSpec;
use iovirt_core::frontend::{Access, Frontend, RegionKind, RegionSpec, Ticket};
use iovirt_core::pipeline::Stages;
use iovirt_core::state::StateError;
use iovirt_core::test_utils::hostile::{feature, register, status};
use std::fmt;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Where the guest's memory is in the front-end: anything but its physical address.
const USER: u64 = 0x5500_0000_0000;
const INT_USED: u32 = 1;

/// Guest memory in pieces, and what shares it.
pub(crate) struct Memory {
    pub(crate) space: DmaSpace,
    pieces: Vec<(u64, u64, OwnedFd)>,
}

impl Memory {
    pub(crate) fn new(ranges: &[(u64, u64)]) -> Self {
        let pieces: Vec<_> = ranges
            .iter()
            .map(|&(base, len)| (base, len, OwnedFd::from(shared_memory(len).unwrap())))
            .collect();
        let regions =
            pieces.iter().map(|(base, len, fd)| Region::from_file(*base, *len, fd.as_fd(), 0).unwrap());
        Self { space: DmaSpace::from_regions(regions.collect()).unwrap(), pieces }
    }
}

#[derive(Clone, Copy, Default)]
struct Registers {
    size: u32,
    addresses: [u64; 3],
    ready: bool,
    started: bool,
}

struct State {
    raw: Raw,
    feature_page: u32,
    driver_page: u32,
    chosen: u64,
    selected: usize,
    queues: Vec<Registers>,
    status: u32,
    pending: u32,
}

/// The device as its guest sees it.
pub(crate) struct MmioOverVhostUser {
    served: Served,
    offered: u64,
    max_size: u32,
    kicks: Vec<EventFd>,
    calls: Vec<EventFd>,
    state: Mutex<State>,
}

impl MmioOverVhostUser {
    /// In front of that device, whose queues all have that size at most.
    pub(crate) fn new(served: Served, memory: &Memory, max_size: u32) -> Self {
        let raw = served.raw();
        raw.take_protocol(ALL_PROTOCOL);
        let offered = number(&raw.ask(code::GET_FEATURES, &[])) & !(1 << 26 | 1 << 30);
        let table: Vec<u64> =
            memory.pieces.iter().flat_map(|(base, len, _)| [*base, *len, USER + base, 0]).collect();
        let table = [words(&[memory.pieces.len() as u32, 0]), longs(&table)].concat();
        let fds: Vec<_> = memory.pieces.iter().map(|(.., fd)| fd.as_fd()).collect();
        assert_eq!(raw.tell_with(code::SET_MEM_TABLE, &table, &fds), 0);
        let count = number(&raw.ask(code::GET_QUEUE_NUM, &[])) as usize;
        let events = || (0..count).map(|_| EventFd::new(EFD_NONBLOCK).unwrap()).collect();
        let queues = vec![Registers::default(); count];
        let state = State {
            raw,
            feature_page: 0,
            driver_page: 0,
            chosen: 0,
            selected: 0,
            queues,
            status: 0,
            pending: 0,
        };
        Self { served, offered, max_size, kicks: events(), calls: events(), state: Mutex::new(state) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn read_register(&self, offset: u64) -> u32 {
        let mut state = self.state();
        match offset {
            register::DEVICE_FEATURES => (self.offered >> (32 * state.feature_page.min(1))) as u32,
            register::QUEUE_NUM_MAX if state.selected < state.queues.len() => self.max_size,
            register::QUEUE_READY => {
                let selected = state.selected;
                state.queues.get(selected).is_some_and(|queue| queue.ready).into()
            }
            register::INTERRUPT_STATUS => {
                let used = self.calls.iter().filter(|call| call.read().is_ok()).count() > 0;
                state.pending |= u32::from(used) * INT_USED;
                state.pending
            }
            register::STATUS => {
                let broken = number(&state.raw.ask(code::GET_STATUS, &[])) as u32 & status::NEEDS_RESET;
                state.status | broken
            }
            _ => 0,
        }
    }

    fn write_register(&self, offset: u64, value: u32) {
        let mut state = self.state();
        let selected = state.selected;
        match offset {
            register::DEVICE_FEATURES_SEL => state.feature_page = value,
            register::DRIVER_FEATURES_SEL => state.driver_page = value,
            register::DRIVER_FEATURES if state.driver_page < 2 => {
                let shift = 32 * state.driver_page;
                state.chosen = state.chosen & !(0xffff_ffff << shift) | u64::from(value) << shift;
            }
            register::QUEUE_SEL => state.selected = value as usize,
            register::QUEUE_NOTIFY => {
                if let Some(kick) = self.kicks.get(value as usize) {
                    kick.write(1).unwrap();
                }
            }
            register::INTERRUPT_ACK => state.pending &= !value,
            register::STATUS => self.set_status(&mut state, value),
            _ => {
                let Some(queue) = state.queues.get_mut(selected) else { return };
                match offset {
                    register::QUEUE_NUM => queue.size = value,
                    register::QUEUE_READY => {
                        queue.ready = value == 1;
                        let stops = value != 1 && std::mem::take(&mut queue.started);
                        if stops {
                            state.raw.ask(code::GET_VRING_BASE, &words(&[selected as u32, 0]));
                        }
                    }
                    _ => {
                        let places = [register::QUEUE_DESC, register::QUEUE_DRIVER, register::QUEUE_DEVICE];
                        for (address, place) in queue.addresses.iter_mut().zip(places) {
                            if offset == place {
                                *address = *address & !0xffff_ffff | u64::from(value);
                            } else if offset == place + 4 {
                                *address = *address & 0xffff_ffff | u64::from(value) << 32;
                            }
                        }
                    }
                }
            }
        }
    }

    fn set_status(&self, state: &mut State, value: u32) {
        if value == 0 {
            assert_eq!(state.raw.tell(code::RESET_DEVICE, &[]), 0, "a reset");
            state.queues.fill(Registers::default());
            (state.status, state.pending, state.chosen) = (0, 0, 0);
            // An interrupt from before the reset is none any more.
            self.calls.iter().for_each(|call| drop(call.read()));
            return;
        }
        let mut status = value;
        if value & status::FEATURES_OK != 0 && state.status & status::FEATURES_OK == 0 {
            let known = state.chosen & !self.offered == 0 && state.chosen & feature::VERSION_1 != 0;
            if !known || state.raw.tell_number(code::SET_FEATURES, state.chosen | 1 << 30) != 0 {
                status &= !status::FEATURES_OK;
            }
        }
        let starts = value & status::DRIVER_OK != 0 && state.status & status::DRIVER_OK == 0;
        state.status = status;
        for index in 0..state.queues.len() {
            if starts && state.queues[index].ready && !self.start(state, index) {
                state.status |= status::NEEDS_RESET;
            }
        }
    }

    /// Starts a ring; false where the device refuses.
    fn start(&self, state: &mut State, index: usize) -> bool {
        let Registers { size, addresses: [desc, avail, used], .. } = state.queues[index];
        let (raw, ring, event) = (&state.raw, index as u32, longs(&[index as u64]));
        let (kick, call) = (duplicate(&self.kicks[index]), duplicate(&self.calls[index]));
        let user = |address: u64| address.wrapping_add(USER);
        let places = [words(&[ring, 0]), longs(&[user(desc), user(used), user(avail), 0])].concat();
        let started = raw.tell(code::SET_VRING_NUM, &words(&[ring, size])) == 0
            && raw.tell(code::SET_VRING_ADDR, &places) == 0
            && raw.tell(code::SET_VRING_BASE, &words(&[ring, 0])) == 0
            && raw.tell_with(code::SET_VRING_CALL, &event, &[call.as_fd()]) == 0
            && raw.tell_with(code::SET_VRING_KICK, &event, &[kick.as_fd()]) == 0
            && raw.tell(code::SET_VRING_ENABLE, &words(&[ring, 1])) == 0;
        // The device raises a call that it is given; no guest has asked for that.
        let _ = self.calls[index].read();
        state.queues[index].started = started;
        started
    }
}

impl Frontend for MmioOverVhostUser {
    fn name(&self) -> &str {
        self.served.device().name()
    }

    fn regions(&self) -> Vec<RegionSpec> {
        vec![RegionSpec { kind: RegionKind::Mmio, size: 0x1000 }]
    }

    fn read(&self, region: usize, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if region != 0 {
            return;
        }
        if let Some(at) = offset.checked_sub(register::CONFIG) {
            let answer = self.state().raw.ask(code::GET_CONFIG, &config(at as u32, data));
            if let Some(bytes) = answer.get(12..) {
                data.copy_from_slice(bytes);
            }
        } else if let Ok(word) = <&mut [u8; 4]>::try_from(data) {
            *word = self.read_register(offset).to_le_bytes();
        }
    }

    fn write(&self, region: usize, offset: u64, data: &[u8]) -> Access {
        match <[u8; 4]>::try_from(data) {
            Ok(word) if region == 0 && offset < register::CONFIG => {
                self.write_register(offset, u32::from_le_bytes(word));
            }
            _ => {}
        }
        Access::Done
    }

    fn doorbells(&self) -> Vec<DoorbellSpec> {
        Vec::new()
    }

    fn drain(&self) -> Ticket {
        self.served.device().drain()
    }

    fn resume(&self) -> Ticket {
        self.served.device().resume()
    }

    fn reset(&self) -> Ticket {
        self.write_register(register::STATUS, 0);
        Ticket::done()
    }

    fn save(&self) -> Result<Vec<u8>, StateError> {
        Err(no_state())
    }

    fn restore(&self, _: &[u8]) -> Result<(), StateError> {
        Err(no_state())
    }

    fn stages(&self) -> Stages {
        self.served.device().stages()
    }
}

/// What a front-end saves is the ring's base.
fn no_state() -> StateError {
    StateError::NotNow { kind: "vhost-user".into(), reason: "its front-end saves it".into() }
}

impl fmt::Debug for MmioOverVhostUser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MmioOverVhostUser").finish_non_exhaustive()
    }
}

/// The device as an `Arc`, for a target.
pub(crate) fn over(served: Served, memory: &Memory, max_size: u32) -> Arc<dyn Frontend> {
    Arc::new(MmioOverVhostUser::new(served, memory, max_size))
}
