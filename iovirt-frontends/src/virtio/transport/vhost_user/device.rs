//! The device: lanes whose rings a front-end starts and stops one by one.

use super::notify::VhostUserNotify;
use super::server::Stopper;
use super::session::{Session, SessionEnd, SessionError};
use crate::virtio::device::{DeviceShared, VirtioDevice};
use crate::virtio::lane::{Activation, Command, QueueCounters, QueueLink, QueuePeer, QueueSnapshot, Start};
use crate::virtio::transport::TransportError;
use crate::virtio::transport::common::start_lanes;
use iovirt_core::WorkerHandle;
use iovirt_core::dma::{DmaSpace, MemoryMap};
use iovirt_core::frontend::{Completer, Ticket};
use iovirt_core::pipeline::Stages;
use iovirt_core::sync::{Mutex, MutexGuard, PoisonError};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// A virtio device behind vhost-user. Its rings and its memory are those of the front-end that is connected, one at a time.
///
/// [`VhostUserServer`](super::VhostUserServer) connects it to a socket; who has a listener of its own calls
/// [`VhostUserDevice::serve`].
#[derive(Debug)]
pub struct VhostUserDevice {
    pub(super) device: Arc<dyn VirtioDevice>,
    pub(super) shared: Arc<DeviceShared>,
    pub(super) notify: Arc<VhostUserNotify>,
    pub(super) space: DmaSpace,
    links: Vec<Arc<QueueLink>>,
    rings: Mutex<Rings>,
    connected: AtomicBool,
    connections: AtomicU64,
    awaited: Mutex<Option<Ticket>>,
}

/// Which rings run.
#[derive(Debug)]
struct Rings {
    /// The embedder drained the device and has not resumed it.
    held: bool,
    rings: Vec<RingState>,
}

#[derive(Clone, Copy, Debug)]
struct RingState {
    active: bool,
    /// What the front-end wants while the ring is active.
    wanted: Start,
}

const INACTIVE: RingState = RingState { active: false, wanted: Start::Paused };

impl VhostUserDevice {
    /// The device, its queues spread over the workers.
    ///
    /// # Errors
    /// Without a worker, or where the host has no descriptor left.
    pub fn new(device: Arc<dyn VirtioDevice>, workers: &[WorkerHandle]) -> Result<Self, TransportError> {
        let queues = device.queue_max_sizes().len();
        let notify = Arc::new(VhostUserNotify::new(queues));
        let shared = Arc::new(DeviceShared::new(notify.clone()));
        let space = DmaSpace::new(MemoryMap::empty());
        let links = start_lanes(&*device, &shared, &space, workers)?;
        device.set_config_listener(notify.clone());
        let rings = Mutex::new(Rings { held: false, rings: vec![INACTIVE; queues] });
        Ok(Self {
            device,
            shared,
            notify,
            space,
            links,
            rings,
            connected: AtomicBool::new(false),
            connections: AtomicU64::new(0),
            awaited: Mutex::default(),
        })
    }

    /// Serves a front-end until it leaves, breaks the protocol, or `stopper` stops. What is in flight is waited for then, the rings
    /// are taken back, and the front-end's memory is let go of. The driver of one that is stopped gets what is in flight returned, and its
    /// stack comes to rest.
    ///
    /// # Errors
    /// Where the connection ended by other than the front-end's leave or the stop.
    ///
    /// # Panics
    /// Where a front-end is being served already.
    pub fn serve(&self, stream: UnixStream, stopper: &Stopper) -> Result<SessionEnd, SessionError> {
        let was_connected = self.connected.swap(true, Ordering::SeqCst);
        assert!(!was_connected, "a front-end is being served already");
        self.connections.fetch_add(1, Ordering::Relaxed);
        let end = Session::new(self, stream, stopper).and_then(|mut session| session.run());
        self.set_awaited(None);
        self.connected.store(false, Ordering::SeqCst);
        end
    }

    /// The device's name, as in a pipeline's description.
    pub fn name(&self) -> &str {
        self.device.name()
    }

    /// Counters of each queue.
    pub fn counters(&self) -> Vec<QueueCounters> {
        self.links.iter().map(|link| link.counters()).collect()
    }

    /// The stages below, from the top down, with their control handles.
    pub fn stages(&self) -> Stages {
        self.device.stages()
    }

    /// Whether a front-end is connected.
    pub fn is_connected(&self) -> bool {
        self.connected.load(Ordering::SeqCst)
    }

    /// How many front-ends came so far.
    pub fn connections(&self) -> u64 {
        self.connections.load(Ordering::Relaxed)
    }

    /// What the front-end waits for, where its last message, or its leave, takes effect once lanes have taken a step: when a request in
    /// flight has finished, say. `None` where its next message is carried out at once.
    pub fn awaited(&self) -> Option<Ticket> {
        self.lock_awaited().clone().filter(|ticket| !ticket.is_done())
    }

    /// The session waits for that ticket, or for none.
    pub(super) fn set_awaited(&self, ticket: Option<&Ticket>) {
        *self.lock_awaited() = ticket.cloned();
    }

