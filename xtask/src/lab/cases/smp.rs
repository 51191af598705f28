use std::path::Path;

use super::{BLANK, Case, Outcome, must};
use crate::error::{Result, read, write};
use crate::lab::filesystem::{noise, read_at};
use crate::lab::parts::Parts;

/// Two of everything.
pub(super) const CASE: Case = Case {
    name: "smp",
    about: "two processors use two queues at once; interrupts reach either processor",
    processors: 2,
    devices: &["virtio-blk,queues=2 -> stats -> file,path=two.img"],
    reference: &[
        "-drive",
        "if=none,id=a,file=two.img,format=raw",
        "-device",
        "virtio-blk-device,drive=a,num-queues=2",
    ],
    prepare,
    check,
    ..BLANK
};

const SIZE: usize = 64 << 20;
/// How much each processor writes, at the start of its half.
const WRITTEN: usize = 1 << 20;

fn prepare(_: &Parts, folder: &Path) -> Result<()> {
    write(&folder.join("two.img"), noise(9, SIZE))
}

fn check(outcome: &Outcome) -> Result<()> {
    let image = outcome.after.join("two.img");
    let before = noise(9, SIZE);
    let after = read_at(&image, 0, SIZE)?;
    for start in [0, SIZE / 2] {
        let written = start..start + WRITTEN;
        let rest = start + WRITTEN..start + SIZE / 2;
        must(
            before[written.clone()]
                .chunks(4096)
                .zip(after[written].chunks(4096))
                .all(|(old, new)| old != new),
            || format!("not all was written at {start}"),
        )?;
        must(before[rest.clone()] == after[rest], || {
            format!("something was written behind the range at {start}")
        })?;
    }
    // QEMU's own devices, in a reference run, leave no report.
    let Ok(report) = read(&outcome.after.join("errors.log")) else { return Ok(()) };
    let report = String::from_utf8_lossy(&report);
    let by_queue =
        report.lines().find_map(|line| line.trim().strip_prefix("requests by queue: ")).unwrap_or("");
    let busy = by_queue.split(", ").filter(|count| count.parse::<u64>().is_ok_and(|count| count > 0)).count();
    must(busy == 2, || format!("both queues are to be used; requests by queue: '{by_queue}'"))
}
