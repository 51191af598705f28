//! What every transport does alike: status, features, queue set-up, life cycle (VIRTIO 1.2, sections 2.1 to 2.4 and 3).

use super::generation::CONFIG_LEN;
use crate::virtio::device::{DeviceShared, VirtioDevice, VirtioNotify};
use crate::virtio::lane::{Activation, Command, QueueCounters, QueueLane, QueueLink, QueueSnapshot, Start};
use crate::virtio::queue::{QueueConfig, QueueState};
use crate::virtio::{feature, status};
use iovirt_core::WorkerHandle;
use iovirt_core::dma::DmaSpace;
use iovirt_core::doorbell::Doorbell;
use iovirt_core::frontend::{Access, Completer, Ticket};
use iovirt_core::state::{SavedState, StageStates, StateError};
use iovirt_core::sync::{Arc, Mutex, MutexGuard, PoisonError};
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Why a device could not be put behind its transport.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TransportError {
    /// No worker to run the queues on.
    #[error("a device needs at least one worker")]
    NoWorker,
    /// The host has no descriptor left for a doorbell.
    #[error("a doorbell could not be made: {0}")]
    Doorbell(#[from] std::io::Error),
    /// The device does not fit behind a PCI function: it has too many queues.
    #[error(transparent)]
    Pci(#[from] crate::pci::PciError),
}

/// What differs between transports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TransportKind {
    Mmio,
    Pci,
}

/// Whether a device may reach memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BusMaster {
    Allowed,
    Forbidden,
}

/// A device with its queues' lanes, without registers.
#[derive(Debug)]
pub(super) struct Common {
    pub(super) device: Arc<dyn VirtioDevice>,
    shared: Arc<DeviceShared>,
    links: Vec<Arc<QueueLink>>,
    /// What the transport and the memory add to the device's features, and the driver must accept.
    required: u64,
    /// What the transport adds and the driver may leave.
    optional: u64,
    state: Mutex<CommonState>,
}

#[derive(Debug)]
struct CommonState {
    driver_features: u64,
    status: u8,
    queues: Vec<QueueRegisters>,
    /// Queues that the driver took back, until their lanes have let go of them.
    stopping: Vec<Option<Ticket>>,
    /// The status becomes zero when this is done.
    resetting: Option<Ticket>,
    holds: Holds,
}

/// Why queues are at rest though the driver is ready. A reset by the driver does not lift these.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Holds {
    /// The embedder drained the device, or restored it, and has not resumed it.
    embedder: bool,
    /// The device must not reach memory (PCI Local Bus 3.0, section 6.2.2).
    no_bus_master: bool,
}

impl Holds {
    fn start(self) -> Start {
        if self == Self::default() { Start::Running } else { Start::Paused }
    }
}

impl CommonState {
    fn fresh(device: &dyn VirtioDevice, holds: Holds) -> Self {
        let queues = fresh_queues(device);
        let stopping = vec![None; queues.len()];
        Self { driver_features: 0, status: 0, stopping, queues, resetting: None, holds }
    }

    /// What is waited for where that queue was taken back and is not let go of yet.
    fn stopping(&self, index: usize) -> Option<&Ticket> {
        self.stopping.get(index)?.as_ref().filter(|ticket| !ticket.is_done())
    }

    fn is_live(&self) -> bool {
        self.status & (status::DRIVER_OK | status::FEATURES_OK) == status::DRIVER_OK | status::FEATURES_OK
    }
}

/// The registers of one queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct QueueRegisters {
    pub(super) config: QueueConfig,
    active: bool,
}

/// What is saved of a device behind a transport.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransportState {
    device_name: String,
    features: u64,
    driver_features: u64,
    status: u8,
    needs_reset: bool,
    queues: Vec<QueueRegisters>,
    snapshots: Vec<Option<QueueSnapshot>>,
    device: Vec<u8>,
    /// The configuration space as the driver could read it.
    config: Vec<u8>,
    stages: StageStates,
    /// The transport's own registers.
    pub(super) registers: Vec<u8>,
}

impl SavedState for TransportState {
    const KIND: &'static str = "virtio-device";
    const VERSION: u16 = 2;
}

