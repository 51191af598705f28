//! Every order of events between a queue that goes to rest and the wakers of its slots.
//!
//! Seen to fail where: a waker looks whether the owner is awake before it adds its slot.

use super::ready::ReadySet;
use crate::model::{check, is_caught, settle, worker};
use crate::worker::{Lane, Turn, WorkerContext};
use loom::thread;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

/// How the owner goes to rest.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Rest {
    /// It looks again when it has said so.
    Right,
    /// It believes its sweep.
    WithoutALook,
}

struct Owner {
    ready: Arc<ReadySet>,
    swept: Arc<AtomicUsize>,
    rest: Rest,
}

impl Lane for Owner {
    fn turn(&mut self, _: &mut WorkerContext<'_>) -> Turn {
        self.ready.wake_up();
        self.ready.sweep(|slot| {
            self.swept.fetch_or(1 << slot, Ordering::Relaxed);
        });
        let rests = self.ready.go_to_rest();
        if rests || self.rest == Rest::WithoutALook { Turn::Idle } else { Turn::Again }
    }
}

/// Two threads wake two slots of one word while the owner takes its turns.
fn wake(rest: Rest) {
    let mut worker = worker();
    let swept = Arc::<AtomicUsize>::default();
    let made = Arc::<OnceLock<Arc<ReadySet>>>::default();
    let (place, seen) = (made.clone(), swept.clone());
    worker.handle().add_lane(move |cx| {
        let ready = place.get_or_init(|| ReadySet::new(2, cx.waker())).clone();
        Some(Box::new(Owner { ready, swept: seen, rest }))
    });
    worker.run().unwrap();
    let ready = made.get().unwrap();
    let wakers = [ready.waker(0), ready.waker(1)];
    let [first, second] = wakers.map(|waker| thread::spawn(move || waker.wake()));
    worker.run().unwrap();
    worker.run().unwrap();
    first.join().unwrap();
    second.join().unwrap();
    settle(&mut [&mut worker]);
    assert_eq!(swept.load(Ordering::Relaxed), 3, "a future that was woken is not polled");
}

#[test]
fn loom_no_future_that_was_woken_is_forgotten() {
    check(3, || wake(Rest::Right));
}

#[test]
fn loom_a_rest_without_another_look_is_caught() {
    assert!(is_caught(3, || wake(Rest::WithoutALook)));
}
