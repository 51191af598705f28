use std::fs::File;
use std::path::Path;

use super::save_restore::{FIO, check_files, prepare_files};
use super::{BLANK, Case, Outcome, must};
use crate::error::{Context, Result};
use crate::lab::filesystem::read_at;
use crate::lab::fio;
use crate::lab::parts::Parts;

/// A disk that moves.
pub(super) const CASE: Case = Case {
    name: "swap",
    about: "the disk moves from file to file three times under fio and a file system, without an error",
    devices: &[
        "virtio-blk,serial=sign -> file,path=sign.img",
        "virtio-blk,serial=files -> swappable -> stats -> file,path=a.img",
        FIO,
    ],
    host: Some(include_str!("../../../lab/host/swap.sh")),
    limit: 240,
    prepare,
    check,
    ..BLANK
};

/// Where the file system ends, and where fio's mebibyte behind it does.
const FILES: u64 = 64 << 20;
const FIO_LENGTH: u64 = 1 << 20;

fn prepare(parts: &Parts, folder: &Path) -> Result<()> {
    parts.add_fio(folder)?;
    prepare_files(folder, "a.img")?;
    let image = folder.join("a.img");
    File::options().write(true).open(&image)?.set_len(FILES + FIO_LENGTH).context(image.display())
}

fn check(outcome: &Outcome) -> Result<()> {
    must(!outcome.after.join("a.img").exists(), || "the first file is still there".into())?;
    fio::check_written(&read_at(&outcome.after.join("b.img"), FILES, FIO_LENGTH as usize)?)?;
    check_files(outcome, "b.img")
}
