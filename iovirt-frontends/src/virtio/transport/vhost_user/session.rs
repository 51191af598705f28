//! One connection: the front-end's messages, and what they do.

use super::connection::{Connection, ConnectionError, Message};
use super::device::VhostUserDevice;
use super::inflight::{InflightMemory, InflightSpec};
use super::log::SharedLog;
use super::memory::{MAX_REGIONS, MemoryTable};
use super::message::{FdPresence, body, number, ring_and_fd};
use super::server::{Ready, Stopper, Waiter};
use super::vring::{Vring, VringAddresses};
use crate::virtio::lane::{QueuePeer, QueueSnapshot, Start};
use crate::virtio::queue::QueueConfig;
use crate::virtio::{feature, status};
use iovirt_core::dma::{DmaSpace, MemoryMap, ShrinkWatch};
use iovirt_core::doorbell::Doorbell;
use iovirt_core::frontend::{Outcome, Ticket};
use std::cell::Cell;
use std::fmt::Display;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};
use thiserror::Error;
use vhost::vhost_user::message::{
    FrontendReq, VhostUserConfig, VhostUserLog, VhostUserMemory, VhostUserMemoryRegion,
    VhostUserProtocolFeatures as Protocol, VhostUserSingleMemoryRegion, VhostUserVirtioFeatures,
    VhostUserVringAddr, VhostUserVringState,
};

/// The device logs what it writes ("Migration").
const LOG_ALL: u64 = VhostUserVirtioFeatures::LOG_ALL.bits();
/// Protocol features are negotiated, and rings begin disabled.
const PROTOCOL_FEATURES: u64 = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();

/// Bits of a file's mode for its type (inode(7)). An eventfd has none.
const FILE_TYPE: u32 = 0o170_000;

/// How long a ticket is waited for before the front-end and the stop are looked at.
const LOOK_UP: Duration = Duration::from_millis(20);
/// When requests that are still in flight are worth a line in the log.
const LONG: Duration = Duration::from_secs(10);

/// How a connection ended well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionEnd {
    /// The front-end left.
    Left,
    /// It was stopped from here.
    Stopped,
}

/// Why a connection was ended.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SessionError {
    /// The connection is of no more use.
    #[error(transparent)]
    Connection(#[from] ConnectionError),
    /// A request that this device does not know.
    #[error("request {0} is not known")]
    Unknown(u32),
    /// A request that cannot be carried out, and that the front-end waits for no answer to.
    #[error("{request}: {reason}")]
    Refused {
        /// The request's name in the specification.
        request: String,
        /// Why.
        reason: String,
    },
    /// The host failed to poll.
    #[error("the host failed to poll: {0}")]
    Host(#[from] io::Error),
}

/// Why a request was not carried out.
enum Failure {
    /// The front-end is told, where it wants to know.
    Refused(String),
    /// The session is over.
    Over(SessionEnd),
    Broken(SessionError),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Broken(error.into())
    }
}

/// A refusal in one sentence.
fn refused(reason: impl Display) -> Failure {
    Failure::Refused(reason.to_string())
}

/// What a request is answered with.
enum Answer {
    /// Nothing, or success where the front-end wants to know.
    Done,
    Bytes(Vec<u8>),
    File(Vec<u8>, OwnedFd),
}

/// A connected front-end.
pub(super) struct Session<'a> {
    device: &'a VhostUserDevice,
    stopper: &'a Stopper,
    connection: Connection,
    waiter: Waiter,
    watch: ShrinkWatch,
    protocol: Protocol,
    features: u64,
    status: u8,
    memory: MemoryTable,
    log: Option<Arc<SharedLog>>,
    inflight: Option<InflightMemory>,
    vrings: Vec<Vring>,
    /// When the stop was seen: all that is waited for at the end shares its patience.
    stopped: Cell<Option<Instant>>,
}

impl<'a> Session<'a> {
    pub(super) fn new(
        device: &'a VhostUserDevice,
        stream: UnixStream,
        stopper: &'a Stopper,
    ) -> Result<Self, SessionError> {
        let connection = Connection::new(stream)?;
        let waiter = Waiter::new(stopper, connection.stream())?;
        let watch = ShrinkWatch::new()?;
        waiter.watch(&watch)?;
        Ok(Self {
            vrings: device.device.queue_max_sizes().iter().map(|&size| Vring::new(size)).collect(),
            device,
            stopper,
            connection,
            waiter,
            protocol: Protocol::empty(),
            features: 0,
            status: 0,
            memory: MemoryTable::new(watch.clone()),
            log: None,
            inflight: None,
            watch,
            stopped: Cell::new(None),
        })
    }

