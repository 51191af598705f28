//! Drivers of virtio-net that break the rules: the hostile-driver suite over its control queue, and random chains with random
//! bytes on all queues.

mod common;

use common::raw::{BUFFERS, Piece, RawDriver, SIZE};
use iovirt::registry::Registry;
use iovirt_core::dma::DmaSpace;
use iovirt_core::irq::CountingInterrupt;
use iovirt_core::pipeline::Stages;
use iovirt_core::state::{StageStates, StateError};
use iovirt_core::test_utils::hostile::{self, Exchange, Layout, Profile, Target};
use iovirt_core::test_utils::{Rng, rounds_or, seed_or};
use iovirt_core::{Worker, WorkerConfig};
use iovirt_frontends::virtio::transport::mmio::MmioDevice;
use iovirt_frontends::virtio::{ConfigListener, QueueFactory, VirtioDevice};
use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// Where the guest's memory begins.
const BASE: u64 = 0x10_0000;
/// Commands that one turn takes from the ring.
const TURN: u16 = 64;

fn card(line: &str) -> Arc<dyn VirtioDevice> {
    let registry = Registry::standard();
    registry.build_virtio(&registry.parse(line).unwrap()).unwrap()
}

/// A card of which the driver sees the control queue alone, as queue 0: that is where the suite makes its requests.
#[derive(Debug)]
struct ControlAlone(Arc<dyn VirtioDevice>);

impl VirtioDevice for ControlAlone {
    fn name(&self) -> &str {
        self.0.name()
    }

    fn device_id(&self) -> u32 {
        self.0.device_id()
    }

    fn features(&self) -> u64 {
        self.0.features()
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &self.0.queue_max_sizes()[2..]
    }

    fn read_config(&self, negotiated: u64, offset: u64, data: &mut [u8]) {
        self.0.read_config(negotiated, offset, data);
    }

    fn write_config(&self, negotiated: u64, offset: u64, data: &[u8]) {
        self.0.write_config(negotiated, offset, data);
    }

    fn set_config_listener(&self, listener: Arc<dyn ConfigListener>) {
        self.0.set_config_listener(listener);
    }

    fn queue_factory(&self, index: u16) -> QueueFactory {
        self.0.queue_factory(index + 2)
    }

    fn reset(&self) {
        self.0.reset();
    }

    fn stages(&self) -> Stages {
        self.0.stages()
    }

    fn save(&self, stages: &mut StageStates) -> Result<Vec<u8>, StateError> {
        self.0.save(stages)
    }

    fn restore(&self, saved: &[u8], stages: &mut StageStates) -> Result<(), StateError> {
        self.0.restore(saved, stages)
    }
}

fn target() -> Target {
    let config = WorkerConfig { rounds: 1, ..WorkerConfig::default() };
    let worker = Rc::new(RefCell::new(Worker::new(config).unwrap()));
    let space = DmaSpace::anonymous(&[(0, 0x1000), (BASE, Layout::LEN)]).unwrap();
    let device = Arc::new(ControlAlone(card("virtio-net,mac=52:54:00:12:34:56,queue-size=1024 -> loopback")));
    let handle = worker.borrow().handle();
    let frontend = MmioDevice::new(device, &space, Arc::new(CountingInterrupt::new()), &[handle]).unwrap();
    let counted = worker.clone();
    Target {
        frontend: Arc::new(frontend),
        space,
        base: BASE,
        step: Box::new(move || worker.borrow_mut().run_within(Duration::from_millis(1)).unwrap()),
        lanes: Some(Box::new(move || counted.borrow().lanes())),
    }
}

/// The suite negotiates every bit of the card's own that is on offer.
#[test]
fn the_control_queue_under_the_hostile_driver_suite() {
    let command = |name: &'static str, command: &[u8], answer: u8| {
        Exchange::new(name, command.to_vec(), 1, move |bytes: &[u8]| {
            if bytes == [answer] { Ok(()) } else { Err(format!("the answer is {bytes:?}, not {answer}")) }
        })
    };
    let exchanges = vec![
        command("promiscuous", &[0, 0, 1], 0),
        command("tables", &[1, 0, 1, 0, 0, 0, 2, 2, 2, 2, 2, 2, 0, 0, 0, 0], 0),
        command("half a command", &[0], 1),
        command("tables cut short", &[1, 0, 255, 255, 255, 255, 2, 2], 1),
        command("unknown", &[99; 700], 1),
    ];
    let profile = Profile { step_bound: Some(TURN), ..Profile::new("virtio-net, control queue", exchanges) };
    hostile::run(&target, &profile).assert_passed();
}

/// Random chains on every queue, in random memory. The device may ask for a reset; it must not panic, hang, or forget a
/// chain that it took.
#[test]
fn random_chains_on_every_queue() {
    let seed = seed_or(0x0ddf_ee7e);
    println!("IOVIRT_SEED={seed}");
    let mut rng = Rng::new(seed);
    let mut driver =
        RawDriver::new(card("virtio-net,queues=2,queue-size=64 -> stats -> filter -> loopback,mtu=9000"), 0);
    let mut resets = 0;
    for round in 0..rounds_or(3000) {
        if driver.status() & 0x40 != 0 || rng.one_in(40) {
            resets += 1;
            driver.reset();
            let class = [
                0,
                1 << 15,
                1 << 17 | 1 << 18,
                1 << 17 | 1 << 22,
                1 << 15 | 1 << 17 | 1 << 18 | 1 << 22 | 1 << 23,
            ];
            driver.set_up(class[rng.index(class.len())] | if rng.one_in(2) { 1 << 29 } else { 0 });
        }
        let queue = rng.below(5) as u16;
        for _ in 0..=rng.below(6) {
            let mut pieces = Vec::new();
            let readable = if queue.is_multiple_of(2) && queue < 4 { rng.below(2) } else { 1 + rng.below(3) };
            for at in 0..readable + rng.below(4) {
                let address = BUFFERS + rng.below(1 << 20);
                let len = [1, 2, 11, 12, 13, 26, 64, 100, 1526, 9000][rng.index(10)];
                pieces.push(if at < readable {
                    Piece::Driver(address, len)
                } else {
                    Piece::Device(address, len)
                });
            }
            if pieces.is_empty() {
                continue;
            }
            if rng.one_in(2) {
                // Something that looks like a header, a command, or an address at least.
                let mut bytes = [0; 32];
                rng.fill(&mut bytes[12..]);
                bytes[usize::from(rng.one_in(2))] = rng.below(6) as u8;
                bytes[12] &= 0xfe;
                driver.write(BUFFERS + rng.below(1 << 20), &bytes);
            }
            driver.offer(queue, &pieces);
        }
        driver.ring(queue);
        for queue in 0..5 {
            let used = driver.used(queue);
            assert!(used.len() <= usize::from(SIZE), "round {round}: {} chains came back", used.len());
        }
    }
    driver.reset();
    driver.set_up(0);
    driver.offer(0, &[Piece::Device(BUFFERS, 2048)]);
    driver.write(BUFFERS + 8192, &[0; 12]);
    driver.write(BUFFERS + 8204, &[0xff; 60]);
    driver.offer(1, &[Piece::Driver(BUFFERS + 8192, 72)]);
    driver.ring(1);
    assert_eq!(driver.used(0).len(), 1, "after {resets} resets the card is as good as new");
}
