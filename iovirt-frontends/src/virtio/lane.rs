//! The lane of one device queue: joins the ring, the device's side of the queue, and commands from the registers.

use super::device::{DeviceShared, LateWaker, QueueError, QueueFactory, QueueWork};
use super::queue::{QueueState, RingFeatures};
use super::ring::Ring;
use iovirt_core::dma::DmaSpace;
use iovirt_core::doorbell::Doorbell;
use iovirt_core::frontend::Completer;
use iovirt_core::worker::{Lane, Trigger, Turn, Watch, WorkerContext};
use iovirt_core::{Mode, WorkerHandle};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

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
}

/// A queue as the driver set it up.
#[derive(Debug)]
pub(crate) struct Activation {
    pub(crate) snapshot: QueueSnapshot,
    pub(crate) features: u64,
    pub(crate) start: Start,
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
    commands: Mutex<VecDeque<Command>>,
    any: AtomicBool,
    waker: LateWaker,
    snapshot: Mutex<Option<QueueSnapshot>>,
    pub(crate) doorbell: Doorbell,
    rung: AtomicU64,
    pub(crate) chains: AtomicU64,
    pub(crate) interrupts: AtomicU64,
}

impl QueueLink {
    pub(crate) fn new() -> std::io::Result<Self> {
        Ok(Self {
            commands: Mutex::default(),
            any: AtomicBool::new(false),
            waker: LateWaker::default(),
            snapshot: Mutex::default(),
            doorbell: Doorbell::new()?,
            rung: AtomicU64::new(0),
            chains: AtomicU64::new(0),
            interrupts: AtomicU64::new(0),
        })
    }

    /// Tells the lane something, from any thread.
    pub(crate) fn tell(&self, command: Command) {
        self.commands().push_back(command);
        self.any.store(true, Ordering::SeqCst);
        self.waker.wake();
    }

    fn commands(&self) -> MutexGuard<'_, VecDeque<Command>> {
        self.commands.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn next(&self) -> Option<Command> {
        if !self.any.load(Ordering::SeqCst) {
            return None;
        }
        let mut commands = self.commands();
        let command = commands.pop_front();
        self.any.store(!commands.is_empty(), Ordering::SeqCst);
        command
    }