    /// Serves the front-end to its end.
    pub(super) fn run(&mut self) -> Result<SessionEnd, SessionError> {
        let end = self.converse();
        if matches!(end, Ok(SessionEnd::Stopped)) {
            // The front-end is still there, and may never come back: its driver gets what is in flight.
            self.wait_in_flight(&self.device.settle_all());
        }
        self.leave();
        end
    }

    fn converse(&mut self) -> Result<SessionEnd, SessionError> {
        loop {
            match self.waiter.wait(None)? {
                Ready::Stop => return Ok(SessionEnd::Stopped),
                Ready::Shrunk => return Err(ConnectionError::MemoryShrunk.into()),
                // What was sent last is read first.
                Ready::Socket | Ready::Hangup => {}
                Ready::Nothing => continue,
            }
            let message = match self.connection.receive(&self.waiter) {
                Err(ConnectionError::Closed) => return Ok(SessionEnd::Left),
                Err(ConnectionError::Stopped) => return Ok(SessionEnd::Stopped),
                received => received?,
            };
            if let Some(end) = self.obey(message)? {
                return Ok(end);
            }
        }
    }

    fn obey(&mut self, message: Message) -> Result<Option<SessionEnd>, SessionError> {
        let Message { header, payload, fds } = message;
        let code = header.code().ok_or(SessionError::Unknown(header.request))?;
        let told = header.needs_reply() && self.protocol.contains(Protocol::REPLY_ACK);
        let outcome = self.carry_out(code, &payload, fds);
        let reply = |payload: &[u8], file: Option<&OwnedFd>| {
            self.connection.reply(&header, (payload, file.map(AsFd::as_fd)), &self.waiter)
        };
        let sent = match outcome {
            Ok(Answer::Bytes(bytes)) => reply(&bytes, None),
            Ok(Answer::File(bytes, file)) => reply(&bytes, Some(&file)),
            Ok(Answer::Done) if told => reply(&0u64.to_le_bytes(), None),
            Ok(Answer::Done) => Ok(()),
            // No bytes are this request's own way to say no.
            Err(Failure::Refused(reason)) if code == FrontendReq::GET_CONFIG => {
                self.log_refusal(code, &reason);
                reply(&[], None)
            }
            Err(Failure::Refused(reason)) if told && !has_answer(code) => {
                self.log_refusal(code, &reason);
                reply(&1u64.to_le_bytes(), None)
            }
            Err(Failure::Refused(reason)) => {
                return Err(SessionError::Refused { request: format!("{code:?}"), reason });
            }
            Err(Failure::Over(end)) => return Ok(Some(end)),
            Err(Failure::Broken(error)) => return Err(error),
        };
        match sent {
            Err(ConnectionError::Closed) => Ok(Some(SessionEnd::Left)),
            Err(ConnectionError::Stopped) => Ok(Some(SessionEnd::Stopped)),
            sent => Ok(sent.map(|()| None)?),
        }
    }

    fn log_refusal(&self, request: FrontendReq, reason: &str) {
        if let Some(more) = self.device.shared.admit_line() {
            tracing::warn!(device = self.device.name(), more, ?request, reason, "refused");
        }
    }

