//! The machinery of stages: hooks that hold, complete and repeat; lost requests; tickets and saved state.
#![cfg(feature = "test-utils")]

use iovirt_core::pipeline::{BoxBackend, Event, EventListener, Pipeline};
use iovirt_core::prelude::*;
use iovirt_core::request::block::Durability;
use iovirt_core::request::block::{BlockCaps, BlockError, BlockFlags, BlockOutput, BlockRequest};
use iovirt_core::stage::{EmulateFua, Flow, Held, Hook, HookLayer, HookStage, Return};
use iovirt_core::test_utils::{BlockIo, Driver, IoDone, ManualBackend, ManualHandle, VirtualClock};
use iovirt_core::worker::UringPolicy;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What a scripted hook does, by the offset of a request.
#[derive(Debug, Default)]
struct Script {
    hold: BTreeSet<u64>,
    complete: BTreeMap<u64, BlockOutput>,
    again: BTreeMap<u64, u32>,
    release: Vec<Tag>,
    finish: Vec<(Tag, BlockOutput)>,
    held: usize,
}

#[derive(Clone, Debug, Default)]
struct Scripted(Arc<Mutex<Script>>);

impl Scripted {
    fn set<T>(&self, change: impl FnOnce(&mut Script) -> T) {
        change(&mut self.0.lock().unwrap());
    }
}

impl HookStage<BlockRequest> for Scripted {
    type Hook = Self;

    fn name(&self) -> &'static str {
        "scripted"
    }

    fn caps(&self, below: &BlockCaps) -> Result<BlockCaps, AttachError> {
        Ok(below.clone())
    }

    fn hook(&self, _: &mut WorkerContext<'_>, _: Depth) -> Self {
        self.clone()
    }
}

impl Hook<BlockRequest> for Scripted {
    fn on_submit(&mut self, _: &mut WorkerContext<'_>, request: &mut BlockRequest) -> Flow<BlockOutput> {
        let script = self.0.lock().unwrap();
        match script.complete.get(&request.offset()) {
            Some(output) => Flow::Complete(*output),
            None if script.hold.contains(&request.offset()) => Flow::Hold,
            None => Flow::Pass,
        }
    }

    fn on_complete(
        &mut self,
        _: &mut WorkerContext<'_>,
        completion: &mut Completion<BlockRequest>,
    ) -> Return {
        match self.0.lock().unwrap().again.get_mut(&completion.request.offset()) {
            Some(left) if *left > 0 => {
                *left -= 1;
                Return::Again
            }
            _ => Return::Pass,
        }
    }

    fn on_poll(&mut self, _: &mut WorkerContext<'_>, held: &mut Held<'_, BlockRequest>) {
        let mut script = self.0.lock().unwrap();
        for tag in script.release.drain(..) {
            held.release(tag);
        }
        for (tag, output) in script.finish.drain(..) {
            held.complete(tag, output);
        }
        script.held = held.len();
    }
}

type Manual = ManualHandle<BlockRequest>;

fn stacked<S: HookStage<BlockRequest>>(stage: S, caps: BlockCaps) -> (BoxBackend<BlockRequest>, Manual) {
    let (backend, manual) = ManualBackend::new(caps);
    (BoxBackend::new(Pipeline::top().stage(HookLayer::new(stage)).backend(backend).unwrap()), manual)
}

fn scripted() -> (Driver, Scripted, Manual) {
    let script = Scripted::default();
    let (stack, manual) = stacked(script.clone(), BlockCaps::new(1 << 20));
    let mut driver = Driver::new(1).unwrap();
    driver.open(&stack, 4).unwrap();
    (driver, script, manual)
}

fn names(manual: &Manual) -> Vec<&'static str> {
    manual.in_flight().iter().map(|request| request.name).collect()
}

fn outputs(done: &[IoDone]) -> Vec<BlockOutput> {
    done.iter().map(|done| done.output).collect()
}

