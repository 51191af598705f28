use std::fs;
use std::path::Path;

use super::{BLANK, Case, Outcome, Usual, must};
use crate::cmd::Cmd;
use crate::error::{Context, Error, Result, write};
use crate::lab::filesystem::noise;

/// What both ends of every network case share.
const HOST: &str = include_str!("../../../lab/host/net.sh");

/// Over virtio-mmio, above a tap that the host made.
pub(super) const MMIO: Case = Case {
    name: "net-mmio",
    about: "a network card over virtio-mmio on the host's tap: ping and TCP both ways",
    devices: &["virtio-net,mac=52:54:00:12:34:56 -> stats -> tap,name=tap0"],
    host: Some(include_str!("../../../lab/host/net-mmio.sh")),
    words: " lab.size=2",
    prepare: |_, folder| prepare(folder, 2),
    check: |outcome| check(outcome, &["1001"], &["2001"]),
    ..BLANK
};

/// On the PCI bus, above a tap that our VMM makes.
pub(super) const PCI: Case = Case {
    name: "net-pci",
    about: "a network card on the PCI bus on a tap of our own: ping and TCP both ways",
    devices: &[],
    pci_devices: &["virtio-net -> stats -> tap,name=tap0"],
    host: Some(include_str!("../../../lab/host/net-pci.sh")),
    ..MMIO
};

/// Two pairs of queues.
pub(super) const QUEUES: Case = Case {
    name: "net-mq",
    usual: Usual::OneKernel,
    about: "two pairs of queues and two processors: two streams of TCP each way at once",
    processors: 2,
    devices: &[],
    pci_devices: &["virtio-net,queues=2 -> stats -> tap,name=tap0,queues=2"],
    host: Some(include_str!("../../../lab/host/net-mq.sh")),
    words: " lab.size=1",
    prepare: |_, folder| prepare(folder, 1),
    check: |outcome| {
        check(outcome, &["1001", "1002"], &["2001", "2002"])?;
        let busy =
            outcome.requests_by_queue()?.into_iter().take(4).filter(|requests| *requests > 100).count();
        must(busy == 4, || "both pairs are to be used both ways".into())
    },
    ..BLANK
};

/// Frames are lost.
pub(super) const FAULT: Case = Case {
    name: "net-fault",
    usual: Usual::OneKernel,
    about: "one of 50 frames that the guest sends is lost: TCP delivers all the same",
    devices: &["virtio-net -> stats -> fault,fail=transmit,permille=20,seed=7 -> tap,name=tap0"],
    host: Some(include_str!("../../../lab/host/net-fault.sh")),
    words: " lab.size=1",
    prepare: |_, folder| prepare(folder, 1),
    check: |outcome| check_sums(outcome, &["1001"], &["2001"]),
    ..BLANK
};

/// The tap goes.
pub(super) const GONE: Case = Case {
    name: "net-gone",
    about: "the tap is deleted while the guest runs: the link is down, and the machine goes on; rates and a picture of it",
    options: &["--tap", "tap0", "--view", "--plot", "run.svg"],
    host: Some(include_str!("../../../lab/host/net-gone.sh")),
    prepare: |_, folder| prepare(folder, 0),
    check: |outcome| {
        check(outcome, &[], &[])?;
        let notes = outcome.text("host.txt")?;
        must(notes.contains("the tap is gone"), || format!("the tap is still there:\n{notes}"))?;
        let view = outcome.text("errors.log")?;
        must(view.contains("| 0 virtio-net "), || format!("no rates were shown:\n{view}"))?;
        must(outcome.text("run.svg")?.contains("stats transmit"), || "the picture has no latencies".into())
    },
    ..BLANK
};

/// The machine goes on in another process.
pub(super) const RESTORE: Case = Case {
    name: "net-restore",
    about: "saved in the middle of a TCP stream, the guest goes on in another process, and so does the stream",
    usual: Usual::OneKernel,
    devices: &[],
    pci_devices: &["virtio-net -> stats -> tap,name=tap0"],
    host: Some(include_str!("../../../lab/host/net-restore.sh")),
    prepare: |_, folder| prepare(folder, 0),
    check: |outcome| {
        let notes = outcome.text("host.txt")?;
        let pings = notes.matches(" 0% packet loss").count();
        must(pings == 2, || format!("pings are to be answered before and after:\n{notes}"))?;
        check_sums(outcome, &["1001"], &[])
    },
    limit: 180,
    ..BLANK
};

/// A whole gibibyte.
pub(super) const GIB: Case = Case {
    name: "net-gib",
    about: "a gibibyte of TCP to the host and one from it, with offloads; only where it is named",
    usual: Usual::Never,
    devices: &[],
    pci_devices: &["virtio-blk -> file,path=noise.img", "virtio-net -> stats -> tap,name=tap0"],
    host: Some(include_str!("../../../lab/host/net-gib.sh")),
    words: " lab.times=16",
    prepare: |_, folder| {
        write(&folder.join("noise.img"), noise(21, NOISE))?;
        write(&folder.join("times"), TIMES.to_string())?;
        prepare(folder, 0)
    },
    check: check_gib,
    limit: 300,
    ..BLANK
};

/// What each end sends [`TIMES`] times, in bytes.
const NOISE: usize = 64 << 20;
const TIMES: usize = 16;

/// What came to the host is summed up here, where nothing is emulated. The guest compared each byte itself, or did not end well.
fn check_gib(outcome: &Outcome) -> Result<()> {
    check(outcome, &[], &[])?;
    let sum_of =
        |script: &str, file: &str| Cmd::new("sh").args(["-c", script]).arg(outcome.after.join(file)).text();
    let sent = sum_of(&format!("for n in $(seq {TIMES}); do cat \"$0\"; done | sha256sum"), "noise.img")?;
    let arrived = sum_of("sha256sum <\"$0\"", "stream")?;
    fs::remove_file(outcome.after.join("stream")).context("stream")?;
    must(sent == arrived, || format!("{sent} was sent, {arrived} came"))
}

/// The host's scripts, and how many mebibytes go each way.
fn prepare(folder: &Path, size: u32) -> Result<()> {
    write(&folder.join("net.sh"), HOST)?;
    write(&folder.join("size"), size.to_string())
}

/// Every ping was answered, and what came out as in [`check_sums`].
fn check(outcome: &Outcome, up: &[&str], down: &[&str]) -> Result<()> {
    let notes = outcome.text("host.txt")?;
    must(notes.contains(" 0% packet loss"), || format!("the guest does not answer all pings:\n{notes}"))?;
    check_sums(outcome, up, down)
}

/// What came out at one end is what went in at the other.
fn check_sums(outcome: &Outcome, up: &[&str], down: &[&str]) -> Result<()> {
    let notes = outcome.text("host.txt")?;
    let console = outcome.text("console.log")?;
    let ports = up
        .iter()
        .map(|port| format!("sum up {port}"))
        .chain(down.iter().map(|port| format!("sum down {port}")));
    for port in ports {
        let at_host = sum(&notes, &port).context("at the host")?;
        let at_guest = sum(&console, &port).context("in the guest")?;
        must(at_host == at_guest, || format!("{port}: {at_host} at the host, {at_guest} in the guest"))?;
    }
    Ok(())
}

/// The checksum that stands behind some words.
fn sum<'a>(text: &'a str, words: &str) -> Result<&'a str> {
    text.lines()
        .find_map(|line| line.split_once(words))
        .map(|(_, sum)| sum.trim())
        .filter(|sum| sum.len() == 64)
        .ok_or_else(|| Error::new(format!("no '{words}'")))
}