    fn carry_out(&mut self, code: FrontendReq, payload: &[u8], fds: Vec<OwnedFd>) -> Result<Answer, Failure> {
        match code {
            FrontendReq::GET_FEATURES => Ok(bytes(self.offered_features())),
            FrontendReq::SET_FEATURES => self.set_features(value(payload)?),
            FrontendReq::GET_PROTOCOL_FEATURES => Ok(bytes(self.offered_protocol().bits())),
            FrontendReq::SET_PROTOCOL_FEATURES => self.set_protocol_features(value(payload)?),
            FrontendReq::GET_QUEUE_NUM => Ok(bytes(self.vrings.len() as u64)),
            // The connection is the owner.
            FrontendReq::SET_OWNER => Ok(Answer::Done),
            // "This is no longer used"; a front-end that sends it is about to leave.
            FrontendReq::RESET_OWNER | FrontendReq::RESET_DEVICE => self.reset(),
            FrontendReq::GET_STATUS => Ok(bytes(self.status().into())),
            FrontendReq::SET_STATUS => self.set_status(value(payload)?),
            FrontendReq::SET_MEM_TABLE => self.set_memory(payload, &fds),
            FrontendReq::GET_MAX_MEM_SLOTS => Ok(bytes(MAX_REGIONS as u64)),
            FrontendReq::ADD_MEM_REG => self.add_memory(payload, &fds),
            FrontendReq::REM_MEM_REG => self.remove_memory(payload),
            FrontendReq::SET_LOG_BASE => self.set_log(payload, &fds),
            // Rung for what was logged; the log itself is enough.
            FrontendReq::SET_LOG_FD => Ok(Answer::Done),
            FrontendReq::SET_VRING_NUM => self.set_size(parse(payload)?),
            FrontendReq::SET_VRING_ADDR => self.set_addresses(parse(payload)?),
            FrontendReq::SET_VRING_BASE => self.set_base(parse(payload)?),
            FrontendReq::GET_VRING_BASE => self.get_base(parse(payload)?),
            FrontendReq::SET_VRING_ENABLE => self.set_enabled(parse(payload)?),
            FrontendReq::SET_VRING_KICK => self.set_kick(payload, fds),
            FrontendReq::SET_VRING_CALL => {
                let (index, fd) = self.event_fd(payload, fds)?;
                self.device.notify.set_call(index, fd);
                Ok(Answer::Done)
            }
            FrontendReq::SET_VRING_ERR => {
                let (index, fd) = self.event_fd(payload, fds)?;
                self.device.notify.set_error(index, fd);
                Ok(Answer::Done)
            }
            FrontendReq::GET_CONFIG => self.get_config(payload),
            FrontendReq::SET_CONFIG => self.set_config(payload),
            FrontendReq::SET_BACKEND_REQ_FD => self.set_channel(fds),
            FrontendReq::GET_INFLIGHT_FD => self.get_inflight(payload),
            FrontendReq::SET_INFLIGHT_FD => self.set_inflight(payload, &fds),
            other => Err(refused(format_args!("{other:?} needs a feature that was not offered"))),
        }
    }

    // Features and status

    fn offered_features(&self) -> u64 {
        let device = &self.device.device;
        device.features() & !device.features_that_remember()
            | feature::VERSION_1
            | PROTOCOL_FEATURES
            | LOG_ALL
    }

    fn offered_protocol(&self) -> Protocol {
        let all = Protocol::MQ
            | Protocol::LOG_SHMFD
            | Protocol::REPLY_ACK
            | Protocol::BACKEND_REQ
            | Protocol::CONFIG
            | Protocol::RESET_DEVICE
            | Protocol::CONFIGURE_MEM_SLOTS
            | Protocol::STATUS;
        if self.device.device.resubmits() { all | Protocol::INFLIGHT_SHMFD } else { all }
    }

    fn set_features(&mut self, features: u64) -> Result<Answer, Failure> {
        let unknown = features & !self.offered_features();
        if unknown != 0 {
            return Err(refused(format_args!("features {unknown:#x} were not offered")));
        }
        let changed = features ^ self.features;
        if changed & !LOG_ALL != 0 && self.is_any_active() {
            return Err(refused("features are fixed while a ring is started"));
        }
        self.features = features;
        if changed & LOG_ALL != 0 {
            self.announce_memory()?;
        }
        Ok(Answer::Done)
    }

    fn set_protocol_features(&mut self, bits: u64) -> Result<Answer, Failure> {
        let unknown = bits & !self.offered_protocol().bits();
        if unknown != 0 {
            return Err(refused(format_args!("protocol features {unknown:#x} were not offered")));
        }
        self.protocol = Protocol::from_bits_truncate(bits);
        Ok(Answer::Done)
    }

    fn status(&self) -> u8 {
        let broken = if self.device.shared.is_broken() { status::NEEDS_RESET } else { 0 };
        self.status | broken
    }

