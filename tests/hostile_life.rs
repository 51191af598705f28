//! What a hostile or hasty driver does to a virtio disk while its back-end is slow: requests stay in flight by command.

use iovirt_core::dma::DmaSpace;
use iovirt_core::frontend::{Access, Outcome, Ticket};
use iovirt_core::irq::CountingInterrupt;
use iovirt_core::pipeline::{BoxBackend, Event, EventListener};
use iovirt_core::request::block::{BlockCaps, BlockOutput, BlockRequest};
use iovirt_core::test_utils::hostile::{
    Exchange, Layout, QueueSetup, RawDriver, Split, Target, feature, register, status,
};
use iovirt_core::test_utils::{ManualBackend, ManualHandle};
use iovirt_core::{Backend, Frontend, Worker, WorkerConfig};
use iovirt_frontends::virtio::blk::{BlkConfig, VirtioBlk};
use iovirt_frontends::virtio::transport::mmio::MmioDevice;
use std::cell::RefCell;
use std::rc::Rc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

const BASE: u64 = 0x10_0000;
const STEPS: u32 = 20;

struct Rig {
    worker: Rc<RefCell<Worker>>,
    manual: ManualHandle<BlockRequest>,
    driver: RawDriver,
}

fn device(
    worker: &Worker,
    backend: BoxBackend<BlockRequest>,
    space: &DmaSpace,
) -> (Arc<dyn Frontend>, Arc<CountingInterrupt>) {
    let interrupts = Arc::new(CountingInterrupt::new());
    let disk = Arc::new(VirtioBlk::new(BlkConfig::default(), backend).unwrap());
    let device = MmioDevice::new(disk, space, interrupts.clone(), &[worker.handle()]).unwrap();
    (Arc::new(device), interrupts)
}

impl Rig {
    fn new() -> Self {
        Self::over(DmaSpace::anonymous(&[(BASE, Layout::LEN)]).unwrap())
    }

    fn over(space: DmaSpace) -> Self {
        let (backend, manual) = ManualBackend::new(BlockCaps::new(1 << 20));
        let worker = Worker::new(WorkerConfig::default()).unwrap();
        let (frontend, _) = device(&worker, BoxBackend::new(backend), &space);
        let worker = Rc::new(RefCell::new(worker));
        let stepped = worker.clone();
        let step = move || stepped.borrow_mut().run_within(Duration::from_millis(1)).unwrap();
        let target = Target { frontend, space, base: BASE, queue: 0, step: Box::new(step), lanes: None };
        Self { worker, manual, driver: RawDriver::new(target, STEPS) }
    }

    fn start(&mut self) {
        let layout = self.driver.layout();
        self.driver.start(feature::ALL, &QueueSetup::good(&layout, 16)).unwrap();
    }

    /// Offers a read `count` times and lets the device take it up.
    fn load(&mut self, count: u16) {
        let before = self.manual.in_flight().len();
        self.driver.lay_out(&read(), &Split { indirect: true, ..Split::whole() }, 0);
        for _ in 0..count {
            self.driver.offer(0);
        }
        self.driver.kick();
        self.steps();
        assert_eq!(self.manual.in_flight().len() - before, usize::from(count));
    }

    fn steps(&mut self) {
        for _ in 0..STEPS {
            self.driver.step();
        }
    }

    fn finish(&mut self) -> usize {
        let count = self.manual.complete_all(BlockOutput::Done);
        self.steps();
        count
    }

    /// All that the driver's memory holds.
    fn memory(&self) -> Vec<u8> {
        self.driver.get(BASE, Layout::LEN as usize)
    }
}

fn read() -> Exchange {
    let header = [[0_u8; 16]].concat();
    Exchange::new("read", header, 513, |_| Ok(()))
}

fn deferred(access: Access) -> Ticket {
    match access {
        Access::Deferred(ticket) => ticket,
        Access::Done => panic!("the access was not deferred"),
    }
}

