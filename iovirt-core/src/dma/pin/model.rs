//! Every order of events, by the model checker `loom`: `RUSTFLAGS="--cfg loom" cargo test -p iovirt-core --lib loom_ --release`.

use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use loom::thread;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::{IovaRange, IovaSpans, Slots};

/// How the queue goes about its request.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Queue {
    Right,
    /// Clears the slot before it has finished with the memory.
    ReleasedEarly,
    /// Fills the slot when the turn that translated is over.
    PublishedLate,
    /// Translates before it has announced the turn.
    TranslatesFirst,
}

struct World {
    slots: Slots,
    mapped: AtomicBool,
    generation: AtomicU64,
    /// Accesses by the device, and by whoever has the page after it, must never be concurrent: the checker sees to it.
    page: UnsafeCell<u32>,
}

fn page() -> IovaRange {
    IovaRange::new(0x1000, 0x1000).unwrap()
}

/// One request that outlives its turn, on the queue's worker.
fn serve(world: &World, queue: Queue, then: Then) {
    let mut spans = IovaSpans::EMPTY;
    spans.add(page());
    let early = world.mapped.load(Ordering::Acquire);
    world.slots.enter();
    let generation = world.generation.load(Ordering::Acquire);
    let mapped = if queue == Queue::TranslatesFirst { early } else { world.mapped.load(Ordering::Acquire) };
    if queue == Queue::PublishedLate {
        world.slots.leave();
    }
    if mapped {
        world.slots.pin(0, generation, &spans);
    }
    if queue != Queue::PublishedLate {
        world.slots.leave();
    }
    if mapped {
        if queue == Queue::ReleasedEarly {
            world.slots.unpin(0);
        }
        // SAFETY: none is needed: the checker's cell only notes the access.
        world.page.with_mut(|_| ());
        if then == Then::Elsewhere {
            serve_elsewhere(world);
        } else if queue != Queue::ReleasedEarly {
            world.slots.unpin(0);
        }
    }
}

/// Takes the page away, and uses it where the one poll that is made says so: more polls are more of the same.
fn take_away(world: &World) {
    world.mapped.store(false, Ordering::Release);
    let generation = world.generation.fetch_add(1, Ordering::AcqRel) + 1;
    fence(Ordering::SeqCst);
    let mut scan = world.slots.begin_scan();
    for _ in 0..2 {
        if world.slots.is_clear(&mut scan, page(), generation) {
            world.page.with_mut(|_| ());
            break;
        }
    }
}

/// One turn that releases the slot and gives it to a request with memory elsewhere, which never ends.
fn serve_elsewhere(world: &World) {
    let mut spans = IovaSpans::EMPTY;
    spans.add(IovaRange::new(0x9000, 0x1000).unwrap());
    world.slots.enter();
    let generation = world.generation.load(Ordering::Acquire);
    // The last access, such as that to a status byte, is inside the turn.
    world.page.with_mut(|_| ());
    world.slots.unpin(0);
    world.slots.pin(0, generation, &spans);
    world.slots.leave();
}

/// What the worker does after its first request.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Then {
    Nothing,
    TheSame,
    Elsewhere,
}

fn check(queue: Queue, then: Then) {
    let mut model = loom::model::Builder::new();
    // Known to find all that is broken below, in a second.
    model.preemption_bound = Some(3);
    model.check(move || {
        let world = Arc::new(World {
            slots: Slots::new(1),
            mapped: AtomicBool::new(true),
            generation: AtomicU64::new(0),
            page: UnsafeCell::new(0),
        });
        let other = world.clone();
        let worker = thread::spawn(move || {
            serve(&other, queue, then);
            if then == Then::TheSame {
                serve(&other, queue, then);
            }
        });
        take_away(&world);
        worker.join().unwrap();
    });
}

fn is_caught(queue: Queue) -> bool {
    catch_unwind(AssertUnwindSafe(|| check(queue, Then::Nothing))).is_err()
}

#[test]
fn loom_what_is_pinned_is_not_taken_away() {
    check(Queue::Right, Then::Nothing);
}

#[test]
fn loom_a_slot_may_be_used_again() {
    check(Queue::Right, Then::TheSame);
    check(Queue::Right, Then::Elsewhere);
}

#[test]
fn loom_a_pin_that_is_released_early_is_caught() {
    assert!(is_caught(Queue::ReleasedEarly));
}

#[test]
fn loom_a_pin_that_is_published_late_is_caught() {
    assert!(is_caught(Queue::PublishedLate));
}

#[test]
fn loom_a_translation_before_the_turn_is_caught() {
    assert!(is_caught(Queue::TranslatesFirst));
}

/// Who waits is woken, or sees what it waited for.
#[test]
fn loom_no_wake_is_lost() {
    loom::model(|| {
        let slots = Arc::new(Slots::new(1));
        let waiting = Arc::new(AtomicBool::new(false));
        let woken = Arc::new(AtomicBool::new(false));
        let mut spans = IovaSpans::EMPTY;
        spans.add(page());
        slots.enter();
        slots.pin(0, 0, &spans);
        let worker = {
            let (slots, waiting, woken) = (slots.clone(), waiting.clone(), woken.clone());
            thread::spawn(move || {
                slots.unpin(0);
                slots.leave();
                if waiting.load(Ordering::Relaxed) {
                    woken.store(true, Ordering::Relaxed);
                }
            })
        };
        let mut scan = slots.begin_scan();
        waiting.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        let clear = slots.is_clear(&mut scan, page(), 1);
        worker.join().unwrap();
        assert!(clear || woken.load(Ordering::Relaxed));
    });
}
