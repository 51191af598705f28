//! The lane of one device queue: joins the ring, the device's side of the queue, and commands from the registers.

use super::device::{DeviceShared, QueueError, QueueFactory, QueueWork};
use super::inflight::InflightQueue;
use super::queue::{QueueConfig, QueueState, RingFeatures};
use super::ring::Ring;
use iovirt_core::dma::DmaSpace;
use iovirt_core::doorbell::Doorbell;
use iovirt_core::frontend::Completer;
use iovirt_core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use iovirt_core::sync::{Arc, Mutex, MutexGuard, PoisonError};
use iovirt_core::worker::{Lane, LaneWaker, Trigger, Turn, Watch, WorkerContext};
use iovirt_core::{Mode, WorkerHandle};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::sync::OnceLock;

/// What the registers tell a lane.
#[derive(Debug)]
pub(crate) enum Command {
    /// The driver is ready. Starts at rest where it is restored.
    Activate(Activation),
    /// The driver takes the queue back: finish what is in flight, throw completions away.
    Deactivate(Completer),
    /// Come to rest.
    Drain(Completer),
    /// The way back from rest.
    Resume(Completer),
    /// Guest memory has a new map: the old one is not used for anything new after this.
    #[cfg_attr(not(feature = "vhost-user"), allow(dead_code, reason = "only that transport uses it"))]
    Follow(Completer),
}

/// A queue as the driver set it up.
#[derive(Debug)]
pub(crate) struct Activation {
    pub(crate) snapshot: QueueSnapshot,
    pub(crate) features: u64,
    pub(crate) start: Start,
    /// Where another process takes part in the queue's life.
    pub(crate) peer: Option<QueuePeer>,
}

/// What another process supplies for a queue.
#[derive(Debug)]
pub(crate) struct QueuePeer {
    /// Rung beside the queue's own.
    pub(crate) doorbell: Doorbell,
    /// Where it reads which chains are held.
    pub(crate) inflight: Option<InflightQueue>,
}

/// How an activated queue starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Start {
    /// Serving.
    Running,
    /// At rest, as it was saved.
    Paused,
}

/// Where a queue stands: saved at rest, or with the heads that a stalled back-end has not returned.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueSnapshot {
    /// Where the device stands on the ring.
    pub state: QueueState,
    /// Heads of chains in flight, to be served again.
    pub heads: Vec<u16>,
}

impl QueueSnapshot {
    /// Whether it can be of a queue with these registers.
    pub(crate) fn fits(&self, config: &QueueConfig) -> bool {
        let at = QueueConfig { max_size: config.max_size, ..self.state.config };
        let mut heads = self.heads.clone();
        heads.sort_unstable();
        heads.dedup();
        at == *config
            && heads.len() == self.heads.len()
            && heads.last().is_none_or(|last| *last < config.size)
    }
}

/// Counters of one device queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueCounters {
    /// Chains taken from the ring.
    pub chains: u64,
    /// Doorbells that the guest rang.
    pub doorbells: u64,
    /// Interrupts raised.
    pub interrupts: u64,
}

/// The registers' end of a lane.
#[derive(Debug)]
pub(crate) struct QueueLink {
    commands: Mutex<Commands>,
    any: AtomicBool,
    /// The device is gone: the lane ends once nothing is in flight.
    abandoned: AtomicBool,
    /// The ring is broken and nothing is in flight.
    at_rest: AtomicBool,
    /// Set by whoever starts the lane, before anybody else has the link.
    waker: OnceLock<LaneWaker>,
    snapshot: Mutex<Option<QueueSnapshot>>,
    pub(crate) doorbell: Doorbell,
    /// The doorbell of another process, while the queue is active.
    peer_doorbell: Mutex<Option<Doorbell>>,
    rung: AtomicU64,
    pub(crate) chains: AtomicU64,
    pub(crate) interrupts: AtomicU64,
}

