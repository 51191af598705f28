//! One queue's place in a group: all talk with it goes through here, under one lock for each batch.

use super::group::{Member, News, Pace};
use iovirt_core::Time;
use iovirt_core::request::{Depth, Tag};
use iovirt_core::worker::LaneWaker;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// One queue's place in a group, given up when it is dropped.
pub(super) struct Seat {
    member: Arc<Member>,
    number: usize,
    has_mail: Arc<AtomicBool>,
    /// What the group has not been told yet.
    pub(super) news: News,
    /// The last time that was heard of: what a place that is given up goes by.
    now: Time,
    wakes: Vec<LaneWaker>,
}

impl Seat {
    pub(super) fn new(member: Arc<Member>, number: usize, has_mail: Arc<AtomicBool>, depth: Depth) -> Self {
        let news = News {
            asks: Vec::with_capacity(depth.get()),
            completed: Vec::with_capacity(depth.get()),
            lost: 0,
        };
        Self { member, number, has_mail, news, now: Time::ZERO, wakes: Vec::new() }
    }

    /// Whether the group is to be talked with, for the sake of news, mail, or the time.
    pub(super) fn has_business(&self, now: Time) -> bool {
        !self.news.asks.is_empty()
            || !self.news.completed.is_empty()
            || self.news.lost > 0
            || self.has_mail.load(Ordering::Acquire)
            || self.deadline().is_some_and(|deadline| deadline <= now)
    }

    /// When the scheduler wants to be asked, if it waits for a time.
    pub(super) fn deadline(&self) -> Option<Time> {
        self.member.group().deadline()
    }

    /// Tells the news, has the scheduler say who may go, and fetches what this queue was granted. Whoever else was granted
    /// something is woken once the lock is open.
    pub(super) fn exchange(&mut self, now: Time, pace: Pace, granted: &mut Vec<Tag>) {
        self.now = now;
        let group = self.member.group();
        let mut state = group.lock();
        state.hear(self.number, &mut self.news, pace, now);
        group.dispatch(&mut state, now, self.number, &mut self.wakes);
        state.fetch(self.number, granted);
        drop(state);
        self.wakes.drain(..).for_each(|waker| waker.wake());
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let group = self.member.group();
        let mut state = group.lock();
        state.close(self.number, self.now);
        group.dispatch(&mut state, self.now, self.number, &mut self.wakes);
        drop(state);
        self.wakes.drain(..).for_each(|waker| waker.wake());
    }
}

impl fmt::Debug for Seat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Seat").field("number", &self.number).field("news", &self.news).finish_non_exhaustive()
    }
}