#[test]
fn a_reset_waits_for_a_queue_that_was_taken_back_before() {
    let mut rig = Rig::new();
    rig.start();
    rig.load(3);
    let taken_back = deferred(rig.driver.write_only(register::QUEUE_READY, 0));
    let reset = deferred(rig.driver.write_only(register::STATUS, 0));
    rig.steps();
    assert_eq!((taken_back.outcome(), reset.outcome()), (None, None), "requests are in flight");
    assert_ne!(rig.driver.status(), 0);
    let before = rig.memory();
    assert_eq!(rig.finish(), 3);
    assert_eq!((taken_back.outcome(), reset.outcome()), (Some(Outcome::Done), Some(Outcome::Done)));
    assert_eq!(rig.driver.status(), 0);
    assert_eq!(rig.memory(), before, "completions are thrown away");
}

#[test]
fn completions_of_a_former_ring_do_not_reach_the_next_one() {
    let mut rig = Rig::new();
    rig.start();
    rig.load(3);
    let _ = rig.driver.write_only(register::QUEUE_READY, 0);
    // Not waited for: not listened to, however often it is written.
    for _ in 0..1000 {
        deferred(rig.driver.write_only(register::QUEUE_READY, 1));
        deferred(rig.driver.write_only(register::QUEUE_READY, 0));
    }
    assert_eq!(rig.driver.read(register::QUEUE_READY), 0);
    let layout = rig.driver.layout();
    rig.driver.forget_rings(16);
    rig.steps();
    assert_eq!(rig.finish(), 3);
    assert_eq!(rig.driver.used_index(), 0);
    rig.driver.set_queue(&QueueSetup::good(&layout, 16));
    rig.load(2);
    assert_eq!(rig.finish(), 2);
    assert_eq!(rig.driver.used_index(), 2);
}

#[test]
fn a_broken_ring_keeps_what_is_in_flight_until_it_is_home() {
    let mut rig = Rig::new();
    rig.start();
    rig.load(3);
    rig.driver.store(rig.driver.layout().avail + 2, 0x8000);
    rig.driver.kick();
    rig.steps();
    assert_ne!(rig.driver.status() & status::NEEDS_RESET, 0);
    let frontend = rig.driver.frontend().clone();
    assert!(frontend.save().is_err(), "requests are in flight");
    let drain = frontend.drain();
    rig.steps();
    assert_eq!(drain.outcome(), None, "requests are in flight");
    let before = rig.memory();
    assert_eq!(rig.finish(), 3);
    assert_eq!(drain.outcome(), Some(Outcome::Done));
    assert_eq!(rig.memory(), before, "completions are thrown away");
    let saved = frontend.save().unwrap();

    // It needs a reset in its next life as well, and can be saved again.
    let second = Rig::new();
    second.driver.frontend().restore(&saved).unwrap();
    assert_ne!(second.driver.status() & status::NEEDS_RESET, 0);
    second.driver.frontend().save().unwrap();
    // The driver's reset does not end what the embedder began; then the device works again.
    rig.start();
    rig.driver.offer(0);
    rig.driver.notify(0);
    rig.steps();
    assert_eq!(rig.manual.in_flight().len(), 0);
    frontend.resume();
    rig.start();
    rig.load(1);
    assert_eq!(rig.finish(), 1);
}

#[test]
fn a_ring_that_breaks_while_it_is_drained_is_drained_all_the_same() {
    let mut rig = Rig::new();
    rig.start();
    rig.load(2);
    let drain = rig.driver.frontend().drain();
    rig.steps();
    let space = rig.driver.target().space.clone();
    let good = space.map();
    space.replace(iovirt_core::dma::MemoryMap::empty());
    rig.manual.set_caps(BlockCaps::new(1 << 20), Event::CapsChanged);
    rig.driver.kick();
    rig.steps();
    assert_ne!(rig.driver.status() & status::NEEDS_RESET, 0);
    assert_eq!(drain.outcome(), None);
    assert_eq!(rig.finish(), 2);
    assert_eq!(drain.outcome(), Some(Outcome::Done));
    drop(good);
}

