use std::path::Path;

use super::{BLANK, Case, Outcome, add_files, must};
use crate::error::{Result, write};
use crate::lab::filesystem::{self, noise, read_at};
use crate::lab::parts::Parts;

/// What the guest no longer needs, the host gets back.
pub(super) const CASE: Case = Case {
    name: "discard",
    about: "fstrim of a file system and blkdiscard of a range free the host's blocks and nothing else",
    devices: &["virtio-blk -> file,path=trim.img,discard=on", "virtio-blk -> file,path=raw.img,discard=on"],
    reference: &[
        "-drive",
        "if=none,id=a,file=trim.img,format=raw,discard=unmap",
        "-device",
        "virtio-blk-device,drive=a",
        "-drive",
        "if=none,id=b,file=raw.img,format=raw,discard=unmap",
        "-device",
        "virtio-blk-device,drive=b",
    ],
    prepare,
    check,
    ..BLANK
};

const TRIM_SIZE: u64 = 64 << 20;
const RAW_SIZE: usize = 16 << 20;
const HOLE: std::ops::Range<usize> = 4 << 20..12 << 20;

fn prepare(_: &Parts, folder: &Path) -> Result<()> {
    // No block of either image is a hole at the start.
    let trim = folder.join("trim.img");
    write(&trim, noise(4, TRIM_SIZE as usize))?;
    write(&folder.join("raw.img"), noise(5, RAW_SIZE))?;
    let tree = folder.join("tree");
    add_files(&tree, "data", 60, "")?;
    std::fs::copy(tree.join("data.sha256"), tree.join("kept.sha256"))?;
    write(&tree.join("large"), noise(6, 24 << 20))?;
    filesystem::make(&trim, TRIM_SIZE, &tree)?;
    std::fs::remove_dir_all(&tree)?;
    Ok(())
}

fn check(outcome: &Outcome) -> Result<()> {
    let files = outcome.files("trim.img")?;
    filesystem::check_sums(&files, &files.join("kept.sha256"), "")?;
    must(!files.join("large").exists(), || "the deleted file is back".to_owned())?;
    let (before, after) = outcome.allocated("trim.img")?;
    must(before >= TRIM_SIZE * 9 / 10, || format!("trim.img had only {before} bytes to begin with"))?;
    must(after <= TRIM_SIZE / 3, || format!("trim.img takes {after} bytes after the trim, {before} before"))?;

    let image = outcome.after.join("raw.img");
    let expected = noise(5, RAW_SIZE);
    let found = read_at(&image, 0, RAW_SIZE)?;
    must(found[..HOLE.start] == expected[..HOLE.start], || "raw.img changed below the hole".to_owned())?;
    must(found[HOLE.end..] == expected[HOLE.end..], || "raw.img changed above the hole".to_owned())?;
    must(found[HOLE].iter().all(|byte| *byte == 0), || {
        "what was discarded from raw.img reads as something".to_owned()
    })?;
    let (before, after) = outcome.allocated("raw.img")?;
    must(before - after == HOLE.len() as u64, || {
        format!("raw.img took {before} bytes and takes {after} after 8 MiB were discarded")
    })
}
