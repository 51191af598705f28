//! The life cycle of whole devices: virtio-blk and virtio-net above every stage of the registry, drained, reset, saved and
//! restored, stalled, told of changes and given other stacks in the middle of a guest's load, in deterministic simulation; with
//! registers of their own, and over vhost-user. And devices that are broken on purpose, which must be found.

#[path = "device_lifecycle/mistaken.rs"]
mod mistaken;
#[path = "device_lifecycle/monitor.rs"]
mod monitor;
#[path = "device_lifecycle/monitor_lane.rs"]
mod monitor_lane;
#[path = "vhost_user/raw.rs"]
#[allow(dead_code, reason = "each test uses what it needs")]
mod raw;
#[path = "vhost_user/registers.rs"]
#[allow(dead_code, reason = "each test uses what it needs")]
mod registers;
#[path = "device_lifecycle/sabotage.rs"]
mod sabotage;
#[path = "device_lifecycle/talk.rs"]
mod talk;
#[path = "device_lifecycle/vhost_user.rs"]
mod vhost_user;

use iovirt::core::pipeline::BoxBackend;
use iovirt::core::request::block::BlockRequest;
use iovirt::core::request::net::NetRequest;
use iovirt::core::test_utils::lifecycle::device::{
    self, Brake, DeviceCase, Made, Maker, Surroundings, Watch, WatchHandle,
};
use iovirt::core::test_utils::lifecycle::{Run, SlowDisk, SlowNet};
use iovirt::core::test_utils::{rounds_or, seed_or};
use iovirt::core::{Backend, Frontend};
use iovirt::describe::Chain;
use iovirt::frontends::virtio::VirtioDevice;
use iovirt::frontends::virtio::blk::{BlkConfig, VirtioBlk};
use iovirt::frontends::virtio::net::{NetConfig, VirtioNet};
use iovirt::frontends::virtio::transport::mmio::MmioDevice;
use iovirt::registry::{Family, Maturity, Registry, StageInfo, StageKind, StageRow};
use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

/// Seeds of each case.
const SEEDS: u64 = 8;
/// The longest that the disk or the network takes for a request.
const LONGEST: Duration = Duration::from_micros(200);

fn seeds(count: u64) -> Range<u64> {
    let first = seed_or(0xd1fe);
    first..first + rounds_or(count)
}

fn info(family: Family) -> StageInfo {
    StageInfo { name: "below", family, maturity: Maturity::Stable, help: "What is below", keys: &[] }
}

fn chain(stages: &str) -> Chain {
    let line = if stages.is_empty() { "below".into() } else { format!("{stages} -> below") };
    line.parse().unwrap()
}

/// Stages above a disk.
fn above_disk(stages: &str, below: BoxBackend<BlockRequest>) -> BoxBackend<BlockRequest> {
    let mut registry = Registry::standard();
    registry.add(StageRow::block_backend(info(Family::Block), move |_| Ok(below.clone()))).unwrap();
    registry.build_block(&chain(stages)).unwrap_or_else(|error| panic!("{stages}: {error}"))
}

/// Stages above a network.
fn above_network(stages: &str, below: BoxBackend<NetRequest>) -> BoxBackend<NetRequest> {
    let mut registry = Registry::standard();
    registry.add(StageRow::net_backend(info(Family::Net), move |_| Ok(below.clone()))).unwrap();
    registry.build_net(&chain(stages)).unwrap_or_else(|error| panic!("{stages}: {error}"))
}

/// A device behind its transport, and what waits for threads that work for it.
type Behind = (Arc<dyn Frontend>, Box<dyn Fn()>);
/// Puts a device behind a transport.
type Transport = fn(Arc<dyn VirtioDevice>, &Surroundings) -> Behind;

fn mmio(device: Arc<dyn VirtioDevice>, at: &Surroundings) -> Behind {
    let device = MmioDevice::new(device, &at.space, at.interrupt.clone(), &at.workers).unwrap();
    (Arc::new(device), Box::new(|| {}))
}

fn made((frontend, wait): Behind, brake: impl Brake + 'static, watch: WatchHandle) -> Made {
    let watch = move || {
        wait();
        watch.violation()
    };
    Made { frontend, brake: Box::new(brake), watch: Box::new(watch) }
}

/// A disk above those stages and that back-end, with room for as many requests as its rings have entries.
fn disk(stages: &str, backend: &str, transport: Transport) -> impl Fn() -> Maker + use<> {
    disk_with_room([32, 32], stages, backend, transport)
}

