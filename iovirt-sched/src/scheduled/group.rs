//! Who shares: one scheduler behind a lock, and what its flows and queues are told.

use super::seat::Seat;
use crate::{Sfq, SfqConfig};
use iovirt_core::request::{Cost, Depth, Tag};
use iovirt_core::scheduler::{FlowId, Grant, IoScheduler, Weight};
use iovirt_core::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use iovirt_core::worker::LaneWaker;
use iovirt_core::{BackendError, Time};
use std::collections::BTreeMap;
use std::fmt;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Pipelines that share something, and the scheduler that says who goes next.
pub struct Group {
    name: String,
    /// What it was made with from a description, if it was.
    depth: Option<NonZeroUsize>,
    state: Mutex<State>,
    /// When the scheduler wants to be asked next, in nanoseconds; [`NEVER`] for never.
    deadline: AtomicU64,
}

const NEVER: u64 = u64::MAX;

/// The groups of a process, by name: an object of whoever builds pipelines, since nothing here is global. Clones are the same
/// groups. A group lives as long as a pipeline or somebody else has it.
#[derive(Clone, Default)]
pub struct Groups {
    list: Arc<Mutex<BTreeMap<String, Weak<Group>>>>,
}

/// What a flow of a group got so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct FlowSnapshot {
    /// Its number in the group.
    pub flow: u32,
    /// Its weight.
    pub weight: u32,
    /// Requests that wait for their turn.
    pub waiting: u64,
    /// Requests that had their turn and have not completed.
    pub under_way: u64,
    /// Requests that completed, successfully or not.
    pub ops: u64,
    /// Bytes that these were for.
    pub bytes: u64,
    /// Requests that a stage below lost.
    pub lost: u64,
}

pub(super) struct State {
    scheduler: Box<dyn IoScheduler>,
    flows: Vec<Option<FlowSnapshot>>,
    queues: Vec<Option<QueueState>>,
    /// Granted and not yet delivered; empty but for a moment.
    granted: Vec<Grant>,
}

struct QueueState {
    flow: FlowId,
    /// Granted, and not yet fetched by the queue.
    mail: Vec<Tag>,
    has_mail: Arc<AtomicBool>,
    waker: LaneWaker,
    waiting: u64,
    under_way: u64,
}

/// The tokens of a queue: its number in the upper half, the tag in the lower.
fn tokens(queue: usize) -> Range<u64> {
    let first = (queue as u64) << 32;
    first..first + (1 << 32)
}

/// What a queue tells its group in one turn.
#[derive(Debug)]
pub(super) struct News {
    pub(super) asks: Vec<(Tag, Cost)>,
    pub(super) completed: Vec<Cost>,
    pub(super) lost: u64,
}

/// Whether a queue's requests wait for their turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pace {
    InTurn,
    /// The queue drains.
    AtOnce,
}

impl Group {
    /// A group with that scheduler.
    pub fn new(name: impl Into<String>, scheduler: Box<dyn IoScheduler>) -> Arc<Self> {
        Arc::new(Self::with(name.into(), None, scheduler))
    }

    fn with(name: String, depth: Option<NonZeroUsize>, scheduler: Box<dyn IoScheduler>) -> Self {
        let state = State { scheduler, flows: Vec::new(), queues: Vec::new(), granted: Vec::new() };
        Self { name, depth, state: Mutex::new(state), deadline: AtomicU64::new(NEVER) }
    }

    /// The group's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What each flow got so far, in the order of their numbers.
    pub fn snapshot(&self) -> Vec<FlowSnapshot> {
        self.lock().flows.iter().flatten().copied().collect()
    }

