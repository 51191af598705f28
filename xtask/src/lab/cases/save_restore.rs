use std::path::Path;

use super::{BLANK, Case, Outcome, add_files, must};
use crate::error::{Result, write};
use crate::lab::filesystem::{self, noise, read_at};
use crate::lab::parts::Parts;

/// A machine saved by one process and gone on with by another.
pub(super) const CASE: Case = Case {
    name: "save-restore",
    about: "a guest with two processors is saved under load and goes on in another process, with all that it wrote",
    processors: 2,
    devices: &[
        "virtio-blk,serial=sign -> file,path=sign.img",
        "virtio-blk,serial=files -> stats -> file,path=files.img",
    ],
    pci_devices: &["virtio-blk,serial=raw,queues=2 -> stats -> file,path=raw.img"],
    host: Some(include_str!("../../../lab/host/save-restore.sh")),
    limit: 300,
    prepare,
    check,
    ..BLANK
};

fn prepare(_: &Parts, folder: &Path) -> Result<()> {
    write(&folder.join("raw.img"), noise(17, 4 << 20))?;
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
    let (before, after) = (noise(17, 4 << 20), read_at(&outcome.after.join("raw.img"), 0, 4 << 20)?);
    let mut expected: Vec<u8> = (1..=60_000).flat_map(|n| format!("{n}\n").into_bytes()).collect();
    expected.truncate(256 << 10);
    let written = 256 << 10..512 << 10;
    must(after[written.clone()] == expected, || "raw.img does not have what the guest wrote".into())?;
    let rest =
        after[..written.start] == before[..written.start] && after[written.end..] == before[written.end..];
    must(rest, || "something was written beside the range in raw.img".into())
}
