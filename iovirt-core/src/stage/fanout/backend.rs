//! The control plane.

use super::{FanOutQueue, FanOutStage, MAX_BRANCHES};
use crate::backend::Backend;
use crate::error::{AttachError, BackendError};
use crate::log::LogLimiter;
use crate::pipeline::{Event, EventListener, Stages};
use crate::request::{Depth, Request};
use crate::stage::ranges::RangeLocks;
use crate::state::{StageStates, StateError};
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::{Arc, Mutex, PoisonError};
use crate::worker::WorkerContext;
use std::fmt;

/// A fan-out stage above its branches.
pub struct FannedOut<R: Request, S, B> {
    pub(super) shared: Arc<Shared<R, S, B>>,
}

/// What all queues share.
pub(super) struct Shared<R: Request, S, B> {
    pub(super) stage: S,
    branches: Vec<B>,
    pub(super) locks: Arc<RangeLocks>,
    changes: Arc<Changes>,
    /// The capabilities when they were last acceptable.
    accepted: Mutex<Arc<R::Caps>>,
    complaints: LogLimiter,
}

/// Counts what happened to the capabilities of the branches.
#[derive(Debug, Default)]
struct Changes {
    count: AtomicU64,
}

impl EventListener for Changes {
    fn event(&self, _: Event) {
        self.count.fetch_add(1, Ordering::Release);
    }
}

impl<R: Request, S: FanOutStage<R>, B: Backend<R>> FannedOut<R, S, B> {
    /// That stage above these branches.
    ///
    /// # Errors
    /// Where the stage refuses them, or there is none, or more than [`MAX_BRANCHES`].
    pub fn new(stage: S, branches: Vec<B>) -> Result<Self, AttachError> {
        if !(1..=MAX_BRANCHES).contains(&branches.len()) {
            let count = branches.len();
            let reason = format!("{count} back-ends are not allowed: 1 to {MAX_BRANCHES} are");
            return Err(AttachError::new(stage.name(), reason));
        }
        let changes = Arc::new(Changes::default());
        let listener: Arc<dyn EventListener> = changes.clone();
        // Before those above subscribe: the stage hears of a change first.
        for branch in &branches {
            branch.subscribe(&listener);
        }
        if let Some(own) = stage.listeners() {
            own.add(&listener);
        }
        let caps = stage.caps(&caps_of(&branches))?;
        let accepted = Mutex::new(Arc::new(caps));
        let shared = Shared {
            stage,
            branches,
            locks: Arc::default(),
            changes,
            accepted,
            complaints: LogLimiter::default(),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// The stage.
    pub fn stage(&self) -> &S {
        &self.shared.stage
    }

    /// The branches in their order.
    pub fn branches(&self) -> &[B] {
        &self.shared.branches
    }
}

fn caps_of<R: Request>(branches: &[impl Backend<R>]) -> Vec<Arc<R::Caps>> {
    branches.iter().map(Backend::caps).collect()
}

impl<R: Request, S: FanOutStage<R>, B: Backend<R>> Shared<R, S, B> {
    pub(super) fn caps(&self) -> Arc<R::Caps> {
        let caps = self.stage.caps(&caps_of(&self.branches));
        let mut accepted = self.accepted.lock().unwrap_or_else(PoisonError::into_inner);
        match caps {
            Ok(caps) if caps == **accepted => {}
            Ok(caps) => *accepted = Arc::new(caps),
            Err(error) => {
                // The stack was acceptable when it was put together and has changed since.
                if let Some(suppressed) = self.complaints.admit() {
                    tracing::warn!(%error, suppressed, "a stage no longer accepts what is below it");
                }
            }
        }
        accepted.clone()
    }

    /// Changes whenever the capabilities may have.
    pub(super) fn generation(&self) -> u64 {
        self.changes.count.load(Ordering::Acquire)
    }
}

impl<R: Request, S: FanOutStage<R>, B: Backend<R>> Backend<R> for FannedOut<R, S, B> {
    type Queue = FanOutQueue<R, S, B>;

    fn caps(&self) -> Arc<R::Caps> {
        self.shared.caps()
    }

    fn open(&self, cx: &mut WorkerContext<'_>, depth: Depth) -> Result<Self::Queue, BackendError> {
        let open = |branch: &B| branch.open(cx, depth);
        let queues = self.shared.branches.iter().map(open).collect::<Result<_, _>>()?;
        Ok(FanOutQueue::new(&self.shared, cx, queues, depth))
    }

    fn stages(&self, stages: &mut Stages) {
        match self.shared.stage.control() {
            Some(control) => stages.push_controlled(self.shared.stage.name(), control),
            None => stages.push(self.shared.stage.name()),
        }
        self.shared.branches.iter().for_each(|branch| branch.stages(stages));
    }

    fn subscribe(&self, listener: &Arc<dyn EventListener>) {
        if let Some(own) = self.shared.stage.listeners() {
            own.add(listener);
        }
        self.shared.branches.iter().for_each(|branch| branch.subscribe(listener));
    }

    fn save(&self, states: &mut StageStates) -> Result<(), StateError> {
        self.shared.stage.save(states)?;
        self.shared.branches.iter().try_for_each(|branch| branch.save(states))
    }

    fn restore(&self, states: &mut StageStates) -> Result<(), StateError> {
        self.shared.stage.restore(states)?;
        self.shared.branches.iter().try_for_each(|branch| branch.restore(states))
    }
}

impl<R: Request, S: fmt::Debug, B: fmt::Debug> fmt::Debug for FannedOut<R, S, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FannedOut")
            .field("stage", &self.shared.stage)
            .field("branches", &self.shared.branches)
            .finish_non_exhaustive()
    }
}
