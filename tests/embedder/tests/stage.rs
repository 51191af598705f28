//! A stage of the embedder's own, by types and by name.

mod common;

use common::{DISK_MEMORY, Load, image};
use iovirt::backends::block::file::{FileBackend, FileConfig};
use iovirt::backends::interposers::stats::{Stats, StatsConfig};
use iovirt::core::Frontend;
use iovirt::core::pipeline::{BoxBackend, Pipeline};
use iovirt::frontends::virtio::blk::{BlkConfig, VirtioBlk};
use iovirt_embedder::Error;
use iovirt_embedder::guest::disk::{Disk, Op};
use iovirt_embedder::machine::{Machine, Window};
use iovirt_embedder::stages::flip::{self, FlipControl};
use std::path::Path;
use std::sync::Arc;

const KEY: u8 = 0x5a;

/// The guest reads what it wrote, and the image holds it flipped.
fn exercise(machine: &Machine, window: &Window, image: &Path) -> Result<(), Error> {
    let memory = machine.memory();
    let mut disk = Disk::start(window, memory, DISK_MEMORY)?;
    let mut load = Load::new();
    for _ in 0..20 {
        load.submit(&mut disk, window, memory)?;
        load.reap(&mut disk, window, memory)?;
    }
    load.finish(&mut disk, window, memory)?;
    let flipped = |bytes: Vec<u8>| bytes.into_iter().map(|byte| byte ^ KEY).collect();
    load.verify(&mut disk, (window, memory), image, flipped)?;
    let control = window.device().stages().control::<FlipControl>("flip").ok_or("a stage called flip")?;
    let (written, read) = control.bytes();
    assert!(written >= read && read == load.holds.len() as u64 * common::BLOCK as u64, "{written} {read}");
    Ok(())
}

#[test]
fn in_a_typed_pipeline() -> Result<(), Error> {
    let (image, machine) = (image(), Machine::new()?);
    let stack = Pipeline::top()
        .stage(Stats::new(&StatsConfig::default()).layer())
        .stage(flip::layer(KEY))
        .backend(FileBackend::open(FileConfig::new(image.path()))?)?;
    let disk = VirtioBlk::new(BlkConfig::default(), BoxBackend::new(stack))?;
    let window = machine.plug_device(Arc::new(disk))?;
    exercise(&machine, &window, image.path())
}

#[test]
fn by_name_in_a_description() -> Result<(), Error> {
    let (image, machine) = (image(), Machine::new()?);
    let line = format!("virtio-blk -> stats -> flip,key={KEY} -> file,path={}", image.path().display());
    let window = machine.plug(&line)?;
    exercise(&machine, &window, image.path())?;
    assert!(machine.registry().list_stages().contains("flip  (block, experimental)"));
    Ok(())
}

/// The guest's memory is its own: while a write is under way, and after it, nothing in it was flipped.
#[test]
fn the_guest_never_sees_what_is_stored() -> Result<(), Error> {
    let (image, machine) = (image(), Machine::new()?);
    let line = format!("virtio-blk -> flip,key={KEY} -> valve -> file,path={}", image.path().display());
    let window = machine.plug(&line)?;
    let memory = machine.memory();
    let mut disk = Disk::start(&window, memory, DISK_MEMORY)?;
    let secret = common::content(1, 1, 4096);
    let stored: Vec<u8> = secret.iter().map(|byte| byte ^ KEY).collect();
    disk.run(&window, memory, (Op::Write, 0), &secret)?;
    assert!(disk.run(&window, memory, (Op::Read, 0), &[0; 4096])? == secret);
    assert!(std::fs::read(image.path())?[..4096] == stored, "the medium holds it flipped");
    let memory = machine.content()?;
    assert!(!memory.windows(64).any(|window| window == &stored[..64]), "and the guest does not");
    Ok(())
}
