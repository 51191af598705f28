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
use iovirt_backends::net::tap::{TapBackend, TapConfig};
use iovirt_core::dma::{SgLimits, SgPool};
use iovirt_core::pipeline::{BoxBackend, BoxInterposer, Pipeline};
use iovirt_core::prelude::*;
use iovirt_core::request::net::NetRequest;
use net::{Card, PAGES, loopback};
use std::io::{IoSlice, Write};
use std::process::Command;

#[path = "fixture/net.rs"]
mod net;

const FRAME: u32 = 64;

fn virtio_net(c: &mut Criterion) {
    let mut group = c.benchmark_group("virtio-net");
    let filter = || BoxInterposer::new(Filter::new(&FilterConfig::default()).layer());
    for (name, stack) in [
        ("loopback", loopback()),
        ("filter -> loopback", Pipeline::boxed(vec![filter()], loopback()).unwrap()),
    ] {
        for batch in [1u16, 32, 64] {
            let mut card = Card::new(FRAME, PAGES, stack.clone());
            group.throughput(Throughput::Elements(batch.into()));
            group.bench_function(BenchmarkId::new(name, batch), |b| b.iter(|| card.turn(batch)));
            card.check();
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
        let header = [0u8; net::HEADER as usize];
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
        let mut len = super::net::HEADER as libc::c_int;
        // SAFETY: the descriptor is open; the kernel reads and writes one `ifreq`, which lives on this stack.
        let made = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
        // SAFETY: as above, of one `int`.
        let sized = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw mut len) };
        (made == 0 && sized == 0).then_some(file)
    }
}

criterion_group!(benches, virtio_net, into_the_host);
criterion_main!(benches);
