//! The connection to a server: negotiation, memory table, rings up and down, and connecting again to a server that came back.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use vhost::vhost_user::message::{
    VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserInflight, VhostUserProtocolFeatures,
};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};

use crate::layout::Layout;
use crate::memory::SharedMemory;
use crate::options::{Options, feature};
use crate::queue::Queue;
use crate::{Error, HostContext, MessageContext, Result};

/// How long a server may take until it listens.
const LISTENS_WITHIN: Duration = Duration::from_secs(10);
/// What the driver takes of the protocol's features.
const PROTOCOL_FEATURES: VhostUserProtocolFeatures = VhostUserProtocolFeatures::MQ
    .union(VhostUserProtocolFeatures::REPLY_ACK)
    .union(VhostUserProtocolFeatures::CONFIG)
    .union(VhostUserProtocolFeatures::INFLIGHT_SHMFD)
    .union(VhostUserProtocolFeatures::RESET_DEVICE)
    .union(VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS);

/// How a ring begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Begin {
    /// Where the server left it.
    At(u16),
    /// Behind the last request that was returned, as one does for a server that came back.
    AtUsed,
}

/// What becomes of chains in flight when a server comes back that keeps no record of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unrecorded {
    /// The rings begin anew, and the chains are made available again: for requests that can be done twice.
    Again,
    /// The rings go on behind the last chain that was returned: for chains that come home in the order in which they were offered.
    InTurn,
}

/// A connection, with the memory that both sides share.
pub struct Session {
    frontend: Frontend,
    options: Options,
    features: u64,
    protocol_features: VhostUserProtocolFeatures,
    most_queues: u64,
    memory: Arc<SharedMemory>,
    layout: Arc<Layout>,
    /// The area in which the server notes what it has begun. We keep it for its next life.
    inflight: Option<(VhostUserInflight, File)>,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session")
            .field("features", &self.features)
            .field("protocol_features", &self.protocol_features)
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

/// What was agreed with a server.
struct Agreed {
    frontend: Frontend,
    features: u64,
    protocol_features: VhostUserProtocolFeatures,
    most_queues: u64,
}

impl Session {
    /// Connects to the server at `path`, waiting until it listens, and sets up and starts the queues that the options ask
    /// for, each for chains of up to `segments` descriptors.
    ///
    /// # Errors
    /// Where the options do not fit together or ask for more than is offered, the host refuses something, or the server does.
    pub fn connect(path: &Path, options: &Options, segments: u16) -> Result<(Self, Vec<Queue>)> {
        options.check()?;
        let agreed = agree(path, options)?;
        let layout = Arc::new(Layout::new(options));
        let memory = Arc::new(SharedMemory::new(layout.len()).while_doing("memory for the guest")?);
        let mut queues = Vec::new();
        for number in 0..options.queues {
            queues.push(Queue::new(&memory, &layout, number, options, agreed.features, segments)?);
        }
        let mut session = Self {
            frontend: agreed.frontend,
            options: options.clone(),
            features: agreed.features,
            protocol_features: agreed.protocol_features,
            most_queues: agreed.most_queues,
            memory,
            layout,
            inflight: None,
        };
        session.set_up(&queues)?;
        session.start(&queues, &vec![Begin::At(0); queues.len()])?;
        Ok((session, queues))
    }

    /// The device's features that were agreed upon.
    pub fn features(&self) -> u64 {
        self.features & !feature::PROTOCOL_FEATURES
    }

    /// The protocol's features that were agreed upon.
    pub fn protocol_features(&self) -> VhostUserProtocolFeatures {
        self.protocol_features
    }

    /// How many queues the server would serve.
    pub fn most_queues(&self) -> u64 {
        self.most_queues
    }

    /// Whether the server notes what it has begun where it outlives the server.
    pub fn tracks_inflight(&self) -> bool {
        self.inflight.is_some()
    }

    /// The area of requests in flight, and its shape.
    pub fn inflight(&self) -> Option<&(VhostUserInflight, File)> {
        self.inflight.as_ref()
    }

    /// How many chains the server has begun and not returned, by the record that it keeps ("Inflight I/O tracking": a queue has a
    /// head of 16 bytes and as many for each chain, of which the first says that it is in flight). Zero without a record.
    ///
    /// # Errors
    /// Where the host refuses to read it.
    pub fn begun(&self) -> Result<usize> {
        let Some((shape, file)) = &self.inflight else { return Ok(0) };
        let table = 16 * usize::from(shape.queue_size);
        let mut record = vec![0; (16 + table).next_multiple_of(64)];
        let mut begun = 0;
        for queue in 0..u64::from(shape.num_queues) {
            let at = shape.mmap_offset + queue * record.len() as u64;
            file.read_exact_at(&mut record, at).while_doing("reading the record of chains in flight")?;
            begun += record[16..][..table].chunks(16).filter(|chain| chain[0] == 1).count();
        }
        Ok(begun)
    }

