//! Messages in an order that no monitor has: each is taken or refused, as the table says, and what comes of it is defined.

use super::cut::{Cutter, Step};
use super::rig::DISK;
use super::rig::{Served, small, wait_until, within_limit};
use super::victim::Victim;
use Step::{Addresses, Enable, Features, Kick, Log, Memory, Protocol, Record, Size};
use std::time::Duration;
use vhost_user_driver::exercise;

/// An order, and the positions of what is refused in it. At its end the ring is served.
struct Order {
    what: &'static str,
    steps: &'static [Step],
    refused: &'static [usize],
}

const ORDERS: &[Order] = &[
    Order { what: "the usual order", steps: &Step::USUAL, refused: &[] },
    Order {
        what: "a doorbell before the memory",
        steps: &[Protocol, Features, Size, Addresses, Kick, Memory, Kick, Enable],
        refused: &[4],
    },
    Order {
        what: "a doorbell before the features",
        steps: &[Protocol, Memory, Size, Addresses, Kick, Features, Kick, Enable],
        refused: &[4],
    },
    Order {
        what: "a doorbell before the addresses",
        steps: &[Protocol, Features, Memory, Kick, Size, Addresses, Kick, Enable],
        refused: &[3],
    },
    Order {
        what: "a ring enabled before it has addresses",
        steps: &[Protocol, Features, Enable, Memory, Size, Addresses, Kick],
        refused: &[],
    },
    Order {
        what: "a ring enabled before anything else",
        steps: &[Protocol, Enable, Features, Memory, Size, Addresses, Kick],
        refused: &[],
    },
    Order {
        what: "a log before the features",
        steps: &[Protocol, Log, Features, Memory, Size, Addresses, Kick, Enable],
        refused: &[],
    },
    Order {
        what: "addresses before the memory",
        steps: &[Protocol, Features, Size, Addresses, Memory, Kick, Enable],
        refused: &[],
    },
    Order {
        what: "a record of chains in flight after the ring was started",
        steps: &[Protocol, Features, Memory, Size, Addresses, Kick, Enable, Record],
        refused: &[],
    },
    Order {
        what: "the same features after the ring was started",
        steps: &[Protocol, Features, Memory, Size, Addresses, Kick, Enable, Features],
        refused: &[],
    },
    Order {
        what: "memory again after the ring was started",
        steps: &[Protocol, Features, Memory, Size, Addresses, Kick, Enable, Memory],
        refused: &[],
    },
    Order {
        what: "the size and the addresses again after the ring was started",
        steps: &[Protocol, Features, Memory, Size, Addresses, Kick, Enable, Addresses, Size],
        refused: &[8],
    },
];

fn is_served(front_end: &mut Cutter, what: &str) {
    let before = front_end.used();
    front_end.offer();
    front_end.ring_doorbell();
    wait_until(what, || front_end.used() == before + 1);
}

#[test]
fn with_answers_each_is_taken_or_refused_and_the_ring_is_served() {
    within_limit("an order", || {
        let served = Served::new(DISK, 1, Duration::ZERO);
        for Order { what, steps, refused } in ORDERS {
            let mut front_end = Cutter::silent(&served.socket(), Victim::Disk);
            for (at, &step) in steps.iter().enumerate() {
                let is_taken = front_end.tell(step) == 0;
                assert_eq!(is_taken, !refused.contains(&at), "{what}: {step:?}, step {at}");
            }
            is_served(&mut front_end, what);
        }
        exercise::requests(&mut served.connect(&small(1)).queues[0], exercise::SECTORS, 1);
    });
}

#[test]
fn without_answers_a_refusal_ends_the_session_and_the_next_one_is_served() {
    within_limit("an order", || {
        let served = Served::new(DISK, 1, Duration::ZERO);
        for Order { what, steps, refused } in ORDERS {
            let mut front_end = Cutter::silent(&served.socket(), Victim::Disk);
            let first = refused.first().copied().unwrap_or(steps.len());
            for &step in &steps[..first] {
                front_end.say(step);
                if step == Log {
                    // Answered in any case.
                    front_end.skip_answer();
                }
            }
            // All of that was taken, as it is still there.
            front_end.ask();
            if let Some(&step) = steps.get(first) {
                front_end.say(step);
                assert!(front_end.is_disconnected(), "{what}");
            } else {
                is_served(&mut front_end, what);
                drop(front_end);
            }
            exercise::requests(&mut served.connect(&small(1)).queues[0], exercise::SECTORS, 1);
        }
    });
}

/// Its answer is the log's own, so that there is none that says no.
#[test]
fn a_log_that_was_not_negotiated_ends_the_session() {
    let served = Served::new(DISK, 1, Duration::ZERO);
    let front_end = Cutter::silent(&served.socket(), Victim::Disk);
    front_end.say(Log);
    assert!(front_end.is_disconnected());
    exercise::requests(&mut served.connect(&small(1)).queues[0], exercise::SECTORS, 1);
}
