use std::path::Path;

use super::save_restore::{check_files, prepare_files};
use super::{BLANK, Case, Outcome, must};
use crate::error::Result;
use crate::lab::parts::Parts;

/// A disk that moves.
pub(super) const CASE: Case = Case {
    name: "swap",
    about: "the disk moves from file to file three times while the guest writes to it, without an error",
    devices: &[
        "virtio-blk,serial=sign -> file,path=sign.img",
        "virtio-blk,serial=files -> swappable -> stats -> file,path=a.img",
    ],
    host: Some(include_str!("../../../lab/host/swap.sh")),
    limit: 240,
    prepare,
    check,
    ..BLANK
};

fn prepare(_: &Parts, folder: &Path) -> Result<()> {
    prepare_files(folder, "a.img")
}

fn check(outcome: &Outcome) -> Result<()> {
    must(!outcome.after.join("a.img").exists(), || "the first file is still there".into())?;
    check_files(outcome, "b.img")
}