#[test]
fn a_held_request_waits_until_it_is_released() {
    let (mut driver, script, manual) = scripted();
    script.set(|script| script.hold.insert(512));
    driver.submit(BlockIo::read(512, 512));
    driver.submit(BlockIo::read(0, 512));
    driver.turn();
    assert_eq!(names(&manual), ["read"], "the other one is not held up");
    assert_eq!(driver.with_queue(|queue, _| queue.in_flight()), 2);
    assert_eq!(script.0.lock().unwrap().held, 1);
    // A tag that is not held is nobody's business.
    script.set(|script| script.release.extend([Tag::new(0), Tag::new(3)]));
    driver.turn();
    assert_eq!(names(&manual).len(), 2);
    assert!(manual.in_flight().iter().all(|request| request.kicked), "who lets go kicks");
    assert_eq!(manual.complete_all(BlockOutput::Done), 2);
    assert_eq!(driver.wait_all().unwrap().len(), 2);
}

#[test]
fn a_request_completes_in_the_hook_at_once_or_later() {
    let (mut driver, script, manual) = scripted();
    let failed = BlockOutput::Failed(BlockError::NoSpace);
    script.set(|script| {
        script.complete.insert(512, failed);
        script.hold.insert(1024);
    });
    driver.submit(BlockIo::read(512, 512));
    assert_eq!(
        driver.with_queue(|queue, _| queue.in_flight()),
        1,
        "it comes home out of poll, not out of submit"
    );
    assert_eq!(outputs(&driver.turn()), [failed]);
    driver.submit(BlockIo::read(1024, 512));
    assert!(driver.turn().is_empty());
    script.set(|script| script.finish.push((Tag::new(0), failed)));
    assert_eq!(outputs(&driver.turn()), [failed]);
    assert!(names(&manual).is_empty(), "neither went further down");
}

#[test]
fn a_request_goes_down_as_often_as_the_hook_says_and_comes_home_once() {
    let (mut driver, script, manual) = scripted();
    script.set(|script| script.again.insert(0, 2));
    let id = driver.submit(BlockIo::read(0, 512)).unwrap();
    for _ in 0..3 {
        assert!(driver.turn().is_empty());
        assert_eq!(names(&manual), ["read"]);
        manual.complete_all(BlockOutput::Done);
    }
    let done = driver.wait_all().unwrap();
    assert_eq!((done.len(), done[0].id), (1, id));
    assert_eq!(manual.calls(0).submits, 3);
}

#[test]
fn a_drain_lets_held_requests_go_and_holds_no_more() {
    let (mut driver, script, manual) = scripted();
    script.set(|script| script.hold.extend([0, 512]));
    driver.submit(BlockIo::read(0, 512));
    driver.turn();
    driver.drain();
    assert_eq!(names(&manual), ["read"]);
    assert!(manual.in_flight()[0].kicked);
    driver.submit(BlockIo::read(512, 512));
    assert_eq!(names(&manual).len(), 2, "nothing is held while the queue drains");
    assert_eq!(driver.mode(), Mode::Draining);
    manual.complete_all(BlockOutput::Done);
    assert_eq!(driver.quiesce().unwrap().len(), 2);
    driver.resume();
    driver.submit(BlockIo::read(512, 512));
    driver.turn();
    assert!(names(&manual).is_empty(), "held again after the way back");
}

/// Frames of a network must not overtake each other, and tags do not tell which came first.
#[test]
fn a_drain_lets_held_requests_go_as_they_came() {
    use iovirt_core::dma::SgList;
    use iovirt_core::request::net::{NetCaps, NetOutput, NetRequest};
    #[derive(Debug)]
    struct HoldAll;
    impl HookStage<NetRequest> for HoldAll {
        type Hook = Self;
        fn name(&self) -> &'static str {
            "hold-all"
        }
        fn caps(&self, below: &NetCaps) -> Result<NetCaps, AttachError> {
            Ok(below.clone())
        }
        fn hook(&self, _: &mut WorkerContext<'_>, _: Depth) -> Self {
            Self
        }
    }
    impl Hook<NetRequest> for HoldAll {
        fn on_submit(&mut self, _: &mut WorkerContext<'_>, _: &mut NetRequest) -> Flow<NetOutput> {
            Flow::Hold
        }
    }
    let (below, manual) = ManualBackend::<NetRequest>::new(NetCaps::new(1500, 1));
    let stack = Pipeline::top().stage(HookLayer::new(HoldAll)).backend(below).unwrap();
    let mut worker = Worker::new(WorkerConfig::default()).unwrap();
    worker.with_context(|cx| {
        let mut queue = stack.open(cx, Depth::new(8).unwrap()).unwrap();
        for tag in [5, 1, 7, 0, 3] {
            let mut sg = Box::<SgList>::default();
            sg.push_host(100 + tag as usize).unwrap();
            queue.submit(cx, NetRequest::transmit(Tag::new(tag), 0, sg));
        }
        assert!(manual.in_flight().is_empty());
        queue.drain(cx);
        let lengths: Vec<_> = manual.in_flight().iter().map(|request| request.cost.bytes).collect();
        assert_eq!(lengths, [105, 101, 107, 100, 103]);
        manual.complete_all(NetOutput::Done);
        let mut done = Completions::with_depth(Depth::new(8).unwrap());
        queue.poll(cx, &mut done);
    });
}