    fn set_status(&mut self, value: u64) -> Result<Answer, Failure> {
        let value = u8::try_from(value).map_err(|_| refused("a status has eight bits"))?;
        if value == 0 {
            // Said also where a guest is only paused: rings begin anew, and what its driver chose is kept.
            self.take_back_rings()?;
            self.device.shared.mend();
            return Ok(Answer::Done);
        }
        let accepted = self.features & feature::VERSION_1 != 0;
        self.status = if accepted { value } else { value & !status::FEATURES_OK };
        Ok(Answer::Done)
    }

    /// The device as after power-on. Memory, features and what the front-end gave stay.
    fn reset(&mut self) -> Result<Answer, Failure> {
        self.take_back_rings()?;
        self.device.reset();
        Ok(Answer::Done)
    }

    fn take_back_rings(&mut self) -> Result<(), Failure> {
        self.wait(&self.device.take_back_all())?;
        if let Some(inflight) = &self.inflight {
            // What was thrown away is nothing that a driver waits for.
            inflight.forget();
        }
        self.status = 0;
        for (vring, &size) in self.vrings.iter_mut().zip(self.device.device.queue_max_sizes()) {
            *vring = Vring::new(size);
        }
        Ok(())
    }

    // Memory

    fn set_memory(&mut self, payload: &[u8], fds: &[OwnedFd]) -> Result<Answer, Failure> {
        let (head, regions) = payload
            .split_at_checked(size_of::<VhostUserMemory>())
            .ok_or_else(|| refused("the table of memory is too short"))?;
        let head: VhostUserMemory = parse(head)?;
        let specs: Vec<VhostUserMemoryRegion> =
            regions.chunks(size_of::<VhostUserMemoryRegion>()).map(parse).collect::<Result<_, _>>()?;
        if specs.len() != head.num_regions as usize || fds.len() != specs.len() {
            let (told, came, fds) = ({ head.num_regions }, specs.len(), fds.len());
            return Err(refused(format_args!("{told} regions were told, {came} and {fds} descriptors came")));
        }
        let mut memory = MemoryTable::new(self.watch.clone());
        for (spec, fd) in specs.iter().zip(fds) {
            memory.add(spec, fd).map_err(refused)?;
        }
        self.replace_memory(memory)
    }

    fn add_memory(&mut self, payload: &[u8], fds: &[OwnedFd]) -> Result<Answer, Failure> {
        let spec: VhostUserSingleMemoryRegion = parse(payload)?;
        let [fd] = fds else { return Err(refused("a region of memory comes with one descriptor")) };
        let mut memory = self.memory.clone();
        memory.add(&spec, fd).map_err(refused)?;
        self.replace_memory(memory)
    }

    fn remove_memory(&mut self, payload: &[u8]) -> Result<Answer, Failure> {
        let spec: VhostUserSingleMemoryRegion = parse(payload)?;
        let mut memory = self.memory.clone();
        memory.remove(&spec).map_err(refused)?;
        self.replace_memory(memory)
    }

    fn replace_memory(&mut self, memory: MemoryTable) -> Result<Answer, Failure> {
        let last = std::mem::replace(&mut self.memory, memory);
        self.announce_memory().inspect_err(|_| self.memory = last)?;
        Ok(Answer::Done)
    }

    /// Announces the table with its log, and waits until no lane begins anything with the last one.
    fn announce_memory(&mut self) -> Result<(), Failure> {
        let log = self.log.as_ref().filter(|_| self.features & LOG_ALL != 0);
        let map = self.memory.map(log).map_err(refused)?;
        self.wait(&self.device.announce(map))
    }

    fn set_log(&mut self, payload: &[u8], fds: &[OwnedFd]) -> Result<Answer, Failure> {
        self.needs(Protocol::LOG_SHMFD)?;
        let spec: VhostUserLog = parse(payload)?;
        let [fd] = fds else { return Err(refused("a log comes with one descriptor")) };
        let region = self.watch.region(0, spec.mmap_size, fd.as_fd(), spec.mmap_offset).map_err(refused)?;
        let memory = DmaSpace::from_regions(vec![region]).map_err(refused)?;
        self.log = Some(Arc::new(SharedLog::new(&memory, spec.mmap_size).map_err(refused)?));
        self.announce_memory()?;
        // The front-end waits for this answer in any case.
        Ok(bytes(0))
    }

    // Rings

