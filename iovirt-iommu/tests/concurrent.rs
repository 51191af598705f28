//! Guests that map and unmap while a device works: a page that was given back is never touched again.

use iovirt_core::Time;
use iovirt_core::dma::{
    Access, DmaSpace, InvalidateStatus, IovaRange, IovaSpans, PinTable, SgList, Translate,
};
use iovirt_core::test_utils::{Rng, rounds_or, seed_or};
use iovirt_iommu::{DeviceId, Domain, Endpoint, FaultQueue, Permissions};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

const PAGE: u64 = 0x1000;
/// Pages of each guest thread that are mapped at most; it has one more, so that a page moves.
const PAGES: u64 = 6;
const GUESTS: u64 = 2;
const SLOTS: usize = 4;
const POISON: u8 = 0xdd;
const DATA: u8 = 0xab;

/// How the device goes about its pins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    Right,
    /// Releases a slot before it has written the data.
    ReleasedEarly,
    /// Fills a slot in the turn after the one that translated.
    PublishedLate,
}

struct World {
    space: DmaSpace,
    domain: Arc<Domain>,
    endpoint: Arc<Endpoint>,
    stop: AtomicBool,
    /// Requests that the device has finished.
    served: AtomicU64,
    /// Pages that were touched after they were given back.
    touched: AtomicU64,
}

/// What the device has in flight.
struct InFlight {
    list: SgList,
    spans: IovaSpans,
}

/// The device's queue, on its own thread.
struct Device<'a> {
    world: &'a World,
    pins: PinTable,
    order: Order,
    slots: [Option<InFlight>; SLOTS],
    rng: Rng,
}

impl Device<'_> {
    fn run(mut self) {
        self.pins.enter();
        let mut view = self.world.space.with_translate(self.world.endpoint.clone()).view();
        while !self.world.stop.load(Ordering::Relaxed) {
            self.pins.enter();
            view.refresh();
            let slot = self.rng.index(SLOTS);
            match self.slots[slot].take() {
                Some(request) => self.finish(slot, request),
                None => self.start(slot, &view),
            }
            self.pins.leave();
            if self.rng.one_in(4) {
                thread::yield_now();
            }
        }
    }

    fn start(&mut self, slot: usize, view: &iovirt_core::dma::DmaView) {
        let mut request = InFlight { list: SgList::new(), spans: IovaSpans::EMPTY };
        for _ in 0..self.rng.between(1, 3) {
            // Anywhere in a page, and into the next one.
            let iova = self.rng.below(GUESTS * PAGES * PAGE - 64);
            if request.list.push(view, iova, 64, Access::Write).is_ok() {
                request.spans.add(IovaRange::new(iova, 64).unwrap());
            }
        }
        if self.order == Order::PublishedLate {
            self.pause();
        }
        self.pins.pin(slot, &request.spans);
        self.slots[slot] = Some(request);
    }

    fn finish(&mut self, slot: usize, mut request: InFlight) {
        if self.order == Order::ReleasedEarly {
            self.pins.unpin(slot);
            self.pause();
        }
        let len = request.list.len();
        request.list.fill(0, len, DATA).unwrap();
        if self.order != Order::ReleasedEarly {
            self.pins.unpin(slot);
        }
        self.world.served.fetch_add(1, Ordering::Relaxed);
    }

    /// Ends the turn where it should not end.
    fn pause(&mut self) {
        self.pins.leave();
        thread::yield_now();
        self.pins.enter();
    }
}

/// A guest's thread: takes pages away, uses them for something else, and maps them elsewhere.
fn guest(world: &World, number: u64, mut rng: Rng, rounds: u64) {
    let view = world.space.view();
    let first = number * (PAGES + 1);
    let mut frames: Vec<u64> = (0..PAGES).map(|page| (first + page) * PAGE).collect();
    let mut spare = (first + PAGES) * PAGE;
    let iova = |page: usize| (number * PAGES + page as u64) * PAGE;
    for (page, frame) in frames.iter().enumerate() {
        world.domain.map(iova(page), PAGE, *frame, Permissions::ReadWrite).unwrap();
    }
    for _ in 0..rounds {
        let page = rng.index(frames.len());
        let mut ticket = world.domain.unmap(iova(page), PAGE).unwrap();
        while ticket.poll(Time::ZERO) != InvalidateStatus::Done {
            thread::yield_now();
        }
        let mut bytes = [POISON; PAGE as usize];
        view.write(frames[page], &bytes).unwrap();
        for _ in 0..rng.between(1, 8) {
            thread::yield_now();
        }
        view.read(frames[page], &mut bytes).unwrap();
        if bytes != [POISON; PAGE as usize] {
            world.touched.fetch_add(1, Ordering::Relaxed);
        }
        std::mem::swap(&mut frames[page], &mut spare);
        world.domain.map(iova(page), PAGE, frames[page], Permissions::ReadWrite).unwrap();
        if world.touched.load(Ordering::Relaxed) > 0 {
            return;
        }
    }
}

/// Pages touched after they were given back, and requests served.
fn run(order: Order, seed: u64, rounds: u64) -> (u64, u64) {
    let endpoint = Endpoint::new(DeviceId(1), &FaultQueue::new(1));
    let domain = Domain::new(64);
    drop(endpoint.attach(&domain));
    let world = World {
        space: DmaSpace::anonymous(&[(0, GUESTS * (PAGES + 1) * PAGE)]).unwrap(),
        domain,
        endpoint,
        stop: AtomicBool::new(false),
        served: AtomicU64::new(0),
        touched: AtomicU64::new(0),
    };
    thread::scope(|scope| {
        let pins = PinTable::new(world.endpoint.pins(), SLOTS);
        let slots = [const { None }; SLOTS];
        let device = Device { world: &world, pins, order, slots, rng: Rng::new(seed) };
        scope.spawn(move || device.run());
        let guests = [0, 1].map(|number| {
            let (world, rng) = (&world, Rng::new(seed ^ (number + 1) << 32));
            scope.spawn(move || guest(world, number, rng, rounds))
        });
        let ended = guests.map(thread::ScopedJoinHandle::join);
        // Also where one of them panicked: the scope waits for the device.
        world.stop.store(true, Ordering::Relaxed);
        for guest in ended {
            guest.expect("a guest's thread");
        }
    });
    (world.touched.load(Ordering::Relaxed), world.served.load(Ordering::Relaxed))
}

#[test]
fn a_page_that_was_given_back_is_never_touched() {
    let seed = seed_or(17);
    let (touched, served) = run(Order::Right, seed, rounds_or(3000));
    println!("{served} requests");
    assert_eq!(touched, 0, "IOVIRT_SEED={seed:#x}");
    assert!(served > 0);
}

#[test]
fn a_pin_that_is_released_early_is_caught() {
    let (touched, _) = run(Order::ReleasedEarly, 18, 200_000);
    assert_ne!(touched, 0, "the test would not notice");
}

#[test]
fn a_pin_that_is_published_late_is_caught() {
    let (touched, _) = run(Order::PublishedLate, 19, 200_000);
    assert_ne!(touched, 0, "the test would not notice");
}