#[test]
fn a_queue_does_not_rest_on_a_completion_that_nobody_fetched() {
    let (mut driver, script, _manual) = scripted();
    script.set(|script| script.complete.insert(0, BlockOutput::Done));
    driver.submit(BlockIo::read(0, 512));
    driver.drain();
    assert_eq!(driver.mode(), Mode::Draining);
    assert_eq!(driver.quiesce().unwrap().len(), 1);
}

#[test]
fn a_tag_used_twice_gives_the_first_request_up() {
    use iovirt_core::dma::{SgLimits, SgPool};
    let script = Scripted::default();
    script.set(|script| script.hold.insert(0));
    let (stack, _manual) = stacked(script, BlockCaps::new(1 << 20));
    let mut worker = Worker::new(WorkerConfig::default()).unwrap();
    let depth = Depth::new(4).unwrap();
    let mut pool = SgPool::new(4, SgLimits::default());
    worker.with_context(|cx| {
        let mut queue = stack.open(cx, depth).unwrap();
        for _ in 0..2 {
            queue.submit(cx, BlockRequest::flush(Tag::new(1), pool.take()));
        }
        let mut done = Completions::with_depth(depth);
        queue.poll(cx, &mut done);
        let outputs: Vec<_> = done.drain().map(|completion| completion.output).collect();
        assert_eq!(outputs, [BlockOutput::Failed(BlockError::Aborted)]);
        assert_eq!(queue.in_flight(), 1);
    });
}

/// Holds every request for a second.
#[derive(Debug, Default)]
struct Delay {
    until: Vec<(Time, Tag)>,
}

impl HookStage<BlockRequest> for Delay {
    type Hook = Self;

    fn name(&self) -> &'static str {
        "delay"
    }

    fn caps(&self, below: &BlockCaps) -> Result<BlockCaps, AttachError> {
        Ok(below.clone())
    }

    fn hook(&self, _: &mut WorkerContext<'_>, _: Depth) -> Self {
        Self::default()
    }
}

impl Hook<BlockRequest> for Delay {
    fn on_submit(&mut self, cx: &mut WorkerContext<'_>, request: &mut BlockRequest) -> Flow<BlockOutput> {
        self.until.push((cx.now() + Duration::from_secs(1), request.tag()));
        Flow::Hold
    }

    fn on_poll(&mut self, cx: &mut WorkerContext<'_>, held: &mut Held<'_, BlockRequest>) {
        self.until.retain(|&(until, tag)| {
            let due = until <= cx.now();
            if due {
                held.release(tag);
            } else {
                cx.wake_at(until);
            }
            !due
        });
    }
}

#[test]
fn a_stage_that_waits_for_a_time_does_so_in_virtual_time() {
    let clock = VirtualClock::new();
    let config =
        WorkerConfig { clock: Arc::new(clock.clone()), uring: UringPolicy::Off, ..WorkerConfig::default() };
    let mut driver = Driver::with_config(1, config).unwrap();
    let (stack, manual) = stacked(Delay::default(), BlockCaps::new(1 << 20));
    driver.open(&stack, 4).unwrap();
    driver.submit(BlockIo::read(0, 512));
    clock.advance(Duration::from_millis(400));
    driver.submit(BlockIo::read(0, 512));
    driver.turn();
    assert!(names(&manual).is_empty());
    clock.advance(Duration::from_millis(600));
    driver.turn();
    assert_eq!(names(&manual).len(), 1);
    clock.advance(Duration::from_millis(399));
    driver.turn();
    assert_eq!(names(&manual).len(), 1);
    clock.advance(Duration::from_millis(1));
    driver.turn();
    assert_eq!(names(&manual).len(), 2);
}

