use std::path::Path;

use super::{BLANK, Case, Outcome, add_files};
use crate::error::Result;
use crate::lab::filesystem;
use crate::lab::parts::Parts;

/// The guest lives on our disk.
pub(super) const CASE: Case = Case {
    name: "rootfs",
    about: "an ext4 file system made on the host is the guest's root; both sides verify what the other wrote",
    root: Some("/dev/vda"),
    devices: &["virtio-blk -> stats -> file,path=root.img"],
    reference: &["-drive", "if=none,id=a,file=root.img,format=raw", "-device", "virtio-blk-device,drive=a"],
    prepare,
    check,
    ..BLANK
};

fn prepare(parts: &Parts, folder: &Path) -> Result<()> {
    let tree = folder.join("tree");
    parts.guest_tree(&tree)?;
    add_files(&tree, "data", 300, "/")?;
    filesystem::make(&folder.join("root.img"), 96 << 20, &tree)?;
    std::fs::remove_dir_all(&tree)?;
    Ok(())
}

fn check(outcome: &Outcome) -> Result<()> {
    let files = outcome.files("root.img")?;
    filesystem::check_sums(&files, &files.join("out.sha256"), "/")?;
    // All that the guest did not move away is still as the host wrote it.
    let list = std::fs::read_to_string(files.join("data.sha256"))?;
    let kept: Vec<&str> =
        list.lines().filter(|line| !line.ends_with("file-000") && !line.ends_with("file-001")).collect();
    let kept_list = files.join("kept.sha256");
    crate::error::write(&kept_list, kept.join("\n"))?;
    filesystem::check_sums(&files, &kept_list, "/")
}
