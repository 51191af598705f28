use std::thread;
use std::time::Duration;

use super::daemon::{Daemon, requests_by_queue, serve};
use super::qemu::Machine;
use super::{Case, Network, Place};
use crate::cmd::Cmd;
use crate::error::{Context, Error, Result, write};
use crate::lab::cases::must;
use crate::lab::debian::{self, PARTITION};
use crate::lab::filesystem::{noise, read_at};
use crate::lab::fio;
use crate::lab::kernel::Series;

/// What a user's guest does, from the firmware on.
pub(super) const CASE: Case = Case {
    name: "vhost-user-debian",
    about: "Debian boots from our disk by firmware and GRUB; the daemon is killed 15 times while fio writes and verifies there",
    kernels: &[Series::V6_1],
    network: Network::Unused,
    image: Some(debian::disk),
    run,
};

const KILLS: u32 = 15;
/// Bytes on the disk beside the system's, all of which fio writes.
const RAW_SIZE: usize = 16 << 20;

fn run(place: &Place) -> Result<String> {
    let made = place.image.as_ref().ok_or_else(|| Error::new("no system was made"))?;
    Cmd::new("cp").arg("--sparse=always").args([made, &place.folder.join("debian.img")]).quiet()?;
    write(&place.folder.join("raw.img"), noise(19, RAW_SIZE))?;
    let disks = [
        serve("debian.sock", "virtio-blk,queues=2 -> stats -> file,path=debian.img,cache=write-back"),
        serve("raw.sock", "virtio-blk,queues=2 -> stats -> file,path=raw.img"),
    ];
    let mut daemon = Daemon::start(place, "daemon", &disks)?;
    let mut qemu = Machine::new(place, "qemu", "debian")
        .with_firmware()
        .options(&["-no-reboot"])
        .disk("debian.sock")
        .disk("raw.sock")
        .start()?;
    let process = qemu.process();
    process.wait_for("guest: under load")?;
    let mut longest = Duration::ZERO;
    for kill in 0..KILLS {
        thread::sleep(Duration::from_millis(u64::from(kill * 137 % 500 + 30)));
        longest = longest.max(daemon.kill_and_start().context(format_args!("kill {}", kill + 1))?);
    }
    process.say("enough")?;
    process.wait_for("guest: debian ends with 0")?;
    let status = process.wait()?;
    must(status.success(), || format!("QEMU ended with {status}"))?;
    let said = process.said().join("\n");
    let requests = requests_by_queue(&daemon.end()?);
    must(requests.len() == 2 && requests.iter().flatten().all(|count| *count > 0), || {
        format!("both queues of both disks are to be used: {requests:?}")
    })?;
    // It was shut down in good order, and nothing in its file system was harmed.
    let partition = format!("{}?offset={PARTITION}", place.folder.join("debian.img").display());
    Cmd::new("e2fsck").args(["-f", "-n", &partition]).quiet()?;
    fio::check_written(&read_at(&place.folder.join("raw.img"), 0, RAW_SIZE)?)?;
    let writes: u64 = said.lines().filter_map(writes).sum();
    Ok(format!("{KILLS} kills, back after {} ms at most; fio verified {writes} writes", longest.as_millis()))
}

/// The writes that fio says it issued: `issued rwts: total=14656,14718,0,0 …`.
fn writes(line: &str) -> Option<u64> {
    line.split_once("issued rwts: total=")?.1.split(',').nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_are_found_in_a_line_of_fio() {
        assert_eq!(writes("     issued rwts: total=14656,14718,0,0 short=0,0,0,0"), Some(14718));
        assert_eq!(writes("file: (groupid=0, jobs=1): err= 0: pid=331"), None);
    }
}