    /// When the scheduler wants to be asked, if it waits for a time.
    pub(super) fn deadline(&self) -> Option<Time> {
        let deadline = self.deadline.load(Ordering::Acquire);
        (deadline != NEVER).then(|| Time::from_nanos(deadline))
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has the scheduler say who may go, and tells them; `wakes` is who is to be woken once the lock is open.
    pub(super) fn dispatch(&self, state: &mut State, now: Time, own: usize, wakes: &mut Vec<LaneWaker>) {
        state.scheduler.dispatch(now, usize::MAX, &mut state.granted);
        state.deliver(now, own, wakes);
        let deadline = state.scheduler.next_deadline().map_or(NEVER, Time::as_nanos);
        self.deadline.store(deadline, Ordering::Release);
    }
}

impl State {
    /// Puts what was granted into the mail of the queues.
    fn deliver(&mut self, now: Time, own: usize, wakes: &mut Vec<LaneWaker>) {
        for Grant { flow, token } in self.granted.drain(..) {
            let number = (token >> 32) as usize;
            let Some(queue) = self.queues.get_mut(number).and_then(Option::as_mut) else {
                // Nobody asks for a queue that is gone.
                self.scheduler.complete(flow, Cost::default(), now);
                continue;
            };
            if queue.mail.is_empty() && number != own {
                wakes.push(queue.waker.clone());
            }
            queue.mail.push(Tag::new(token as u32));
            queue.has_mail.store(true, Ordering::Release);
            queue.waiting -= 1;
            queue.under_way += 1;
            if let Some(flow) = &mut self.flows[flow.0 as usize] {
                flow.waiting -= 1;
                flow.under_way += 1;
            }
        }
    }

    /// Tells the scheduler a queue's news.
    pub(super) fn hear(&mut self, number: usize, news: &mut News, pace: Pace, now: Time) {
        let Self { scheduler, flows, queues, granted } = self;
        let Some(queue) = queues.get_mut(number).and_then(Option::as_mut) else { return };
        let (id, first) = (queue.flow, tokens(number).start);
        let Some(flow) = flows[id.0 as usize].as_mut() else { return };
        for cost in news.completed.drain(..) {
            scheduler.complete(id, cost, now);
            (queue.under_way, flow.under_way) = (queue.under_way - 1, flow.under_way - 1);
            (flow.ops, flow.bytes) = (flow.ops + u64::from(cost.ops), flow.bytes + cost.bytes);
        }
        for _ in 0..std::mem::take(&mut news.lost) {
            scheduler.complete(id, Cost::default(), now);
            (queue.under_way, flow.under_way) = (queue.under_way - 1, flow.under_way - 1);
            flow.lost += 1;
        }
        for (tag, cost) in news.asks.drain(..) {
            scheduler.ask(id, cost, first | u64::from(tag.get()), now);
            (queue.waiting, flow.waiting) = (queue.waiting + 1, flow.waiting + 1);
        }
        if pace == Pace::AtOnce {
            scheduler.release(id, tokens(number), now, granted);
        }
    }

    /// Fetches a queue's mail.
    pub(super) fn fetch(&mut self, number: usize, into: &mut Vec<Tag>) {
        if let Some(queue) = self.queues.get_mut(number).and_then(Option::as_mut) {
            into.append(&mut queue.mail);
            queue.has_mail.store(false, Ordering::Release);
        }
    }

    /// A queue is gone, with whatever it had asked for.
    pub(super) fn close(&mut self, number: usize, now: Time) {
        let Some(queue) = self.queues[number].take() else { return };
        self.scheduler.withdraw(queue.flow, tokens(number));
        for _ in 0..queue.under_way {
            self.scheduler.complete(queue.flow, Cost::default(), now);
        }
        if let Some(flow) = &mut self.flows[queue.flow.0 as usize] {
            flow.waiting -= queue.waiting;
            flow.under_way -= queue.under_way;
        }
    }
}

/// The first free place of a list.
fn place<T>(list: &mut Vec<Option<T>>) -> usize {
    list.iter().position(Option::is_none).unwrap_or_else(|| {
        list.push(None);
        list.len() - 1
    })
}

/// A pipeline's place in a group, given up when it is dropped.
#[derive(Debug)]
pub(super) struct Member {
    group: Arc<Group>,
    flow: FlowId,
}

impl Member {
    pub(super) fn join(group: &Arc<Group>, weight: Weight) -> Self {
        let mut state = group.lock();
        let number = place(&mut state.flows) as u32;
        let flow = FlowId(number);
        state.flows[number as usize] =
            Some(FlowSnapshot { flow: number, weight: weight.get(), ..FlowSnapshot::default() });
        state.scheduler.set_weight(flow, weight);
        Self { group: group.clone(), flow }
    }