    fn index(&self, index: u32) -> Result<usize, Failure> {
        let there = self.vrings.len();
        Some(index as usize)
            .filter(|&index| index < there)
            .ok_or_else(|| refused(format_args!("there is no ring {index}, only {there}")))
    }

    fn is_any_active(&self) -> bool {
        (0..self.vrings.len()).any(|index| self.device.is_active(index))
    }

    fn set_size(&mut self, state: VhostUserVringState) -> Result<Answer, Failure> {
        let (index, size) = (self.index(state.index)?, { state.num });
        // No message tells the front-end what the device would like. A ring larger than that has chains that wait for their turn.
        let max = QueueConfig::MAX_SIZE;
        let fits = u16::try_from(size).ok().filter(|size| size.is_power_of_two() && *size <= max);
        let size = fits.ok_or_else(|| {
            refused(format_args!("a ring of {size} entries is not possible: a power of two up to {max} is"))
        })?;
        self.change(index, |vring| vring.size = size)
    }

    fn set_addresses(&mut self, message: VhostUserVringAddr) -> Result<Answer, Failure> {
        let index = self.index(message.index)?;
        let addresses =
            VringAddresses { desc: message.descriptor, avail: message.available, used: message.used };
        // Sent again for a started ring where only its log is switched.
        if self.vrings[index].addresses == addresses {
            return Ok(Answer::Done);
        }
        self.change(index, |vring| vring.addresses = addresses)
    }

    fn set_base(&mut self, state: VhostUserVringState) -> Result<Answer, Failure> {
        let index = self.index(state.index)?;
        let base = u16::try_from(state.num).map_err(|_| refused("the base of a split ring has 16 bits"))?;
        self.change(index, |vring| vring.base = base)
    }

    fn change(&mut self, index: usize, change: impl FnOnce(&mut Vring)) -> Result<Answer, Failure> {
        if self.device.is_active(index) {
            return Err(refused(format_args!("ring {index} is started")));
        }
        change(&mut self.vrings[index]);
        Ok(Answer::Done)
    }

    fn get_base(&mut self, state: VhostUserVringState) -> Result<Answer, Failure> {
        let index = self.index(state.index)?;
        self.stop_ring(index)?;
        let words = [state.index, u32::from(self.vrings[index].base)];
        Ok(Answer::Bytes(words.iter().flat_map(|word| word.to_le_bytes()).collect()))
    }

    /// Stops a ring; its base is where it stood.
    fn stop_ring(&mut self, index: usize) -> Result<(), Failure> {
        if !self.device.is_active(index) {
            return Ok(());
        }
        let outcome = self.wait_for(&self.device.quiesce_ring(index))?;
        // A ring that its driver broke stands nowhere, and its base is the last one that was told.
        let stands = self.device.position(index).is_some() || self.device.shared.is_broken();
        if outcome == Outcome::Cancelled && !stands {
            return Err(refused(format_args!("the worker of ring {index} is gone")));
        }
        if let Some(at) = self.device.position(index) {
            self.vrings[index].base = at.state.next_avail;
        }
        self.wait(&self.device.take_back_ring(index))
    }

    fn set_enabled(&mut self, state: VhostUserVringState) -> Result<Answer, Failure> {
        let index = self.index(state.index)?;
        self.device.want(index, if { state.num } == 0 { Start::Paused } else { Start::Running });
        Ok(Answer::Done)
    }

    /// The ring's descriptor, which is in the message or is said not to be.
    fn ring_fd(&self, payload: &[u8], mut fds: Vec<OwnedFd>) -> Result<(usize, Option<OwnedFd>), Failure> {
        let (index, presence) = ring_and_fd(payload).ok_or_else(|| refused("the payload names no ring"))?;
        let index = self.index(index)?;
        match (presence, fds.len()) {
            (FdPresence::Attached, 1) => Ok((index, fds.pop())),
            (FdPresence::None, 0) => Ok((index, None)),
            (_, count) => Err(refused(format_args!("{count} descriptors came for a ring"))),
        }
    }

    /// The same for one that is written. A write to a pipe or a socket that nobody reads any more would be a signal, which ends a process
    /// that does not ignore it; one to a file would grow it.
    fn event_fd(&self, payload: &[u8], fds: Vec<OwnedFd>) -> Result<(usize, Option<OwnedFd>), Failure> {
        let (index, fd) = self.ring_fd(payload, fds)?;
        let Some(file) = fd.map(File::from) else { return Ok((index, None)) };
        if file.metadata()?.mode() & FILE_TYPE != 0 {
            return Err(refused("what is to be signalled is no eventfd"));
        }
        Ok((index, Some(file.into())))
    }

