//! A disk on a file: what the guest writes through registers and rings stands in the image, and comes back.

mod common;

use common::{BLOCK, DISK_MEMORY, IMAGE, Load, SECTORS, content, image};
use iovirt::backends::interposers::stats::StatsControl;
use iovirt::core::Frontend;
use iovirt_embedder::Error;
use iovirt_embedder::guest::disk::{DEPTH, Disk, LONGEST, Op};
use iovirt_embedder::machine::{Machine, finish};
use vm_memory::bitmap::Bitmap;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

#[test]
fn what_the_guest_writes_is_on_the_host_and_comes_back() -> Result<(), Error> {
    let (image, machine) = (image(), Machine::new()?);
    let window = machine.plug(&format!("virtio-blk -> stats -> file,path={}", image.path().display()))?;
    let memory = machine.memory();
    let mut disk = Disk::start(&window, memory, DISK_MEMORY)?;
    assert_eq!(Disk::capacity(&window) * 512, IMAGE);
    let mut load = Load::new();
    for _ in 0..50 {
        load.submit(&mut disk, &window, memory)?;
        load.reap(&mut disk, &window, memory)?;
    }
    load.finish(&mut disk, &window, memory)?;
    load.verify(&mut disk, (&window, memory), image.path(), |bytes| bytes)?;

    let stages = window.device().stages();
    let stats = stages.control::<StatsControl>("stats").ok_or("a stage called stats")?.snapshot();
    let blocks = load.holds.len() as u64;
    let of =
        |name: &str| stats.kinds.iter().find(|kind| kind.name == name).map_or((0, 0), |k| (k.ops, k.bytes));
    assert_eq!(of("read"), (blocks, blocks * BLOCK as u64));
    assert!(of("write").0 >= 50 + DEPTH as u64 - 1);
    let counters = window.device().counters()[0];
    assert!(counters.doorbells > 0 && counters.interrupts > 0, "{counters:?}");
    // The last one may still be on its way through our loop.
    window.line().wait_beyond(0)
}

/// A write that the guest flushed is in the file, whoever looks; and a request may be as long as the driver's buffers.
#[test]
fn long_requests_and_a_flush() -> Result<(), Error> {
    let (image, machine) = (image(), Machine::new()?);
    let stack = format!("virtio-blk -> stats -> file,path={},cache=write-back", image.path().display());
    let window = machine.plug(&stack)?;
    let memory = machine.memory();
    let mut disk = Disk::start(&window, memory, DISK_MEMORY)?;
    assert!(disk.can_flush());
    let wanted = content(0, 1, LONGEST);
    disk.run(&window, memory, (Op::Write, 3), &wanted)?;
    disk.run(&window, memory, (Op::Flush, 0), &[])?;
    assert!(std::fs::read(image.path())?[3 * 512..][..LONGEST] == wanted);
    assert!(disk.run(&window, memory, (Op::Read, 3), &vec![0; LONGEST])? == wanted);
    finish(&window.device().drain())?;
    Ok(())
}

/// The embedder's bitmap hears of what a device writes, and of nothing that it reads: what a migration sends again.
#[test]
fn what_the_device_writes_is_dirty_in_our_own_bitmap() -> Result<(), Error> {
    let (image, machine) = (image(), Machine::new()?);
    let window = machine.plug(&format!("virtio-blk -> file,path={}", image.path().display()))?;
    let memory = machine.memory();
    let mut disk = Disk::start(&window, memory, DISK_MEMORY)?;
    let region = memory.iter().next().ok_or("a region")?;
    let is_dirty = |address: u64| region.bitmap().dirty_at(address as usize);
    for (op, wanted) in [(Op::Write, false), (Op::Read, true)] {
        let slot = disk.submit(memory, op, SECTORS, &content(1, 1, BLOCK))?;
        // The driver's own writes went through the same memory.
        region.get_mmap().bitmap().reset();
        disk.ring(&window)?;
        disk.finish(&window, memory)?;
        assert_eq!(is_dirty(disk.data_at(slot)), wanted, "{op:?}");
    }
    Ok(())
}

#[test]
fn a_line_that_is_wrong_says_so() -> Result<(), Error> {
    let machine = Machine::new()?;
    let error = machine.plug("virtio-blk -> flip,kee=1 -> memory").unwrap_err();
    assert_eq!(error.to_string(), "column 20: `flip` has no key `kee`; did you mean `key`? (allowed: key)");
    assert!(machine.plug("virtio-blk -> loopback").is_err());
    Ok(())
}
