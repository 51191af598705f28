//! The split ring against `virtio-queue`, in one run over the same memory.
//!
//! One request is a chain of three descriptors, as a disk read has: 16 bytes for the device to read, 4096 and 1 to
//! write. It is popped, every descriptor is resolved to host memory and bounds-checked, the chain is returned to
//! the used ring, and once per batch the interrupt is decided with `VIRTIO_F_EVENT_IDX`. The ring has 256
//! entries. Times are per batch; the throughput that is printed is requests.
//!
//! `cargo bench --bench ring`

use std::hint::black_box;
use std::sync::atomic::Ordering;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use iovirt_core::dma::DmaSpace;
use iovirt_frontends::virtio::queue::{Chain, QueueConfig, RingFeatures, SplitQueue};
use virtio_queue::{Queue, QueueT};
use vm_memory::bitmap::{AtomicBitmap, Bitmap, NewBitmap};
use vm_memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryMmap, Permissions};

const SIZE: u16 = 256;
const DESC: u64 = 0x1000;
const AVAIL: u64 = 0x3000;
const USED: u64 = 0x5000;
const BUFFERS: u64 = 0x1_0000;
const CHAINS: u64 = 85;

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

fn theirs<B: Bitmap>(memory: &GuestMemoryMmap<B>, queue: &mut Queue) -> bool {
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

fn ours(view: &mut iovirt_core::dma::DmaView, queue: &mut SplitQueue, chain: &mut Chain) -> bool {
    view.refresh();
    queue.refresh(view).unwrap();
    while let Some(head) = queue.pop(view, chain).unwrap() {
        for list in [chain.readable(), chain.writable()] {
            for iov in list.as_iovecs() {
                black_box(iov.as_ptr());
                black_box(iov.len());
            }
        }
        queue.push_used(head, chain.writable().len() as u32);
    }
    queue.publish();
    queue.needs_interrupt()
}

fn compare<B: NewBitmap + Send + Sync + 'static>(criterion: &mut Criterion, name: &str) {
    let mut group = criterion.benchmark_group(name);
    let memory = memory::<B>();
    for batch in [1, 32, 256] {
        group.throughput(Throughput::Elements(u64::from(batch)));

        let mut queue = Queue::new(SIZE).unwrap();
        queue.set_desc_table_address(Some(DESC as u32), Some(0));
        queue.set_avail_ring_address(Some(AVAIL as u32), Some(0));
        queue.set_used_ring_address(Some(USED as u32), Some(0));
        queue.set_event_idx(true);
        queue.set_ready(true);
        let mut index = 0;
        group.bench_function(BenchmarkId::new("virtio-queue", batch), |bencher| {
            bencher.iter(|| {
                offer(&memory, &mut index, batch);
                theirs(&memory, &mut queue)
            });
        });

        memory.store(0u16, GuestAddress(AVAIL + 2), Ordering::Release).unwrap();
        let mut view = DmaSpace::from_guest_memory(&memory).unwrap().view();
        let config =
            QueueConfig { size: SIZE, max_size: SIZE, desc: DESC, avail: AVAIL, used: USED, ready: true };
        let features = RingFeatures { event_idx: true, indirect: true };
        let mut queue = SplitQueue::new(config, features, &view).unwrap();
        let mut chain = Chain::new();
        let mut index = 0;
        group.bench_function(BenchmarkId::new("iovirt", batch), |bencher| {
            bencher.iter(|| {
                offer(&memory, &mut index, batch);
                ours(&mut view, &mut queue, &mut chain)
            });
        });
    }
    group.finish();
}

fn ring(criterion: &mut Criterion) {
    compare::<()>(criterion, "split ring");
    compare::<AtomicBitmap>(criterion, "split ring, dirty log");
}

criterion_group!(benches, ring);
criterion_main!(benches);
