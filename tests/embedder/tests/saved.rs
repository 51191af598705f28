//! A device saved in the middle of its work, all of its machine gone, and another one that goes on.

mod common;

use common::{BLOCK, DISK_MEMORY, SECTORS, content, image, until};
use iovirt::core::Frontend;
use iovirt_embedder::Error;
use iovirt_embedder::guest::disk::{DEPTH, Disk, Op};
use iovirt_embedder::machine::{Machine, Window, finish};
use iovirt_embedder::stages::valve::ValveControl;
use std::path::Path;
use std::sync::Arc;

fn plug(machine: &Machine, image: &Path) -> Result<(Window, Arc<ValveControl>), Error> {
    let window = machine.plug(&format!("virtio-blk -> stats -> valve -> file,path={}", image.display()))?;
    let valve = window.device().stages().control::<ValveControl>("valve").ok_or("a valve")?;
    Ok((window, valve))
}

/// What is left when a machine is gone.
struct Remains {
    device: Vec<u8>,
    memory: Vec<u8>,
    /// The driver is a part of the guest; in a real machine its state is in the memory.
    driver: Disk,
}

/// Writes half of the blocks, and has the other half in flight when the machine goes.
fn first_machine(image: &Path) -> Result<Remains, Error> {
    let machine = Machine::new()?;
    let (window, valve) = plug(&machine, image)?;
    let memory = machine.memory();
    let mut disk = Disk::start(&window, memory, DISK_MEMORY)?;
    for block in 0..DEPTH as u64 {
        disk.run(&window, memory, (Op::Write, block * SECTORS), &content(block, 1, BLOCK))?;
    }
    valve.shut();
    for block in DEPTH as u64..2 * DEPTH as u64 - 2 {
        disk.submit(memory, Op::Write, block * SECTORS, &content(block, 1, BLOCK))?;
    }
    disk.ring(&window)?;
    until("the requests get stuck", || valve.kept() == DEPTH - 2)?;
    assert!(window.device().save().is_err(), "a running device cannot be saved");
    let drain = window.device().drain();
    let mut device = Vec::new();
    until("every queue has seen the drain", || match window.device().save() {
        Ok(saved) => {
            device = saved;
            true
        }
        Err(_) => false,
    })?;
    assert!(!drain.is_done(), "the back-end is stuck");
    // A device at rest takes nothing: this one stays on the ring, for whoever goes on.
    disk.submit(memory, Op::Write, 2 * DEPTH as u64 * SECTORS, &content(2 * DEPTH as u64, 1, BLOCK))?;
    let memory = machine.content()?;
    Ok(Remains { device, memory, driver: disk })
}

#[test]
fn requests_in_flight_are_done_by_the_machine_that_goes_on() -> Result<(), Error> {
    let image = image();
    let remains = first_machine(image.path())?;
    let before = std::fs::read(image.path())?;
    assert!(before[DEPTH * BLOCK..].iter().all(|&byte| byte == 0), "what was stuck was not written");

    let machine = Machine::with_content(&remains.memory)?;
    let (window, _) = plug(&machine, image.path())?;
    window.device().restore(&remains.device)?;
    finish(&window.device().resume())?;
    let (memory, mut disk) = (machine.memory(), remains.driver);
    let finished = disk.finish(&window, memory)?;
    assert_eq!(finished.len(), DEPTH - 1);
    assert!(finished.iter().all(|request| request.status == 0));
    disk.run(&window, memory, (Op::Flush, 0), &[])?;
    let host = std::fs::read(image.path())?;
    for block in (0..2 * DEPTH as u64 - 2).chain([2 * DEPTH as u64]) {
        let wanted = content(block, 1, BLOCK);
        assert!(
            disk.run(&window, memory, (Op::Read, block * SECTORS), &[0; BLOCK])? == wanted,
            "block {block}"
        );
        assert!(host[block as usize * BLOCK..][..BLOCK] == wanted, "block {block} of the image");
    }
    Ok(())
}

#[test]
fn saved_state_that_is_damaged_or_of_another_device_is_refused() -> Result<(), Error> {
    let image = image();
    let remains = first_machine(image.path())?;
    let machine = Machine::with_content(&remains.memory)?;
    let (window, _) = plug(&machine, image.path())?;
    for at in [0, remains.device.len() / 2, remains.device.len() - 1] {
        let mut damaged = remains.device.clone();
        damaged[at] ^= 1;
        assert!(window.device().restore(&damaged).is_err(), "byte {at} was changed");
    }
    let card = machine.plug("virtio-net -> loopback")?;
    assert!(card.device().restore(&remains.device).is_err());
    // And it is as good as new.
    window.device().restore(&remains.device)?;
    finish(&window.device().resume())?;
    let mut disk = remains.driver;
    assert_eq!(disk.finish(&window, machine.memory())?.len(), DEPTH - 1);
    Ok(())
}
