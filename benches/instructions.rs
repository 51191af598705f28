//! A device that does the same over and over, for a program that counts its instructions (`cargo xtask test --only instructions`): these are the same in
//! every run, whatever else the machine does.
//!
//! `instructions virtio-blk 'stats -> null,fill=off' 1000` has a disk serve so many batches of 32 reads of 4 KiB, `virtio-net` has a card send
//! and receive as many frames of 64 bytes. What is below the device is a description, built boxed as users build it. Without
//! arguments, as in a test, it only shows that it works.

use blk::Disk;
use iovirt::registry::Registry;
use net::{Card, PAGES};

#[path = "fixture/blk.rs"]
mod blk;
#[path = "fixture/net.rs"]
#[allow(dead_code, reason = "other benches use more of it")]
mod net;

const BATCH: u16 = 32;
const FRAME: u32 = 64;

fn run(device: &str, below: &str, count: u32) {
    let (registry, chain) = (Registry::standard(), below.parse().expect("a description"));
    match device {
        "virtio-blk" => {
            let mut disk = Disk::new(registry.build_block(&chain).expect("a disk"));
            (0..count).for_each(|_| disk.turn(BATCH));
            disk.check();
        }
        "virtio-net" => {
            let mut card = Card::new(FRAME, PAGES, registry.build_net(&chain).expect("a network"));
            (0..count).for_each(|_| card.turn(BATCH));
            card.check();
        }
        other => panic!("no device {other}: virtio-blk or virtio-net"),
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [device, below, count] = &arguments[..] {
        return run(device, below, count.parse().expect("a number of batches"));
    }
    run("virtio-blk", "null,fill=off", 1);
    run("virtio-net", "loopback", 1);
}