impl Common {
    /// Starts a device.
    pub(super) fn start(
        device: Arc<dyn VirtioDevice>,
        space: &DmaSpace,
        notify: Arc<dyn VirtioNotify>,
        workers: &[WorkerHandle],
        kind: TransportKind,
    ) -> Result<Self, TransportError> {
        let shared = Arc::new(DeviceShared::new(notify));
        let links = start_lanes(&*device, &shared, space, workers)?;
        let mut required = feature::VERSION_1;
        if let Some(translate) = space.translate() {
            required |= feature::ACCESS_PLATFORM;
            let device = Arc::downgrade(&shared);
            // A request that does not come home for longer than the policy allows: the driver is told, and may reset.
            translate.pins().on_stuck(Arc::new(move |report| {
                if let Some(device) = device.upgrade() {
                    tracing::warn!(?report, "a device does not let go of memory; it needs a reset");
                    device.break_down();
                }
            }));
        }
        let (optional, no_bus_master) = match kind {
            TransportKind::Mmio => (0, false),
            // A PCI function reaches no memory before the guest allows it.
            TransportKind::Pci => (feature::RING_RESET, true),
        };
        let state = CommonState::fresh(&*device, Holds { embedder: false, no_bus_master });
        Ok(Self { device, shared, links, required, optional, state: Mutex::new(state) })
    }

