//! Virtio devices behind PCI functions: the driver and the hostile suite that know virtio-mmio drive them through a bus, by its
//! ports, with messages and with a pin; and what only PCI has.

mod common;

use common::pci::{Interrupts, Plugged};
use iovirt::registry::Registry;
use iovirt_core::dma::DmaSpace;
use iovirt_core::frontend::{Access, Frontend, Outcome, RegionKind, Ticket};
use iovirt_core::pipeline::BoxBackend;
use iovirt_core::request::block::{BlockCaps, BlockOutput, BlockRequest};
use iovirt_core::test_utils::hostile::{
    self, Exchange, Layout, Profile, QueueSetup, RawDriver, Split, Target, feature, status,
};
use iovirt_core::test_utils::mmio_over_pci::PciConfigAccess;
use iovirt_core::test_utils::virtio::{Arena, BlkDriver, BlkOp, BlkStatus, Pump};
use iovirt_core::test_utils::{ManualBackend, ManualHandle, Rng, seed_or};
use iovirt_core::{Worker, WorkerConfig};
use iovirt_frontends::pci::PciFunction;
use iovirt_frontends::virtio::VirtioDevice;
use iovirt_frontends::virtio::blk::{BlkConfig, VirtioBlk};
use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

const BASE: u64 = 0x10_0000;
const BOTH: [Interrupts; 2] = [Interrupts::Messages, Interrupts::Pin];
const COMMAND: u16 = 4;
const MEMORY_AND_BUS_MASTER: u16 = 6;
const MEMORY: u16 = 2;

fn described(line: &str) -> Arc<dyn VirtioDevice> {
    let registry = Registry::standard();
    registry.build_virtio(&registry.parse(line).unwrap()).unwrap()
}

struct Rig {
    worker: Rc<RefCell<Worker>>,
    plugged: Plugged,
    space: DmaSpace,
}

impl Rig {
    fn new(device: Arc<dyn VirtioDevice>, space: &DmaSpace) -> Self {
        let worker = Worker::new(WorkerConfig { rounds: 1, ..WorkerConfig::default() }).unwrap();
        let plugged = Plugged::new(device, space, &[worker.handle()]);
        Self { worker: Rc::new(RefCell::new(worker)), plugged, space: space.clone() }
    }

    fn run(&self) {
        for _ in 0..20 {
            self.worker.borrow_mut().run_within(Duration::from_millis(1)).unwrap();
        }
    }

    fn target(&self, interrupts: Interrupts) -> Target {
        let (worker, counted) = (self.worker.clone(), self.worker.clone());
        Target {
            frontend: self.plugged.as_mmio(interrupts),
            space: self.space.clone(),
            base: BASE,
            queue: 0,
            step: Box::new(move || worker.borrow_mut().run_within(Duration::from_millis(1)).unwrap()),
            lanes: Some(Box::new(move || counted.borrow().lanes())),
        }
    }

    fn set_command(&self, command: u16) -> Access {
        self.plugged.config().write(COMMAND, &command.to_le_bytes())
    }

    fn ended(&self, ticket: &Ticket) -> Option<Outcome> {
        self.run();
        ticket.outcome()
    }
}

fn memory() -> DmaSpace {
    DmaSpace::anonymous(&[(0, 0x1000), (BASE, Layout::LEN)]).unwrap()
}

fn read() -> Exchange {
    Exchange::new("read", vec![0; 16], 513, |bytes| {
        if bytes.last() == Some(&0) { Ok(()) } else { Err("an error came back".into()) }
    })
}

#[test]
fn a_hostile_driver_behind_pci() {
    for interrupts in BOTH {
        let factory = || {
            Rig::new(described("virtio-blk,queue-size=1024 -> memory,size=4M"), &memory()).target(interrupts)
        };
        let profile = Profile {
            rounds: 20,
            ..Profile::new(format!("virtio-blk behind PCI, {interrupts:?}"), vec![read()])
        };
        hostile::run(&factory, &profile).assert_passed();
    }
}

