use std::path::Path;

use super::{BLANK, Case, must};
use crate::error::{Result, write};
use crate::lab::filesystem::{noise, read_at};
use crate::lab::parts::Parts;

/// Disks that fail.
pub(super) const CASE: Case = Case {
    name: "vanished",
    about: "a back-end fails, stalls and recovers, a file is cut off and removed: errors in the guest, and nothing else",
    devices: &[
        "virtio-blk,serial=sign -> file,path=sign.img",
        "virtio-blk,serial=failing -> fault -> file,path=failing.img",
        "virtio-blk,serial=gone -> file,path=gone.img",
    ],
    host: Some(include_str!("../../../lab/host/vanished.sh")),
    limit: 240,
    prepare,
    check: |outcome| {
        let mut expected: Vec<u8> = (1..=20_000).flat_map(|n| format!("{n}\n").into_bytes()).collect();
        expected.truncate(64 << 10);
        let image = read_at(&outcome.after.join("failing.img"), 0, 1 << 20)?;
        must(image[..expected.len()] == expected, || "failing.img does not have what was written".into())?;
        must(image[expected.len()..] == noise(2, 1 << 20)[expected.len()..], || {
            "something else was written to failing.img".into()
        })
    },
    ..BLANK
};

fn prepare(_: &Parts, folder: &Path) -> Result<()> {
    for (seed, image) in [(1, "sign.img"), (2, "failing.img"), (3, "gone.img")] {
        write(&folder.join(image), noise(seed, 1 << 20))?;
    }
    Ok(())
}
