//! Stages written as `async fn`: time, drains, children, what is dropped on the way, and what is allocated.
#![cfg(feature = "test-utils")]

use iovirt_core::dma::{SgLimits, SgPool};
use iovirt_core::pipeline::{BoxBackend, Pipeline};
use iovirt_core::prelude::*;
use iovirt_core::request::block::{
    BlockCaps, BlockError, BlockFlags, BlockOp, BlockOutput, BlockRequest, SECTOR,
};
use iovirt_core::stage::async_stage::{AsyncLayer, AsyncStage, Handler, Io, Mailbox, Race, race};
use iovirt_core::test_utils::{
    BlockIo, CountingAllocator, Driver, ManualBackend, ManualHandle, PowerLossConfig, PowerLossDisk,
    VirtualClock, conformance, count_allocations,
};
use iovirt_core::worker::UringPolicy;
use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::Duration;

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator::new();

const MS: Duration = Duration::from_millis(1);

/// A stage of any handler that can be copied.
#[derive(Debug, Clone, Copy)]
struct Stage<H>(H);

impl<H: Handler<BlockRequest> + Clone + Send + Sync + std::fmt::Debug> AsyncStage<BlockRequest> for Stage<H> {
    type Handler = H;

    fn name(&self) -> &'static str {
        "test"
    }

    fn caps(&self, below: &BlockCaps) -> Result<BlockCaps, AttachError> {
        Ok(below.clone())
    }

    fn handler(&self, _: &mut WorkerContext<'_>, _: Depth) -> Result<H, BackendError> {
        Ok(self.0.clone())
    }
}

/// Waits, forwards, waits again.
#[derive(Debug, Clone, Copy)]
struct Delay(Duration);

impl Handler<BlockRequest> for Delay {
    async fn handle(&self, io: &Io<BlockRequest>, request: &mut BlockRequest) -> BlockOutput {
        io.sleep(self.0).await;
        let output = io.forward(request).await;
        io.sleep(self.0).await;
        output
    }
}

/// Cuts transfers into two children.
#[derive(Debug, Clone, Copy)]
struct Halves;

impl Handler<BlockRequest> for Halves {
    const CHILDREN: u32 = 2;

    async fn handle(&self, io: &Io<BlockRequest>, request: &mut BlockRequest) -> BlockOutput {
        let op = request.op();
        if !matches!(op, BlockOp::Read | BlockOp::Write) || request.len() < 2 * SECTOR {
            return io.forward(request).await;
        }
        let first = request.len() / SECTOR / 2 * SECTOR;
        for (at, len) in [(0, first), (first, request.len() - first)] {
            let Some(mut child) = io.child() else { return BlockOutput::Failed(BlockError::Io) };
            if request.sg().slice_into(at, len, child.sg_mut()).is_err() {
                return BlockOutput::Failed(BlockError::Io);
            }
            let Ok(call) = child.transfer(op, request.flags(), request.offset() + at) else {
                return BlockOutput::Failed(BlockError::OutOfRange);
            };
            let output = call.await.output();
            if output != BlockOutput::Done {
                return output;
            }
        }
        BlockOutput::Done
    }
}

/// Gives up on what is below after a millisecond: half of the time on a child, half on the request itself.
#[derive(Debug, Clone, Copy)]
struct Impatient;

impl Handler<BlockRequest> for Impatient {
    const CHILDREN: u32 = 1;

    async fn handle(&self, io: &Io<BlockRequest>, request: &mut BlockRequest) -> BlockOutput {
        let limit = io.now() + MS;
        let answer = if request.offset() == 0 {
            let mut child = io.child().expect("the first child");
            request.sg().slice_into(0, request.len(), child.sg_mut()).expect("room");
            let call = child.transfer(BlockOp::Read, BlockFlags::empty(), 0).expect("a range");
            assert!(io.child().is_none(), "one child for each");
            race(async { call.await.output() }, io.deadline(limit)).await
        } else {
            race(io.forward(request), io.deadline(limit)).await
        };
        match answer {
            Race::Left(output) => output,
            Race::Right(()) => BlockOutput::Failed(BlockError::NoSpace),
        }
    }
}