    /// The doorbell of a ring starts it.
    fn set_kick(&mut self, payload: &[u8], fds: Vec<OwnedFd>) -> Result<Answer, Failure> {
        let (index, fd) = self.ring_fd(payload, fds)?;
        let doorbell =
            Doorbell::from_fd(fd.ok_or_else(|| refused("a ring without a doorbell is not served"))?);
        if self.features & feature::VERSION_1 == 0 {
            return Err(refused("a legacy driver is not served: VIRTIO_F_VERSION_1 was not accepted"));
        }
        self.stop_ring(index)?;
        if self.features & PROTOCOL_FEATURES == 0 {
            self.device.want(index, Start::Running);
        }
        let (vring, queue) = (self.vrings[index], index as u16);
        let why = |error: &dyn Display| refused(format_args!("ring {index} cannot be started: {error}"));
        let mut state = vring.state(&self.memory, &self.device.space).map_err(|error| why(&error))?;
        let (mut heads, mut tracked) = (Vec::new(), None);
        if let Some(inflight) = self.inflight.as_ref().and_then(|memory| memory.queue(queue, vring.size)) {
            let mut inflight = inflight.map_err(|error| why(&error))?;
            heads = inflight.recover(state.next_used);
            // What the driver offered is returned or in flight: that is more exact than a base that a dead process told.
            state.next_avail = state.next_used.wrapping_add(heads.len() as u16);
            tracked = Some(inflight);
        }
        let peer = QueuePeer { doorbell, inflight: tracked };
        self.device.start_ring(queue, (QueueSnapshot { state, heads }, self.features), peer);
        Ok(Answer::Done)
    }

    // Configuration, requests of ours, chains in flight

    fn get_config(&self, payload: &[u8]) -> Result<Answer, Failure> {
        self.needs(Protocol::CONFIG)?;
        let (spec, data) = config_range(payload)?;
        let mut reply = payload.to_vec();
        let at = reply.len() - data.len();
        self.device.device.read_config(self.features, spec.offset.into(), &mut reply[at..]);
        Ok(Answer::Bytes(reply))
    }

    fn set_config(&self, payload: &[u8]) -> Result<Answer, Failure> {
        self.needs(Protocol::CONFIG)?;
        let (spec, data) = config_range(payload)?;
        self.device.device.write_config(self.features, spec.offset.into(), data);
        Ok(Answer::Done)
    }

    fn set_channel(&self, fds: Vec<OwnedFd>) -> Result<Answer, Failure> {
        self.needs(Protocol::BACKEND_REQ)?;
        let mut fds = fds.into_iter();
        match (fds.next(), fds.next()) {
            (Some(fd), None) => self.device.notify.set_channel(Some(fd.into())),
            _ => return Err(refused("a channel for requests comes with one descriptor")),
        }
        Ok(Answer::Done)
    }

    fn get_inflight(&self, payload: &[u8]) -> Result<Answer, Failure> {
        let spec = self.inflight_spec(payload)?;
        let (spec, file) = spec.allocate().map_err(refused)?;
        Ok(Answer::File(spec.encode().to_vec(), file.into()))
    }

    fn set_inflight(&mut self, payload: &[u8], fds: &[OwnedFd]) -> Result<Answer, Failure> {
        let spec = self.inflight_spec(payload)?;
        let [fd] = fds else {
            return Err(refused("the record of chains in flight comes with one descriptor"));
        };
        self.inflight = Some(InflightMemory::map(spec, fd, &self.watch).map_err(refused)?);
        Ok(Answer::Done)
    }

    fn inflight_spec(&self, payload: &[u8]) -> Result<InflightSpec, Failure> {
        self.needs(Protocol::INFLIGHT_SHMFD)?;
        InflightSpec::parse(payload)
            .filter(|spec| usize::from(spec.queues) <= self.vrings.len())
            .ok_or_else(|| refused(format_args!("not a record for 1 to {} queues", self.vrings.len())))
    }

