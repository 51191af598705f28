//! What a frame costs beside what it cannot cost less than, and beside the device that one would write with
//! `virtio-queue`: all in turns in one process, so that a busy machine is busy for each.
//!
//! A *frame* here is sent by the guest, goes through the device into a loopback, which copies it into host memory, and comes
//! back into a receive buffer of the same guest: two chains, two copies, two used rings, and for each batch one doorbell and
//! one step of the worker. The driver's side is a store of each available index, and no more.
//!
//! | row | what is in it |
//! |---|---|
//! | `two copies` | from the transmit buffer into host memory and from there, behind a header, into the receive buffer |
//! | `doorbell and step` | a write to the doorbell's eventfd and a step of the worker that finds no frame |
//! | `virtio-queue` | a device of its own that does the same in one function, without stages, life cycle and counters: an eventfd and an epoll for the doorbell, `virtio-queue` and `vm-memory` for the rings and the copies |
//! | `virtio-net -> loopback` | the whole boxed path |
//!
//! The guest's buffers begin on pages, the worst case, as all of them compete for the same few lines of the first cache; or
//! spread over their pages.
//!
//! `cargo bench --bench frames` prints nanoseconds per frame. `cargo bench --bench frames -- --count 2000` runs the last
//! row only, so many batches of 32: for a profiler that counts instructions
//! (`valgrind --tool=callgrind target/release/deps/frames-… --count 2000`).

use std::hint::black_box;
use std::sync::atomic::Ordering;
use std::time::Instant;

use net::{AVAIL, Card, HEADER, PAGES, RINGS, SIZE, USED, buffer};
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

#[path = "fixture/net.rs"]
mod net;

const BATCH: u16 = 32;
/// From one buffer of 2 KiB to the next in bytes, where something lies between them, as an allocator's header does: they
/// begin at different places of their pages.
const SPREAD: u64 = 0x840;

/// A loopback card as one function over `virtio-queue`.
struct Theirs {
    memory: GuestMemoryMmap,
    queues: [Queue; 2],
    doorbell: EventFd,
    epoll: Epoll,
    events: Vec<EpollEvent>,
    frames: Vec<Vec<u8>>,
    offered: u16,
}

impl Theirs {
    fn new(frame: u32, stride: u64) -> Self {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 16 << 20)]).unwrap();
        let view = net::memory(frame, stride).view();
        let mut page = [0; 4096];
        for at in (0..16 << 20).step_by(page.len()) {
            view.read(at, &mut page).unwrap();
            memory.write_slice(&page, GuestAddress(at)).unwrap();
        }
        let queues = RINGS.map(|ring| {
            let mut queue = Queue::new(SIZE).unwrap();
            queue.set_desc_table_address(Some(ring as u32), Some(0));
            queue.set_avail_ring_address(Some((ring + AVAIL) as u32), Some(0));
            queue.set_used_ring_address(Some((ring + USED) as u32), Some(0));
            queue.set_ready(true);
            queue
        });
        let doorbell = EventFd::new(EFD_NONBLOCK).unwrap();
        let epoll = Epoll::new().unwrap();
        let wish = EpollEvent::new(EventSet::IN | EventSet::EDGE_TRIGGERED, 0);
        epoll.ctl(ControlOperation::Add, std::os::fd::AsRawFd::as_raw_fd(&doorbell), wish).unwrap();
        let frames = (0..BATCH).map(|_| vec![0; frame as usize]).collect();
        Self { memory, queues, doorbell, epoll, events: vec![EpollEvent::default(); 64], frames, offered: 0 }
    }

    fn turn(&mut self) {
        self.offered = self.offered.wrapping_add(BATCH);
        for ring in RINGS {
            self.memory.store(self.offered, GuestAddress(ring + AVAIL + 2), Ordering::Release).unwrap();
        }
        self.doorbell.write(1).unwrap();
        if self.epoll.wait(0, &mut self.events).unwrap() > 0 {
            self.serve();
        }
    }

    fn serve(&mut self) {
        let Self { memory, queues: [receive, transmit], frames, .. } = self;
        let mut count = 0;
        transmit.disable_notification(memory).unwrap();
        while let Some(mut chain) = transmit.pop_descriptor_chain(&*memory) {
            let head = chain.head_index();
            let descriptor = chain.next().unwrap();
            let mut header = [0u8; 10];
            memory.read_slice(&mut header, descriptor.addr()).unwrap();
            assert!(header[0] == 0 && header[1] == 0, "an offload was not on offer");
            let frame = &mut frames[count];
            frame.resize((descriptor.len() - HEADER) as usize, 0);
            memory.read_slice(frame, GuestAddress(descriptor.addr().0 + u64::from(HEADER))).unwrap();
            transmit.add_used(memory, head, 0).unwrap();
            count += 1;
        }
        black_box(transmit.needs_notification(memory).unwrap());
        black_box(transmit.enable_notification(memory).unwrap());
        for frame in &frames[..count] {
            let mut chain = receive.pop_descriptor_chain(&*memory).unwrap();
            let head = chain.head_index();
            let descriptor = chain.next().unwrap();
            let len = HEADER + frame.len() as u32;
            assert!(descriptor.is_write_only() && descriptor.len() >= len);
            let mut header = [0u8; HEADER as usize];
            header[10] = 1;
            memory.write_slice(&header, descriptor.addr()).unwrap();
            memory.write_slice(frame, GuestAddress(descriptor.addr().0 + u64::from(HEADER))).unwrap();
            receive.add_used(memory, head, len).unwrap();
        }
        black_box(receive.needs_notification(memory).unwrap());
    }

    fn check(&self) {
        for ring in RINGS {
            let used: u16 = self.memory.load(GuestAddress(ring + USED + 2), Ordering::Acquire).unwrap();
            assert_eq!(used, self.offered);
        }
    }
}