    fn state(&self) -> MutexGuard<'_, CommonState> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.resetting.as_ref().is_some_and(Ticket::is_done) {
            self.finish_reset(&mut state);
        }
        state
    }

    fn finish_reset(&self, state: &mut CommonState) {
        self.device.reset();
        self.shared.mend();
        // Requests may have completed after the driver asked for the reset.
        self.shared.notify.reset();
        *state = CommonState::fresh(&*self.device, state.holds);
    }

    /// Whether a reset is under way: registers take nothing then.
    pub(super) fn is_resetting(&self) -> bool {
        self.state().resetting.is_some()
    }

    /// Ends a reset that nothing holds up any more: it is over when somebody looks.
    pub(super) fn catch_up(&self) {
        drop(self.state());
    }

    /// The features on offer.
    pub(super) fn features(&self) -> u64 {
        self.device.features() | self.required | self.optional
    }

    pub(super) fn driver_features(&self) -> u64 {
        self.state().driver_features
    }

    /// Writes 32 feature bits, from bit 0 or from bit 32; later ones do not exist.
    pub(super) fn set_driver_features(&self, page: u32, value: u32) {
        let mut state = self.state();
        // Features are fixed once they were accepted (section 2.2.1).
        if state.status & status::FEATURES_OK != 0 {
            return;
        }
        let features = &mut state.driver_features;
        match page {
            0 => *features = *features & !0xffff_ffff | u64::from(value),
            1 => *features = *features & 0xffff_ffff | u64::from(value) << 32,
            _ => {}
        }
    }

    pub(super) fn status(&self) -> u8 {
        // First the registers: a reset that is over mends the device.
        let status = self.state().status;
        let broken = if self.shared.is_broken() { status::NEEDS_RESET } else { 0 };
        status | broken
    }

    pub(super) fn set_status(&self, value: u8) -> Access {
        let mut state = self.state();
        if let Some(ticket) = &state.resetting {
            // A driver that does not wait for its reset is not listened to before it is over.
            return Access::Deferred(ticket.clone());
        }
        if value == 0 {
            let ticket = self.begin_reset(&mut state);
            return if ticket.is_done() { Access::Done } else { Access::Deferred(ticket) };
        }
        // A driver must not clear bits (section 2.1.1), and one of them is not its own.
        let added = value & !state.status & !status::NEEDS_RESET;
        state.status |= added & !status::FEATURES_OK;
        if added & status::FEATURES_OK != 0 && self.accepts(state.driver_features) {
            state.status |= status::FEATURES_OK;
        }
        if added & status::DRIVER_OK != 0 {
            if state.status & status::FEATURES_OK == 0 {
                if let Some(more) = self.shared.admit_line() {
                    let device = self.device.name();
                    tracing::warn!(device, more, "the driver went on without accepted features");
                }
                self.shared.break_down();
            } else if !self.shared.is_broken() {
                (0..self.links.len()).for_each(|index| self.activate(&mut state, index));
            }
        }
        Access::Done
    }

    /// Whether the driver chose only what is on offer, and version 1 (sections 2.2.2 and 6.1). Behind an IOMMU also that it
    /// takes addresses for translated: the device may refuse one that does not (section 6.2), whose every access would
    /// be a fault.
    fn accepts(&self, driver_features: u64) -> bool {
        driver_features & !self.features() == 0 && driver_features & self.required == self.required
    }

    /// Starts a queue, where the driver has set it up.
    fn activate(&self, state: &mut CommonState, index: usize) {
        let features = state.driver_features;
        if let Some((queue, link)) = state.queues.get_mut(index).zip(self.links.get(index))
            && queue.config.ready
            && !queue.active
        {
            queue.active = true;
            let at = QueueState { config: queue.config, next_avail: 0, next_used: 0 };
            let snapshot = QueueSnapshot { state: at, heads: Vec::new() };
            let start = state.holds.start();
            if start == Start::Paused {
                // At rest from now on, also before the lane has heard of it.
                link.set_snapshot(Some(snapshot.clone()));
            }
            link.tell(Command::Activate(Activation { snapshot, features, start, peer: None }));
        }
    }

    fn begin_reset(&self, state: &mut CommonState) -> Ticket {
        let ticket = self.tell_active(state, Command::Deactivate);
        state.resetting = Some(ticket.clone());
        if ticket.is_done() {
            self.finish_reset(state);
        }
        ticket
    }

    /// Tells all queues that are active or on the way out; the ticket is done when the last of them is.
    fn tell_active(&self, state: &CommonState, command: impl Fn(Completer) -> Command) -> Ticket {
        let (ticket, completer) = Ticket::new();
        for (index, (queue, link)) in state.queues.iter().zip(&self.links).enumerate() {
            if queue.active || state.stopping(index).is_some() {
                link.tell(command(completer.share()));
            }
        }
        completer.done();
        ticket
    }

    /// The registers of a queue; `None` where there is no such queue.
    pub(super) fn queue(&self, index: u32) -> Option<QueueRegisters> {
        self.state().queues.get(index as usize).copied()
    }

    /// Changes the registers of a queue that is not enabled (sections 4.1.4.3.2 and 4.2.2.2); nothing happens otherwise.
    pub(super) fn configure_queue(&self, index: u32, change: impl FnOnce(&mut QueueConfig)) {
        let mut state = self.state();
        if state.resetting.is_some() || state.stopping(index as usize).is_some() {
            return;
        }
        if let Some(queue) = state.queues.get_mut(index as usize)
            && !queue.config.ready
        {
            change(&mut queue.config);
        }
    }

    /// The driver has set a queue up. It works from `DRIVER_OK` on, or from now on.
    ///
    /// Nothing happens while the queue's former life is not over: whoever does not wait for that is not listened to,
    /// and cannot pile up work for the lane.
    pub(super) fn enable_queue(&self, index: u32) -> Access {
        let (mut state, index) = (self.state(), index as usize);
        if let Some(ticket) = state.resetting.as_ref().or(state.stopping(index)) {
            return Access::Deferred(ticket.clone());
        }
        if let Some(queue) = state.queues.get_mut(index) {
            queue.config.ready = true;
            if state.is_live() && !self.shared.is_broken() {
                self.activate(&mut state, index);
            }
        }
        Access::Done
    }

    /// The driver takes a queue back without a reset of the device.
    pub(super) fn disable_queue(&self, index: u32) -> Access {
        let (mut state, index) = (self.state(), index as usize);
        if let Some(ticket) = state.resetting.as_ref().or(state.stopping(index)) {
            return Access::Deferred(ticket.clone());
        }
        let Some((queue, link)) = state.queues.get_mut(index).zip(self.links.get(index)) else {
            return Access::Done;
        };
        queue.config.ready = false;
        if !std::mem::take(&mut queue.active) {
            return Access::Done;
        }
        let (ticket, completer) = Ticket::new();
        link.tell(Command::Deactivate(completer));
        state.stopping[index] = Some(ticket.clone());
        Access::Deferred(ticket)
    }

    /// Whether a queue that the driver took back is still on its way out.
    pub(super) fn is_stopping(&self, index: u32) -> bool {
        self.state().stopping(index as usize).is_some()
    }

    /// The driver resets a queue: it is taken back, and its registers are as after a reset of the device (section
    /// 2.6.1). Without the feature nothing happens.
    pub(super) fn reset_queue(&self, index: u32) -> Access {
        if self.driver_features() & feature::RING_RESET == 0 {
            return Access::Done;
        }
        let access = self.disable_queue(index);
        let mut state = self.state();
        if let Some(queue) = state.queues.get_mut(index as usize)
            && !queue.config.ready
        {
            queue.config = fresh_config(queue.config.max_size);
        }
        access
    }

    /// Rings a doorbell by hand; nothing happens where there is no such queue.
    pub(super) fn ring(&self, index: u32) {
        if let Some(link) = self.links.get(index as usize) {
            link.doorbell.ring();
        }
    }

    pub(super) fn doorbells(&self) -> impl Iterator<Item = &Doorbell> {
        self.links.iter().map(|link| &link.doorbell)
    }

    /// Counters of each queue.
    pub(super) fn counters(&self) -> Vec<QueueCounters> {
        self.links.iter().map(|link| link.counters()).collect()
    }

    pub(super) fn drain(&self) -> Ticket {
        let mut state = self.state();
        state.holds.embedder = true;
        self.tell_active(&state, Command::Drain)
    }

    pub(super) fn resume(&self) -> Ticket {
        let mut state = self.state();
        state.holds.embedder = false;
        self.let_go(&state)
    }

    /// Lets the queues run, where nothing else holds them.
    fn let_go(&self, state: &CommonState) -> Ticket {
        match state.holds.start() {
            Start::Running => self.tell_active(state, Command::Resume),
            Start::Paused => Ticket::done(),
        }
    }

    /// Whether the device may reach memory. Where it may not any more, the access waits for what is in flight.
    pub(super) fn set_bus_master(&self, allowed: BusMaster) -> Access {
        let mut state = self.state();
        let held = allowed == BusMaster::Forbidden;
        if state.holds.no_bus_master == held {
            return Access::Done;
        }
        state.holds.no_bus_master = held;
        let ticket = match allowed {
            BusMaster::Allowed => self.let_go(&state),
            // The embedder's own drain must not be overtaken by a guest's.
            BusMaster::Forbidden if state.holds.embedder => Ticket::done(),
            BusMaster::Forbidden => self.tell_active(&state, Command::Drain),
        };
        if ticket.is_done() { Access::Done } else { Access::Deferred(ticket) }
    }

    pub(super) fn reset(&self) -> Ticket {
        let mut state = self.state();
        state.holds.embedder = false;
        if let Some(ticket) = &state.resetting {
            return ticket.clone();
        }
        self.begin_reset(&mut state)
    }

    pub(super) fn save(&self) -> Result<TransportState, StateError> {
        let state = self.state();
        let not_now =
            |reason: &str| StateError::NotNow { kind: self.device.name().into(), reason: reason.into() };
        if state.resetting.is_some() {
            return Err(not_now("a reset is under way"));
        }
        let mut snapshots = Vec::new();
        for (index, (queue, link)) in state.queues.iter().zip(&self.links).enumerate() {
            if state.stopping(index).is_some() {
                return Err(not_now("a queue is being taken back"));
            }
            let snapshot = link.snapshot();
            let broken_at_rest = self.shared.is_broken() && link.is_broken_at_rest();
            if queue.active && snapshot.is_none() && !broken_at_rest {
                return Err(not_now("a queue is running: drain the device first"));
            }
            snapshots.push(snapshot);
        }
        let mut stages = StageStates::default();
        let device = self.device.save(&mut stages)?;
        Ok(TransportState {
            device_name: self.device.name().into(),
            features: self.features(),
            driver_features: state.driver_features,
            status: state.status,
            needs_reset: self.shared.is_broken(),
            queues: state.queues.clone(),
            snapshots,
            device,
            config: self.config(state.driver_features),
            stages,
            registers: Vec::new(),
        })
    }

    pub(super) fn restore(&self, saved: &TransportState) -> Result<(), StateError> {
        self.check_restore(saved)?;
        let mut stages = saved.stages.clone();
        self.device.restore(&saved.device, &mut stages)?;
        if !stages.is_empty() {
            return self.mismatch("it has the state of stages that this stack does not have".into());
        }
        let mut state = self.state();
        state.holds.embedder = true;
        state.driver_features = saved.driver_features;
        state.status = saved.status & !status::NEEDS_RESET;
        for (queue, saved) in state.queues.iter_mut().zip(&saved.queues) {
            let config = QueueConfig { max_size: queue.config.max_size, ..saved.config };
            *queue = QueueRegisters { config, active: saved.active };
        }
        for ((queue, link), snapshot) in state.queues.iter().zip(&self.links).zip(&saved.snapshots) {
            if !queue.active {
                continue;
            }
            let Some(snapshot) = snapshot else {
                // Of a device that needs a reset: the queue was broken already.
                link.set_broken_at_rest();
                continue;
            };
            let at = QueueState { config: queue.config, ..snapshot.state };
            let snapshot = QueueSnapshot { state: at, heads: snapshot.heads.clone() };
            // At rest from now on, also before the lane has heard of it.
            link.set_snapshot(Some(snapshot.clone()));
            let (features, start) = (saved.driver_features, Start::Paused);
            link.tell(Command::Activate(Activation { snapshot, features, start, peer: None }));
        }
        if saved.needs_reset {
            self.shared.break_down();
        }
        Ok(())
    }

    /// Whether a driver that was there when this was saved knows another configuration space than this restored device has: its disk
    /// was resized meanwhile, say. It is to be told then (section 2.5).
    pub(super) fn has_news_since(&self, saved: &TransportState) -> bool {
        saved.status & status::DRIVER_OK != 0 && saved.config != self.config(saved.driver_features)
    }

    /// The configuration space, without the zeroes at its end.
    fn config(&self, negotiated: u64) -> Vec<u8> {
        let mut space = vec![0; CONFIG_LEN];
        self.device.read_config(negotiated, 0, &mut space);
        let end = space.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        space.truncate(end);
        space
    }

    fn mismatch<T>(&self, reason: String) -> Result<T, StateError> {
        Err(StateError::Mismatch { kind: self.device.name().into(), reason })
    }

    fn check_restore(&self, saved: &TransportState) -> Result<(), StateError> {
        let mismatch = |reason: String| self.mismatch(reason);
        if saved.device_name != self.device.name() {
            return mismatch(format!("it is the state of a {}", saved.device_name));
        }
        let missing = saved.driver_features & !self.features();
        if missing != 0 {
            return mismatch(format!(
                "the driver uses features {missing:#x}, which this device does not offer"
            ));
        }
        let sizes = self.device.queue_max_sizes();
        if saved.queues.len() != sizes.len() || saved.snapshots.len() != sizes.len() {
            return mismatch(format!("it has {} queues, this device {}", saved.queues.len(), sizes.len()));
        }
        if saved.queues.iter().zip(sizes).any(|(queue, max)| queue.config.size > *max) {
            return mismatch("a queue is larger than this device allows".into());
        }
        let accepted = saved.status & status::FEATURES_OK != 0;
        if accepted && !self.accepts(saved.driver_features) {
            return mismatch("the features that the driver uses cannot have been accepted".into());
        }
        for (queue, snapshot) in saved.queues.iter().zip(&saved.snapshots).filter(|(queue, _)| queue.active) {
            let live = accepted && saved.status & status::DRIVER_OK != 0 && queue.config.ready;
            let fits = match snapshot {
                Some(snapshot) => snapshot.fits(&queue.config),
                None => saved.needs_reset,
            };
            if !live || !fits {
                return mismatch("a queue contradicts its registers".into());
            }
        }
        if self.state().status != 0 {
            return mismatch("the device is in use already".into());
        }
        Ok(())
    }
}

