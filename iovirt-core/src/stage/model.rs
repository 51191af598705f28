//! Every order of events between queues that wait for each other's ranges.
//!
//! Seen to fail where: the waiter is not woken, or woken before its flag is set.

use super::ranges::{Hold, RangeLocks};
use crate::model::{Sleeper, check, settle, worker};
use crate::request::Tag;
use crate::worker::Worker;
use loom::thread;
use std::sync::Arc;

/// A queue that waits for a range, and looks when its worker runs.
struct Waiter<'a> {
    worker: Worker,
    look: &'a mut dyn FnMut(),
}

impl Sleeper for Waiter<'_> {
    fn worker(&self) -> &Worker {
        &self.worker
    }

    fn step(&mut self) {
        self.worker.run().unwrap();
        (self.look)();
    }
}

/// A range that is let go while two others ask for it: both have it in the end, one after the other.
#[test]
fn loom_who_waits_for_a_range_hears_of_it() {
    check(2, || {
        let locks = Arc::<RangeLocks>::default();
        let (mut home, away) = (worker(), worker());
        let waker = |worker: &mut Worker| worker.with_context(|cx| cx.waker());
        let here = locks.client(waker(&mut home), 2);
        let there = locks.client(away.handle().add_lane(|_| None), 2);
        let ask = |client: &super::ranges::RangeClient, tag| {
            client.ask(&mut client.batch(), 0..8, Hold::Exclusive, Tag::new(tag))
        };
        let (held, granted) = ask(&there, 0);
        assert!(granted);
        let other = locks.clone();
        let releasing = thread::spawn(move || {
            other.release(held);
            drop(there);
        });
        let mut open: Vec<_> = (1..3).map(|tag| (ask(&here, tag), tag)).collect();
        let mut served = Vec::new();
        let mut look = |even_if_not: bool| {
            let mut now: Vec<Tag> = Vec::new();
            if here.has_granted() || even_if_not {
                here.granted(&mut here.batch(), &mut now);
            }
            let at_once = open.iter().filter(|((_, granted), _)| *granted).map(|(_, tag)| Tag::new(*tag));
            now.extend(at_once);
            for tag in now {
                let at = open.iter().position(|(_, number)| *number == tag.get()).unwrap();
                let ((ticket, _), _) = open.remove(at);
                here.batch().release(ticket);
                served.push(tag.get());
            }
        };
        look(false);
        releasing.join().unwrap();
        settle(&mut [&mut Waiter { worker: home, look: &mut || look(false) }]);
        assert_eq!(served, [1, 2]);
    });
}
