//! The split ring against `virtio-queue`, in one run over the same memory.
//!
//! One request is a chain of three descriptors, as a disk read has: 16 bytes for the device to read, 4096 and 1 to
//! write. It is popped, every descriptor is resolved to host memory and bounds-checked, the chain is returned to
//! the used ring, and once per batch the interrupt is decided with `VIRTIO_F_EVENT_IDX`. The ring has 256
//! entries.
//!
//! `cargo bench --bench ring` first prints a table: nanoseconds per request, the two measured in turns of some 100
//! microseconds so that a busy machine is busy for both, and how many times faster ours is. Criterion's own
//! measurements follow; their times are per batch, and each is taken by itself.

use std::hint::black_box;
use std::sync::atomic::Ordering;
use std::time::Instant;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group};
use engine::Engine;
use iovirt_core::dma::DmaSpace;
use iovirt_frontends::virtio::queue::QueueConfig;
use virtio_queue::{Queue, QueueT};
use vm_memory::bitmap::{AtomicBitmap, Bitmap, NewBitmap};
use vm_memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryMmap, Permissions};

#[path = "fixture/engine.rs"]
mod engine;

const SIZE: u16 = 256;
const DESC: u64 = 0x1000;
const AVAIL: u64 = 0x3000;
const USED: u64 = 0x5000;
const BUFFERS: u64 = 0x1_0000;
const CHAINS: u64 = 85;
const QUEUE: QueueConfig =
    QueueConfig { size: SIZE, max_size: SIZE, desc: DESC, avail: AVAIL, used: USED, ready: true };

/// Memory of 16 MiB with a ring full of chains.
fn memory<B: NewBitmap>() -> GuestMemoryMmap<B> {
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 16 << 20)]).unwrap();
    for chain in 0..CHAINS {
        for (part, (len, flags)) in [(16u32, 1u16), (4096, 3), (1, 2)].into_iter().enumerate() {
            let index = chain * 3 + part as u64;
            let at = DESC + index * 16;
            memory.write_obj(BUFFERS + chain * 0x2000 + part as u64 * 0x10, GuestAddress(at)).unwrap();
            memory.write_obj(len, GuestAddress(at + 8)).unwrap();
            memory.write_obj(flags, GuestAddress(at + 12)).unwrap();
            memory.write_obj((index + 1) as u16, GuestAddress(at + 14)).unwrap();
        }
    }
    for slot in 0..u64::from(SIZE) {
        memory.write_obj((slot % CHAINS * 3) as u16, GuestAddress(AVAIL + 4 + slot * 2)).unwrap();
    }
    memory
}

/// The driver makes `batch` more chains available.
fn offer<B: Bitmap>(memory: &GuestMemoryMmap<B>, index: &mut u16, batch: u16) {
    *index = index.wrapping_add(batch);
    memory.store(*index, GuestAddress(AVAIL + 2), Ordering::Release).unwrap();
}

/// `virtio-queue` and its ring.
struct Theirs<B> {
    memory: GuestMemoryMmap<B>,
    queue: Queue,
    offered: u16,
}

impl<B: NewBitmap> Theirs<B> {
    fn new() -> Self {
        let mut queue = Queue::new(SIZE).unwrap();
        queue.set_desc_table_address(Some(DESC as u32), Some(0));
        queue.set_avail_ring_address(Some(AVAIL as u32), Some(0));
        queue.set_used_ring_address(Some(USED as u32), Some(0));
        queue.set_event_idx(true);
        queue.set_ready(true);
        Self { memory: memory(), queue, offered: 0 }
    }

    fn turn(&mut self, batch: u16) -> bool {
        offer(&self.memory, &mut self.offered, batch);
        drain_theirs(&self.memory, &mut self.queue)
    }
}