/// Starts the lanes of a device, its queues spread over the workers.
pub(super) fn start_lanes(
    device: &dyn VirtioDevice,
    shared: &Arc<DeviceShared>,
    space: &DmaSpace,
    workers: &[WorkerHandle],
) -> Result<Vec<Arc<QueueLink>>, TransportError> {
    if workers.is_empty() {
        return Err(TransportError::NoWorker);
    }
    let sizes = device.queue_max_sizes();
    let links: Vec<_> = sizes.iter().map(|_| QueueLink::new().map(Arc::new)).collect::<Result<_, _>>()?;
    for (index, (link, worker)) in (0u16..).zip(links.iter().zip(workers.iter().cycle())) {
        let factory = device.queue_factory(index);
        QueueLane::start(worker, index, link.clone(), shared.clone(), space.clone(), factory);
    }
    Ok(links)
}

impl Drop for Common {
    fn drop(&mut self) {
        self.links.iter().for_each(|link| link.abandon());
    }
}

fn fresh_queues(device: &dyn VirtioDevice) -> Vec<QueueRegisters> {
    let fresh = |&max_size: &u16| QueueRegisters { config: fresh_config(max_size), active: false };
    device.queue_max_sizes().iter().map(fresh).collect()
}

fn fresh_config(max_size: u16) -> QueueConfig {
    QueueConfig { size: max_size, max_size, desc: 0, avail: 0, used: 0, ready: false }
}
