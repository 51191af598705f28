//! What a frame costs on its way: from the guest's transmit ring through the device and a loopback into the guest's receive
//! ring, both copies included; and, as root, a bare `writev` to a tap in the same run, which is what the host charges for a
//! frame without any device.
//!
//! A batch: the driver makes frames of 64 bytes and as many receive buffers available and rings the transmit doorbell; the
//! worker takes a step, in which both queues are served. Times are per batch; the throughput that is printed is frames.
//!
//! `cargo bench --bench net_path`

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use iovirt_backends::interposers::filter::{Filter, FilterConfig};
use iovirt_backends::net::loopback::{LoopbackBackend, LoopbackConfig};
use iovirt_backends::net::tap::{TapBackend, TapConfig};
use iovirt_core::dma::{DmaSpace, SgLimits, SgPool};
use iovirt_core::frontend::Frontend;
use iovirt_core::irq::CountingInterrupt;
use iovirt_core::pipeline::{BoxBackend, BoxInterposer, Pipeline};
use iovirt_core::prelude::*;
use iovirt_core::request::net::NetRequest;
use iovirt_frontends::virtio::net::{NetConfig, VirtioNet};
use iovirt_frontends::virtio::transport::mmio::MmioDevice;
use std::io::{IoSlice, Write};
use std::process::Command;
use std::sync::Arc;

const SIZE: u16 = 256;
const FRAME: u32 = 64;
const HEADER: u32 = 12;
const RINGS: [u64; 2] = [0x1_0000, 0x2_0000];
const AVAIL: u64 = 0x4000;
const USED: u64 = 0x8000;
const BUFFERS: u64 = 0x10_0000;

/// Guest memory with a ring full of receive buffers and one full of frames, each in one descriptor.
fn memory() -> DmaSpace {
    let space = DmaSpace::anonymous(&[(0, 16 << 20)]).unwrap();
    let view = space.view();
    for (queue, (len, flags)) in [(2048u32, 2u16), (HEADER + FRAME, 0)].into_iter().enumerate() {
        for index in 0..u64::from(SIZE) {
            let buffer = BUFFERS + (queue as u64 * u64::from(SIZE) + index) * 0x1000;
            view.write(buffer + 12, &[0xff; 14]).unwrap();
            let mut descriptor = [0; 16];
            descriptor[..8].copy_from_slice(&buffer.to_le_bytes());
            descriptor[8..12].copy_from_slice(&len.to_le_bytes());
            descriptor[12..14].copy_from_slice(&flags.to_le_bytes());
            view.write(RINGS[queue] + index * 16, &descriptor).unwrap();
            view.write(RINGS[queue] + AVAIL + 4 + index * 2, &(index as u16).to_le_bytes()).unwrap();
        }
    }
    space
}

/// A card that a driver has set up by its registers.
fn card(space: &DmaSpace, stack: BoxBackend<NetRequest>) -> (Worker, MmioDevice) {
    let mut worker = Worker::new(WorkerConfig::default()).unwrap();
    let net = Arc::new(VirtioNet::new(NetConfig::default(), stack).unwrap());
    let device = MmioDevice::new(net, space, Arc::new(CountingInterrupt::new()), &[worker.handle()]).unwrap();
    let write = |offset: u64, value: u64| {
        let _ = device.write(0, offset, &(value as u32).to_le_bytes());
    };
    for (offset, value) in [(0x070, 3), (0x024, 0), (0x020, 1 << 29), (0x024, 1), (0x020, 1), (0x070, 11)] {
        write(offset, value);
    }
    for (queue, ring) in (0..).zip(RINGS) {
        for (offset, value) in [
            (0x030, queue),
            (0x038, u64::from(SIZE)),
            (0x080, ring),
            (0x090, ring + AVAIL),
            (0x0a0, ring + USED),
            (0x044, 1),
        ] {
            write(offset, value);
        }
    }
    write(0x070, 15);
    worker.run().unwrap();
    (worker, device)
}

fn loopback() -> BoxBackend<NetRequest> {
    BoxBackend::new(LoopbackBackend::new(&LoopbackConfig::default()).unwrap())
}

