//! What a monitor has to say to a device, said one message after the other, without waiting for an answer: a lane that simulation steps
//! goes on when it has come.

use super::raw::{NEED_REPLY, Raw, code, number};
use super::registers::Message;
use iovirt::core::frontend::{Completer, Ticket};
use iovirt::frontends::virtio::transport::vhost_user::VhostUserDevice;
use std::collections::VecDeque;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

/// How long a session may take for what does not wait for a lane.
const PATIENCE: Duration = Duration::from_secs(30);

/// What becomes of messages on their way.
#[derive(Clone, Copy)]
pub(crate) struct Wire {
    /// The code that arrives.
    pub(crate) there: fn(u32) -> u32,
    /// Changes the answer to a message of that code.
    pub(crate) back: fn(u32, &mut [u8]),
}

/// Changes nothing.
pub(crate) const HONEST: Wire = Wire { there: |code| code, back: |_, _| {} };

/// What a monitor does that takes several messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Task {
    /// Has the device take memory and all rings that it does not have.
    Start,
    /// Takes all rings back.
    Stop,
    Reset,
}

/// What comes next.
pub(crate) enum Next {
    /// The device did that, and answered so.
    Answer(Message, Vec<u8>),
    /// The messages of that are wanted.
    Begin(Task),
    /// Nothing before the device has answered, or somebody wants something.
    Nothing,
}

/// One connection.
pub(crate) struct Talk {
    raw: Raw,
    wire: Wire,
    readable: Epoll,
    tasks: VecDeque<(Task, Completer)>,
    /// Done once all messages are.
    current: Option<Completer>,
    messages: VecDeque<Message>,
    /// Sent, and not answered.
    sent: Option<Message>,
}

impl Talk {
    pub(crate) fn new(raw: Raw, wire: Wire) -> Self {
        let readable = Epoll::new().unwrap();
        let event = EpollEvent::new(EventSet::IN, 0);
        readable.ctl(ControlOperation::Add, raw.stream.as_raw_fd(), event).unwrap();
        let (tasks, messages) = (VecDeque::new(), VecDeque::new());
        Self { raw, wire, readable, tasks, current: None, messages, sent: None }
    }

    /// The connection, where nothing is under way.
    pub(crate) fn at_leisure(&self) -> Option<&Raw> {
        (self.current.is_none() && self.tasks.is_empty()).then_some(&self.raw)
    }

    pub(crate) fn stream(&self) -> &UnixStream {
        &self.raw.stream
    }

    /// Something more to do.
    pub(crate) fn add(&mut self, task: Task) -> Ticket {
        let (ticket, completer) = Ticket::new();
        self.tasks.push_back((task, completer));
        ticket
    }

    /// The messages of the task that was begun.
    pub(crate) fn say(&mut self, messages: Vec<Message>) {
        self.messages.extend(messages);
    }

    fn is_answered(&self) -> bool {
        self.readable.wait(0, &mut [EpollEvent::default()]).unwrap() > 0
    }

    /// Waits until the session's thread has done all that it can before the simulation goes on: from then on what happens depends on the
    /// simulation only.
    pub(crate) fn wait_for_session(&self, device: &VhostUserDevice) {
        let begun = Instant::now();
        while self.sent.is_some() && !self.is_answered() && device.awaited().is_none() {
            assert!(begun.elapsed() < PATIENCE, "no answer, and nothing that the device waits for");
            std::thread::yield_now();
        }
    }

    /// Goes on by one step.
    pub(crate) fn step(&mut self, device: &VhostUserDevice) -> Next {
        self.wait_for_session(device);
        if let Some(sent) = self.sent.take() {
            if !self.is_answered() {
                self.sent = Some(sent);
                return Next::Nothing;
            }
            let (mut answer, _) = self.raw.answer().unwrap();
            (self.wire.back)(sent.code, &mut answer);
            let is_done = sent.code == code::GET_VRING_BASE || number(&answer) == 0;
            assert!(is_done, "message {} was refused", sent.code);
            return Next::Answer(sent, answer);
        }
        self.send();
        if self.sent.is_some() {
            return self.step(device);
        }
        if let Some(done) = self.current.take() {
            done.done();
        }
        let Some((task, completer)) = self.tasks.pop_front() else { return Next::Nothing };
        self.current = Some(completer);
        Next::Begin(task)
    }

    fn send(&mut self) {
        let Some(message) = self.messages.pop_front() else { return };
        let flags = if message.code == code::GET_VRING_BASE { 1 } else { NEED_REPLY };
        let head = ((self.wire.there)(message.code), flags, message.payload.len() as u32);
        self.raw.send_as(head, &message.payload, &message.fds()).unwrap();
        self.sent = Some(message);
    }
}
