use std::path::Path;

use super::{BLANK, Case, add_files};
use crate::error::Result;
use crate::lab::filesystem;
use crate::lab::parts::Parts;

/// A read-only back-end stays as it is.
pub(super) const CASE: Case = Case {
    name: "readonly",
    about: "the guest sees a read-only disk, its writes are refused, the image is unchanged",
    devices: &["virtio-blk -> file,path=ro.img,readonly=on"],
    reference: &[
        "-drive",
        "if=none,id=a,file=ro.img,format=raw,readonly=on",
        "-device",
        "virtio-blk-device,drive=a",
    ],
    prepare,
    check: |outcome| outcome.unchanged("ro.img"),
    ..BLANK
};

fn prepare(_: &Parts, folder: &Path) -> Result<()> {
    let tree = folder.join("tree");
    add_files(&tree, "data", 40, "")?;
    filesystem::make(&folder.join("ro.img"), 16 << 20, &tree)?;
    std::fs::remove_dir_all(&tree)?;
    Ok(())
}