#[test]
fn requests_arrive_and_interrupts_leave() {
    for interrupts in BOTH {
        let rig = Rig::new(described("virtio-blk -> memory,size=64M"), Arena::get().space());
        let worker = rig.worker.clone();
        let pump = Pump::new(move || worker.borrow_mut().run_within(Duration::from_millis(1)).unwrap());
        let frontend = rig.plugged.as_mmio(interrupts);
        let mut driver = BlkDriver::connect(frontend, pump, common::ALL, 64 << 10).unwrap();
        let data: Vec<u8> = (0..65536_u32).map(|at| (at * 7 + at / 251) as u8).collect();
        assert_eq!(driver.run(BlkOp::Out, 8, &mut data.clone()), Ok(BlkStatus::Ok));
        let mut back = vec![0; data.len()];
        assert_eq!(driver.run(BlkOp::In, 8, &mut back), Ok(BlkStatus::Ok));
        assert_eq!(back, data);
        // With the pin, the status that nobody has read in between keeps the line up.
        let expected = if interrupts == Interrupts::Messages { 2 } else { 1 };
        assert_eq!(rig.plugged.raised(), expected, "{interrupts:?}");
    }
}

/// A disk whose requests complete by command.
fn manual() -> (Rig, ManualHandle<BlockRequest>) {
    let (backend, handle) = ManualBackend::new(BlockCaps::new(1 << 20));
    let disk = VirtioBlk::new(BlkConfig::default(), BoxBackend::new(backend)).unwrap();
    (Rig::new(Arc::new(disk), &memory()), handle)
}

/// Its driver, with queue 0 set up.
fn started(rig: &Rig) -> (RawDriver, QueueSetup) {
    let mut driver = RawDriver::new(rig.target(Interrupts::Messages), 4);
    let setup = QueueSetup::good(&driver.layout(), 16);
    driver.start(feature::ALL, &setup).unwrap();
    (driver, setup)
}

fn offer(driver: &mut RawDriver, count: u16) {
    driver.lay_out(&read(), &Split { indirect: true, ..Split::whole() }, 0);
    (0..count).for_each(|_| driver.offer(0));
    driver.notify(0);
}

#[test]
fn without_bus_master_nothing_reaches_memory() {
    let (rig, manual) = manual();
    let (mut driver, setup) = started(&rig);
    offer(&mut driver, 3);
    rig.run();
    assert_eq!(manual.in_flight().len(), 3);

    // What is in flight is waited for; the driver may go on meanwhile.
    let Access::Deferred(ticket) = rig.set_command(MEMORY) else { panic!("nothing was waited for") };
    assert_eq!(rig.ended(&ticket), None);
    manual.complete_all(BlockOutput::Done);
    assert_eq!(rig.ended(&ticket), Some(Outcome::Done));
    assert_eq!(driver.used_index(), 3);
    let before = driver.get(BASE, Layout::LEN as usize);
    let raised = rig.plugged.raised();
    driver.notify(0);
    (0..5).for_each(|_| driver.offer(0));
    driver.notify(0);
    let offered = driver.get(BASE, Layout::LEN as usize);
    rig.run();
    assert_eq!((manual.in_flight().len(), rig.plugged.raised()), (0, raised));
    assert!(driver.get(BASE, Layout::LEN as usize) == offered && before != offered);

    // An embedder's resume does not lift it, nor does a reset by the driver; the guest's own bit does.
    rig.plugged.function.resume();
    rig.run();
    assert_eq!(manual.in_flight().len(), 0);
    let _ = rig.set_command(MEMORY_AND_BUS_MASTER);
    rig.run();
    assert_eq!(manual.in_flight().len(), 5, "the ring is scanned again without a doorbell");
    manual.complete_all(BlockOutput::Done);
    rig.run();
    assert_eq!(driver.used_index(), 8);

    driver.negotiate(feature::ALL).unwrap();
    let _ = rig.set_command(MEMORY);
    driver.set_queue(&setup);
    driver.driver_ok();
    offer(&mut driver, 1);
    rig.run();
    assert_eq!(manual.in_flight().len(), 0, "a queue that is set up without bus master begins at rest");
    let _ = rig.set_command(MEMORY_AND_BUS_MASTER);
    rig.run();
    assert_eq!(manual.in_flight().len(), 1);
}

#[test]
fn a_guest_that_takes_bus_master_away_does_not_end_an_embedders_drain() {
    let (rig, manual) = manual();
    let (mut driver, _) = started(&rig);
    offer(&mut driver, 2);
    rig.run();
    let drain = rig.plugged.function.drain();
    let _ = rig.set_command(MEMORY);
    let _ = rig.set_command(MEMORY_AND_BUS_MASTER);
    rig.run();
    offer(&mut driver, 2);
    manual.complete_all(BlockOutput::Done);
    assert_eq!(rig.ended(&drain), Some(Outcome::Done));
    assert_eq!(manual.in_flight().len(), 0, "drained, whatever the guest switches");
    rig.plugged.function.resume();
    rig.run();
    assert_eq!(manual.in_flight().len(), 2);
}