fn virtio_net(c: &mut Criterion) {
    let mut group = c.benchmark_group("virtio-net");
    let filter = || BoxInterposer::new(Filter::new(&FilterConfig::default()).layer());
    for (name, stack) in [
        ("loopback", loopback()),
        ("filter -> loopback", Pipeline::boxed(vec![filter()], loopback()).unwrap()),
    ] {
        for batch in [1u16, 32, 64] {
            let space = memory();
            let view = space.view();
            let (mut worker, device) = card(&space, stack.clone());
            let mut index = 0u16;
            group.throughput(Throughput::Elements(batch.into()));
            group.bench_function(BenchmarkId::new(name, batch), |b| {
                b.iter(|| {
                    index = index.wrapping_add(batch);
                    view.write(RINGS[0] + AVAIL + 2, &index.to_le_bytes()).unwrap();
                    view.write(RINGS[1] + AVAIL + 2, &index.to_le_bytes()).unwrap();
                    let _ = device.write(0, 0x050, &1u32.to_le_bytes());
                    worker.run().unwrap();
                });
            });
            for ring in RINGS {
                let used = u16::from_le_bytes(view.read_array(ring + USED + 2).unwrap());
                assert_eq!(used, index, "every frame is back in the step that follows its doorbell");
            }
        }
    }
    group.finish();
}

/// A tap of this process that is up, whose frames go nowhere; `None` without the right to make one.
fn tap() -> Option<BoxBackend<NetRequest>> {
    let tap = TapBackend::open(&TapConfig::new("iovirt-bench")).ok()?;
    let up = Command::new("ip").args(["link", "set", "iovirt-bench", "up"]).status();
    up.is_ok_and(|status| status.success()).then(|| BoxBackend::new(tap))
}

/// Frames into the host: 32 by the bare system call (on a descriptor as the host's test tool would have it), and by the
/// back-end.
fn into_the_host(c: &mut Criterion) {
    let Some(stack) = tap() else {
        println!("no tap without root: the comparison with the host is left out");
        return;
    };
    let mut group = c.benchmark_group("tap");
    let depth = Depth::new(32).unwrap();
    group.throughput(Throughput::Elements(depth.get() as u64));
    let mut frame = [0u8; FRAME as usize];
    frame[..6].fill(0x02);
    let mut worker = Worker::new(WorkerConfig::default()).unwrap();
    let mut pool = SgPool::new(depth.get(), SgLimits::default());
    let mut done = Completions::with_depth(depth);
    group.bench_function("back-end", |b| {
        worker.with_context(|cx| {
            let mut queue = stack.open(cx, depth).unwrap();
            b.iter(|| {
                for tag in 0..depth.get() as u32 {
                    let mut sg = pool.take();
                    sg.push_host(frame.len()).unwrap();
                    sg.copy_from(0, &frame).unwrap();
                    queue.submit(cx, NetRequest::transmit(Tag::new(tag), 0, sg));
                }
                queue.kick(cx);
                queue.poll(cx, &mut done);
                for completion in done.drain() {
                    pool.put(completion.request.into_sg());
                }
            });
        });
    });
    drop(stack);
    if let Some(mut file) = bare::open("iovirt-bare") {
        let up = Command::new("ip").args(["link", "set", "iovirt-bare", "up"]).status();
        assert!(up.is_ok_and(|status| status.success()));
        let header = [0u8; HEADER as usize];
        group.bench_function("bare writev", |b| {
            b.iter(|| {
                for _ in 0..depth.get() {
                    let count = file.write_vectored(&[IoSlice::new(&header), IoSlice::new(&frame)]).unwrap();
                    assert_eq!(count, header.len() + frame.len());
                }
            });
        });
    }
    group.finish();
}

mod bare {
    //! A tap without any of our code.

    use std::fs::{File, OpenOptions};
    use std::os::fd::AsRawFd;

    pub(super) fn open(name: &str) -> Option<File> {
        let file = OpenOptions::new().read(true).write(true).open("/dev/net/tun").ok()?;
        let mut ifr_name = [0; libc::IFNAMSIZ];
        for (to, from) in ifr_name.iter_mut().zip(name.bytes()) {
            *to = from as libc::c_char;
        }
        let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
        let ifr_ifru = libc::__c_anonymous_ifr_ifru { ifru_flags: flags as libc::c_short };
        let mut request = libc::ifreq { ifr_name, ifr_ifru };
        let mut len = super::HEADER as libc::c_int;
        // SAFETY: the descriptor is open; the kernel reads and writes one `ifreq`, which lives on this stack.
        let made = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
        // SAFETY: as above, of one `int`.
        let sized = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw mut len) };
        (made == 0 && sized == 0).then_some(file)
    }
}

criterion_group!(benches, virtio_net, into_the_host);
criterion_main!(benches);
