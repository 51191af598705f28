use super::daemon::{Daemon, Served, serve};
use super::load::{check_load_disk, make_file_disk, make_load_disk, number_after};
use super::process::until;
use super::qemu::Machine;
use super::qmp::Qmp;
use super::{Case, Network, Place};
use crate::error::{Error, Result};
use crate::lab::cases::must;
use crate::lab::kernel::Series;

/// The guest moves while devices write into its memory.
pub(super) const CASE: Case = Case {
    name: "vhost-user-migrate",
    about: "live migration to another QEMU and another daemon under load: what devices wrote into memory arrives",
    kernels: &[Series::V6_12],
    network: Network::Unused,
    image: None,
    run,
};

/// Bytes per second at which memory is sent at first: slower than the guest and its devices write.
const AT_FIRST: u64 = 48 << 20;
/// While devices write what is checked afterwards: so slow that the migration does not end meanwhile.
const MEANWHILE: u64 = 64 << 10;
/// At the end: without a limit.
const AT_LAST: u64 = 0;
/// How often all memory was looked through before devices write what is checked afterwards.
const PASSES: u64 = 2;

/// Both daemons have the images open at once, as the second one opens them before the first one's guest has left. The second one
/// does not lock them; that one has nothing in flight before the other has nothing in flight any more, QEMU sees to.
fn disks(prefix: [&'static str; 2], lock: &str) -> [Served; 2] {
    let file = |image: &str| format!("virtio-blk,queues=2 -> stats -> file,path={image},lock={lock}");
    [serve(prefix[0], file("files.img")), serve(prefix[1], file("load.img"))]
}

fn run(place: &Place) -> Result<String> {
    make_file_disk(place)?;
    make_load_disk(place)?;
    let from = Daemon::start(place, "from", &disks(["from-files.sock", "from-load.sock"], "on"))?;
    let to = Daemon::start(place, "to", &disks(["to-files.sock", "to-load.sock"], "off"))?;
    // Pages of files are to be written by devices alone, not cleared beforehand.
    let machine = |name| {
        Machine::new(place, name, "vhost-user-migrate").options(&["-no-reboot"]).words("init_on_alloc=0")
    };
    let mut source = machine("source").disk("from-files.sock").disk("from-load.sock").start()?;
    let mut target = machine("target")
        .options(&["-incoming", "unix:migration"])
        .disk("to-files.sock")
        .disk("to-load.sock")
        .start()?;
    source.process().wait_for("guest: under load")?;

    let (mut source_monitor, mut target_monitor) = (source.monitor()?, target.monitor()?);
    speed(&mut source_monitor, AT_FIRST, 1)?;
    source_monitor.ask(r#"{"execute":"migrate","arguments":{"uri":"unix:migration"}}"#)?;
    until(place.deadline, || "memory is not looked through".into(), || passed(&mut source_monitor))?;
    speed(&mut source_monitor, MEANWHILE, 1)?;
    source.process().say("fill")?;
    // All of it was written by devices into memory that was sent before.
    let filled = source.process().wait_for("guest: filled")?;
    let passes = passes(&still_running(&mut source_monitor)?)?;
    speed(&mut source_monitor, AT_LAST, 2000)?;
    until(
        place.deadline,
        || "the migration does not end".into(),
        || {
            let state = state(&mut source_monitor)?;
            must(!state.contains("\"status\": \"failed\""), || format!("the migration failed: {state}"))?;
            Ok(state.contains("\"status\": \"completed\""))
        },
    )?;
    // The source is done when it has sent the last of it, the target a moment later.
    until(
        place.deadline,
        || "the guest does not run on the target".into(),
        || Ok(target_monitor.ask(r#"{"execute":"query-status"}"#)?.contains("\"running\": true")),
    )?;
    source_monitor.ask(r#"{"execute":"quit"}"#)?;
    source.process().wait()?;
    from.end()?;
    target.process().say("check")?;
    let said = target.end()?;
    to.end()?;
    check_load_disk(place, &said)?;
    let kib = number_after(&filled, "guest: filled ")?;
    Ok(format!("{kib} KiB written by devices after {passes} passes; the guest goes on"))
}

/// How many bytes are sent per second, and how many milliseconds the guest may stand still at the end.
fn speed(monitor: &mut Qmp, bytes: u64, downtime: u64) -> Result<()> {
    let request = format!(
        r#"{{"execute":"migrate-set-parameters","arguments":{{"max-bandwidth":{bytes},"downtime-limit":{downtime}}}}}"#
    );
    monitor.ask(&request).map(|_| ())
}

fn state(monitor: &mut Qmp) -> Result<String> {
    monitor.ask(r#"{"execute":"query-migrate"}"#)
}

/// The state of a migration that goes on.
fn still_running(monitor: &mut Qmp) -> Result<String> {
    let state = state(monitor)?;
    let ended = ["completed", "failed", "cancelled"]
        .iter()
        .any(|end| state.contains(&format!("\"status\": \"{end}\"")));
    must(!ended, || format!("the migration ended too early: {state}"))?;
    Ok(state)
}

fn passed(monitor: &mut Qmp) -> Result<bool> {
    let state = still_running(monitor)?;
    // Not there before memory is sent.
    Ok(state.contains("\"dirty-sync-count\"") && passes(&state)? > PASSES)
}

fn passes(state: &str) -> Result<u64> {
    state
        .split("\"dirty-sync-count\": ")
        .nth(1)
        .and_then(|rest| rest.split(|digit: char| !digit.is_ascii_digit()).next()?.parse().ok())
        .ok_or_else(|| Error::new(format!("no passes in {state}")))
}