/// The same with room for so many requests on each queue, the first device and every other one after it, and the rest of them.
fn disk_with_room(
    rooms: [u16; 2],
    stages: &str,
    backend: &str,
    transport: Transport,
) -> impl Fn() -> Maker + use<> {
    let (stages, backend) = (stages.to_owned(), backend.to_owned());
    move || {
        let disk = Registry::standard().build_block(&backend.parse().unwrap()).unwrap();
        let stages = stages.clone();
        let mut rooms = rooms.into_iter().cycle();
        Box::new(move |at| {
            let capacity = disk.caps().capacity;
            let (slow, handle) = SlowDisk::new(disk.clone(), capacity, LONGEST, at.seed);
            let (stack, watch) = Watch::above(above_disk(&stages, BoxBackend::new(slow)));
            let queue_size = rooms.next().unwrap();
            let config = BlkConfig { queues: 2, queue_size, ..BlkConfig::default() };
            let device = Arc::new(VirtioBlk::new(config, stack).unwrap());
            made(transport(device, at), (handle, capacity), watch)
        })
    }
}

/// A card above those stages and that back-end.
fn card(stages: &str, backend: &str, transport: Transport) -> impl Fn() -> Maker + use<> {
    let (stages, backend) = (stages.to_owned(), backend.to_owned());
    move || {
        let network = Registry::standard().build_net(&backend.parse().unwrap()).unwrap();
        let stages = stages.clone();
        Box::new(move |at| {
            let (slow, handle) = SlowNet::new(network.clone(), LONGEST, at.seed);
            let (stack, watch) = Watch::above(above_network(&stages, BoxBackend::new(slow)));
            let config = NetConfig { pairs: 2, queue_size: 32, ..NetConfig::default() };
            let device = Arc::new(VirtioNet::new(config, stack).unwrap());
            made(transport(device, at), handle, watch)
        })
    }
}

/// The interposers of a family in a description, with what they need, each alone and some above one another.
fn stacks(family: Family) -> Vec<String> {
    let registry = Registry::standard();
    let rows = registry.rows().filter(|row| row.kind() == StageKind::Interposer && row.is_available());
    let rows = rows.filter(|row| [Family::Any, family].contains(&row.info().family));
    let mut stacks: Vec<String> = rows
        .map(|row| match row.info().name {
            "delay" => "delay,time=30us,jitter=100us".into(),
            "scheduled" => "scheduled,group=g,depth=4".into(),
            name => name.to_owned(),
        })
        .collect();
    stacks.push(String::new());
    stacks.push("stats -> swappable -> delay,time=40us,jitter=40us -> fault".into());
    stacks.push("delay,time=20us -> swappable -> stats".into());
    if family == Family::Net {
        stacks.push("filter -> swappable -> filter,name=inner -> delay,time=60us".into());
    }
    stacks
}

fn live(case: &DeviceCase<'_>, count: u64) -> Run {
    let run = device::run(case, seeds(count)).unwrap_or_else(|failure| panic!("{failure}"));
    println!("{}: {run}", case.name);
    run
}

fn all(cases: usize, total: &Run) {
    println!("{cases} devices: {total}");
    assert!(total.drains > 0 && total.ways_back > 0 && total.resets > 0 && total.restores > 0, "{total}");
    assert!(total.stalls > 0 && total.resizes > 0 && total.swaps > 0, "{total}");
}

#[test]
fn a_disk_above_every_stage_and_back_end() {
    let (mut total, mut cases) = (Run::default(), 0);
    let backends = [
        "memory,size=1M",
        "mirror [memory,size=1M | memory,size=1M]",
        "overlay [memory,size=1M | null,size=1M]",
    ];
    for backend in backends {
        for stages in stacks(Family::Block) {
            let name = format!("virtio-blk -> {stages} -> {backend}");
            total += live(&DeviceCase::disk(&name, &disk(&stages, backend, mmio)), SEEDS);
            cases += 1;
        }
    }
    all(cases, &total);
}

#[test]
fn a_card_above_every_stage() {
    let (mut total, mut cases) = (Run::default(), 0);
    for stages in stacks(Family::Net) {
        let name = format!("virtio-net -> {stages} -> loopback");
        total += live(&DeviceCase::network(&name, &card(&stages, "loopback", mmio)), SEEDS * 2);
        cases += 1;
    }
    all(cases, &total);
}

#[test]
fn the_same_seed_is_the_same_run() {
    let mut traces = BTreeSet::new();
    let (disk, card) = (disk("swappable", "memory,size=1M", mmio), card("swappable", "loopback", mmio));
    for case in [DeviceCase::disk("disk", &disk), DeviceCase::network("card", &card)] {
        for seed in seeds(4) {
            let run = device::run_one(&case, seed).unwrap_or_else(|failure| panic!("{failure}"));
            assert_eq!(Ok(run), device::run_one(&case, seed));
            traces.insert(run.trace);
        }
    }
    assert!(traces.len() > 1);
}
