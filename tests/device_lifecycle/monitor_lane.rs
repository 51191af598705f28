//! The part of a monitor that talks to a device over vhost-user: a lane on one of the simulated workers. It saves a device by what the
//! protocol has for that: the bases of its rings, and the record of chains in flight.
//!
//! The session is the transport's own, in a thread of its own. What it does is bounded by the simulation all the same: it obeys what it is
//! sent, and waits for lanes; the simulation goes on when it has come to either ([`Talk::wait_for_session`]). So the same seed gives the
//! same run.

use super::raw::{ALL_PROTOCOL, Raw, code, number, words};
use super::registers::{Message, Registers, Stand, memory_table};
use super::talk::{Next, Talk, Task, Wire};
use iovirt::core::irq::Interrupt;
use iovirt::core::state::SavedState;
use iovirt::core::test_utils::Rng;
use iovirt::core::test_utils::lifecycle::device::Surroundings;
use iovirt::core::worker::{Lane, Trigger, Turn, Watch, WorkerContext};
use iovirt::frontends::virtio::transport::vhost_user::VhostUserDevice;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Entries of each ring at most.
const SIZE: u16 = 32;
const INT_USED: u32 = 1;
const INT_CONFIG: u32 = 2;

/// What is saved of a device over vhost-user.
#[derive(Serialize, Deserialize)]
pub(crate) struct Saved {
    pub(crate) registers: Registers,
    pub(crate) record: Option<Vec<u8>>,
}

impl SavedState for Saved {
    const KIND: &'static str = "monitor";
    const VERSION: u16 = 1;
}

/// The record of chains in flight.
pub(crate) struct Record {
    file: File,
    len: usize,
}

impl Record {
    /// Has the device make one, and tells it to use it.
    fn agree(raw: &Raw, queues: usize) -> Self {
        let shape = [&[0; 16][..], &(queues as u16).to_le_bytes(), &SIZE.to_le_bytes()].concat();
        raw.send_as((code::GET_INFLIGHT_FD, 1, shape.len() as u32), &shape, &[]).unwrap();
        let (shape, mut fds) = raw.answer().unwrap();
        let file = File::from(fds.pop().expect("the record"));
        assert_eq!(raw.tell_with(code::SET_INFLIGHT_FD, &shape, &[file.as_fd()]), 0);
        Self { file, len: number(&shape[..8]) as usize }
    }

    pub(crate) fn fill(&self, content: &[u8]) {
        self.file.write_all_at(content, 0).unwrap();
    }

    fn content(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.len];
        self.file.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }
}

/// Who brings a device to rest, and has it go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rest {
    /// The front-end, which takes its rings back.
    Rings,
    /// The embedder of the device.
    Device,
}

impl Rest {
    pub(crate) fn any(rng: &mut Rng) -> Self {
        if rng.one_in(2) { Self::Rings } else { Self::Device }
    }
}

pub(crate) struct State {
    pub(crate) registers: Registers,
    pub(crate) talk: Talk,
    pub(crate) rng: Rng,
    pub(crate) rest: Option<Rest>,
}

/// What the registers and the lane share.
pub(crate) struct Shared {
    pub(crate) device: Arc<VhostUserDevice>,
    pub(crate) at: Surroundings,
    pub(crate) record: Option<Record>,
    pub(crate) kicks: Vec<EventFd>,
    calls: Vec<EventFd>,
    /// Where the device's own requests come.
    channel: UnixStream,
    pub(crate) state: Mutex<State>,
}