#[test]
fn emulated_fua_completes_after_its_flush_and_rests_only_then() {
    let caps = BlockCaps { durability: Durability::WriteBack, fua: false, ..BlockCaps::new(1 << 20) };
    let (stack, manual) = stacked(EmulateFua, caps);
    let mut driver = Driver::new(1).unwrap();
    driver.open(&stack, 4).unwrap();
    driver.submit(BlockIo::write(0, vec![1; 512]).with_flags(BlockFlags::FUA));
    driver.turn();
    driver.drain();
    assert_eq!(names(&manual), ["write"]);
    manual.complete(Tag::new(0), BlockOutput::Done);
    assert!(driver.turn().is_empty(), "the write alone is no FUA");
    assert_eq!(names(&manual), ["flush"]);
    assert_eq!(driver.mode(), Mode::Draining);
    manual.complete(Tag::new(0), BlockOutput::Failed(BlockError::Io));
    let done = driver.quiesce().unwrap();
    assert_eq!(
        outputs(&done),
        [BlockOutput::Failed(BlockError::Io)],
        "a flush that failed is a write that failed"
    );
    assert_eq!(done[0].mangled, None, "the request comes home as it was submitted");

    driver.resume();
    driver.submit(BlockIo::write(0, vec![1; 512]).with_flags(BlockFlags::FUA));
    driver.turn();
    manual.fail(Tag::new(0));
    assert_eq!(outputs(&driver.wait_all().unwrap()), [BlockOutput::Failed(BlockError::Aborted)]);
    assert!(names(&manual).is_empty(), "a write that failed is not flushed");
}

#[test]
fn a_lost_fua_write_leaves_nothing_to_the_next_request_of_its_tag() {
    let caps = BlockCaps { durability: Durability::WriteBack, fua: false, ..BlockCaps::new(1 << 20) };
    let (stack, manual) = stacked(EmulateFua, caps);
    let mut driver = Driver::new(1).unwrap();
    driver.open(&stack, 1).unwrap();
    for steps in 0..2 {
        driver.submit(BlockIo::write(0, vec![1; 512]).with_flags(BlockFlags::FUA));
        driver.turn();
        for _ in 0..steps {
            manual.complete(Tag::new(0), BlockOutput::Done);
            driver.turn();
        }
        assert!(manual.lose(Tag::new(0)));
        assert!(driver.turn()[0].lost);
        driver.submit(BlockIo::read(512, 512));
        driver.turn();
        manual.complete(Tag::new(0), BlockOutput::Done);
        let done = driver.turn();
        assert_eq!((outputs(&done), names(&manual).len()), (vec![BlockOutput::Done], 0));
        assert_eq!(done[0].mangled, None, "the request comes home as it was submitted");
    }
}

#[test]
fn a_lost_request_is_aborted_and_its_tag_is_used_again() {
    let (backend, manual) = ManualBackend::<BlockRequest>::new(BlockCaps::new(1 << 20));
    let mut driver = Driver::new(1).unwrap();
    driver.open(&BoxBackend::new(backend), 2).unwrap();
    let lost = driver.submit(BlockIo::read(0, 512)).unwrap();
    driver.submit(BlockIo::read(512, 512)).unwrap();
    assert_eq!(driver.submit(BlockIo::flush()), None, "full");
    driver.turn();
    // On another thread, as a stage with a pool of threads would.
    let other = manual.clone();
    std::thread::spawn(move || assert!(other.lose(Tag::new(0)))).join().unwrap();
    let done = driver.turn();
    assert_eq!(outputs(&done), [BlockOutput::Failed(BlockError::Aborted)]);
    assert!(done[0].lost && done[0].id == lost);
    assert!(driver.submit(BlockIo::read(0, 512)).is_some());
    driver.turn();
    assert_eq!(manual.complete_all_reversed(BlockOutput::Done), 2);
    assert!(driver.wait_all().unwrap().iter().all(|done| !done.lost));
    assert_eq!(driver.in_flight(), 0);
}