#[test]
fn a_queue_is_reset_alone() {
    let (rig, manual) = manual();
    let (mut driver, setup) = started(&rig);
    offer(&mut driver, 2);
    rig.run();
    let function = &rig.plugged.function;
    let register = |at: u64| {
        let mut word = [0; 2];
        function.read(0, at, &mut word);
        u16::from_le_bytes(word)
    };
    let Access::Deferred(ticket) = function.write(0, 0x3a, &1_u16.to_le_bytes()) else { panic!() };
    assert_eq!((register(0x3a), register(0x1c)), (1, 0), "under way");
    assert_eq!(rig.ended(&ticket), None);
    manual.complete_all(BlockOutput::Done);
    assert_eq!(rig.ended(&ticket), Some(Outcome::Done));
    assert_eq!((register(0x3a), register(0x1c), register(0x18), register(0x1a)), (0, 0, 256, 0xffff));
    assert_eq!(driver.used_index(), 0, "completions of a reset queue are thrown away");
    driver.set_queue(&setup);
    offer(&mut driver, 1);
    rig.run();
    assert_eq!(manual.in_flight().len(), 1);
    assert_eq!(driver.status() & status::NEEDS_RESET, 0);
}

#[test]
fn a_device_goes_on_elsewhere() {
    for interrupts in BOTH {
        let space = memory();
        let line = "virtio-blk -> memory,size=4M";
        let rig = Rig::new(described(line), &space);
        let mut driver = RawDriver::new(rig.target(interrupts), 4);
        let setup = QueueSetup::good(&driver.layout(), 16);
        driver.start(feature::ALL, &setup).unwrap();
        driver.exchange(&read(), &Split::whole()).unwrap();
        let drain = rig.plugged.function.drain();
        assert_eq!(rig.ended(&drain), Some(Outcome::Done));
        offer(&mut driver, 1);
        let saved = rig.plugged.function.save().unwrap();
        let decoded = rig.plugged.function.decoded();
        drop(driver);

        let other = Rig::new(described(line), &space);
        other.plugged.function.restore(&saved).unwrap();
        other.plugged.bus.refresh();
        assert_eq!(other.plugged.function.decoded(), decoded);
        let mut id = [0; 4];
        other.plugged.bus.read(RegionKind::Mmio, decoded[0].unwrap() + 0x14, &mut id[..1]);
        assert_eq!(id[0], 0xf, "the status by way of the window");
        other.run();
        if interrupts == Interrupts::Pin {
            assert_eq!(other.plugged.raised(), 1, "the status that was not read holds the line");
        }
        other.plugged.function.resume();
        other.run();
        let used: [u8; 2] = space.view().read_array(BASE + 0x6002).unwrap();
        assert_eq!(u16::from_le_bytes(used), 2, "the request that waited on the ring is served");
        assert!(other.plugged.raised() >= 1);
    }
    // Another size than the driver was told is announced.
    let space = memory();
    let rig = Rig::new(described("virtio-blk -> memory,size=4M"), &space);
    let mut driver = RawDriver::new(rig.target(Interrupts::Messages), 4);
    driver.start(feature::ALL, &QueueSetup::good(&driver.layout(), 16)).unwrap();
    let drain = rig.plugged.function.drain();
    assert_eq!(rig.ended(&drain), Some(Outcome::Done));
    let saved = rig.plugged.function.save().unwrap();
    let generation = |line: &str| {
        let next = Rig::new(described(line), &space);
        next.plugged.function.restore(&saved).unwrap();
        next.plugged.bus.refresh();
        let mut value = [0; 1];
        let window = next.plugged.function.decoded()[0].unwrap();
        next.plugged.bus.read(RegionKind::Mmio, window + 0x15, &mut value);
        (value[0], next.plugged.raised())
    };
    let (same, other) =
        (generation("virtio-blk -> memory,size=4M"), generation("virtio-blk -> memory,size=8M"));
    assert_eq!((other.0, same.1, other.1), (same.0.wrapping_add(1), 0, 1));
    // A device with more queues has more vectors.
    let small = Rig::new(described("virtio-blk -> null"), &memory());
    let large = Rig::new(described("virtio-blk,queues=2 -> null"), &memory());
    let error = large.plugged.function.restore(&small.plugged.function.save().unwrap()).unwrap_err();
    assert!(error.to_string().contains("3 MSI-X vectors"), "{error}");
}