    /// Where the queue came to rest last; `None` where it runs or is not active.
    pub(crate) fn snapshot(&self) -> Option<QueueSnapshot> {
        self.snapshot.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_snapshot(&self, snapshot: Option<QueueSnapshot>) {
        *self.snapshot.lock().unwrap_or_else(PoisonError::into_inner) = snapshot;
    }

    pub(crate) fn counters(&self) -> QueueCounters {
        // The eventfd has counted the doorbells itself: the lane watches it by edges and never reads it.
        let fresh = self.doorbell.event().read().unwrap_or(0);
        if fresh > 0 {
            // What was read before the worker polled is an edge that it does not see any more.
            self.waker.wake();
        }
        let doorbells = self.rung.fetch_add(fresh, Ordering::Relaxed) + fresh;
        QueueCounters {
            chains: self.chains.load(Ordering::Relaxed),
            doorbells,
            interrupts: self.interrupts.load(Ordering::Relaxed),
        }
    }
}

/// Where a lane stands.
#[derive(Debug)]
enum Phase {
    /// The driver has not set the queue up.
    Inactive,
    Running,
    Draining(Completer),
    /// At rest.
    Paused,
    /// On the way to `Inactive`.
    Stopping(Completer),
    /// The driver broke the ring; only a reset mends it.
    Broken,
}

pub(crate) struct QueueLane {
    index: u16,
    link: Arc<QueueLink>,
    shared: Arc<DeviceShared>,
    space: DmaSpace,
    work: Box<dyn QueueWork>,
    ring: Option<Ring>,
    resubmit: Vec<u16>,
    phase: Phase,
    _doorbell: Watch,
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
        worker.add_lane(move |cx| {
            link.waker.set(cx.waker());
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
                })),
                Err(error) => {
                    tracing::error!(queue = index, error, "a device queue could not be opened");
                    Some(Box::new(DeadLane { link, shared }))
                }
            }
        });
    }

    fn obey(&mut self, cx: &mut WorkerContext<'_>, command: Command) {
        match command {
            Command::Activate(activation) => self.activate(cx, activation),
            Command::Deactivate(completer) => {
                self.link.set_snapshot(None);
                if self.ring.is_none() {
                    self.phase = Phase::Inactive;
                    completer.done();
                    return;
                }
                self.work.drain(cx);
                self.phase = Phase::Stopping(completer);
            }
            Command::Drain(completer) => match self.phase {
                Phase::Running | Phase::Draining(_) => {
                    self.work.drain(cx);
                    self.phase = Phase::Draining(completer);
                }
                // A device that is broken, stopped or at rest has nothing to finish.
                _ => completer.done(),
            },
            Command::Resume(completer) => {
                if matches!(self.phase, Phase::Draining(_) | Phase::Paused) {
                    self.work.resume(cx);
                    self.link.set_snapshot(None);
                    self.phase = Phase::Running;
                }
                completer.done();
            }
        }
    }

    fn activate(&mut self, cx: &mut WorkerContext<'_>, activation: Activation) {
        let Activation { snapshot, features, start } = activation;
        self.work.start(features);
        let ring_features = RingFeatures::from_negotiated(features);
        let (shared, link) = (self.shared.clone(), self.link.clone());
        match Ring::open(self.index, (&snapshot.state, start), ring_features, &self.space, shared, link) {
            Ok(ring) => {
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
                tracing::warn!(queue = self.index, %error, "the driver set a queue up that cannot be used");
                self.phase = Phase::Broken;
                self.shared.break_down();
            }
        }
    }

    fn work(&mut self, cx: &mut WorkerContext<'_>) -> Result<Turn, QueueError> {
        let Some(ring) = &mut self.ring else { return Ok(Turn::Idle) };
        match self.phase {
            Phase::Running => {
                if ring.refresh()? {
                    self.work.memory_changed(ring.view());
                }
                if !self.resubmit.is_empty() {
                    let heads = std::mem::take(&mut self.resubmit);
                    self.work.resubmit(cx, ring, &heads)?;
                }
                self.work.serve(cx, ring)
            }
            Phase::Draining(_) | Phase::Paused => {
                if ring.refresh()? {
                    self.work.memory_changed(ring.view());
                }
                self.work.settle(cx, Some(ring))?;
                Ok(Turn::Idle)
            }
            Phase::Stopping(_) | Phase::Broken => {
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
                let heads = self.work.heads_in_flight();
                let at_rest = self.work.mode() == Mode::Quiesced && heads.is_empty();
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
            Phase::Stopping(completer) if self.work.heads_in_flight().is_empty() => {
                self.work.resume(cx);
                self.ring = None;
                self.resubmit.clear();
                completer.done();
                Phase::Inactive
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
        while let Some(command) = self.link.next() {
            self.obey(cx, command);
        }
        let turn = self.work(cx).unwrap_or_else(|error| {
            tracing::warn!(queue = self.index, %error, "the driver broke a ring; the device needs a reset");
            self.phase = Phase::Broken;
            self.shared.break_down();
            if let Some(ring) = &mut self.ring {
                ring.keep_pins_of(&self.work.heads_in_flight());
            }
            Turn::Idle
        });
        self.advance(cx);
        if let Some(ring) = &mut self.ring {
            ring.leave();
        }
        turn
    }
}

/// Stands for a queue that could not be opened: the device works up to the moment the driver is ready.
struct DeadLane {
    link: Arc<QueueLink>,
    shared: Arc<DeviceShared>,
}

impl Lane for DeadLane {
    fn turn(&mut self, _: &mut WorkerContext<'_>) -> Turn {
        while let Some(command) = self.link.next() {
            match command {
                Command::Activate(_) => self.shared.break_down(),
                Command::Deactivate(completer) | Command::Drain(completer) | Command::Resume(completer) => {
                    completer.done();
                }
            }
        }
        Turn::Idle
    }
}

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
        worker.handle().add_lane(move |cx| {
            rung.waker.set(cx.waker());
            let doorbell = cx.watch(&rung.doorbell, Trigger::Edge).unwrap();
            Some(Box::new(Listener { _doorbell: doorbell, turns: counted }))
        });
        worker.run().unwrap();
        for turn in 2..5 {
            link.doorbell.ring();
            assert_eq!(link.counters().doorbells, turn - 1);
            worker.run().unwrap();
            assert_eq!(turns.load(Ordering::Relaxed), turn);
        }
    }
}