#[test]
fn heads_that_were_not_submitted_again_are_saved_again() {
    let space = DmaSpace::anonymous(&[(BASE, Layout::LEN)]).unwrap();
    let mut first = Rig::over(space.clone());
    first.start();
    first.load(1);
    let _ = first.driver.frontend().drain();
    first.steps();
    let saved = first.driver.frontend().save().expect("saved with a request that never came back");

    let mut second = Rig::over(space.clone());
    second.driver.frontend().restore(&saved).unwrap();
    // Both arrive before the lane has had a turn.
    let resume = second.driver.frontend().resume();
    let drain = second.driver.frontend().drain();
    second.steps();
    assert_eq!((resume.outcome(), drain.outcome()), (Some(Outcome::Done), Some(Outcome::Done)));
    // A restored device interrupts once: nobody knows what the driver has seen.
    second.driver.write(register::INTERRUPT_ACK, 3);
    assert_eq!(second.driver.frontend().save().unwrap(), saved);

    let _ = second.driver.frontend().resume();
    second.steps();
    assert_eq!(second.manual.in_flight().len(), 1, "the request is served in the new device");
    assert_eq!(second.finish(), 1);
    assert_eq!(second.driver.used_index(), 1);
}

#[test]
fn no_interrupt_of_a_former_life_is_left() {
    let mut rig = Rig::new();
    rig.start();
    rig.load(4);
    // The completions are there, but the lane has not brought them home when the driver asks for the reset.
    rig.manual.complete_all(BlockOutput::Done);
    let frontend = rig.driver.frontend().clone();
    let reset = frontend.reset();
    rig.manual.set_caps(BlockCaps::new(1 << 20), Event::CapsChanged);
    rig.driver.wait_for(&reset);
    assert_eq!(rig.driver.read(register::INTERRUPT_STATUS), 0);
    assert_eq!(rig.driver.status(), 0);
}

/// Reads the generation when it hears of a change, before the device has heard of it.
#[derive(Default)]
struct Early {
    frontend: OnceLock<Arc<dyn Frontend>>,
    generation: AtomicU32,
}

impl EventListener for Early {
    fn event(&self, _: Event) {
        let mut bytes = [0; 4];
        self.frontend.get().unwrap().read(0, register::CONFIG_GENERATION, &mut bytes);
        self.generation.store(u32::from_le_bytes(bytes), Ordering::Relaxed);
    }
}

#[test]
fn the_configuration_never_changes_within_a_generation() {
    let (backend, manual) = ManualBackend::new(BlockCaps::new(1 << 20));
    let backend = BoxBackend::new(backend);
    let early = Arc::new(Early::default());
    let listener: Arc<dyn EventListener> = early.clone();
    backend.subscribe(&listener);
    let worker = Worker::new(WorkerConfig::default()).unwrap();
    let space = DmaSpace::anonymous(&[(BASE, Layout::LEN)]).unwrap();
    let (frontend, interrupts) = device(&worker, backend, &space);
    assert!(early.frontend.set(frontend.clone()).is_ok());
    let read = |offset| {
        let mut bytes = [0; 4];
        frontend.read(0, offset, &mut bytes);
        u32::from_le_bytes(bytes)
    };
    let generation = read(register::CONFIG_GENERATION);
    let low = read(register::CONFIG);
    assert_eq!((low, read(register::CONFIG_GENERATION)), (2048, generation));
    manual.set_caps(BlockCaps::new(1 << 50), Event::Resized);
    assert_ne!(
        early.generation.load(Ordering::Relaxed),
        generation,
        "two halves of two disks would be taken for one"
    );
    assert_ne!(read(register::CONFIG_GENERATION), generation);
    assert_eq!(interrupts.raised(), 1);
}

