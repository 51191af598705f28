use std::thread;
use std::time::Duration;

use super::daemon::{Daemon, serve};
use super::load::{check_load_disk, make_load_disk, number_after};
use super::qemu::Machine;
use super::{Case, Network, Place};
use crate::error::{Context, Result};
use crate::lab::kernel::Series;

/// The daemon dies, and nothing else does.
pub(super) const CASE: Case = Case {
    name: "vhost-user-kill",
    about: "the daemon is killed 25 times under load and started anew: the guest sees no error, and all it wrote is there",
    // On the other one `vhost-user-debian` has a daemon that is killed.
    kernels: &[Series::V6_12],
    network: Network::Unused,
    image: None,
    run,
};

const KILLS: u32 = 25;

fn run(place: &Place) -> Result<String> {
    make_load_disk(place)?;
    let disk = [serve("load.sock", "virtio-blk,queues=2 -> stats -> file,path=load.img,cache=write-back")];
    let mut daemon = Daemon::start(place, "daemon", &disk)?;
    let mut qemu =
        Machine::new(place, "qemu", "vhost-user-kill").options(&["-no-reboot"]).disk("load.sock").start()?;
    qemu.process().wait_for("guest: under load")?;
    let mut longest = Duration::ZERO;
    for kill in 0..KILLS {
        // Also before the front-end is back, and in the middle of what it says then.
        thread::sleep(Duration::from_millis(u64::from(kill * 73 % 500 + 30)));
        longest = longest.max(daemon.kill_and_start().context(format_args!("kill {}", kill + 1))?);
    }
    qemu.process().say("enough")?;
    let said = qemu.end()?;
    daemon.end()?;
    check_load_disk(place, &said)?;
    let rounds = number_after(&said, "guest: rounds of writes and reads: ")?;
    Ok(format!(
        "{KILLS} kills, {rounds} rounds of writes and reads; back after {} ms at most",
        longest.as_millis()
    ))
}
