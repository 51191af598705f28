use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use super::daemon::{Daemon, requests_by_queue, serve};
use super::process::until;
use super::qemu::Machine;
use super::stream::{End, compare, give, host_up, take};
use super::{Case, Network, Place};
use crate::cmd::Cmd;
use crate::error::{Context, Result};
use crate::lab::cases::must;
use crate::lab::kernel::Series;

/// The daemon dies under streams of TCP.
pub(super) const CASE: Case = Case {
    name: "vhost-user-card",
    about: "the daemon of a card with two pairs of queues is killed 10 times under TCP both ways and started anew: the streams go on",
    kernels: &[Series::V6_12],
    network: Network::Own,
    image: None,
    run,
};

/// Frames are always in flight, and some fail before those that were sent before them are out.
const CARD: &str = "virtio-net,mac=52:54:00:12:34:56,queues=2 -> stats -> fault,fail=transmit,permille=50 \
    -> delay,kinds=transmit,time=8ms,jitter=8ms -> tap,name=tap0,queues=2";
const KILLS: u32 = 10;
/// Bytes that must come on each stream before the next kill but one.
const GOES_ON: usize = 32 << 10;

fn run(place: &Place) -> Result<String> {
    // It stays where no daemon is.
    Cmd::new("ip").args(["tuntap", "add", "dev", "tap0", "mode", "tap", "multi_queue"]).quiet()?;
    host_up()?;
    let mut daemon = Daemon::start(place, "daemon", &[serve("net.sock", CARD)])?;
    let taken = [1001, 1002].into_iter().map(|port| take(port, place)).collect::<Result<Vec<_>>>()?;
    let mut qemu = Machine::new(place, "qemu", "vhost-user-card")
        .options(&["-no-reboot"])
        .card("net.sock", 2)
        .start()?;
    qemu.process().wait_for("guest: ready for data")?;
    let enough = Arc::new(AtomicBool::new(false));
    let given: Vec<_> = [2001, 2002]
        .into_iter()
        .map(|port| {
            let enough = Arc::clone(&enough);
            give(port, place, move |_| !enough.load(Ordering::Relaxed))
        })
        .collect();
    goes_on(place, [&taken, &given])?;
    let mut longest = Duration::ZERO;
    for kill in 0..KILLS {
        thread::sleep(Duration::from_millis(u64::from(kill * 73 % 200)));
        longest = longest.max(daemon.kill_and_start().context(format_args!("kill {}", kill + 1))?);
        // Every other one dies before the front-end is back, or in the middle of what it says then.
        if kill % 2 == 1 {
            goes_on(place, [&taken, &given]).context(format_args!("after kill {}", kill + 1))?;
        }
    }
    enough.store(true, Ordering::Relaxed);
    qemu.process().say("enough")?;
    let said = qemu.end()?;
    // Of its last life.
    let requests = requests_by_queue(&daemon.end()?);
    let used = requests.first().is_some_and(|queues| queues.iter().filter(|count| **count > 0).count() >= 4);
    must(used, || format!("both pairs are to be used both ways: {requests:?}"))?;
    let (up, down) = (compare(place, &said, "up", taken)?, compare(place, &said, "down", given)?);
    let kib = |lens: Vec<usize>| lens.into_iter().sum::<usize>() >> 10;
    Ok(format!(
        "{KILLS} kills, {} KiB up, {} KiB down; back after {} ms at most",
        kib(up),
        kib(down),
        longest.as_millis()
    ))
}

/// Waits until more has passed on each stream.
fn goes_on(place: &Place, ends: [&[End]; 2]) -> Result<()> {
    for end in ends.into_iter().flatten() {
        let before = end.passed();
        let stands = || format!("a stream stands still after {} bytes", end.passed());
        until(place.deadline, stands, || Ok(end.passed() >= before + GOES_ON))?;
    }
    Ok(())
}
