//! The hostile-driver suite over virtio-blk behind virtio-mmio, whole and broken on purpose.

#[path = "hostile/sabotage.rs"]
mod sabotage;

use iovirt::describe::Description;
use iovirt::registry::Registry;
use iovirt_core::dma::DmaSpace;
use iovirt_core::irq::CountingInterrupt;
use iovirt_core::test_utils::hostile::{
    self, Exchange, Layout, Profile, QueueSetup, RawDriver, Split, Target, feature,
};
use iovirt_core::{Worker, WorkerConfig};
use iovirt_frontends::virtio::transport::mmio::MmioDevice;
use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// Where the guest's memory begins.
const BASE: u64 = 0x10_0000;
/// Requests that one turn takes from a ring.
const TURN: u16 = 256;

fn target(description: &Description, queue: u32) -> Target {
    let config = WorkerConfig { rounds: 1, ..WorkerConfig::default() };
    let worker = Rc::new(RefCell::new(Worker::new(config).unwrap()));
    let space = DmaSpace::anonymous(&[(0, 0x1000), (BASE, Layout::LEN)]).unwrap();
    let device = Registry::standard().build_virtio(description).unwrap();
    let interrupt = Arc::new(CountingInterrupt::new());
    let handle = worker.borrow().handle();
    let frontend = MmioDevice::new(device, &space, interrupt, &[handle]).unwrap();
    let counted = worker.clone();
    Target {
        frontend: Arc::new(frontend),
        space,
        base: BASE,
        queue,
        step: Box::new(move || worker.borrow_mut().run_within(Duration::from_millis(1)).unwrap()),
        lanes: Some(Box::new(move || counted.borrow().lanes())),
    }
}

fn header(kind: u32, sector: u64) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat()
}

fn request(kind: u32, sector: u64, data: &[u8]) -> Vec<u8> {
    [&header(kind, sector), data].concat()
}

/// An answer that ends in that status, behind that data.
fn answer(status: u8, data: Vec<u8>) -> impl Fn(&[u8]) -> Result<(), String> + Send + Sync + 'static {
    move |bytes| {
        let (found, body) = bytes.split_last().ok_or("nothing was written")?;
        if *found != status {
            return Err(format!("the status is {found}, not {status}"));
        }
        if status == 0 && body != data { Err("other data came back".into()) } else { Ok(()) }
    }
}

/// Every request type, good and bad. The disk has 4 MiB, of which the first sector is never written.
fn exchanges() -> Vec<Exchange> {
    let pattern: Vec<u8> = (0..1024_u32).map(|at| (at * 7 + at / 251) as u8).collect();
    let range = |sector: u64, sectors: u32, flags: u32| {
        [&sector.to_le_bytes()[..], &sectors.to_le_bytes(), &flags.to_le_bytes()].concat()
    };
    let mut id = b"iovirt".to_vec();
    id.resize(20, 0);
    let none = Vec::new;
    vec![
        // First what does not depend on the disk's content: a header that changed while it was read may have made a write.
        Exchange::new("get id", header(8, 0), 21, answer(0, id)),
        Exchange::new("read", header(0, 0), 513, answer(0, vec![0; 512])),
        Exchange::new("write", request(1, 8, &pattern), 1, answer(0, none())),
        Exchange::new("read back", header(0, 8), 1025, answer(0, pattern.clone())),
        Exchange::new("flush", header(4, 0), 1, answer(0, none())),
        Exchange::new("write zeroes", request(13, 0, &range(9, 1, 0)), 1, answer(0, none())),
        Exchange::new("read zeroes", header(0, 8), 1025, answer(0, [&pattern[..512], &[0; 512]].concat())),
        Exchange::new("write no whole sector", request(1, 8, &pattern[..100]), 1, answer(1, none())),
        Exchange::new("read with data to write", request(0, 8, &pattern[..512]), 513, answer(1, none())),
        Exchange::new("read behind the end", header(0, u64::MAX), 513, answer(1, none())),
        Exchange::new("unknown", header(99, 0), 1, answer(2, none())),
        Exchange::new("unknown with data", request(77, 1, &pattern), 700, answer(2, none())),
    ]
}

fn run(name: &str, below: &str, step_bound: Option<u16>) {
    run_on(0, name, &format!("virtio-blk,queue-size=1024 -> {below}"), step_bound);
}

/// The suite over one queue of a disk.
fn run_on(queue: u32, name: &str, description: &str, step_bound: Option<u16>) {
    let description = description.parse().unwrap();
    let profile = Profile { step_bound, ..Profile::new(name, exchanges()) };
    let report = hostile::run(&|| target(&description, queue), &profile);
    report.assert_passed();
    println!("{name}, queue {queue}: {} cases, {} tries", report.results().len(), report.tries());
}

/// Queues that are not the first: one in the middle, and the last one.
#[test]
fn other_queues() {
    for queue in [1, 3] {
        let description = "virtio-blk,queues=4,queue-size=1024 -> stats -> memory,size=4M";
        run_on(queue, "virtio-blk of four queues", description, Some(TURN));
    }
}

#[test]
fn memory() {
    run("virtio-blk -> memory", "memory,size=4M", Some(TURN));
}

#[test]
fn stats_and_file() {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(4 << 20).unwrap();
    let below = format!("stats -> file,path={},lock=off", file.path().display());
    run("virtio-blk -> stats -> file", &below, None);
}

/// Every request of a batch may point to the same memory, so a ring of 256 can ask for far more bytes than the guest has:
/// one turn copies 64 MiB of that, and what the last request takes it over.
#[test]
fn the_bytes_of_a_turn_are_bounded() {
    let description = "virtio-blk,queue-size=1024 -> memory,size=4M".parse().unwrap();
    let mut driver = RawDriver::new(target(&description, 0), 4);
    let layout = driver.layout();
    driver.start(feature::ALL, &QueueSetup::good(&layout, 1024)).unwrap();
    let half_a_mebibyte = Exchange::new("read", header(0, 0), (512 << 10) + 1, |_| Ok(()));
    driver.lay_out(&half_a_mebibyte, &Split { indirect: true, ..Split::whole() }, 0);
    for _ in 0..1000 {
        driver.offer(0);
    }
    driver.kick();
    let (mut before, mut most) = (0, 0);
    driver
        .wait(|driver| {
            let now = driver.used_index();
            most = most.max(now - before);
            before = now;
            now == 1000
        })
        .unwrap();
    assert!((100..=128).contains(&most), "{most} requests of half a MiB in one turn");
}