#[test]
fn a_stalled_request_is_reported_and_not_waited_for_for_ever() {
    let (backend, manual) = ManualBackend::<BlockRequest>::new(BlockCaps::new(1 << 20));
    let mut driver = Driver::new(1).unwrap();
    driver.open(&BoxBackend::new(backend), 2).unwrap();
    driver.set_patience(Duration::from_millis(20));
    driver.submit(BlockIo::read(0, 512));
    driver.submit(BlockIo::flush());
    driver.turn();
    assert!(manual.stall(Tag::new(0)));
    assert_eq!(manual.complete_all(BlockOutput::Done), 1, "stalled requests are passed over");
    let stuck = driver.wait_all().unwrap_err();
    assert_eq!(stuck.in_flight, 1);
    assert!(stuck.to_string().contains("Read of 512 bytes at 0"), "{stuck}");
    driver.drain();
    assert_eq!(driver.mode(), Mode::Draining, "no rest with a request that is stuck");
}

#[test]
fn a_refused_queue_and_a_restless_one() {
    let (backend, manual) = ManualBackend::<BlockRequest>::new(BlockCaps::new(1 << 20));
    let backend = BoxBackend::new(backend);
    let mut driver = Driver::new(1).unwrap();
    manual.refuse_open(true);
    assert_eq!(driver.open(&backend, 2).unwrap_err().kind(), BackendErrorKind::Busy);
    manual.refuse_open(false);
    driver.open(&backend, 2).unwrap();
    assert_eq!((manual.open_queues(), manual.depth(0)), (1, Depth::new(2)));
    manual.keep_from_rest(true);
    driver.drain();
    driver.turn();
    assert_eq!(driver.mode(), Mode::Draining);
    manual.keep_from_rest(false);
    driver.quiesce().unwrap();
    driver.close();
    assert_eq!(manual.open_queues(), 0);
}

#[derive(Debug, Default)]
struct Heard(AtomicUsize);

impl EventListener for Heard {
    fn event(&self, _: Event) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

#[test]
fn an_event_and_new_capabilities_come_up_through_a_stage() {
    let (stack, manual) = stacked(EmulateFua, BlockCaps::new(1 << 20));
    let heard = Arc::new(Heard::default());
    let listener: Arc<dyn EventListener> = heard.clone();
    stack.subscribe(&listener);
    manual.set_caps(BlockCaps { fua: false, ..BlockCaps::new(2 << 20) }, Event::Resized);
    assert_eq!(heard.0.load(Ordering::SeqCst), 1);
    assert_eq!((stack.caps().capacity, stack.caps().fua), (2 << 20, true));
    drop((listener, heard));
    // Listeners are held weakly.
    manual.set_caps(BlockCaps::new(1 << 20), Event::Resized);
}

mod saved {
    use iovirt_core::state::{SavedState, StageStates, StateError};
    use serde::{Deserialize, Serialize};

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Upper(u32);
    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Lower(String);

    impl SavedState for Upper {
        const KIND: &'static str = "upper";
        const VERSION: u16 = 1;
    }
    impl SavedState for Lower {
        const KIND: &'static str = "lower";
        const VERSION: u16 = 2;
    }

    #[test]
    fn stages_take_their_state_in_their_order_and_notice_another_stack() {
        let mut states = StageStates::default();
        states.push(&Upper(7));
        states.push(&Lower("seven".into()));
        let mut good = states.clone();
        assert_eq!(good.pop(), Ok(Upper(7)));
        assert_eq!(good.pop(), Ok(Lower("seven".into())));
        assert!(good.is_empty());
        let error = states.pop::<Lower>().unwrap_err();
        assert_eq!(error, StateError::Kind { expected: "lower".into(), found: "upper".into() });
    }
}

#[test]
fn a_ticket_is_done_from_other_threads() {
    use iovirt_core::Ticket;
    use iovirt_core::frontend::Outcome;
    let (ticket, completer) = Ticket::new();
    let workers: Vec<_> = (0..4)
        .map(|_| {
            let share = completer.share();
            std::thread::spawn(move || share.done())
        })
        .collect();
    for worker in workers {
        worker.join().unwrap();
    }
    assert!(!ticket.is_done(), "the first participant is not done");
    completer.done();
    assert_eq!(ticket.wait(Duration::ZERO), Some(Outcome::Done));
}
