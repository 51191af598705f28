//! Devices and stacks that are broken on purpose: the harness must notice, and say what.

use super::{DeviceCase, Maker, NOTHING, SlowNet, Watch, card, disk, seeds};
use iovirt::backends::net::loopback::{LoopbackBackend, LoopbackConfig};
use iovirt::core::dma::DmaView;
use iovirt::core::frontend::{Access, Frontend, RegionSpec, Ticket};
use iovirt::core::irq::{CountingInterrupt, Interrupt};
use iovirt::core::pipeline::{BoxBackend, Pipeline, Stages};
use iovirt::core::request::net::{NetCaps, NetOp, NetOutput, NetRequest};
use iovirt::core::stage::{Flow, Held, Hook, HookLayer, HookStage};
use iovirt::core::state::{StageStates, StateError};
use iovirt::core::test_utils::hostile::register;
use iovirt::core::test_utils::lifecycle::device::{self, Made};
use iovirt::core::worker::{Turn, WorkerContext};
use iovirt::core::{AttachError, Depth, Mode, Request, Tag};
use iovirt::frontends::virtio::net::{NetConfig, VirtioNet};
use iovirt::frontends::virtio::transport::mmio::MmioDevice;
use iovirt::frontends::virtio::{ConfigListener, QueueError, QueueFactory, QueueWork, Ring, VirtioDevice};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// A rule must be found broken in these words, or others behind a bar, and the seed must bring it back.
fn found(case: &DeviceCase<'_>, words: &str) {
    let failure = device::run(case, seeds(100)).expect_err("it went unnoticed");
    println!("{}: {failure}", case.name);
    assert!(words.split('|').any(|words| failure.message.contains(words)), "{failure}");
    assert_eq!(device::run_one(case, failure.seed), Err(failure), "the seed brings it back");
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mistake {
    /// Does not look at its ring when it goes on.
    ForgetsRing,
    /// Does not serve again what was in flight when it was saved.
    ForgetsHeads,
}

/// A device whose queues make that mistake.
#[derive(Debug)]
struct Mistaken {
    inner: Arc<dyn VirtioDevice>,
    mistake: Mistake,
}

struct MistakenWork {
    inner: Box<dyn QueueWork>,
    mistake: Mistake,
    /// Goes on with its next turn without a look.
    blind: bool,
}

impl VirtioDevice for Mistaken {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn device_id(&self) -> u32 {
        self.inner.device_id()
    }

    fn features(&self) -> u64 {
        self.inner.features()
    }

    fn queue_max_sizes(&self) -> &[u16] {
        self.inner.queue_max_sizes()
    }

    fn read_config(&self, negotiated: u64, offset: u64, data: &mut [u8]) {
        self.inner.read_config(negotiated, offset, data);
    }

    fn write_config(&self, negotiated: u64, offset: u64, data: &[u8]) {
        self.inner.write_config(negotiated, offset, data);
    }

    fn set_config_listener(&self, listener: Arc<dyn ConfigListener>) {
        self.inner.set_config_listener(listener);
    }

    fn queue_factory(&self, index: u16) -> QueueFactory {
        let (make, mistake) = (self.inner.queue_factory(index), self.mistake);
        Box::new(move |cx| Ok(Box::new(MistakenWork { inner: make(cx)?, mistake, blind: false })))
    }

    fn resubmits(&self) -> bool {
        self.inner.resubmits()
    }

    fn use_queues(&self, count: u16) {
        self.inner.use_queues(count);
    }

    fn reset(&self) {
        self.inner.reset();
    }

    fn stages(&self) -> Stages {
        self.inner.stages()
    }

    fn save(&self, stages: &mut StageStates) -> Result<Vec<u8>, StateError> {
        self.inner.save(stages)
    }

    fn restore(&self, saved: &[u8], stages: &mut StageStates) -> Result<(), StateError> {
        self.inner.restore(saved, stages)
    }
}

impl QueueWork for MistakenWork {
    fn start(&mut self, features: u64) {
        self.inner.start(features);
    }

    fn memory_changed(&mut self, view: &DmaView) {
        self.inner.memory_changed(view);
    }

    fn serve(&mut self, cx: &mut WorkerContext<'_>, ring: &mut Ring) -> Result<Turn, QueueError> {
        if std::mem::take(&mut self.blind) {
            // It asks for doorbells, and takes it that there was none.
            ring.enable_notifications();
            return Ok(Turn::Idle);
        }
        self.inner.serve(cx, ring)
    }

    fn settle(&mut self, cx: &mut WorkerContext<'_>, ring: Option<&mut Ring>) -> Result<(), QueueError> {
        self.inner.settle(cx, ring)
    }

    fn resubmit(
        &mut self,
        cx: &mut WorkerContext<'_>,
        ring: &mut Ring,
        heads: &[u16],
    ) -> Result<usize, QueueError> {
        if self.mistake == Mistake::ForgetsHeads {
            Ok(heads.len())
        } else {
            self.inner.resubmit(cx, ring, heads)
        }
    }

    fn drain(&mut self, cx: &mut WorkerContext<'_>) {
        self.inner.drain(cx);
    }

    fn resume(&mut self, cx: &mut WorkerContext<'_>) {
        if self.mistake == Mistake::ForgetsRing {
            self.blind = true;
        }
        self.inner.resume(cx);
    }

    fn mode(&self) -> Mode {
        self.inner.mode()
    }

    fn in_flight(&self) -> usize {
        self.inner.in_flight()
    }

    fn heads_in_flight(&self) -> Vec<u16> {
        self.inner.heads_in_flight()
    }
}

fn same(frontend: Arc<dyn Frontend>) -> Arc<dyn Frontend> {
    frontend
}

fn forgets_ring(inner: Arc<dyn VirtioDevice>) -> Arc<dyn VirtioDevice> {
    Arc::new(Mistaken { inner, mistake: Mistake::ForgetsRing })
}

fn forgets_heads(inner: Arc<dyn VirtioDevice>) -> Arc<dyn VirtioDevice> {
    Arc::new(Mistaken { inner, mistake: Mistake::ForgetsHeads })
}

#[test]
fn a_ring_that_is_not_looked_at_again_is_found() {
    let between = (&forgets_ring as _, &same as _);
    let words = "nobody has a reason to do anything";
    found(&DeviceCase::disk("disk, forgets its ring", &disk("", "memory,size=1M", between)), words);
    found(&DeviceCase::network("card, forgets its ring", &card("", "loopback", between)), words);
}

#[test]
fn heads_that_are_not_served_again_are_found() {
    let between = (&forgets_heads as _, &same as _);
    let words = "nobody has a reason to do anything";
    found(&DeviceCase::disk("disk, forgets heads", &disk("", "memory,size=1M", between)), words);
    found(&DeviceCase::network("card, forgets heads", &card("", "loopback", between)), words);
}

/// Says that a reset is over, and goes on until the driver comes back.
#[derive(Debug)]
struct PretendsReset {
    inner: Arc<dyn Frontend>,
    pretending: AtomicBool,
}

impl Frontend for PretendsReset {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn regions(&self) -> Vec<RegionSpec> {
        self.inner.regions()
    }

    fn read(&self, region: usize, offset: u64, data: &mut [u8]) {
        self.inner.read(region, offset, data);
        if offset == register::STATUS && self.pretending.load(Ordering::Relaxed) {
            data.fill(0);
        }
    }

    fn write(&self, region: usize, offset: u64, data: &[u8]) -> Access {
        if offset == register::STATUS && data == [0; 4] {
            self.pretending.store(true, Ordering::Relaxed);
            return Access::Done;
        }
        self.inner.write(region, offset, data)
    }

    fn doorbells(&self) -> Vec<iovirt::core::doorbell::DoorbellSpec> {
        self.inner.doorbells()
    }

    fn drain(&self) -> Ticket {
        self.inner.drain()
    }

    fn resume(&self) -> Ticket {
        self.inner.resume()
    }

    fn reset(&self) -> Ticket {
        self.inner.reset()
    }

    fn save(&self) -> Result<Vec<u8>, StateError> {
        self.inner.save()
    }

    fn restore(&self, saved: &[u8]) -> Result<(), StateError> {
        self.inner.restore(saved)
    }

    fn stages(&self) -> Stages {
        self.inner.stages()
    }
}

fn pretends_reset(inner: Arc<dyn Frontend>) -> Arc<dyn Frontend> {
    Arc::new(PretendsReset { inner, pretending: AtomicBool::new(false) })
}

fn honest(device: Arc<dyn VirtioDevice>) -> Arc<dyn VirtioDevice> {
    device
}

#[test]
fn completions_after_a_reset_are_found() {
    let between = (&honest as _, &pretends_reset as _);
    // What it finds first depends on the seed: memory that is written, or a chain that comes back of a ring that is gone.
    let words = "a device that was reset|came back twice";
    found(&DeviceCase::disk("disk, pretends", &disk("", "memory,size=1M", between)), words);
    found(&DeviceCase::network("card, pretends", &card("", "loopback", between)), words);
}

#[test]
fn requests_that_a_stage_drops_are_found() {
    let words = "requests that did not come home, and says";
    let stage = "fault,kind=drop,permille=5";
    found(&DeviceCase::disk("disk, drops", &disk(stage, "memory,size=1M", NOTHING)), words);
    found(&DeviceCase::network("card, drops", &card(stage, "loopback", NOTHING)), words);
}

/// Loses an interrupt now and then.
#[derive(Debug)]
struct Leaky {
    inner: Arc<CountingInterrupt>,
    count: AtomicU64,
}

impl Interrupt for Leaky {
    fn trigger(&self) {
        if self.count.fetch_add(1, Ordering::Relaxed) % 50 != 49 {
            self.inner.trigger();
        }
    }
}

/// Lets every fifth frame be overtaken by the next.
#[derive(Debug)]
struct Overtakes;

struct OvertakesHook {
    frames: u64,
    held: Option<Tag>,
}

impl HookStage<NetRequest> for Overtakes {
    type Hook = OvertakesHook;

    fn name(&self) -> &str {
        "overtakes"
    }

    fn caps(&self, below: &NetCaps) -> Result<NetCaps, AttachError> {
        Ok(below.clone())
    }

    fn hook(&self, _: &mut WorkerContext<'_>, _: Depth) -> OvertakesHook {
        OvertakesHook { frames: 0, held: None }
    }
}

impl Hook<NetRequest> for OvertakesHook {
    fn on_submit(&mut self, cx: &mut WorkerContext<'_>, request: &mut NetRequest) -> Flow<NetOutput> {
        if request.op() == NetOp::Receive {
            return Flow::Pass;
        }
        self.frames += 1;
        if self.held.is_some() || !self.frames.is_multiple_of(5) {
            return Flow::Pass;
        }
        self.held = Some(request.tag());
        cx.run_again();
        Flow::Hold
    }

    fn on_poll(&mut self, _: &mut WorkerContext<'_>, held: &mut Held<'_, NetRequest>) {
        if let Some(tag) = self.held.take() {
            held.release(tag);
        }
    }
}

/// A card with a stage that is written here, and with that many interrupts lost.
fn special(overtakes: bool) -> impl Fn() -> Maker {
    move || {
        let network = BoxBackend::new(LoopbackBackend::new(&LoopbackConfig::default()).unwrap());
        Box::new(move |at| {
            let (slow, brake) = SlowNet::new(network.clone(), super::LONGEST, at.seed);
            let mut stack = BoxBackend::new(slow);
            if overtakes {
                let layer = HookLayer::new(Overtakes);
                stack = BoxBackend::new(Pipeline::top().stage(layer).backend(stack).unwrap());
            }
            let (stack, watch) = Watch::above(stack);
            let config = NetConfig { pairs: 2, queue_size: 32, ..NetConfig::default() };
            let device = Arc::new(VirtioNet::new(config, stack).unwrap());
            let inner = at.interrupt.clone();
            let interrupt: Arc<dyn Interrupt> =
                if overtakes { inner } else { Arc::new(Leaky { inner, count: AtomicU64::new(0) }) };
            let frontend = MmioDevice::new(device, &at.space, interrupt, &at.workers).unwrap();
            Made {
                frontend: Arc::new(frontend),
                brake: Box::new(brake),
                watch: Box::new(move || watch.violation()),
            }
        })
    }
}

#[test]
fn frames_that_overtake_each_other_are_found() {
    found(&DeviceCase::network("card, overtakes", &special(true)), "came twice, or after a later one");
}

#[test]
fn a_lost_interrupt_is_found() {
    found(
        &DeviceCase::network("card, loses interrupts", &special(false)),
        "nobody has a reason to do anything",
    );
}