/// Section 4.1.4.9: a guest without access to the windows reaches the registers through the configuration space.
#[test]
fn registers_are_reached_through_the_configuration_space() {
    let rig = Rig::new(described("virtio-blk -> null,size=1G"), &memory());
    let config = rig.plugged.config();
    let byte = |at: u16| {
        let mut byte = [0];
        config.read(at, &mut byte);
        byte[0]
    };
    let mut at = u16::from(byte(0x34));
    while byte(at) != 9 || byte(at + 3) != 5 {
        at = u16::from(byte(at + 1));
        assert_ne!(at, 0, "no such capability");
    }
    let access = |bar: u8, offset: u32, len: u32| {
        let _ = config.write(at + 4, &[bar]);
        let _ = config.write(at + 8, &offset.to_le_bytes());
        let _ = config.write(at + 12, &len.to_le_bytes());
    };
    let mut word = [0; 4];
    access(0, 0x2000, 4);
    config.read(at + 16, &mut word);
    assert_eq!(u32::from_le_bytes(word), 1 << 21, "the capacity in sectors");
    access(0, 0x14, 1);
    let _ = config.write(at + 16, &[1]);
    assert_eq!(byte(at + 16), 1, "the status");
    // Another width, another window, not aligned, outside.
    for (bar, offset, len) in [(0, 0x14, 2), (0, 0x14, 4), (1, 0x14, 1), (0, 0x15_0000, 1), (0, u32::MAX, 1)]
    {
        access(bar, offset, len);
        let _ = config.write(at + 16, &[3]);
        assert_eq!(byte(at + 16), 3, "a plain byte");
    }
    let mut status = [0];
    rig.plugged.function.read(0, 0x14, &mut status);
    assert_eq!(status[0], 1);
}

/// Every register and table byte in every width, with any value, on a device that is in use: no panic, and after a reset an
/// honest driver is served.
#[test]
fn accesses_of_every_width_at_every_offset() {
    let mut rng = Rng::new(seed_or(0x9c1));
    let rig = Rig::new(described("virtio-blk,queues=2 -> memory,size=4M"), &memory());
    let function = &rig.plugged.function;
    let mut cases = 0_u64;
    let mut driver = RawDriver::new(rig.target(Interrupts::Messages), 4);
    let setup = QueueSetup::good(&driver.layout(), 16);
    for round in 0..4 {
        driver.start(feature::ALL, &setup).unwrap();
        for (region, spec) in function.regions().into_iter().enumerate() {
            let dense = |at: u64| at % 0x1000 < 0x80 || at % 0x1000 > 0xff0;
            let far = [spec.size, spec.size + 1, u64::from(u32::MAX), u64::MAX - 3, u64::MAX];
            for offset in (0..spec.size).filter(|at| dense(*at)).chain(far) {
                for width in [0, 1, 2, 3, 4, 5, 8, 16] {
                    let mut data: Vec<u8> = (0..width).map(|_| rng.next_u64() as u8).collect();
                    if round % 2 == 0 {
                        data.fill(0xff * (round / 2) as u8);
                    }
                    let _ = function.write(region, offset, &data);
                    function.read(region, offset, &mut data);
                    cases += 2;
                }
            }
            rig.run();
        }
        let mut data = [0; 8];
        for offset in (0..260).chain([0xfff, 0xffff]) {
            for width in [1, 2, 4, 8] {
                let value = rng.next_u64().to_le_bytes();
                let _ = function.write_config(offset, &value[..width]);
                function.read_config(offset, &mut data[..width]);
                cases += 2;
            }
            let _ = rig.plugged.bus.write_ecam(u64::from(offset), &rng.next_u64().to_le_bytes());
        }
        rig.run();
        // As a guest that starts again: off, placed, on.
        let _ = function.reset();
        rig.run();
        driver = RawDriver::new(rig.target(Interrupts::Messages), 4);
    }
    driver.start(feature::ALL, &setup).unwrap();
    driver.exchange(&read(), &Split::whole()).unwrap();
    println!("{cases} accesses");
}