    fn needs(&self, feature: Protocol) -> Result<(), Failure> {
        if self.protocol.contains(feature) {
            return Ok(());
        }
        Err(refused(format_args!("{feature:?} was not negotiated")))
    }

    // Waiting

    /// Waits for lanes, unless the front-end leaves or the session is stopped.
    fn wait(&self, ticket: &Ticket) -> Result<(), Failure> {
        self.wait_for(ticket).map(|_| ())
    }

    fn wait_for(&self, ticket: &Ticket) -> Result<Outcome, Failure> {
        self.device.set_awaited(Some(ticket));
        loop {
            if let Some(outcome) = ticket.wait(LOOK_UP) {
                return Ok(outcome);
            }
            match self.waiter.wait(Some(Duration::ZERO))? {
                Ready::Stop => return Err(Failure::Over(SessionEnd::Stopped)),
                Ready::Hangup => return Err(Failure::Over(SessionEnd::Left)),
                Ready::Shrunk => return Err(Failure::Broken(ConnectionError::MemoryShrunk.into())),
                Ready::Socket | Ready::Nothing => {}
            }
        }
    }

    /// Waits for what is in flight, takes everything back, and lets go of the front-end's memory.
    fn leave(&mut self) {
        self.device.notify.disconnect();
        let keeps_state = self.inflight.is_some();
        self.wait_in_flight(&self.device.take_back_all());
        if !keeps_state {
            self.device.device.reset();
        }
        self.device.shared.mend();
        self.wait_in_flight(&self.device.announce(MemoryMap::empty()));
    }

    /// The next front-end must not find requests of this one under way: they might overtake its own.
    fn wait_in_flight(&self, ticket: &Ticket) {
        self.device.set_awaited(Some(ticket));
        let begun = Instant::now();
        let mut told = false;
        while ticket.wait(LOOK_UP).is_none() {
            let is_stopped = matches!(self.waiter.wait(Some(Duration::ZERO)), Ok(Ready::Stop) | Err(_));
            if is_stopped && self.stopped_for() > self.stopper.patience() {
                tracing::warn!(device = self.device.name(), "requests are still in flight at the end");
                return;
            }
            if !told && begun.elapsed() > LONG {
                told = true;
                tracing::warn!(
                    device = self.device.name(),
                    "the session is over, and its requests are still in flight"
                );
            }
        }
    }

    /// How long ago the stop was seen first.
    fn stopped_for(&self) -> Duration {
        let since = self.stopped.get().unwrap_or_else(Instant::now);
        self.stopped.set(Some(since));
        since.elapsed()
    }
}

/// Whether a request is answered in any case, so that a refusal cannot be told.
fn has_answer(code: FrontendReq) -> bool {
    matches!(
        code,
        FrontendReq::GET_FEATURES
            | FrontendReq::GET_PROTOCOL_FEATURES
            | FrontendReq::GET_QUEUE_NUM
            | FrontendReq::GET_STATUS
            | FrontendReq::GET_MAX_MEM_SLOTS
            | FrontendReq::GET_VRING_BASE
            | FrontendReq::GET_CONFIG
            | FrontendReq::GET_INFLIGHT_FD
            | FrontendReq::SET_LOG_BASE
    )
}

fn bytes(number: u64) -> Answer {
    Answer::Bytes(number.to_le_bytes().to_vec())
}

fn value(payload: &[u8]) -> Result<u64, Failure> {
    number(payload).ok_or_else(|| refused("the payload is no number of 64 bits"))
}

fn parse<T>(payload: &[u8]) -> Result<T, Failure>
where
    T: vm_memory::ByteValued + Default + vhost::vhost_user::message::VhostUserMsgValidator,
{
    body(payload).ok_or_else(|| refused("the payload has a length or values that are not allowed"))
}

/// Which bytes of the configuration space a message is about, and those bytes.
fn config_range(payload: &[u8]) -> Result<(VhostUserConfig, &[u8]), Failure> {
    let (head, data) = payload
        .split_at_checked(size_of::<VhostUserConfig>())
        .ok_or_else(|| refused("the payload is too short"))?;
    let spec: VhostUserConfig = parse(head)?;
    if data.len() != { spec.size } as usize {
        return Err(refused(format_args!("{} bytes were told, {} came", { spec.size }, data.len())));
    }
    Ok((spec, data))
}