    pub(super) fn group(&self) -> &Arc<Group> {
        &self.group
    }

    pub(super) fn set_weight(&self, weight: Weight) {
        let mut state = self.group.lock();
        state.scheduler.set_weight(self.flow, weight);
        if let Some(flow) = &mut state.flows[self.flow.0 as usize] {
            flow.weight = weight.get();
        }
    }

    pub(super) fn snapshot(&self) -> FlowSnapshot {
        self.group.lock().flows[self.flow.0 as usize].unwrap_or_default()
    }

    /// A place for one queue of the pipeline.
    pub(super) fn sit_down(self: &Arc<Self>, waker: LaneWaker, depth: Depth) -> Seat {
        let has_mail = Arc::new(AtomicBool::new(false));
        let queue = QueueState {
            flow: self.flow,
            mail: Vec::with_capacity(depth.get()),
            has_mail: has_mail.clone(),
            waker,
            waiting: 0,
            under_way: 0,
        };
        let mut state = self.group.lock();
        let number = place(&mut state.queues);
        state.queues[number] = Some(queue);
        Seat::new(self.clone(), number, has_mail, depth)
    }
}

impl Drop for Member {
    /// Its queues are gone already, as each has a share of the member.
    fn drop(&mut self) {
        let mut state = self.group.lock();
        state.scheduler.leave(self.flow);
        state.flows[self.flow.0 as usize] = None;
    }
}

impl Groups {
    /// No group yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// The group of that name; where there is none, one with an [`Sfq`] of that depth, or of the default one.
    ///
    /// # Errors
    /// Where the group was made with another depth than is asked for.
    pub fn open(&self, name: &str, depth: Option<NonZeroUsize>) -> Result<Arc<Group>, BackendError> {
        let mut list = self.lock();
        list.retain(|_, group| group.strong_count() > 0);
        if let Some(group) = list.get(name).and_then(Weak::upgrade) {
            return match (depth, group.depth) {
                (Some(asked), Some(made)) if asked != made => Err(BackendError::config(format!(
                    "depth={asked} is not allowed: the group `{name}` has a depth of {made}"
                ))),
                (Some(asked), None) => Err(BackendError::config(format!(
                    "depth={asked} is not allowed: the group `{name}` has a scheduler of its own"
                ))),
                _ => Ok(group),
            };
        }
        let default = SfqConfig::default();
        let depth = depth.unwrap_or(default.depth);
        let scheduler = Box::new(Sfq::new(SfqConfig { depth, ..default }));
        let group = Arc::new(Group::with(name.into(), Some(depth), scheduler));
        list.insert(name.into(), Arc::downgrade(&group));
        Ok(group)
    }

    /// Adds a group with a scheduler of its own, for descriptions to join. It lives as long as somebody has it.
    ///
    /// # Errors
    /// Where there is a group of that name.
    pub fn add(&self, group: &Arc<Group>) -> Result<(), BackendError> {
        let mut list = self.lock();
        list.retain(|_, group| group.strong_count() > 0);
        if list.contains_key(group.name()) {
            return Err(BackendError::config(format!("there is a group called `{}` already", group.name())));
        }
        list.insert(group.name().into(), Arc::downgrade(group));
        Ok(())
    }

    /// The group of that name, if a pipeline or somebody else has it.
    pub fn get(&self, name: &str) -> Option<Arc<Group>> {
        self.lock().get(name).and_then(Weak::upgrade)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Weak<Group>>> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Group")
            .field("name", &self.name)
            .field("flows", &self.snapshot())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Groups {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.lock().keys()).finish()
    }
}