    /// The memory.
    pub fn memory(&self) -> &Arc<SharedMemory> {
        &self.memory
    }

    /// Where everything is in the memory.
    pub fn layout(&self) -> &Arc<Layout> {
        &self.layout
    }

    /// The front-end's side of the protocol, for messages that are not usual.
    pub fn frontend(&mut self) -> &mut Frontend {
        &mut self.frontend
    }

    /// Reads `len` bytes of the device's configuration.
    ///
    /// # Errors
    /// Where the server does not offer it, or refuses.
    pub fn config(&mut self, offset: u32, len: u32) -> Result<Vec<u8>> {
        if !self.protocol_features.contains(VhostUserProtocolFeatures::CONFIG) {
            return Err(Error::NotOffered("its configuration".to_owned()));
        }
        let nothing = vec![0; len as usize];
        let (_, bytes) = self
            .frontend
            .get_config(offset, len, VhostUserConfigFlags::empty(), &nothing)
            .message("GET_CONFIG")?;
        Ok(bytes)
    }

    /// Starts the rings.
    ///
    /// # Errors
    /// Where the server refuses.
    ///
    /// # Panics
    /// Without a beginning for each queue.
    pub fn start(&mut self, queues: &[Queue], begin: &[Begin]) -> Result<()> {
        assert_eq!(queues.len(), begin.len());
        for (queue, begin) in queues.iter().zip(begin) {
            self.start_ring(queue, *begin)?;
        }
        Ok(())
    }

    fn start_ring(&mut self, queue: &Queue, begin: Begin) -> Result<()> {
        let number = usize::from(queue.number());
        let (places, base) = (queue.ring().places(), self.memory.user_address());
        let size = queue.ring().size();
        let begin = match begin {
            Begin::At(index) => index,
            Begin::AtUsed => queue.ring().used_index(),
        };
        let addresses = VringConfigData {
            queue_max_size: size,
            queue_size: size,
            flags: 0,
            desc_table_addr: base + places.descriptors as u64,
            used_ring_addr: base + places.used as u64,
            avail_ring_addr: base + places.available as u64,
            log_addr: None,
        };
        let frontend = &mut self.frontend;
        frontend.set_vring_num(number, size).message("SET_VRING_NUM")?;
        frontend.set_vring_base(number, begin).message("SET_VRING_BASE")?;
        frontend.set_vring_addr(number, &addresses).message("SET_VRING_ADDR")?;
        frontend.set_vring_err(number, queue.error_fd()).message("SET_VRING_ERR")?;
        frontend.set_vring_call(number, queue.call_fd()).message("SET_VRING_CALL")?;
        frontend.set_vring_kick(number, queue.kick_fd()).message("SET_VRING_KICK")?;
        if self.features & feature::PROTOCOL_FEATURES != 0 {
            frontend.set_vring_enable(number, true).message("SET_VRING_ENABLE")?;
        }
        Ok(())
    }

    /// Stops the rings; gives the index at which the server stopped each. It must have returned all that it took by then.
    ///
    /// # Errors
    /// Where the server refuses.
    pub fn stop(&mut self, queues: &[Queue]) -> Result<Vec<u16>> {
        let mut stopped = Vec::new();
        for queue in queues {
            let base = self.frontend.get_vring_base(usize::from(queue.number())).message("GET_VRING_BASE")?;
            stopped.push(base as u16);
        }
        Ok(stopped)
    }