/// A device's turn with `virtio-queue`.
#[inline(never)]
fn drain_theirs<B: Bitmap>(memory: &GuestMemoryMmap<B>, queue: &mut Queue) -> bool {
    while let Some(mut chain) = queue.pop_descriptor_chain(memory) {
        let head = chain.head_index();
        let mut written = 0;
        for descriptor in &mut chain {
            let access = if descriptor.is_write_only() {
                written += descriptor.len();
                Permissions::Write
            } else {
                Permissions::Read
            };
            for slice in memory.get_slices(descriptor.addr(), descriptor.len() as usize, access).unwrap() {
                let slice = slice.unwrap();
                black_box(slice.ptr_guard_mut().as_ptr());
                black_box(slice.len());
            }
        }
        queue.add_used(memory, head, written).unwrap();
    }
    queue.needs_notification(memory).unwrap()
}

/// Our queue and its ring.
struct Ours<B> {
    memory: GuestMemoryMmap<B>,
    engine: Engine,
    offered: u16,
}

impl<B: NewBitmap + Send + Sync + 'static> Ours<B> {
    fn new() -> Self {
        let memory = memory();
        let engine = Engine::new(&DmaSpace::from_guest_memory(&memory).unwrap(), QUEUE);
        Self { memory, engine, offered: 0 }
    }

    fn turn(&mut self, batch: u16) -> bool {
        offer(&self.memory, &mut self.offered, batch);
        self.engine.turn()
    }
}

const BATCHES: [u16; 3] = [1, 32, 256];

fn compare<B: NewBitmap + Send + Sync + 'static>(criterion: &mut Criterion, name: &str) {
    let mut group = criterion.benchmark_group(name);
    for batch in BATCHES {
        group.throughput(Throughput::Elements(u64::from(batch)));
        let mut theirs = Theirs::<B>::new();
        group.bench_function(BenchmarkId::new("virtio-queue", batch), |bencher| {
            bencher.iter(|| theirs.turn(batch));
        });
        let mut ours = Ours::<B>::new();
        group.bench_function(BenchmarkId::new("iovirt", batch), |bencher| bencher.iter(|| ours.turn(batch)));
    }
    group.finish();
}

/// Nanoseconds per request of one measurement.
fn sample(batch: u16, mut turn: impl FnMut(u16) -> bool) -> f64 {
    const REQUESTS: u32 = 1024;
    let start = Instant::now();
    for _ in 0..REQUESTS / u32::from(batch) {
        black_box(turn(batch));
    }
    start.elapsed().as_nanos() as f64 / f64::from(REQUESTS)
}

/// Measures both in turns and prints the fastest and the median of each.
fn in_turns<B: NewBitmap + Send + Sync + 'static>(name: &str) {
    const SAMPLES: usize = 1000;
    for batch in BATCHES {
        let (mut theirs, mut ours) = (Theirs::<B>::new(), Ours::<B>::new());
        let (mut slow, mut fast) = (Vec::new(), Vec::new());
        for _ in 0..SAMPLES {
            slow.push(sample(batch, |batch| theirs.turn(batch)));
            fast.push(sample(batch, |batch| ours.turn(batch)));
        }
        slow.sort_by(f64::total_cmp);
        fast.sort_by(f64::total_cmp);
        for (what, at) in [("fastest", 0), ("median", SAMPLES / 2)] {
            let (theirs, ours) = (slow[at], fast[at]);
            let ratio = theirs / ours;
            println!(
                "{name:<10} batch {batch:>3} {what:<8} virtio-queue {theirs:>6.1} ns  iovirt {ours:>5.1} ns  {ratio:>5.1}x"
            );
        }
    }
}

fn ring(criterion: &mut Criterion) {
    compare::<()>(criterion, "split ring");
    compare::<AtomicBitmap>(criterion, "split ring, dirty log");
}

criterion_group!(benches, ring);

fn main() {
    if std::env::args().any(|argument| argument == "--bench") {
        in_turns::<()>("plain");
        in_turns::<AtomicBitmap>("dirty log");
    }
    benches();
    Criterion::default().configure_from_args().final_summary();
}