fn stacked<H>(handler: H) -> (BoxBackend<BlockRequest>, ManualHandle<BlockRequest>)
where
    H: Handler<BlockRequest> + Clone + Send + Sync + std::fmt::Debug,
{
    let (backend, manual) = ManualBackend::new(BlockCaps::new(1 << 20));
    let stack = Pipeline::top().stage(AsyncLayer::new(Stage(handler))).backend(backend).unwrap();
    (BoxBackend::new(stack), manual)
}

fn virtual_driver() -> (Driver, VirtualClock) {
    let clock = VirtualClock::new();
    let config =
        WorkerConfig { clock: Arc::new(clock.clone()), uring: UringPolicy::Off, ..WorkerConfig::default() };
    (Driver::with_config(1, config).unwrap(), clock)
}

fn over_disk<H>(handler: H) -> impl Fn() -> BoxBackend<BlockRequest>
where
    H: Handler<BlockRequest> + Clone + Send + Sync + std::fmt::Debug,
{
    move || {
        let disk = PowerLossDisk::boxed(PowerLossConfig::new(1 << 20));
        BoxBackend::new(Pipeline::top().stage(AsyncLayer::new(Stage(handler.clone()))).backend(disk).unwrap())
    }
}

#[test]
fn they_conform() {
    let profile = |name| conformance::Profile::new(name).rounds(30);
    conformance::run(&over_disk(Delay(Duration::from_micros(20))), &profile("async-delay")).assert_passed();
    conformance::run(&over_disk(Halves), &profile("async-halves")).assert_passed();
}

#[test]
fn a_delay_takes_its_virtual_time_twice() {
    let (mut driver, clock) = virtual_driver();
    let (stack, manual) = stacked(Delay(5 * MS));
    driver.open(&stack, 4).unwrap();
    driver.submit(BlockIo::read(0, 512));
    driver.turn();
    clock.advance(4 * MS);
    driver.turn();
    assert_eq!(manual.in_flight().len(), 0, "a millisecond is missing");
    clock.advance(MS);
    driver.turn();
    assert_eq!(manual.complete_all(BlockOutput::Done), 1);
    assert!(driver.turn().is_empty());
    clock.advance(5 * MS);
    assert_eq!(driver.turn().len(), 1);
}

#[test]
fn a_drain_lets_sleepers_go_and_comes_back() {
    let (mut driver, clock) = virtual_driver();
    let (stack, manual) = stacked(Delay(3600 * 1000 * MS));
    driver.open(&stack, 4).unwrap();
    for round in 0..3 {
        for _ in 0..4 {
            driver.submit(BlockIo::read(0, 512));
        }
        driver.turn();
        assert_eq!(manual.in_flight().len(), 0, "round {round}: all of them sleep");
        driver.drain();
        driver.turn();
        assert_eq!(manual.complete_all(BlockOutput::Done), 4, "round {round}");
        assert_eq!(driver.mode(), Mode::Draining);
        assert_eq!(driver.turn().len(), 4, "round {round}");
        for _ in 0..3 {
            driver.turn();
        }
        assert_eq!(driver.mode(), Mode::Quiesced, "round {round}");
        driver.resume();
    }
    assert_eq!(iovirt_core::Clock::now(&clock), Time::ZERO, "no time has passed");
}

#[test]
fn a_request_outlives_what_was_given_up_below() {
    for offset in [0, 512] {
        let (mut driver, clock) = virtual_driver();
        let (stack, manual) = stacked(Impatient);
        driver.open(&stack, 1).unwrap();
        for round in 0..3 {
            driver.submit(BlockIo::read(offset, 512));
            driver.turn();
            clock.advance(2 * MS);
            driver.turn();
            assert!(driver.turn().is_empty(), "round {round}: its memory is still in use below");
            assert_eq!(manual.complete_all(BlockOutput::Done), 1);
            let done = driver.turn();
            assert_eq!(done.len(), 1, "round {round}");
            assert_eq!(done[0].output, BlockOutput::Failed(BlockError::NoSpace));
            assert_eq!(done[0].mangled, None, "the request itself came home, not its stand-in");
        }
    }
}

