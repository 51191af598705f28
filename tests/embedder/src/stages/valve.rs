//! `valve`: lets requests through, or keeps them for as long as it is shut, whatever the device wants meanwhile: a back-end that
//! is stuck, by command. No hook can do that, since a drain takes from a hook what it holds; so this is a stage in full, for
//! requests of any family.

use iovirt::core::Request;
use iovirt::core::pipeline::{BoxInterposer, EventListener, Stages};
use iovirt::core::prelude::*;
use iovirt::core::request::block::BlockRequest;
use iovirt::core::request::net::NetRequest;
use iovirt::core::state::{StageStates, StateError};
use iovirt::core::worker::LaneWaker;
use iovirt::registry::{Family, Maturity, StageInfo, StageRow};
use std::marker::PhantomData;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

const INFO: StageInfo = StageInfo {
    name: "valve",
    family: Family::Any,
    maturity: Maturity::Experimental,
    help: "Keeps requests while it is shut",
    keys: &[],
};

/// The row that makes the stage available by name.
pub fn row() -> StageRow {
    StageRow::any_interposer(
        INFO,
        |_| Ok(BoxInterposer::<BlockRequest>::new(Valve)),
        |_| Ok(BoxInterposer::<NetRequest>::new(Valve)),
    )
}

/// The stage, open at first.
#[derive(Clone, Copy, Debug)]
pub struct Valve;

/// Opens and shuts it; found by the name `valve`.
#[derive(Debug, Default)]
pub struct ValveControl {
    shut: AtomicBool,
    kept: AtomicUsize,
    lanes: Mutex<Vec<LaneWaker>>,
}

impl ValveControl {
    /// From now on, requests are kept.
    pub fn shut(&self) {
        self.shut.store(true, Ordering::SeqCst);
    }

    /// Lets those that are kept go on, and all that follow.
    pub fn open(&self) {
        self.shut.store(false, Ordering::SeqCst);
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner).iter().for_each(LaneWaker::wake);
    }

    /// How many are kept.
    pub fn kept(&self) -> usize {
        self.kept.load(Ordering::SeqCst)
    }

    fn is_shut(&self) -> bool {
        self.shut.load(Ordering::SeqCst)
    }
}

impl<R: Request, B: Backend<R>> Interposer<R, B> for Valve {
    type Stacked = Valved<R, B>;

    fn attach(self, below: B) -> Result<Valved<R, B>, AttachError> {
        Ok(Valved { below, control: Arc::default(), family: PhantomData })
    }
}

/// A valve above a back-end.
#[derive(Debug)]
pub struct Valved<R, B> {
    below: B,
    control: Arc<ValveControl>,
    family: PhantomData<fn(R)>,
}

impl<R: Request, B: Backend<R>> Backend<R> for Valved<R, B> {
    type Queue = ValveQueue<R, B::Queue>;

    fn caps(&self) -> Arc<R::Caps> {
        self.below.caps()
    }

    fn open(&self, cx: &mut WorkerContext<'_>, depth: Depth) -> Result<Self::Queue, BackendError> {
        let below = self.below.open(cx, depth)?;
        self.control.lanes.lock().unwrap_or_else(PoisonError::into_inner).push(cx.waker());
        Ok(ValveQueue { below, kept: Vec::with_capacity(depth.get()), control: self.control.clone() })
    }

    fn stages(&self, stages: &mut Stages) {
        stages.push_controlled(INFO.name, self.control.clone());
        self.below.stages(stages);
    }

    fn subscribe(&self, listener: &Arc<dyn EventListener>) {
        self.below.subscribe(listener);
    }

    fn save(&self, states: &mut StageStates) -> Result<(), StateError> {
        self.below.save(states)
    }

    fn restore(&self, states: &mut StageStates) -> Result<(), StateError> {
        self.below.restore(states)
    }
}

/// One queue's.
#[derive(Debug)]
pub struct ValveQueue<R, Q> {
    below: Q,
    kept: Vec<R>,
    control: Arc<ValveControl>,
}

impl<R: Request, Q: Queue<R>> Queue<R> for ValveQueue<R, Q> {
    fn submit(&mut self, cx: &mut WorkerContext<'_>, request: R) {
        if self.control.is_shut() {
            self.kept.push(request);
            self.control.kept.fetch_add(1, Ordering::SeqCst);
        } else {
            self.below.submit(cx, request);
        }
    }

    fn kick(&mut self, cx: &mut WorkerContext<'_>) {
        self.below.kick(cx);
    }

    fn poll(&mut self, cx: &mut WorkerContext<'_>, done: &mut Completions<R>) {
        if !self.kept.is_empty() && !self.control.is_shut() {
            self.control.kept.fetch_sub(self.kept.len(), Ordering::SeqCst);
            for request in self.kept.drain(..) {
                self.below.submit(cx, request);
            }
            self.below.kick(cx);
        }
        self.below.poll(cx, done);
    }

    fn drain(&mut self, cx: &mut WorkerContext<'_>) {
        self.below.drain(cx);
    }

    fn resume(&mut self, cx: &mut WorkerContext<'_>) {
        self.below.resume(cx);
    }

    fn mode(&self) -> Mode {
        match self.below.mode() {
            Mode::Quiesced if !self.kept.is_empty() => Mode::Draining,
            mode => mode,
        }
    }

    fn in_flight(&self) -> usize {
        self.below.in_flight() + self.kept.len()
    }
}