#[derive(Debug, Default)]
struct Commands {
    waiting: VecDeque<Command>,
    /// Nobody will obey any more.
    closed: bool,
}

impl QueueLink {
    pub(crate) fn new() -> std::io::Result<Self> {
        Ok(Self {
            commands: Mutex::default(),
            any: AtomicBool::new(false),
            abandoned: AtomicBool::new(false),
            at_rest: AtomicBool::new(false),
            waker: OnceLock::new(),
            snapshot: Mutex::default(),
            doorbell: Doorbell::new()?,
            peer_doorbell: Mutex::default(),
            rung: AtomicU64::new(0),
            chains: AtomicU64::new(0),
            interrupts: AtomicU64::new(0),
        })
    }

    /// Tells the lane something, from any thread. Where its worker is gone the command is dropped, which cancels its
    /// ticket.
    pub(crate) fn tell(&self, command: Command) {
        let mut commands = self.commands();
        if commands.closed {
            return;
        }
        commands.waiting.push_back(command);
        drop(commands);
        self.any.store(true, Ordering::SeqCst);
        self.wake();
    }

    /// The device is gone.
    pub(crate) fn abandon(&self) {
        self.abandoned.store(true, Ordering::SeqCst);
        self.wake();
    }

    fn wake(&self) {
        if let Some(waker) = self.waker.get() {
            waker.wake();
        }
    }

    fn is_abandoned(&self) -> bool {
        self.abandoned.load(Ordering::Relaxed)
    }

    /// Whether the ring is broken and nothing is in flight.
    pub(crate) fn is_broken_at_rest(&self) -> bool {
        self.at_rest.load(Ordering::SeqCst)
    }

    /// There is no ring, and there never was one.
    pub(crate) fn set_broken_at_rest(&self) {
        self.at_rest.store(true, Ordering::SeqCst);
    }

    fn commands(&self) -> MutexGuard<'_, Commands> {
        self.commands.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn next(&self) -> Option<Command> {
        if !self.any.load(Ordering::SeqCst) {
            return None;
        }
        let mut commands = self.commands();
        let command = commands.waiting.pop_front();
        self.any.store(!commands.waiting.is_empty(), Ordering::SeqCst);
        command
    }

    fn peer_doorbell(&self) -> MutexGuard<'_, Option<Doorbell>> {
        self.peer_doorbell.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The doorbell of another process; what the last one counted is kept.
    fn set_peer_doorbell(&self, doorbell: Option<Doorbell>) {
        let last = std::mem::replace(&mut *self.peer_doorbell(), doorbell);
        self.rung.fetch_add(last.as_ref().map_or(0, Doorbell::take_rung), Ordering::Relaxed);
    }

    /// Nobody obeys any more: what waits is cancelled.
    fn close(&self) {
        let mut commands = self.commands();
        commands.closed = true;
        let waiting = std::mem::take(&mut commands.waiting);
        drop(commands);
        drop(waiting);
    }

    /// Where the queue came to rest last; `None` where it runs or is not active.
    pub(crate) fn snapshot(&self) -> Option<QueueSnapshot> {
        self.snapshot.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn set_snapshot(&self, snapshot: Option<QueueSnapshot>) {
        *self.snapshot.lock().unwrap_or_else(PoisonError::into_inner) = snapshot;
    }

    pub(crate) fn counters(&self) -> QueueCounters {
        // The eventfd has counted the doorbells itself: the lane watches it by edges and never reads it.
        let fresh = self.doorbell.take_rung() + self.peer_doorbell().as_ref().map_or(0, Doorbell::take_rung);
        if fresh > 0 {
            // What was read before the worker polled is an edge that it does not see any more.
            self.wake();
        }
        let doorbells = self.rung.fetch_add(fresh, Ordering::Relaxed) + fresh;
        QueueCounters {
            chains: self.chains.load(Ordering::Relaxed),
            doorbells,
            interrupts: self.interrupts.load(Ordering::Relaxed),
        }
    }
}

/// The worker's end of a link: whoever holds it obeys. Dropped with the lane, or with a worker that never made it.
struct LaneEnd(Arc<QueueLink>);

impl std::ops::Deref for LaneEnd {
    type Target = Arc<QueueLink>;

