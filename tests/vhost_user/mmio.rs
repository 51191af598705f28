//! A virtio-mmio register file in front of a vhost-user device: what a VMM does with its guest's registers, in messages. Suites that know
//! registers drive the device through it.

use super::raw::{ALL_PROTOCOL, Raw, code, config, number, words};
use super::registers::{Message, Registers, Stand, memory_table};
use super::rig::Served;
use iovirt_core::dma::{DmaSpace, Region, shared_memory};
use iovirt_core::doorbell::DoorbellSpec;
use iovirt_core::frontend::{Access, Frontend, RegionKind, RegionSpec, Ticket};
use iovirt_core::pipeline::Stages;
use iovirt_core::state::StateError;
use iovirt_core::test_utils::hostile::{register, status};
use std::fmt;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

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

struct State {
    raw: Raw,
    registers: Registers,
}

impl State {
    /// Whether the device did what it was told.
    fn tell(&self, message: &Message) -> bool {
        self.raw.tell_with(message.code, &message.payload, &message.fds()) == 0
    }
}

/// The device as its guest sees it.
pub(crate) struct MmioOverVhostUser {
    served: Served,
    kicks: Vec<EventFd>,
    calls: Vec<EventFd>,
    state: Mutex<State>,
}

impl MmioOverVhostUser {
    /// In front of that device, whose queues all have that size at most.
    pub(crate) fn new(served: Served, memory: &Memory, max_size: u32) -> Self {
        let raw = served.raw();
        raw.take_protocol(ALL_PROTOCOL);
        let features = raw.ask(code::GET_FEATURES, &[]);
        let count = number(&raw.ask(code::GET_QUEUE_NUM, &[])) as usize;
        let events = || (0..count).map(|_| EventFd::new(EFD_NONBLOCK).unwrap()).collect();
        let state = State { raw, registers: Registers::new(&features, count, max_size) };
        assert!(state.tell(&memory_table(memory.pieces.iter().map(|(base, len, fd)| (
            *base,
            *len,
            fd.as_fd()
        )))));
        Self { served, kicks: events(), calls: events(), state: Mutex::new(state) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn read_register(&self, offset: u64) -> u32 {
        let mut state = self.state();
        match offset {
            register::INTERRUPT_STATUS => {
                let used = self.calls.iter().filter(|call| call.read().is_ok()).count() > 0;
                state.registers.pending |= u32::from(used) * INT_USED;
            }
            register::STATUS => {
                let broken = number(&state.raw.ask(code::GET_STATUS, &[])) as u32 & status::NEEDS_RESET;
                return state.registers.status | broken;
            }
            _ => {}
        }
        state.registers.read(offset)
    }

    fn write_register(&self, offset: u64, value: u32) {
        let mut state = self.state();
        match offset {
            register::QUEUE_NOTIFY => {
                if let Some(kick) = self.kicks.get(value as usize) {
                    kick.write(1).unwrap();
                }
            }
            register::STATUS => self.set_status(&mut state, value),
            _ => {
                state.registers.write(offset, value);
                let State { raw, registers } = &mut *state;
                let selected = registers.selected;
                let Some(queue) = registers.queues.get_mut(selected) else { return };
                if !queue.ready && queue.stand == Stand::Started {
                    queue.stand = Stand::Stopped;
                    raw.ask(code::GET_VRING_BASE, &words(&[selected as u32, 0]));
                }
            }
        }
    }

    fn set_status(&self, state: &mut State, value: u32) {
        if value == 0 {
            assert_eq!(state.raw.tell(code::RESET_DEVICE, &[]), 0, "a reset");
            state.registers.reset();
            // An interrupt from before the reset is none any more.
            self.calls.iter().for_each(|call| drop(call.read()));
            return;
        }
        let mut status = value;
        if value & status::FEATURES_OK != 0 && state.registers.status & status::FEATURES_OK == 0 {
            let accepted =
                state.registers.are_features_known() && state.tell(&state.registers.set_features());
            if !accepted {
                status &= !status::FEATURES_OK;
            }
        }
        let starts = value & status::DRIVER_OK != 0 && !state.registers.is_live();
        state.registers.status = status;
        for index in 0..state.registers.queues.len() {
            if starts && state.registers.queues[index].ready && !self.start(state, index) {
                state.registers.status |= status::NEEDS_RESET;
            }
        }
    }

    /// Starts a ring; false where the device refuses.
    fn start(&self, state: &mut State, index: usize) -> bool {
        let queue = state.registers.queues[index];
        let messages = queue.start(index, (&self.kicks[index], &self.calls[index]));
        let started = messages.iter().all(|message| state.tell(message));
        // The device raises a call that it is given; no guest has asked for that.
        let _ = self.calls[index].read();
        if started {
            state.registers.queues[index].stand = Stand::Started;
        }
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
