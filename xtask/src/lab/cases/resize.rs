use std::path::Path;

use super::{BLANK, Case, Outcome, add_files, must};
use crate::error::Result;
use crate::lab::filesystem::{self, read_at};
use crate::lab::parts::Parts;

/// The disk grows under a mounted file system.
pub(super) const CASE: Case = Case {
    name: "resize",
    about: "the disk grows from 64 to 128 MiB while mounted; the guest is told and uses the new space",
    devices: &["virtio-blk -> file,path=grow.img"],
    host: Some(include_str!("../../../lab/host/resize.sh")),
    reference: &["-drive", "if=none,id=a,file=grow.img,format=raw", "-device", "virtio-blk-device,drive=a"],
    command: Some("block_resize a 128M"),
    prepare,
    check,
    ..BLANK
};

const SIZE: u64 = 64 << 20;
/// What the guest writes into the new space: `seq 1 100000 | head -c 524288`.
const WRITTEN: std::ops::Range<u64> = 1600 << 16..(1600 << 16) + 524_288;

fn prepare(_: &Parts, folder: &Path) -> Result<()> {
    let tree = folder.join("tree");
    add_files(&tree, "data", 20, "")?;
    filesystem::make(&folder.join("grow.img"), SIZE, &tree)?;
    std::fs::remove_dir_all(&tree)?;
    Ok(())
}

fn check(outcome: &Outcome) -> Result<()> {
    let image = outcome.after.join("grow.img");
    let size = image.metadata()?.len();
    must(size == 2 * SIZE, || format!("grow.img has {size} bytes"))?;
    let mut expected: Vec<u8> = (1..=100_000).flat_map(|n| format!("{n}\n").into_bytes()).collect();
    let length = (WRITTEN.end - WRITTEN.start) as usize;
    expected.truncate(length);
    must(read_at(&image, WRITTEN.start, length)? == expected, || {
        "the new space holds something else than the guest wrote".to_owned()
    })?;
    let files = outcome.files("grow.img")?;
    filesystem::check_sums(&files, &files.join("data.sha256"), "")?;
    must(files.join("seq").metadata()?.len() == length as u64, || {
        "the file written after the resize is cut short".to_owned()
    })
}