    fn deref(&self) -> &Arc<QueueLink> {
        &self.0
    }
}

impl Drop for LaneEnd {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// Where a lane stands.
#[derive(Debug)]
enum Phase {
    /// The driver has not set the queue up.
    Inactive,
    Running,
    /// On the way to `Draining`: what a record held is served first, and nothing new.
    Finishing(Completer),
    Draining(Completer),
    /// At rest.
    Paused,
    /// On the way to `Inactive`. Later commands wait: the next ring must not see completions of this one.
    Stopping(Completer),
    /// The driver broke the ring; only a reset mends it. What is in flight is waited for, also by a drain.
    Broken(Option<Completer>),
}

pub(crate) struct QueueLane {
    index: u16,
    link: LaneEnd,
    shared: Arc<DeviceShared>,
    space: DmaSpace,
    work: Box<dyn QueueWork>,
    ring: Option<Ring>,
    resubmit: Vec<u16>,
    phase: Phase,
    _doorbell: Watch,
    peer_doorbell: Option<Watch>,
}

impl QueueLane {
    /// Starts the lane of a queue on a worker.
    pub(crate) fn start(
        worker: &WorkerHandle,
        index: u16,
        link: Arc<QueueLink>,
        shared: Arc<DeviceShared>,
        space: DmaSpace,
        factory: QueueFactory,
    ) {
        let (started, link) = (link.clone(), LaneEnd(link));
        let waker = worker.add_lane(move |cx| {
            let made = factory(cx).map_err(|error| error.to_string()).and_then(|work| {
                let watch = cx.watch(&link.doorbell, Trigger::Edge).map_err(|error| error.to_string())?;
                Ok((work, watch))
            });
            match made {
                Ok((work, doorbell)) => Some(Box::new(Self {
                    index,
                    link,
                    shared,
                    space,
                    work,
                    ring: None,
                    resubmit: Vec::new(),
                    phase: Phase::Inactive,
                    _doorbell: doorbell,
                    peer_doorbell: None,
                })),
                Err(error) => {
                    tracing::error!(queue = index, error, "a device queue could not be opened");
                    Some(Box::new(DeadLane { link, shared }))
                }
            }
        });
        // A lane is started once.
        let _ = started.waker.set(waker);
    }

    fn obey(&mut self, cx: &mut WorkerContext<'_>, command: Command) {
        match command {
            Command::Activate(activation) => self.activate(cx, activation),
            Command::Deactivate(completer) => {
                self.link.set_snapshot(None);
                self.peer_doorbell = None;
                self.link.set_peer_doorbell(None);
                if self.ring.is_none() {
                    self.phase = Phase::Inactive;
                    completer.done();
                    return;
                }
                self.work.drain(cx);
                self.phase = Phase::Stopping(completer);
            }
            Command::Drain(completer) => self.drain(cx, completer),
            Command::Resume(completer) => {
                match self.phase {
                    Phase::Finishing(_) => self.phase = Phase::Running,
                    Phase::Draining(_) | Phase::Paused => {
                        self.work.resume(cx);
                        self.link.set_snapshot(None);
                        self.phase = Phase::Running;
                    }
                    Phase::Broken(_) => {
                        self.work.resume(cx);
                        self.phase = Phase::Broken(None);
                    }
                    Phase::Inactive | Phase::Running | Phase::Stopping(_) => {}
                }
                completer.done();
            }
            Command::Follow(completer) => {
                match self.ring.as_mut().map(|ring| (ring.refresh(), ring)) {
                    Some((Ok(true), ring)) => self.work.memory_changed(ring.view()),
                    Some((Ok(false), _)) => {}
                    Some((Err(error), _)) => {
                        self.finish(cx);
                        self.report_broken_ring(&error.into());
                    }
                    // What is kept in store holds the memory of the last driver.
                    None => self.work.memory_changed(&self.space.view()),
                }
                completer.done();
            }
        }
    }

