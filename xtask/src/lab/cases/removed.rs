use std::path::Path;

use super::{BLANK, Case, must};
use crate::error::{Result, write};
use crate::lab::filesystem::{noise, read_at};
use crate::lab::parts::Parts;

/// Back-ends that go and come.
pub(super) const CASE: Case = Case {
    name: "removed",
    about: "what is below a disk and a card is taken away and put back: errors and no link meanwhile, and nothing else",
    devices: &[
        "virtio-blk,serial=sign -> file,path=sign.img",
        "virtio-blk,serial=plain -> swappable -> file,path=plain.img",
        "virtio-blk,serial=spare -> swappable -> file,path=spare.img",
        "virtio-net -> swappable -> loopback",
    ],
    host: Some(include_str!("../../../lab/host/removed.sh")),
    limit: 240,
    prepare,
    check: |outcome| {
        let lines = |from: u32| {
            let text = (from..from + 20_000).flat_map(|n| format!("{n}\n").into_bytes());
            text.take(LENGTH).collect::<Vec<u8>>()
        };
        let expected = [lines(1), lines(20_001)].concat();
        let image = read_at(&outcome.after.join("moved.img"), 0, 1 << 20)?;
        must(image[..2 * LENGTH] == expected, || "moved.img does not have what was written".into())?;
        must(image[2 * LENGTH..] == noise(2, 1 << 20)[2 * LENGTH..], || {
            "something was written to moved.img that failed in the guest".into()
        })?;
        outcome.unchanged("spare.img")
    },
    ..BLANK
};

/// Bytes that the guest writes at once.
const LENGTH: usize = 64 << 10;

fn prepare(_: &Parts, folder: &Path) -> Result<()> {
    for (seed, image) in [(1, "sign.img"), (2, "plain.img"), (3, "spare.img")] {
        write(&folder.join(image), noise(seed, 1 << 20))?;
    }
    write(&folder.join("small.img"), noise(4, 1 << 19))
}
