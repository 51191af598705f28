//! The back-end exchanged under load, by the public control handle: nothing fails, and no data is lost.

mod common;

use common::{DISK_MEMORY, Load, image, until};
use iovirt::backends::interposers::stats::{Stats, StatsConfig, StatsControl};
use iovirt::core::Frontend;
use iovirt::core::pipeline::{BoxBackend, Pipeline, SwapControl, SwapError};
use iovirt::core::request::block::BlockRequest;
use iovirt_embedder::Error;
use iovirt_embedder::guest::disk::{DEPTH, Disk};
use iovirt_embedder::machine::{Machine, finish};
use iovirt_embedder::stages::valve::ValveControl;
use std::sync::Arc;

/// Five ways to the same file; `lock=off`, since two of them have it open for a moment.
fn newcomers(machine: &Machine, path: &str) -> Result<Vec<BoxBackend<BlockRequest>>, Error> {
    ["", ",engine=threads", ",inline=on", ",engine=threads,inline=off", ",cache=write-through"]
        .iter()
        .map(|options| {
            let chain = format!("stats -> file,path={path},lock=off{options}").parse()?;
            Ok(machine.registry().build_block(&chain)?)
        })
        .collect()
}

#[test]
fn the_back_end_changes_under_load() -> Result<(), Error> {
    let (image, machine) = (image(), Machine::new()?);
    let path = image.path().display().to_string();
    let window = machine.plug(&format!("virtio-blk -> swappable -> file,path={path},lock=off"))?;
    let memory = machine.memory();
    let mut disk = Disk::start(&window, memory, DISK_MEMORY)?;
    let stages = window.device().stages();
    let control: Arc<SwapControl<BlockRequest>> = stages.control("swappable").ok_or("swappable")?;
    let mut load = Load::new();
    let (mut swaps, mut under_load) = (0, 0);
    for _ in 0..8 {
        for newcomer in newcomers(&machine, &path)? {
            load.submit(&mut disk, &window, memory)?;
            let ticket = control.swap(newcomer)?;
            while !ticket.is_done() {
                load.reap(&mut disk, &window, memory)?;
                load.submit(&mut disk, &window, memory)?;
                under_load += 1;
            }
            finish(&ticket)?;
            swaps += 1;
        }
    }
    load.finish(&mut disk, &window, memory)?;
    load.verify(&mut disk, (&window, memory), image.path(), |bytes| bytes)?;
    println!("{swaps} exchanges, {under_load} turns of the load while one was under way");
    Ok(())
}

/// The same with requests that are in flight for sure, and others that come meanwhile.
#[test]
fn an_exchange_waits_for_what_is_in_flight() -> Result<(), Error> {
    let (image, machine) = (image(), Machine::new()?);
    let path = image.path().display().to_string();
    let window = machine.plug(&format!("virtio-blk -> swappable -> valve -> file,path={path},lock=off"))?;
    let memory = machine.memory();
    let mut disk = Disk::start(&window, memory, DISK_MEMORY)?;
    let stages = window.device().stages();
    let control: Arc<SwapControl<BlockRequest>> = stages.control("swappable").ok_or("swappable")?;
    let valve: Arc<ValveControl> = stages.control("valve").ok_or("a valve")?;
    let mut load = Load::new();
    valve.shut();
    load.submit(&mut disk, &window, memory)?;
    until("the requests get stuck", || valve.kept() == DEPTH)?;
    let newcomer = newcomers(&machine, &path)?.remove(0);
    let ticket = control.swap(newcomer.clone())?;
    assert!(!ticket.is_done());
    assert_eq!(control.swap(newcomer).unwrap_err(), SwapError::Busy);
    valve.open();
    load.reap(&mut disk, &window, memory)?;
    load.submit(&mut disk, &window, memory)?;
    finish(&ticket)?;
    load.finish(&mut disk, &window, memory)?;
    load.verify(&mut disk, (&window, memory), image.path(), |bytes| bytes)?;
    assert!(window.device().stages().control::<ValveControl>("valve").is_none());
    Ok(())
}

/// A stage is put below a running device, and taken out again: the back-end in use is a handle that can be stacked upon.
#[test]
fn a_stage_is_put_in_and_taken_out() -> Result<(), Error> {
    let (image, machine) = (image(), Machine::new()?);
    let window = machine.plug(&format!("virtio-blk -> swappable -> file,path={}", image.path().display()))?;
    let memory = machine.memory();
    let mut disk = Disk::start(&window, memory, DISK_MEMORY)?;
    let control: Arc<SwapControl<BlockRequest>> =
        window.device().stages().control("swappable").ok_or("swappable")?;
    let mut load = Load::new();
    load.submit(&mut disk, &window, memory)?;
    let plain = control.current();
    let counted =
        Pipeline::top().stage(Stats::new(&StatsConfig::default()).layer()).backend(plain.clone())?;
    finish(&control.swap(BoxBackend::new(counted))?)?;
    load.finish(&mut disk, &window, memory)?;
    let stats =
        window.device().stages().control::<StatsControl>("stats").ok_or("the stage that was put in")?;
    load.submit(&mut disk, &window, memory)?;
    load.finish(&mut disk, &window, memory)?;
    assert!(stats.snapshot().kinds[1].ops >= 16);
    finish(&control.swap(plain)?)?;
    assert!(window.device().stages().control::<StatsControl>("stats").is_none());
    load.verify(&mut disk, (&window, memory), image.path(), |bytes| bytes)
}

#[test]
fn what_promises_less_is_refused() -> Result<(), Error> {
    let (image, machine) = (image(), Machine::new()?);
    let window = machine.plug(&format!("virtio-blk -> swappable -> file,path={}", image.path().display()))?;
    let control: Arc<SwapControl<BlockRequest>> =
        window.device().stages().control("swappable").ok_or("swappable")?;
    for (line, why) in [
        (
            "memory,size=1M",
            "the stack cannot take the place of the one in use: it has 1048576 bytes, fewer than 4194304",
        ),
        (
            "memory,size=4M",
            "the stack cannot take the place of the one in use: it promises Unsafe, less than WriteThrough",
        ),
    ] {
        let refused = control.swap(machine.registry().build_block(&line.parse()?)?).unwrap_err();
        assert_eq!(refused, SwapError::Incompatible(why.into()));
    }
    Ok(())
}
