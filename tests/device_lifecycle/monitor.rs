//! A monitor in simulation: the registers of a guest's virtio-mmio device, which is in a session over vhost-user. Its guest takes rings
//! back by a reset only.

use super::monitor_lane::{MonitorLane, Rest, Saved, Shared};
use super::raw::{Raw, code, number};
use super::talk::{Task, Wire};
use iovirt::core::doorbell::DoorbellSpec;
use iovirt::core::frontend::{Access, Frontend, RegionKind, RegionSpec, Ticket};
use iovirt::core::irq::Interrupt;
use iovirt::core::pipeline::Stages;
use iovirt::core::state::{SavedState, StateError};
use iovirt::core::test_utils::hostile::{register, status};
use iovirt::core::test_utils::lifecycle::device::Surroundings;
use iovirt::core::worker::LaneWaker;
use iovirt::frontends::virtio::VirtioDevice;
use iovirt::frontends::virtio::transport::vhost_user::{Stopper, VhostUserDevice};
use std::fmt;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

/// A device over vhost-user as its guest sees it.
pub(crate) struct Monitor {
    shared: Arc<Shared>,
    lane: LaneWaker,
    stopper: Stopper,
}

impl Monitor {
    /// Of that device, served in these surroundings over that wire.
    pub(crate) fn new(device: Arc<dyn VirtioDevice>, at: &Surroundings, wire: Wire) -> Self {
        let device = Arc::new(VhostUserDevice::new(device, &at.workers).unwrap());
        let (ours, theirs) = UnixStream::pair().unwrap();
        let stopper = Stopper::new(Duration::ZERO).unwrap();
        let (served, stop) = (device.clone(), stopper.clone());
        // It ends by itself with the connection. Who ends that does not wait for it: it waits for lanes.
        std::thread::spawn(move || served.serve(theirs, &stop));
        let shared = Arc::new(Shared::connect(device, (Raw::on(ours), wire), at));
        let made = shared.clone();
        let lane = at.workers[0].add_lane(move |cx| Some(Box::new(MonitorLane::new(made, cx))));
        Self { shared, lane, stopper }
    }

    /// Waits until the session waits for the simulation.
    pub(crate) fn patience(&self) -> impl Fn() + use<> {
        let shared = self.shared.clone();
        move || shared.state().talk.wait_for_session(&shared.device)
    }

    fn add(&self, task: Task) -> Ticket {
        let ticket = self.shared.state().talk.add(task);
        self.lane.wake();
        ticket
    }

    fn read_register(&self, offset: u64) -> u32 {
        let state = self.shared.state();
        let value = state.registers.read(offset);
        match state.talk.at_leisure() {
            Some(raw) if offset == register::STATUS => {
                value | number(&raw.ask(code::GET_STATUS, &[])) as u32 & status::NEEDS_RESET
            }
            _ => value,
        }
    }

    fn set_status(&self, value: u32) -> Access {
        if value == 0 {
            return Access::Deferred(self.add(Task::Reset));
        }
        let mut state = self.shared.state();
        let was_live = state.registers.is_live();
        let accepted = state.registers.are_features_known();
        state.registers.status = if accepted { value } else { value & !status::FEATURES_OK };
        // A device at rest stays there, whatever its driver does.
        let starts = !was_live && state.registers.is_live() && state.rest != Some(Rest::Rings);
        drop(state);
        if starts {
            let _ = self.add(Task::Start);
        }
        Access::Done
    }
}

impl Frontend for Monitor {
    fn name(&self) -> &str {
        self.shared.device.name()
    }

    fn regions(&self) -> Vec<RegionSpec> {
        vec![RegionSpec { kind: RegionKind::Mmio, size: 0x1000 }]
    }

    fn read(&self, _: usize, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let Ok(word) = <&mut [u8; 4]>::try_from(data) {
            *word = self.read_register(offset).to_le_bytes();
        }
    }

    fn write(&self, _: usize, offset: u64, data: &[u8]) -> Access {
        let value = u32::from_le_bytes(data.try_into().unwrap());
        match offset {
            register::STATUS => return self.set_status(value),
            register::QUEUE_NOTIFY => self.shared.kicks[value as usize].write(1).unwrap(),
            _ => self.shared.state().registers.write(offset, value),
        }
        Access::Done
    }

    fn doorbells(&self) -> Vec<DoorbellSpec> {
        Vec::new()
    }

    fn drain(&self) -> Ticket {
        let mut state = self.shared.state();
        let rest = Rest::any(&mut state.rng);
        state.rest = Some(rest);
        drop(state);
        match rest {
            Rest::Rings => self.add(Task::Stop),
            Rest::Device => self.shared.device.drain(),
        }
    }

    fn resume(&self) -> Ticket {
        let rest = self.shared.state().rest.take();
        match rest {
            Some(Rest::Device) => self.shared.device.resume(),
            _ => self.add(Task::Start),
        }
    }

    fn reset(&self) -> Ticket {
        self.add(Task::Reset)
    }

    fn save(&self) -> Result<Vec<u8>, StateError> {
        let mut state = self.shared.state();
        if state.rest.is_none() {
            return Err(StateError::NotNow { kind: "monitor".into(), reason: "the device runs".into() });
        }
        Ok(self.shared.save(&mut state).to_envelope())
    }

    fn restore(&self, saved: &[u8]) -> Result<(), StateError> {
        let Saved { registers, record } = Saved::from_envelope(saved)?;
        if let Some((shared, content)) = self.shared.record.as_ref().zip(record) {
            shared.fill(&content);
        }
        let mut state = self.shared.state();
        if registers.pending != 0 {
            self.shared.at.interrupt.trigger();
        }
        state.registers = registers;
        let rest = Rest::any(&mut state.rng);
        state.rest = Some(rest);
        drop(state);
        if rest == Rest::Device {
            // Its rings are started, and at rest.
            let _ = self.shared.device.drain();
            let _ = self.add(Task::Start);
        }
        Ok(())
    }

    fn stages(&self) -> Stages {
        self.shared.device.stages()
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        self.stopper.stop();
    }
}

impl fmt::Debug for Monitor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Monitor").finish_non_exhaustive()
    }
}