/// The copies without any device, at the same places.
struct Copies {
    memory: Vec<u8>,
    tokens: Vec<Vec<u8>>,
    stride: u64,
    at: u64,
}

impl Copies {
    fn new(frame: u32, stride: u64) -> Self {
        let tokens = (0..BATCH).map(|_| vec![0; frame as usize]).collect();
        Self { memory: vec![1; 16 << 20], tokens, stride, at: 0 }
    }

    fn turn(&mut self) {
        let start = self.at;
        for (at, token) in (start..).zip(&mut self.tokens) {
            let from = (buffer(1, at % u64::from(SIZE), self.stride) + u64::from(HEADER)) as usize;
            let len = token.len();
            token.copy_from_slice(&self.memory[from..from + len]);
        }
        black_box(&mut self.tokens);
        for (at, token) in (start..).zip(&self.tokens) {
            let to = buffer(0, at % u64::from(SIZE), self.stride) as usize;
            self.memory[to..to + HEADER as usize].fill(0);
            let to = to + HEADER as usize;
            self.memory[to..to + token.len()].copy_from_slice(token);
        }
        black_box(&mut self.memory);
        self.at += u64::from(BATCH);
    }
}

/// Nanoseconds per frame of some batches.
fn sample(turn: &mut dyn FnMut()) -> f64 {
    const BATCHES: u32 = 32;
    let start = Instant::now();
    for _ in 0..BATCHES {
        turn();
    }
    start.elapsed().as_nanos() as f64 / f64::from(BATCHES * u32::from(BATCH))
}

/// Measures each in turn and prints the fastest and the median.
fn table(frame: u32, stride: u64) {
    const SAMPLES: usize = 1000;
    let card = || Card::new(frame, stride, net::loopback());
    let (mut ours, mut idle) = (card(), card());
    let (mut theirs, mut copies) = (Theirs::new(frame, stride), Copies::new(frame, stride));
    let mut rows: [(&str, &mut dyn FnMut()); 4] = [
        ("two copies", &mut || copies.turn()),
        ("doorbell and step", &mut || idle.ring()),
        ("virtio-queue", &mut || theirs.turn()),
        ("virtio-net -> loopback", &mut || ours.turn(BATCH)),
    ];
    let mut times = vec![Vec::with_capacity(SAMPLES); rows.len()];
    for _ in 0..SAMPLES {
        for ((_, turn), times) in rows.iter_mut().zip(&mut times) {
            times.push(sample(turn));
        }
    }
    for ((name, _), times) in rows.iter().zip(&mut times) {
        times.sort_by(f64::total_cmp);
        let (fastest, median) = (times[0], times[SAMPLES / 2]);
        let placed = if stride == PAGES { "on pages" } else { "spread" };
        println!(
            "{frame:>4} bytes, {placed:<8}  {name:<24} fastest {fastest:>6.1} ns  median {median:>6.1} ns per frame"
        );
    }
    ours.check();
    theirs.check();
}

fn main() {
    let mut arguments = std::env::args().skip_while(|argument| argument != "--count");
    if let Some(count) = arguments.nth(1) {
        let mut card = Card::new(64, PAGES, net::loopback());
        (0..count.parse::<u32>().expect("a number of batches")).for_each(|_| card.turn(BATCH));
        card.check();
        return;
    }
    // Run as a test, it only shows that it works.
    if std::env::args().any(|argument| argument == "--bench") {
        for stride in [PAGES, SPREAD] {
            for frame in [64, 1500] {
                table(frame, stride);
            }
        }
    } else {
        Theirs::new(64, PAGES).turn();
        Copies::new(64, PAGES).turn();
        Card::new(64, PAGES, net::loopback()).turn(BATCH);
    }
}
