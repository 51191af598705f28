use std::ops::Range;
use std::path::Path;

use super::{BLANK, Case, Outcome, add_files, must};
use crate::error::{Result, write};
use crate::lab::filesystem::{self, noise, read_at};
use crate::lab::fio;
use crate::lab::parts::Parts;

/// A machine saved by one process and gone on with by another.
pub(super) const CASE: Case = Case {
    name: "save-restore",
    about: "a guest with two processors is saved under fio's load and goes on in another process, with all that it wrote",
    processors: 2,
    devices: &[
        "virtio-blk,serial=sign -> file,path=sign.img",
        "virtio-blk,serial=files -> stats -> file,path=files.img",
        "virtio-blk,serial=load,queues=2 -> stats -> file,path=load.img",
        FIO,
    ],
    pci_devices: &["virtio-blk,serial=raw,queues=2 -> stats -> file,path=raw.img"],
    host: Some(include_str!("../../../lab/host/save-restore.sh")),
    limit: 300,
    prepare,
    check,
    ..BLANK
};

/// The disk with fio.
pub(super) const FIO: &str = "virtio-blk,serial=fio -> file,path=fio.img,readonly=on";

/// What fio writes of `load.img`: a mebibyte for each of its two jobs.
const LOAD: Range<usize> = 1 << 20..3 << 20;
/// What the other writer of direct I/O writes of `raw.img`.
const DIRECT: Range<usize> = 256 << 10..512 << 10;
const SIZE: usize = 4 << 20;

fn prepare(parts: &Parts, folder: &Path) -> Result<()> {
    parts.add_fio(folder)?;
    write(&folder.join("load.img"), noise(18, SIZE))?;
    write(&folder.join("raw.img"), noise(17, SIZE))?;
    prepare_files(folder, "files.img")
}

/// The disk by which the host gives a sign, and one with a file system.
pub(super) fn prepare_files(folder: &Path, image: &str) -> Result<()> {
    write(&folder.join("sign.img"), noise(16, 1 << 20))?;
    let tree = folder.join("tree");
    add_files(&tree, "data", 5, "")?;
    filesystem::make(&folder.join(image), 64 << 20, &tree)?;
    std::fs::remove_dir_all(&tree)?;
    Ok(())
}

/// The file system must be clean, with the files that it had and those that the guest wrote.
pub(super) fn check_files(outcome: &Outcome, image: &str) -> Result<()> {
    let files = outcome.files(image)?;
    filesystem::check_sums(&files, &files.join("data.sha256"), "")?;
    filesystem::check_sums(&files, &files.join("sums"), "")
}

fn check(outcome: &Outcome) -> Result<()> {
    check_files(outcome, "files.img")?;
    fio::check_written(&written(outcome, "load.img", 18, LOAD)?)?;
    let mut expected: Vec<u8> = (1..=60_000).flat_map(|n| format!("{n}\n").into_bytes()).collect();
    expected.truncate(DIRECT.len());
    must(written(outcome, "raw.img", 17, DIRECT)? == expected, || {
        "raw.img does not have what the guest wrote".into()
    })
}

/// That part of an image that was made of noise, of 4 MiB; an error unless all else is as it was made.
pub(super) fn written(outcome: &Outcome, image: &str, seed: u64, part: Range<usize>) -> Result<Vec<u8>> {
    let (before, after) = (noise(seed, SIZE), read_at(&outcome.after.join(image), 0, SIZE)?);
    let rest = [0..part.start, part.end..SIZE];
    must(rest.into_iter().all(|rest| after[rest.clone()] == before[rest]), || {
        format!("something was written beside the range in {image}")
    })?;
    Ok(after[part].to_vec())
}
