use super::daemon::{Daemon, serve};
use super::load::{check_load_disk, make_file_disk, make_load_disk, number_after};
use super::process::until;
use super::qemu::Machine;
use super::qmp::Qmp;
use super::{Case, Network, Place};
use crate::error::{Error, Result};
use crate::lab::cases::must;
use crate::lab::kernel::Series;

/// Memory comes and goes.
pub(super) const CASE: Case = Case {
    name: "vhost-user-memory",
    about: "memory is plugged into the guest and taken away again under load, and disks are read into it",
    kernels: &[Series::V6_12],
    network: Network::Unused,
    image: None,
    run,
};

/// How often the guest is asked to give memory back; it may refuse while a page is in use.
const ASKED: u32 = 20;

fn run(place: &Place) -> Result<String> {
    make_file_disk(place)?;
    make_load_disk(place)?;
    let mut daemon = Daemon::start(
        place,
        "daemon",
        &[
            serve("files.sock", "virtio-blk,queues=2 -> stats -> file,path=files.img"),
            serve("load.sock", "virtio-blk,queues=2 -> stats -> file,path=load.img"),
        ],
    )?;
    let mut qemu = Machine::new(place, "qemu", "vhost-user-memory")
        .options(&["-no-reboot"])
        .words("memhp_default_state=online_movable")
        .with_room_for_memory()
        .disk("files.sock")
        .disk("load.sock")
        .start()?;
    qemu.process().wait_for("guest: ready for memory")?;
    let at_first = daemon.process().mapped_memfds()?.len();
    let mut monitor = qemu.monitor()?;
    monitor.ask(
        r#"{"execute":"object-add","arguments":{"qom-type":"memory-backend-memfd","id":"more","size":268435456,"share":true}}"#,
    )?;
    monitor
        .ask(r#"{"execute":"device_add","arguments":{"driver":"pc-dimm","id":"dimm","memdev":"more"}}"#)?;
    qemu.process().wait_for("guest: ready to give it back")?;
    let with_more = daemon.process().mapped_memfds()?.len();
    must(with_more > at_first, || format!("{with_more} mappings with more memory, {at_first} before"))?;
    unplug(&mut monitor)?;
    until(
        place.deadline,
        || "the daemon does not let go of the memory that was taken away".into(),
        || Ok(daemon.process().mapped_memfds()?.len() == at_first),
    )?;
    monitor.ask(r#"{"execute":"object-del","arguments":{"id":"more"}}"#)?;
    qemu.process().say("gone")?;
    let said = qemu.end()?;
    daemon.end()?;
    check_load_disk(place, &said)?;
    let used = number_after(&said, "guest: KiB of new memory in use: ")?;
    Ok(format!("{used} KiB of the new memory were in use; {at_first}, {with_more}, {at_first} mappings"))
}

fn unplug(monitor: &mut Qmp) -> Result<()> {
    for _ in 0..ASKED {
        monitor.ask(r#"{"execute":"device_del","arguments":{"id":"dimm"}}"#)?;
        let event = monitor.event(&["DEVICE_DELETED", "DEVICE_UNPLUG_GUEST_ERROR", "MEM_UNPLUG_ERROR"])?;
        if event.contains("DEVICE_DELETED") {
            return Ok(());
        }
    }
    Err(Error::new(format!("the guest does not give memory back, asked {ASKED} times")))
}