    fn drain(&mut self, cx: &mut WorkerContext<'_>, completer: Completer) {
        match self.phase {
            // Another process is told no more of a ring at rest than its base, which lies behind what was in flight when it was saved.
            // Where heads are saved it may wait.
            Phase::Running | Phase::Finishing(_) if self.link.peer_doorbell().is_some() => {
                self.phase = Phase::Finishing(completer);
            }
            Phase::Running | Phase::Finishing(_) | Phase::Draining(_) => {
                self.work.drain(cx);
                self.phase = Phase::Draining(completer);
            }
            Phase::Broken(_) => {
                self.work.drain(cx);
                self.phase = Phase::Broken(Some(completer));
            }
            // One that is stopped or at rest has nothing to finish.
            Phase::Inactive | Phase::Paused | Phase::Stopping(_) => completer.done(),
        }
    }

    /// Has chains that were in flight when the ring was saved served again, by the memory as it is now. Where there is no room for all of
    /// them, says how the lane goes on: what is new on the ring comes behind them.
    fn resubmit(&mut self, cx: &mut WorkerContext<'_>) -> Result<Option<Turn>, QueueError> {
        let Some(ring) = &mut self.ring else { return Ok(None) };
        if ring.refresh()? {
            self.work.memory_changed(ring.view());
        }
        if self.resubmit.is_empty() {
            return Ok(None);
        }
        // Before, so that where none is taken some are in flight, and the next completion makes room.
        self.work.settle(cx, Some(ring))?;
        let taken = self.work.resubmit(cx, ring, &self.resubmit)?;
        self.resubmit.drain(..taken);
        if self.resubmit.is_empty() {
            return Ok(None);
        }
        Ok(Some(if taken > 0 { Turn::Again } else { Turn::Idle }))
    }

    /// Nothing of a record is left to be served: a drain that waited for that begins.
    fn finish(&mut self, cx: &mut WorkerContext<'_>) {
        self.phase = match std::mem::replace(&mut self.phase, Phase::Inactive) {
            Phase::Finishing(completer) => {
                self.work.drain(cx);
                Phase::Draining(completer)
            }
            phase => phase,
        };
    }

    fn activate(&mut self, cx: &mut WorkerContext<'_>, activation: Activation) {
        let Activation { snapshot, features, start, peer } = activation;
        self.work.start(features);
        let is_shared = peer.is_some();
        let inflight = peer.and_then(|peer| self.meet(cx, peer));
        let ring_features = RingFeatures::from_negotiated(features);
        let (shared, link) = (self.shared.clone(), Arc::clone(&self.link));
        self.link.at_rest.store(false, Ordering::SeqCst);
        match Ring::open(self.index, (&snapshot.state, start), ring_features, &self.space, shared, link) {
            Ok(mut ring) => {
                if is_shared {
                    ring.take_over();
                }
                if let Some(inflight) = inflight {
                    ring.track(inflight);
                }
                self.ring = Some(ring);
                self.resubmit.clone_from(&snapshot.heads);
                self.phase = match start {
                    Start::Running => Phase::Running,
                    Start::Paused => {
                        self.work.drain(cx);
                        self.link.set_snapshot(Some(snapshot));
                        Phase::Paused
                    }
                };
            }
            Err(error) => {
                if let Some(more) = self.shared.admit_line() {
                    tracing::warn!(queue = self.index, more, %error, "the driver set a queue up that cannot be used");
                }
                self.break_down();
            }
        }
    }

