use std::time::{Duration, Instant};

use super::daemon::{Daemon, serve};
use super::load::{check_load_disk, make_load_disk};
use super::process::until;
use super::qemu::Machine;
use super::{Case, Network, Place};
use crate::error::Result;
use crate::lab::cases::must;
use crate::lab::kernel::Series;

/// The front-end dies; another one comes, whose guest reboots.
pub(super) const CASE: Case = Case {
    name: "vhost-user-left",
    about: "QEMU is killed under load: the daemon lets go of its memory and serves the next QEMU, whose guest reboots",
    kernels: &[Series::V6_1],
    network: Network::Unused,
    image: None,
    run,
};

/// How long the daemon may take to let go of a guest.
const PATIENCE: Duration = Duration::from_secs(10);

fn run(place: &Place) -> Result<String> {
    make_load_disk(place)?;
    let mut daemon = Daemon::start(
        place,
        "daemon",
        &[
            serve("load.sock", "virtio-blk,queues=2 -> stats -> file,path=load.img"),
            serve("net.sock", "virtio-net -> stats -> loopback"),
        ],
    )?;
    let at_first = daemon.process().descriptors()?;
    must(daemon.process().mapped_memfds()?.is_empty(), || "memory is mapped before anybody came".into())?;

    let machine = |name| Machine::new(place, name, "vhost-user-left").disk("load.sock").card("net.sock", 1);
    let mut first = machine("first").options(&["-no-reboot"]).start()?;
    first.process().wait_for("guest: under load")?;
    let mapped = daemon.process().mapped_memfds()?.len();
    let opened = daemon.process().descriptors()?.len() - at_first.len();
    must(mapped > 0 && opened > 0, || "the guest's memory is not mapped".into())?;
    first.process().kill()?;
    let_go(&mut daemon, place, at_first.len())?;
    let after = daemon.process().descriptors()?;
    must(after.len() == at_first.len(), || format!("descriptors at first {at_first:?}, then {after:?}"))?;

    let said = machine("second").start()?.end()?;
    let starts = said.matches("guest: vhost-user-left starts").count();
    must(starts == 2, || format!("the guest started {starts} times"))?;
    daemon.end()?;
    check_load_disk(place, &said)?;
    Ok(format!("{mapped} mappings and {opened} descriptors were let go of"))
}

/// Waits until nothing is left of a front-end in the daemon.
fn let_go(daemon: &mut Daemon<'_>, place: &Place, descriptors: usize) -> Result<()> {
    let deadline = place.deadline.min(Instant::now() + PATIENCE);
    let process = daemon.process();
    let is_left = || -> Result<bool> {
        Ok(process.mapped_memfds()?.is_empty() && process.descriptors()?.len() <= descriptors)
    };
    let mappings = || process.mapped_memfds().unwrap_or_default();
    let opened = || process.descriptors().unwrap_or_default();
    until(deadline, || format!("the daemon keeps {:?} mapped, and {:?} open", mappings(), opened()), is_left)
}