#[test]
fn what_is_lost_below_is_not_waited_for() {
    for offset in [0, 512] {
        let (mut driver, _) = virtual_driver();
        let (stack, manual) = stacked(Impatient);
        driver.open(&stack, 1).unwrap();
        for round in 0..3 {
            driver.submit(BlockIo::read(offset, 512));
            driver.turn();
            let id = manual.in_flight()[0].id;
            assert!(manual.lose(id));
            let mut done = Vec::new();
            for _ in 0..3 {
                done.append(&mut driver.turn());
            }
            assert_eq!(done.len(), 1, "round {round}");
            assert_eq!(done[0].output, BlockOutput::Failed(BlockError::Aborted));
            assert_eq!(done[0].lost, offset != 0);
        }
        driver.drain();
        for _ in 0..4 {
            driver.turn();
        }
        assert_eq!(driver.mode(), Mode::Quiesced, "offset {offset}");
    }
}

/// Waits for a word from another thread.
#[derive(Debug, Clone)]
struct Elsewhere;

impl Handler<BlockRequest> for Elsewhere {
    async fn handle(&self, _: &Io<BlockRequest>, _: &mut BlockRequest) -> BlockOutput {
        let told = Arc::new(AtomicBool::new(false));
        let mut started = false;
        poll_fn(|cx| {
            if !std::mem::replace(&mut started, true) {
                let (told, waker) = (told.clone(), cx.waker().clone());
                std::thread::spawn(move || {
                    told.store(true, Ordering::SeqCst);
                    waker.wake();
                });
            }
            if told.load(Ordering::SeqCst) { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
        BlockOutput::Done
    }
}

#[test]
fn a_wake_up_from_another_thread_reaches_its_slot() {
    let (stack, _manual) = stacked(Elsewhere);
    let mut driver = Driver::new(1).unwrap();
    driver.open(&stack, 8).unwrap();
    for _ in 0..50 {
        (0..8).for_each(|_| assert!(driver.submit(BlockIo::flush()).is_some()));
        assert_eq!(driver.wait_all().unwrap().len(), 8);
    }
}

/// Hands each request's work to a task.
#[derive(Debug)]
struct Desk {
    jobs: Vec<Mailbox<()>>,
    bell: Mailbox<usize>,
}

#[derive(Debug, Clone)]
struct WithTask;

impl AsyncStage<BlockRequest> for WithTask {
    type Handler = Desk;

    fn name(&self) -> &'static str {
        "with-task"
    }

    fn caps(&self, below: &BlockCaps) -> Result<BlockCaps, AttachError> {
        Ok(below.clone())
    }

    fn handler(&self, _: &mut WorkerContext<'_>, depth: Depth) -> Result<Desk, BackendError> {
        let jobs = (0..depth.get()).map(|_| Mailbox::new()).collect();
        Ok(Desk { jobs, bell: Mailbox::new() })
    }
}

impl Handler<BlockRequest> for Desk {
    const CHILDREN: u32 = 1;
    const TASKS: usize = 1;

    async fn handle(&self, io: &Io<BlockRequest>, request: &mut BlockRequest) -> BlockOutput {
        while let Some(former) = self.bell.put(request.tag().index()) {
            self.jobs[former].put(());
        }
        self.jobs[request.tag().index()].take().await;
        io.forward(request).await
    }

    async fn task(&self, io: &Io<BlockRequest>, _: usize) {
        loop {
            let job = self.bell.take().await;
            // A task has children too.
            let flushed = io.child().expect("its child").flush().await.output();
            assert_eq!(flushed, BlockOutput::Done);
            self.jobs[job].put(());
        }
    }
}

#[test]
fn a_task_runs_beside_the_requests() {
    let disk = PowerLossDisk::boxed(PowerLossConfig::new(1 << 20));
    let stack = BoxBackend::new(Pipeline::top().stage(AsyncLayer::new(WithTask)).backend(disk).unwrap());
    let mut driver = Driver::new(1).unwrap();
    driver.open(&stack, 4).unwrap();
    for _ in 0..20 {
        driver.submit(BlockIo::write(0, vec![1; 512]));
        assert_eq!(driver.wait_all().unwrap().len(), 1);
    }
}

#[test]
fn a_queue_goes_with_requests_in_every_state() {
    for turns in 0..4 {
        let (mut driver, clock) = virtual_driver();
        let (stack, manual) = stacked(Delay(MS));
        driver.open(&stack, 2).unwrap();
        driver.submit(BlockIo::read(0, 512));
        driver.submit(BlockIo::read(512, 512));
        for _ in 0..turns {
            driver.turn();
            clock.advance(MS);
            manual.complete_all(BlockOutput::Done);
        }
        let owner = Arc::downgrade(driver.space().map().regions()[0].owner());
        drop(driver);
        assert_eq!(owner.strong_count(), 0, "after {turns} turns memory is kept");
    }
}

/// Answers what comes, from below, at once.
fn round(
    worker: &mut Worker,
    queue: &mut impl Queue<BlockRequest>,
    pool: &mut SgPool,
    done: &mut Completions<BlockRequest>,
) {
    worker.with_context(|cx| {
        for tag in 0..16 {
            let mut sg = pool.take();
            sg.push_host(4096).expect("room");
            let request = BlockRequest::transfer(BlockOp::Read, Tag::new(tag), u64::from(tag) * 4096, sg);
            queue.submit(cx, request.expect("a range"));
        }
        queue.kick(cx);
        while queue.in_flight() > 0 {
            queue.poll(cx, done);
        }
    });
    for completion in done.drain() {
        assert_eq!(completion.output, BlockOutput::Done);
        pool.put(completion.request.into_sg());
    }
}

/// A back-end that answers at once and allocates nothing.
#[derive(Debug, Default)]
struct Instant {
    ready: Vec<BlockRequest>,
}

impl Queue<BlockRequest> for Instant {
    fn submit(&mut self, _: &mut WorkerContext<'_>, request: BlockRequest) {
        self.ready.push(request);
    }
    fn kick(&mut self, _: &mut WorkerContext<'_>) {}
    fn poll(&mut self, _: &mut WorkerContext<'_>, done: &mut Completions<BlockRequest>) {
        self.ready.drain(..).for_each(|request| done.push(request, BlockOutput::Done));
    }
    fn drain(&mut self, _: &mut WorkerContext<'_>) {}
    fn resume(&mut self, _: &mut WorkerContext<'_>) {}
    fn mode(&self) -> Mode {
        Mode::Running
    }
    fn in_flight(&self) -> usize {
        self.ready.len()
    }
}

fn allocates_nothing<H: Handler<BlockRequest>>(handler: H) {
    use iovirt_core::stage::async_stage::AsyncQueue;
    let depth = Depth::new(16).unwrap();
    let mut worker = Worker::new(WorkerConfig::default()).unwrap();
    let mut queue = worker
        .with_context(|cx| AsyncQueue::above(cx, handler, depth, |_, _| Ok(Instant::default())))
        .unwrap();
    let (mut pool, mut done) = (SgPool::new(16, SgLimits::default()), Completions::with_depth(depth));
    for _ in 0..4 {
        round(&mut worker, &mut queue, &mut pool, &mut done);
    }
    let (count, ()) = count_allocations(|| {
        for _ in 0..100 {
            round(&mut worker, &mut queue, &mut pool, &mut done);
        }
    });
    assert_eq!(count.allocations, 0, "{count:?}");
}

#[test]
fn nothing_is_allocated_per_request() {
    allocates_nothing(Halves);
    allocates_nothing(Delay(Duration::ZERO));
    allocates_nothing(Impatient);
}
