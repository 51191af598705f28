//! The control plane.

use super::group::{Group, Groups, Member};
use super::{ScheduledConfig, ScheduledControl, ScheduledQueue};
use iovirt_core::pipeline::{EventListener, Stages};
use iovirt_core::scheduler::Weight;
use iovirt_core::state::{StageStates, StateError};
use iovirt_core::{AttachError, Backend, BackendError, Depth, Interposer, Request, WorkerContext};
use std::sync::Arc;

/// Waits for its turn in a group; see the [module](super).
#[derive(Debug)]
pub struct Scheduled {
    member: Arc<Member>,
}

impl Scheduled {
    /// A stage that makes its pipeline a member of the group, with that weight.
    pub fn new(group: &Arc<Group>, weight: Weight) -> Self {
        Self { member: Arc::new(Member::join(group, weight)) }
    }

    /// A stage that joins the group of its configuration.
    ///
    /// # Errors
    /// As [`Groups::open`].
    pub fn from_config(config: &ScheduledConfig, groups: &Groups) -> Result<Self, BackendError> {
        Ok(Self::new(&groups.open(&config.group, config.depth)?, config.weight))
    }
}

impl<R: Request, B: Backend<R>> Interposer<R, B> for Scheduled {
    type Stacked = ScheduledBackend<B>;

    fn attach(self, below: B) -> Result<ScheduledBackend<B>, AttachError> {
        let mut stages = Stages::default();
        below.stages(&mut stages);
        let group = self.member.group();
        if stages.controls::<ScheduledControl>().any(|(_, below)| below.is_in(group)) {
            // It would hold places above and wait for places below: with all of them held above, for ever.
            let reason = format!(
                "a stage below is in the group `{}` already; a pipeline joins a group once",
                group.name()
            );
            return Err(AttachError::new("scheduled", reason));
        }
        let control = Arc::new(ScheduledControl::new(&self.member));
        Ok(ScheduledBackend { below, member: self.member, control })
    }
}

/// A [`Scheduled`] stage above a back-end.
#[derive(Debug)]
pub struct ScheduledBackend<B> {
    below: B,
    member: Arc<Member>,
    control: Arc<ScheduledControl>,
}

impl<R: Request, B: Backend<R>> Backend<R> for ScheduledBackend<B> {
    type Queue = ScheduledQueue<R, B::Queue>;

    fn caps(&self) -> Arc<R::Caps> {
        self.below.caps()
    }

    fn open(&self, cx: &mut WorkerContext<'_>, depth: Depth) -> Result<Self::Queue, BackendError> {
        let below = self.below.open(cx, depth)?;
        Ok(ScheduledQueue::new(below, self.member.sit_down(cx.waker(), depth), depth))
    }

    fn stages(&self, stages: &mut Stages) {
        stages.push_controlled("scheduled", self.control.clone());
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