    /// Listens to another process's doorbell, and says where it looks.
    fn meet(&mut self, cx: &mut WorkerContext<'_>, peer: QueuePeer) -> Option<InflightQueue> {
        match cx.watch(&peer.doorbell, Trigger::Edge) {
            Ok(watch) => self.peer_doorbell = Some(watch),
            Err(error) => {
                if let Some(more) = self.shared.admit_line() {
                    tracing::warn!(queue = self.index, more, %error, "a doorbell cannot be watched; the queue hears none");
                }
            }
        }
        self.link.set_peer_doorbell(Some(peer.doorbell));
        peer.inflight
    }

    fn report_broken_ring(&mut self, error: &QueueError) {
        if let Some(more) = self.shared.admit_line() {
            tracing::warn!(queue = self.index, more, %error, "the driver broke a ring; the device needs a reset");
        }
        self.break_down();
        if let Some(ring) = &mut self.ring {
            ring.keep_pins_of(&self.work.heads_in_flight());
        }
    }

    /// The queue is of no use before the next reset.
    fn break_down(&mut self) {
        let waiting = match std::mem::replace(&mut self.phase, Phase::Inactive) {
            Phase::Draining(completer) => Some(completer),
            _ => None,
        };
        self.phase = Phase::Broken(waiting);
        self.link.set_snapshot(None);
        self.shared.break_down();
    }

    /// The device is gone: nobody sees what comes home, and the lane ends when all of it has.
    fn wind_up(&mut self, cx: &mut WorkerContext<'_>) -> Turn {
        // The ring stays for its pins only.
        if self.ring.is_some() && !matches!(self.phase, Phase::Inactive) {
            self.phase = Phase::Inactive;
            self.work.drain(cx);
        }
        // Without a ring this does not fail.
        let _ = self.work.settle(cx, None);
        let heads = self.work.heads_in_flight();
        if let Some(ring) = &mut self.ring {
            ring.keep_pins_of(&heads);
        }
        if heads.is_empty() { Turn::Finished } else { Turn::Idle }
    }

    fn work(&mut self, cx: &mut WorkerContext<'_>) -> Result<Turn, QueueError> {
        if matches!(self.phase, Phase::Running | Phase::Finishing(_)) {
            let left = self.resubmit(cx);
            if !matches!(left, Ok(Some(_))) {
                self.finish(cx);
            }
            if let Some(turn) = left? {
                return Ok(turn);
            }
        }
        let Some(ring) = &mut self.ring else {
            // No driver uses the queue; what is below has its turns all the same, for a stack may be exchanged under it.
            self.work.settle(cx, None)?;
            return Ok(Turn::Idle);
        };
        match self.phase {
            Phase::Running => self.work.serve(cx, ring),
            Phase::Finishing(_) | Phase::Draining(_) | Phase::Paused => {
                if ring.refresh()? {
                    self.work.memory_changed(ring.view());
                }
                self.work.settle(cx, Some(ring))?;
                Ok(Turn::Idle)
            }
            Phase::Stopping(_) | Phase::Broken(_) => {
                self.work.settle(cx, None)?;
                ring.keep_pins_of(&self.work.heads_in_flight());
                Ok(Turn::Idle)
            }
            Phase::Inactive => Ok(Turn::Idle),
        }
    }

