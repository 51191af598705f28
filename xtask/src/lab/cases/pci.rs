use std::path::Path;

use super::{BLANK, Case, Outcome, must};
use crate::error::{Result, read, write};
use crate::lab::filesystem::{noise, read_at};
use crate::lab::parts::Parts;

/// The same devices on the PCI bus.
pub(super) const CASE: Case = Case {
    name: "pci",
    about: "two queues on the PCI bus with a vector each; the disk unplugged and found again, its driver taken off and put back",
    processors: 2,
    pci_devices: &[
        "virtio-blk,queues=2 -> stats -> file,path=two.img",
        "virtio-blk,serial=other -> memory,size=16M",
    ],
    reference: &[
        "-drive",
        "if=none,id=a,file=two.img,format=raw",
        "-device",
        "virtio-blk-pci,drive=a,num-queues=2,disable-legacy=on",
        "-drive",
        "if=none,id=b,driver=null-co,size=16M",
        "-device",
        "virtio-blk-pci,drive=b,serial=other,disable-legacy=on",
    ],
    prepare,
    check,
    ..BLANK
};

const SIZE: usize = 64 << 20;
/// How much the guest writes, at the start.
const WRITTEN: usize = 4 << 20;

fn prepare(_: &Parts, folder: &Path) -> Result<()> {
    write(&folder.join("two.img"), noise(11, SIZE))
}

fn check(outcome: &Outcome) -> Result<()> {
    let image = outcome.after.join("two.img");
    let (before, after) = (noise(11, SIZE), read_at(&image, 0, SIZE)?);
    let copied = after[..WRITTEN].iter().eq(before[SIZE - WRITTEN..].iter());
    must(copied, || "what the guest copied is not at the start of the image".into())?;
    must(before[WRITTEN..] == after[WRITTEN..], || "something was written behind the range".into())?;
    // QEMU's own devices, in a reference run, leave no report.
    let Ok(report) = read(&outcome.after.join("errors.log")) else { return Ok(()) };
    let report = String::from_utf8_lossy(&report);
    let by_queue =
        report.lines().find_map(|line| line.trim().strip_prefix("requests by queue: ")).unwrap_or("");
    let busy = by_queue.split(", ").filter(|count| count.parse::<u64>().is_ok_and(|count| count > 0)).count();
    must(busy == 2, || format!("both queues are to be used; requests by queue: '{by_queue}'"))
}