impl Shared {
    pub(crate) fn connect(device: Arc<VhostUserDevice>, (raw, wire): (Raw, Wire), at: &Surroundings) -> Self {
        raw.take_protocol(ALL_PROTOCOL);
        let protocol = number(&raw.ask(code::GET_PROTOCOL_FEATURES, &[]));
        let features = raw.ask(code::GET_FEATURES, &[]);
        let count = number(&raw.ask(code::GET_QUEUE_NUM, &[])) as usize;
        let record = (protocol & 1 << 12 != 0).then(|| Record::agree(&raw, count));
        let (channel, theirs) = UnixStream::pair().unwrap();
        channel.set_nonblocking(true).unwrap();
        assert_eq!(raw.tell_with(code::SET_BACKEND_REQ_FD, &[], &[theirs.as_fd()]), 0);
        let events = || (0..count).map(|_| EventFd::new(EFD_NONBLOCK).unwrap()).collect();
        let state = State {
            registers: Registers::new(&features, count, SIZE.into()),
            talk: Talk::new(raw, wire),
            rng: Rng::new(at.seed),
            rest: None,
        };
        let (kicks, calls, state) = (events(), events(), Mutex::new(state));
        Self { device, at: at.clone(), record, kicks, calls, channel, state }
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Goes on with what there is to say.
    fn go_on(&self) {
        let mut state = self.state();
        loop {
            match state.talk.step(&self.device) {
                Next::Answer(message, answer) => self.hear(&mut state.registers, &message, &answer),
                Next::Begin(task) => {
                    let messages = self.messages(&state.registers, task);
                    state.talk.say(messages);
                }
                Next::Nothing => return,
            }
        }
    }

    fn messages(&self, registers: &Registers, task: Task) -> Vec<Message> {
        let rings = || (0..).zip(&registers.queues);
        match task {
            Task::Start if !registers.is_live() => Vec::new(),
            Task::Start => {
                let memory = [(0, self.at.memory.metadata().unwrap().len(), self.at.memory.as_fd())];
                let starts = rings().filter(|(_, queue)| queue.ready && queue.stand != Stand::Started);
                let starts = starts
                    .flat_map(|(index, queue)| queue.start(index, (&self.kicks[index], &self.calls[index])));
                [registers.set_features(), memory_table(memory.into_iter())]
                    .into_iter()
                    .chain(starts)
                    .collect()
            }
            Task::Stop => rings()
                .filter(|(_, queue)| queue.stand == Stand::Started)
                .map(|(index, _)| Message::new(code::GET_VRING_BASE, words(&[index as u32, 0])))
                .collect(),
            Task::Reset => vec![Message::new(code::RESET_DEVICE, Vec::new())],
        }
    }

    /// What the device's answer changes here.
    fn hear(&self, registers: &mut Registers, message: &Message, answer: &[u8]) {
        let ring = message.payload.first().copied().map_or(0, usize::from);
        match message.code {
            code::SET_VRING_KICK => registers.queues[ring].stand = Stand::Started,
            code::GET_VRING_BASE => {
                let base = (number(answer) >> 32) as u32;
                let queue = &mut registers.queues[ring];
                let used = self.used_index(queue.used_index());
                assert_eq!(base, used, "ring {ring} rests with chains that were not returned");
                (queue.base, queue.stand) = (base, Stand::Stopped);
            }
            code::RESET_DEVICE => {
                registers.reset();
                // An interrupt from before the reset is none any more.
                self.calls.iter().for_each(|call| drop(call.read()));
            }
            _ => {}
        }
    }

    /// How far the driver was told of returned chains.
    fn used_index(&self, at: u64) -> u32 {
        u16::from_le_bytes(self.at.space.view().read_array(at).unwrap()).into()
    }

    /// Passes on what the device tells the driver.
    fn take_interrupts(&self, registers: &mut Registers) {
        let mut news = 0;
        if self.calls.iter().filter(|call| call.read().is_ok()).count() > 0 {
            news |= INT_USED;
        }
        // All of its requests are that the configuration changed.
        while (&self.channel).read(&mut [0; 64]).is_ok_and(|len| len > 0) {
            news |= INT_CONFIG;
        }
        registers.pending |= news;
        if news != 0 {
            self.at.interrupt.trigger();
        }
    }

    /// The registers as they are saved, and what was in flight where not all rings were taken back.
    pub(crate) fn save(&self, state: &mut State) -> Saved {
        // What is on its way would go with the machine.
        self.take_interrupts(&mut state.registers);
        let mut registers = state.registers.clone();
        let mut all_stopped = true;
        for queue in registers.queues.iter_mut().filter(|queue| queue.ready) {
            all_stopped &= queue.stand == Stand::Stopped;
            if queue.stand == Stand::Started {
                // As of a device that died: it goes on behind the last chain that was returned.
                queue.base = self.used_index(queue.used_index());
            }
            queue.stand = Stand::Fresh;
        }
        let record = self.record.as_ref().filter(|_| !all_stopped).map(Record::content);
        Saved { registers, record }
    }
}

/// The monitor's own work.
pub(crate) struct MonitorLane {
    shared: Arc<Shared>,
    _watches: Vec<Watch>,
}

impl MonitorLane {
    pub(crate) fn new(shared: Arc<Shared>, cx: &mut WorkerContext<'_>) -> Self {
        let mut watches: Vec<_> =
            shared.calls.iter().map(|call| cx.watch(call, Trigger::Level).unwrap()).collect();
        watches.push(cx.watch(&shared.channel, Trigger::Level).unwrap());
        watches.push(cx.watch(shared.state().talk.stream(), Trigger::Level).unwrap());
        Self { shared, _watches: watches }
    }
}

impl Lane for MonitorLane {
    fn turn(&mut self, _: &mut WorkerContext<'_>) -> Turn {
        self.shared.go_on();
        self.shared.take_interrupts(&mut self.shared.state().registers);
        Turn::Idle
    }
}
