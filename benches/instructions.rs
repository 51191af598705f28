//! A device that does the same over and over, for a program that counts its instructions (`cargo xtask test --only instructions`): these are the same in
//! every run, whatever else the machine does.
//!
//! `instructions virtio-blk 'stats -> null,fill=off' 1000` has a disk serve so many batches of 32 reads of 4 KiB, `virtio-net` has a card send
//! and receive as many frames of 64 bytes. What is below the device is a description, built boxed as users build it; `IMAGE` in it stands for a
//! fresh image on tmpfs. `split ring` is the ring engine with nothing below: it pops the chains of the same reads, walks and returns them.
//! `logged` behind a device's name has its guest's memory log what the device writes. `vhost-user` is the disk of a front-end in this process, whose
//! instructions for a request are counted too; `in flight` has the device note the chains that it holds. Without arguments, as in a test, it only shows
//! that it works.

use blk::{Disk, logged, plain};
use engine::Engine;
use iovirt::registry::Registry;
use iovirt_core::dma::DmaSpace;
use net::{Card, PAGES};
use remote::Remote;
use std::path::Path;

#[path = "fixture/blk.rs"]
#[allow(dead_code, reason = "other benches use more of it")]
mod blk;
#[path = "fixture/engine.rs"]
mod engine;
#[path = "fixture/host.rs"]
#[allow(dead_code, reason = "other benches use more of it")]
mod host;
#[path = "fixture/net.rs"]
#[allow(dead_code, reason = "other benches use more of it")]
mod net;
#[path = "fixture/remote.rs"]
mod remote;

const BATCH: u16 = 32;
const FRAME: u32 = 64;
/// The protocol's feature by which a device notes the chains that it holds.
const IN_FLIGHT: u64 = 1 << 12;

fn ring(space: &DmaSpace, count: u32) {
    let (mut engine, view) = (Engine::new(space, blk::QUEUE), space.view());
    let mut offered = 0u16;
    for _ in 0..count {
        offered = offered.wrapping_add(BATCH);
        view.write(blk::AVAIL + 2, &offered.to_le_bytes()).unwrap();
        engine.turn();
    }
    assert_eq!(blk::used(&view), offered, "every chain is returned in its turn");
}

fn disk(space: &DmaSpace, below: &str, count: u32) {
    let image = below.contains("IMAGE").then(|| host::image(Path::new(host::MEMORY)));
    let path = image.as_ref().map_or(String::new(), |image| image.path().display().to_string());
    let chain = below.replace("IMAGE", &path).parse().expect("a description");
    let mut disk = Disk::new(space, Registry::standard().build_block(&chain).expect("a disk"));
    (0..count).for_each(|_| disk.turn(BATCH));
    disk.check();
}

fn card(below: &str, count: u32) {
    let chain = below.parse().expect("a description");
    let mut card = Card::new(FRAME, PAGES, Registry::standard().build_net(&chain).expect("a network"));
    (0..count).for_each(|_| card.turn(BATCH));
    card.check();
}

fn remote(protocol_features: u64, below: &str, count: u32) {
    let chain = below.parse().expect("a description");
    let mut remote =
        Remote::new(Registry::standard().build_block(&chain).expect("a disk"), protocol_features);
    (0..count).for_each(|_| remote.turn());
}

fn run(device: &str, below: &str, count: u32) {
    match device {
        "split ring" => ring(&plain(), count),
        "split ring, logged" => ring(&logged(), count),
        "virtio-blk" => disk(&plain(), below, count),
        "virtio-blk, logged" => disk(&logged(), below, count),
        "vhost-user" => remote(!IN_FLIGHT, below, count),
        "vhost-user, in flight" => remote(u64::MAX, below, count),
        "virtio-net" => card(below, count),
        other => panic!("no device {other}"),
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [device, below, count] = &arguments[..] {
        return run(device, below, count.parse().expect("a number of batches"));
    }
    for (device, below) in [
        ("split ring", ""),
        ("split ring, logged", ""),
        ("virtio-blk", "null,fill=off"),
        ("virtio-blk, logged", "null,fill=off"),
        ("virtio-blk", "file,path=IMAGE"),
        ("vhost-user", "null,fill=off"),
        ("vhost-user, in flight", "null,fill=off"),
        ("virtio-net", "loopback"),
    ] {
        run(device, below, 1);
    }
}