    /// Takes the step that a phase was waiting for, if it has come.
    fn advance(&mut self, cx: &mut WorkerContext<'_>) {
        let phase = std::mem::replace(&mut self.phase, Phase::Inactive);
        self.phase = match phase {
            Phase::Draining(completer) => {
                let mut heads = self.work.heads_in_flight();
                let at_rest = self.work.mode() == Mode::Quiesced && heads.is_empty();
                // Restored, and drained again before they could be submitted.
                heads.extend(&self.resubmit);
                let snapshot =
                    self.ring.as_mut().map(|ring| QueueSnapshot { state: ring.queue.state(), heads });
                self.link.set_snapshot(snapshot);
                if at_rest {
                    completer.done();
                    Phase::Paused
                } else {
                    Phase::Draining(completer)
                }
            }
            Phase::Stopping(completer) if self.work.in_flight() == 0 => {
                self.work.resume(cx);
                self.ring = None;
                self.resubmit.clear();
                completer.done();
                Phase::Inactive
            }
            Phase::Broken(waiting) => {
                let at_rest = self.work.heads_in_flight().is_empty();
                self.link.at_rest.store(at_rest, Ordering::SeqCst);
                match waiting {
                    Some(completer) if at_rest && self.work.mode() == Mode::Quiesced => {
                        completer.done();
                        Phase::Broken(None)
                    }
                    waiting => Phase::Broken(waiting),
                }
            }
            phase => phase,
        };
    }
}

impl Lane for QueueLane {
    fn turn(&mut self, cx: &mut WorkerContext<'_>) -> Turn {
        if let Some(ring) = &mut self.ring {
            ring.enter();
        }
        let turn = self.turn_inside(cx);
        if let Some(ring) = &mut self.ring {
            ring.leave();
        }
        turn
    }
}

impl QueueLane {
    /// A turn, inside one of the ring's pins.
    fn turn_inside(&mut self, cx: &mut WorkerContext<'_>) -> Turn {
        if self.link.is_abandoned() {
            return self.wind_up(cx);
        }
        while !matches!(self.phase, Phase::Stopping(_))
            && let Some(command) = self.link.next()
        {
            self.obey(cx, command);
        }
        let was_stopping = matches!(self.phase, Phase::Stopping(_));
        let turn = self.work(cx).unwrap_or_else(|error| {
            self.report_broken_ring(&error);
            Turn::Idle
        });
        self.advance(cx);
        let has_stopped = was_stopping && matches!(self.phase, Phase::Inactive);
        // Commands may have waited for that.
        if has_stopped { Turn::Again } else { turn }
    }
}

/// Stands for a queue that could not be opened: the device works up to the moment the driver is ready.
struct DeadLane {
    link: LaneEnd,
    shared: Arc<DeviceShared>,
}

impl Lane for DeadLane {
    fn turn(&mut self, _: &mut WorkerContext<'_>) -> Turn {
        if self.link.is_abandoned() {
            return Turn::Finished;
        }
        while let Some(command) = self.link.next() {
            match command {
                Command::Activate(_) => {
                    self.link.set_broken_at_rest();
                    self.shared.break_down();
                }
                Command::Deactivate(completer)
                | Command::Drain(completer)
                | Command::Resume(completer)
                | Command::Follow(completer) => {
                    completer.done();
                }
            }
        }
        Turn::Idle
    }
}

#[cfg(all(test, loom))]
mod model;

#[cfg(test)]
mod tests {
    use super::*;
    use iovirt_core::{Worker, WorkerConfig};

    /// Gives itself turns by a doorbell, and counts them.
    struct Listener {
        _doorbell: Watch,
        turns: Arc<AtomicU64>,
    }

    impl Lane for Listener {
        fn turn(&mut self, _: &mut WorkerContext<'_>) -> Turn {
            self.turns.fetch_add(1, Ordering::Relaxed);
            Turn::Idle
        }
    }

    #[test]
    fn counting_doorbells_silences_none() {
        let mut worker = Worker::new(WorkerConfig::default()).unwrap();
        let (link, turns) = (Arc::new(QueueLink::new().unwrap()), Arc::new(AtomicU64::new(0)));
        let (rung, counted) = (link.clone(), turns.clone());
        let waker = worker.handle().add_lane(move |cx| {
            let doorbell = cx.watch(&rung.doorbell, Trigger::Edge).unwrap();
            Some(Box::new(Listener { _doorbell: doorbell, turns: counted }))
        });
        link.waker.set(waker).unwrap();
        worker.run().unwrap();
        for turn in 2..5 {
            link.doorbell.ring();
            assert_eq!(link.counters().doorbells, turn - 1);
            worker.run().unwrap();
            assert_eq!(turns.load(Ordering::Relaxed), turn);
        }
    }
}