    fn lock_awaited(&self) -> MutexGuard<'_, Option<Ticket>> {
        self.awaited.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Comes to rest: no request in flight, metadata durable. The device stays at rest until [`VhostUserDevice::resume`], also for
    /// rings that a front-end starts meanwhile.
    pub fn drain(&self) -> Ticket {
        let mut rings = self.rings();
        rings.held = true;
        self.tell(rings.rings.iter().map(|ring| ring.active), Command::Drain)
    }

    /// The way back from [`VhostUserDevice::drain`].
    pub fn resume(&self) -> Ticket {
        let mut rings = self.rings();
        rings.held = false;
        let runs = rings.rings.iter().map(|ring| ring.active && ring.wanted == Start::Running);
        self.tell(runs, Command::Resume)
    }

    /// Starts a ring, running or at rest.
    pub(super) fn start_ring(&self, index: u16, (snapshot, features): (QueueSnapshot, u64), peer: QueuePeer) {
        let mut rings = self.rings();
        let held = rings.held;
        let Some((ring, link)) =
            rings.rings.get_mut(usize::from(index)).zip(self.links.get(usize::from(index)))
        else {
            return;
        };
        ring.active = true;
        let start = if held { Start::Paused } else { ring.wanted };
        if start == Start::Paused {
            // At rest from now on, also before the lane has heard of it.
            link.set_snapshot(Some(snapshot.clone()));
        }
        link.tell(Command::Activate(Activation { snapshot, features, start, peer: Some(peer) }));
        self.tell_used(&rings);
    }

    /// Which rings a driver uses: a front-end starts all that there may be, and enables those.
    fn tell_used(&self, rings: &Rings) {
        let is_used = |ring: &RingState| ring.active && ring.wanted == Start::Running;
        let used = rings.rings.iter().rposition(is_used).map_or(0, |last| last + 1);
        self.device.use_queues(used as u16);
    }

    /// The front-end wants a ring to run, or to rest.
    pub(super) fn want(&self, index: usize, wanted: Start) {
        let mut rings = self.rings();
        let held = rings.held;
        let Some((ring, link)) = rings.rings.get_mut(index).zip(self.links.get(index)) else { return };
        if std::mem::replace(&mut ring.wanted, wanted) == wanted || !ring.active {
            return;
        }
        if !held {
            let (_, completer) = Ticket::new();
            link.tell(match wanted {
                Start::Running => Command::Resume(completer),
                Start::Paused => Command::Drain(completer),
            });
        }
        self.tell_used(&rings);
    }

    /// Whether the ring was started and not taken back.
    pub(super) fn is_active(&self, index: usize) -> bool {
        self.rings().rings.get(index).is_some_and(|ring| ring.active)
    }

    /// Brings a ring to rest, which is inactive from now on for everybody else.
    pub(super) fn quiesce_ring(&self, index: usize) -> Ticket {
        let mut rings = self.rings();
        if let Some(ring) = rings.rings.get_mut(index) {
            ring.active = false;
        }
        self.tell((0..self.links.len()).map(|at| at == index), Command::Drain)
    }

    /// Brings all rings to rest: what is in flight is returned to the driver.
    pub(super) fn settle_all(&self) -> Ticket {
        let rings = self.rings();
        self.tell(rings.rings.iter().map(|ring| ring.active), Command::Drain)
    }

    /// Where a ring that was brought to rest stands; `None` where its driver broke it.
    pub(super) fn position(&self, index: usize) -> Option<QueueSnapshot> {
        self.links.get(index)?.snapshot()
    }

    /// Takes a ring back; its completions are thrown away from now on.
    pub(super) fn take_back_ring(&self, index: usize) -> Ticket {
        self.tell((0..self.links.len()).map(|at| at == index), Command::Deactivate)
    }

    /// Takes all rings back.
    pub(super) fn take_back_all(&self) -> Ticket {
        self.rings().rings.fill(INACTIVE);
        self.tell(self.links.iter().map(|_| true), Command::Deactivate)
    }

    /// Announces the front-end's memory. The ticket is done when no lane uses the old map for anything new.
    pub(super) fn announce(&self, map: MemoryMap) -> Ticket {
        self.space.replace(map);
        self.tell(self.links.iter().map(|_| true), Command::Follow)
    }

    /// The device as after power-on, once its rings were taken back.
    pub(super) fn reset(&self) {
        self.device.reset();
        self.shared.mend();
    }

    /// Tells lanes; the ticket is done when the last of them is.
    fn tell(&self, which: impl Iterator<Item = bool>, command: impl Fn(Completer) -> Command) -> Ticket {
        let (ticket, completer) = Ticket::new();
        for (link, told) in self.links.iter().zip(which) {
            if told {
                link.tell(command(completer.share()));
            }
        }
        completer.done();
        ticket
    }

    fn rings(&self) -> MutexGuard<'_, Rings> {
        self.rings.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for VhostUserDevice {
    fn drop(&mut self) {
        self.links.iter().for_each(|link| link.abandon());
    }
}
