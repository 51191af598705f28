//! Devices and stacks that are broken on purpose: the harness must notice, and say what.

use super::mistaken::{forgets_heads, forgets_ring};
use super::{
    Behind, DeviceCase, Maker, SlowNet, Surroundings, Transport, Watch, card, disk, made, mmio, seeds,
};
use iovirt::backends::net::loopback::{LoopbackBackend, LoopbackConfig};
use iovirt::core::frontend::{Access, Frontend, RegionSpec, Ticket};
use iovirt::core::irq::{CountingInterrupt, Interrupt};
use iovirt::core::pipeline::{BoxBackend, Pipeline, Stages};
use iovirt::core::request::net::{NetCaps, NetOp, NetOutput, NetRequest};
use iovirt::core::stage::{Flow, Held, Hook, HookLayer, HookStage};
use iovirt::core::state::StateError;
use iovirt::core::test_utils::hostile::register;
use iovirt::core::test_utils::lifecycle::device;
use iovirt::core::worker::WorkerContext;
use iovirt::core::{AttachError, Depth, Request, Tag};
use iovirt::frontends::virtio::VirtioDevice;
use iovirt::frontends::virtio::net::{NetConfig, VirtioNet};
use iovirt::frontends::virtio::transport::mmio::MmioDevice;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// A rule must be found broken in these words, or others behind a bar, and the seed must bring it back.
pub(crate) fn found(case: &DeviceCase<'_>, words: &str) {
    let failure = device::run(case, seeds(100)).expect_err("it went unnoticed");
    println!("{}: {failure}", case.name);
    assert!(words.split('|').any(|words| failure.message.contains(words)), "{failure}");
    assert_eq!(device::run_one(case, failure.seed), Err(failure), "the seed brings it back");
}

#[test]
fn a_ring_that_is_not_looked_at_again_is_found() {
    let transport: Transport = |device, at| mmio(forgets_ring(device), at);
    let words = "nobody has a reason to do anything";
    found(&DeviceCase::disk("disk, forgets its ring", &disk("", "memory,size=1M", transport)), words);
    found(&DeviceCase::network("card, forgets its ring", &card("", "loopback", transport)), words);
}

#[test]
fn heads_that_are_not_served_again_are_found() {
    let transport: Transport = |device, at| mmio(forgets_heads(device), at);
    let words = "nobody has a reason to do anything";
    found(&DeviceCase::disk("disk, forgets heads", &disk("", "memory,size=1M", transport)), words);
    found(&DeviceCase::network("card, forgets heads", &card("", "loopback", transport)), words);
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

fn pretends_reset(device: Arc<dyn VirtioDevice>, at: &Surroundings) -> Behind {
    let (inner, wait) = mmio(device, at);
    (Arc::new(PretendsReset { inner, pretending: AtomicBool::new(false) }), wait)
}

#[test]
fn completions_after_a_reset_are_found() {
    // What it finds first depends on the seed: memory that is written, or a chain that comes back of a ring that is gone.
    let words = "a device that was reset|came back twice";
    found(&DeviceCase::disk("disk, pretends", &disk("", "memory,size=1M", pretends_reset)), words);
    found(&DeviceCase::network("card, pretends", &card("", "loopback", pretends_reset)), words);
}

#[test]
fn requests_that_a_stage_drops_are_found() {
    let words = "requests that did not come home, and says";
    let stage = "fault,kind=drop,permille=5";
    found(&DeviceCase::disk("disk, drops", &disk(stage, "memory,size=1M", mmio)), words);
    found(&DeviceCase::network("card, drops", &card(stage, "loopback", mmio)), words);
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
            made((Arc::new(frontend), Box::new(|| {})), brake, watch)
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
