use std::path::Path;

use super::{BLANK, Case, Outcome, must};
use crate::error::{Result, write};
use crate::lab::filesystem::{noise, read_at};
use crate::lab::parts::Parts;

/// A guest without messages: interrupts by pin.
pub(super) const CASE: Case = Case {
    name: "pci-pin",
    about: "a guest that knows no MSI: five disks share the four lines of the PCI bus",
    pci_devices: &[
        "virtio-blk -> stats -> file,path=one.img",
        "virtio-blk -> memory,size=8M",
        "virtio-blk -> memory,size=8M",
        "virtio-blk -> memory,size=8M",
        "virtio-blk -> memory,size=8M",
    ],
    words: " pci=nomsi",
    prepare,
    check,
    ..BLANK
};

const SIZE: usize = 8 << 20;

fn prepare(_: &Parts, folder: &Path) -> Result<()> {
    write(&folder.join("one.img"), noise(12, SIZE))
}

fn check(outcome: &Outcome) -> Result<()> {
    let image = outcome.after.join("one.img");
    let (before, after) = (noise(12, SIZE), read_at(&image, 0, SIZE)?);
    let half = SIZE / 2;
    must(after[..half] == before[half..] && after[half..] == before[half..], || {
        "the image does not hold its second half twice".into()
    })
}