#[test]
fn a_lane_ends_with_its_device_and_not_before_its_requests() {
    let worker = Rc::new(RefCell::new(Worker::new(WorkerConfig::default()).unwrap()));
    let space = DmaSpace::anonymous(&[(BASE, Layout::LEN)]).unwrap();
    let (backend, manual) = ManualBackend::new(BlockCaps::new(1 << 20));
    let backend = BoxBackend::new(backend);
    let lanes = || worker.borrow().lanes();
    for round in 0..50 {
        let (frontend, _) = device(&worker.borrow(), backend.clone(), &space);
        let stepped = worker.clone();
        let step = move || stepped.borrow_mut().run_within(Duration::from_millis(1)).unwrap();
        let target = Target {
            frontend,
            space: space.clone(),
            base: BASE,
            queue: 0,
            step: Box::new(step),
            lanes: None,
        };
        let mut driver = RawDriver::new(target, STEPS);
        let layout = driver.layout();
        driver.start(feature::ALL, &QueueSetup::good(&layout, 16)).unwrap();
        driver.lay_out(&read(), &Split::whole(), 0);
        driver.offer(0);
        driver.kick();
        let run = || worker.borrow_mut().run_within(Duration::from_millis(1)).unwrap();
        (0..STEPS).for_each(|_| run());
        assert_eq!((lanes(), manual.in_flight().len()), (1, 1), "round {round}");
        drop(driver);
        (0..STEPS).for_each(|_| run());
        assert_eq!(lanes(), 1, "a request is in flight");
        manual.complete_all(BlockOutput::Done);
        (0..STEPS).for_each(|_| run());
        assert_eq!((lanes(), manual.open_queues()), (0, 0));
    }
}

#[test]
fn tickets_end_with_their_worker() {
    let mut rig = Rig::new();
    rig.start();
    rig.load(2);
    let frontend = rig.driver.frontend().clone();
    let before = frontend.drain();
    let Rig { worker, driver, .. } = rig;
    drop(driver);
    drop(Rc::into_inner(worker).expect("nobody else has it"));
    assert_eq!(before.outcome(), Some(Outcome::Cancelled));
    assert_eq!(frontend.drain().outcome(), Some(Outcome::Cancelled));
    assert_eq!(frontend.reset().outcome(), Some(Outcome::Cancelled));
    // A worker that is gone before the lane was made.
    let worker = Worker::new(WorkerConfig::default()).unwrap();
    let space = DmaSpace::anonymous(&[(BASE, Layout::LEN)]).unwrap();
    let (backend, _manual) = ManualBackend::new(BlockCaps::new(1 << 20));
    let backend = BoxBackend::new(backend);
    let handle = worker.handle();
    let (early, _) = device(&worker, backend.clone(), &space);
    drop(worker);
    let disk = Arc::new(VirtioBlk::new(BlkConfig::default(), backend).unwrap());
    let late = MmioDevice::new(disk, &space, Arc::new(CountingInterrupt::new()), &[handle]).unwrap();
    for device in [early, Arc::new(late)] {
        for (offset, value) in [(0x20, 0), (0x24, 1), (0x20, 1), (0x70, 8), (0x44, 1), (0x70, 12)] {
            let _ = device.write(0, offset, &u32::to_le_bytes(value));
        }
        assert_eq!(device.drain().outcome(), Some(Outcome::Cancelled));
        assert!(device.reset().is_done());
    }
}
#[test]
fn an_old_memory_map_is_let_go_of() {
    let mut rig = Rig::new();
    rig.start();
    rig.load(4);
    rig.finish();
    let space = rig.driver.target().space.clone();
    let old = Arc::downgrade(&space.map());
    let regions = space.map().regions().to_vec();
    space.replace(iovirt_core::dma::MemoryMap::new(regions).unwrap());
    rig.driver.refresh();
    rig.load(1);
    rig.finish();
    rig.driver.kick();
    rig.steps();
    assert_eq!(old.strong_count(), 0, "memory that was taken from the guest cannot be unmapped");
}
