//! The control handle of one pipeline.

use super::group::{FlowSnapshot, Group, Member};
use iovirt_core::scheduler::Weight;
use std::sync::{Arc, Weak};

/// Changes a pipeline's weight in its group and reads what it got, from any thread. It does not keep the pipeline in the
/// group.
#[derive(Debug)]
pub struct ScheduledControl {
    member: Weak<Member>,
}

impl ScheduledControl {
    pub(super) fn new(member: &Arc<Member>) -> Self {
        Self { member: Arc::downgrade(member) }
    }

    pub(super) fn is_in(&self, group: &Arc<Group>) -> bool {
        self.member.upgrade().is_some_and(|member| Arc::ptr_eq(member.group(), group))
    }

    /// Changes the weight, also for requests that wait already. Nothing happens where the pipeline is gone.
    pub fn set_weight(&self, weight: Weight) {
        if let Some(member) = self.member.upgrade() {
            member.set_weight(weight);
        }
    }

    /// What the pipeline got so far; `None` where it is gone.
    pub fn snapshot(&self) -> Option<FlowSnapshot> {
        self.member.upgrade().map(|member| member.snapshot())
    }

    /// The same of everybody in the group; nobody where the pipeline is gone.
    pub fn group_snapshot(&self) -> Vec<FlowSnapshot> {
        self.member.upgrade().map(|member| member.group().snapshot()).unwrap_or_default()
    }
}
