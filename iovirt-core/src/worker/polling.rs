//! How long a worker looks for new work before it sleeps.
//!
//! A wake-up costs tens of microseconds where processors sleep deeply, which is more than most requests take. Who looks again for a while
//! instead saves that; who looks for nothing burns a processor. So the time adapts, as KVM's halt polling does: it grows while
//! sleeps turn out short, and is zero after a long one. A worker that has nothing to do therefore looks once after each
//! wake-up, and never for longer than the limit.

use super::clock::Time;
use std::time::Duration;

/// The time that a first short sleep brings.
const FIRST: Duration = Duration::from_micros(10);
/// A sleep of that many limits is long: part of it is the wake-up itself, which looking would have saved.
const SHORT_SLEEP: u32 = 2;

#[derive(Debug)]
pub(super) struct Polling {
    limit: Duration,
    window: Duration,
    /// When there was nothing to do any more.
    idle_since: Option<Time>,
}

impl Polling {
    pub(super) fn new(limit: Duration) -> Self {
        Self { limit, window: limit.min(FIRST), idle_since: None }
    }

    /// How long to look, at most for `limit`.
    pub(super) fn window(&self, limit: Option<Duration>) -> Duration {
        limit.map_or(self.window, |limit| limit.min(self.window))
    }

    /// Nothing was found since `since`, and the worker goes to sleep.
    pub(super) fn sleeps(&mut self, since: Time) {
        self.idle_since = Some(since);
    }

    /// There is something to do again, after a sleep if [`Polling::sleeps`] was called.
    pub(super) fn wakes(&mut self, now: Time) {
        let Some(since) = self.idle_since.take() else { return };
        self.window = if now.since(since) > self.limit * SHORT_SLEEP {
            Duration::ZERO
        } else {
            (self.window * 2).max(FIRST).min(self.limit)
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_micros(50);

    fn sleep(polling: &mut Polling, sleep: Duration) -> Duration {
        let now = Time::from_nanos(1_000_000);
        polling.sleeps(now);
        polling.wakes(now + sleep);
        polling.window(None)
    }

    #[test]
    fn short_sleeps_widen_the_window_up_to_the_limit_and_a_long_one_closes_it() {
        let micros = Duration::from_micros;
        let mut polling = Polling::new(LIMIT);
        assert_eq!(sleep(&mut polling, micros(60)), micros(20));
        assert_eq!(sleep(&mut polling, micros(100)), micros(40));
        assert_eq!(sleep(&mut polling, micros(1)), LIMIT);
        assert_eq!(polling.window(Some(micros(5))), micros(5));
        polling.wakes(Time::from_nanos(u64::MAX));
        assert_eq!(polling.window(None), LIMIT, "it did not sleep");
        assert_eq!(sleep(&mut polling, micros(101)), Duration::ZERO);
        assert_eq!(sleep(&mut polling, micros(101)), Duration::ZERO);
        assert_eq!(sleep(&mut polling, micros(99)), FIRST);
    }

    #[test]
    fn a_limit_of_zero_never_looks() {
        let mut polling = Polling::new(Duration::ZERO);
        assert_eq!(sleep(&mut polling, Duration::ZERO), Duration::ZERO);
        assert_eq!(polling.window(None), Duration::ZERO);
    }
}