    /// Connects to a server that came back, or another one, with the same memory and the same rings.
    ///
    /// Where the last server noted what it had begun, that goes to the new one, which does the rest. Otherwise `unrecorded` says.
    ///
    /// # Errors
    /// As for [`Session::connect`]; also where the new server offers less than was agreed upon with the last, and
    /// [`Error::Broken`] where a ring is to go on whose chains did not come home in order.
    pub fn reconnect(&mut self, path: &Path, queues: &mut [Queue], unrecorded: Unrecorded) -> Result<()> {
        let agreed = agree(path, &self.options)?;
        if agreed.features != self.features {
            return Err(Error::NotOffered(format!(
                "the features of before: {:#x} instead of {:#x}",
                agreed.features, self.features
            )));
        }
        self.frontend = agreed.frontend;
        self.protocol_features = agreed.protocol_features;
        self.most_queues = agreed.most_queues;
        self.set_up(queues)?;
        for queue in &mut *queues {
            match unrecorded {
                _ if self.inflight.is_some() => {}
                Unrecorded::Again => queue.ring_mut().begin_again(),
                Unrecorded::InTurn => queue.check_in_turn()?,
            }
        }
        self.start(queues, &vec![Begin::AtUsed; queues.len()])?;
        for queue in queues {
            // The last server may have taken a doorbell with it, and this one an interrupt.
            queue.ring_doorbell()?;
            queue.call_fd().write(1).while_doing("waking the driver")?;
        }
        Ok(())
    }

    /// Features, memory and the area of requests in flight: what comes before the rings.
    fn set_up(&mut self, queues: &[Queue]) -> Result<()> {
        let frontend = &mut self.frontend;
        for queue in queues {
            queue.watch(frontend)?;
        }
        frontend.set_features(self.features).message("SET_FEATURES")?;
        let regions: Vec<VhostUserMemoryRegionInfo> = self
            .layout
            .regions()
            .iter()
            .map(|region| VhostUserMemoryRegionInfo {
                guest_phys_addr: region.guest,
                memory_size: region.len as u64,
                userspace_addr: self.memory.user_address() + region.offset as u64,
                mmap_offset: region.offset as u64,
                mmap_handle: self.memory.file().as_raw_fd(),
            })
            .collect();
        frontend.set_mem_table(&regions).message("SET_MEM_TABLE")?;
        if !self.protocol_features.contains(VhostUserProtocolFeatures::INFLIGHT_SHMFD) {
            self.inflight = None;
            return Ok(());
        }
        if self.inflight.is_none() {
            let shape = VhostUserInflight::new(0, 0, self.options.queues, self.options.queue_size);
            self.inflight = Some(frontend.get_inflight_fd(&shape).message("GET_INFLIGHT_FD")?);
        }
        if let Some((shape, file)) = &self.inflight {
            frontend.set_inflight_fd(shape, file.as_raw_fd()).message("SET_INFLIGHT_FD")?;
        }
        Ok(())
    }
}

/// Connects, waiting until the server listens.
fn dial(path: &Path) -> Result<UnixStream> {
    let deadline = Instant::now() + LISTENS_WITHIN;
    loop {
        match UnixStream::connect(path) {
            Ok(stream) => return Ok(stream),
            Err(error) if Instant::now() >= deadline => {
                return Err(Error::Host { what: "connecting to the server", source: error });
            }
            Err(_) => thread::sleep(Duration::from_millis(5)),
        }
    }
}

/// Connects and agrees upon features, as far as a server wants to know of them before memory and rings.
fn agree(path: &Path, options: &Options) -> Result<Agreed> {
    let mut frontend = Frontend::from_stream(dial(path)?, u64::from(options.queues));
    let offered = frontend.get_features().message("GET_FEATURES")?;
    if offered & feature::VERSION_1 == 0 {
        return Err(Error::NotOffered("virtio 1.0".to_owned()));
    }
    let features = offered & (options.features | feature::PROTOCOL_FEATURES);
    let mut protocol_features = VhostUserProtocolFeatures::empty();
    if features & feature::PROTOCOL_FEATURES != 0 {
        let offered = frontend.get_protocol_features().message("GET_PROTOCOL_FEATURES")?;
        let wanted = VhostUserProtocolFeatures::from_bits_truncate(options.protocol_features);
        protocol_features = offered & wanted & PROTOCOL_FEATURES;
        frontend.set_protocol_features(protocol_features).message("SET_PROTOCOL_FEATURES")?;
    }
    let mut most_queues = u64::from(options.queues);
    if protocol_features.contains(VhostUserProtocolFeatures::REPLY_ACK) {
        // From here on every message is answered, so that a refusal is known where it happens.
        frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
    }
    if protocol_features.contains(VhostUserProtocolFeatures::MQ) {
        most_queues = frontend.get_queue_num().message("GET_QUEUE_NUM")?;
        if most_queues < u64::from(options.queues) {
            return Err(Error::NotOffered(format!("{} queues but {most_queues}", options.queues)));
        }
    } else if options.queues > 2 {
        return Err(Error::NotOffered(format!("{} queues, as it has no MQ", options.queues)));
    }
    frontend.set_owner().message("SET_OWNER")?;
    Ok(Agreed { frontend, features, protocol_features, most_queues })
}
