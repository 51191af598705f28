use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::daemon::{Daemon, requests_by_queue, serve};
use super::qemu::Machine;
use super::{Case, Network, Place};
use crate::error::{Context, Result, write};
use crate::lab::cases::{Outcome, add_files, must};
use crate::lab::filesystem::{self, noise, read_at};
use crate::lab::kernel::Series;

/// Everything that a disk does.
pub(super) const CASE: Case = Case {
    name: "vhost-user-blk",
    about: "QEMU's guest on two disks of our daemon with two queues each: files both ways, flush, discard, resize",
    kernels: &Series::ALL,
    network: Network::Unused,
    image: None,
    run,
};

const FILES_SIZE: u64 = 96 << 20;
const RAW_SIZE: usize = 16 << 20;
const HOLE: std::ops::Range<usize> = 4 << 20..12 << 20;
/// What the guest writes behind the old end of the disk, in bytes.
const WRITTEN: usize = 512 << 10;

fn run(place: &Place) -> Result<String> {
    prepare(place)?;
    let daemon = Daemon::start(
        place,
        "daemon",
        &[
            serve("files.sock", "virtio-blk,queues=2 -> stats -> file,path=files.img,cache=write-back"),
            serve("raw.sock", "virtio-blk,queues=2 -> stats -> file,path=raw.img"),
        ],
    )?;
    let mut qemu = Machine::new(place, "qemu", "vhost-user-blk")
        .options(&["-no-reboot"])
        .disk("files.sock")
        .disk("raw.sock")
        .start()?;
    let blocks = |name: &str| -> Result<u64> {
        let path = place.folder.join(name);
        Ok(fs::metadata(&path).context(path.display())?.blocks() * 512)
    };
    let before = [blocks("files.img")?, blocks("raw.img")?];
    qemu.process().wait_for("guest: ready to be resized")?;
    let after = [blocks("files.img")?, blocks("raw.img")?];
    daemon.tell(r#"{"do":"resize","device":1,"size":"32M"}"#)?;
    qemu.end()?;
    let report = daemon.end()?;
    check_space(before, after)?;
    check_files(&place.folder)?;
    check_raw(&place.folder.join("raw.img"))?;
    let requests = requests_by_queue(&report);
    must(
        requests.len() == 2 && requests[0].len() == 2 && requests[0].iter().all(|count| *count > 50),
        || format!("both queues of the first disk are to be used: {requests:?}"),
    )?;
    Ok(format!("requests by queue {requests:?}"))
}

fn prepare(place: &Place) -> Result<()> {
    // No block of either image is a hole at the start.
    let files = place.folder.join("files.img");
    write(&files, noise(4, FILES_SIZE as usize))?;
    write(&place.folder.join("raw.img"), noise(5, RAW_SIZE))?;
    let tree = place.folder.join("tree");
    add_files(&tree, "data", 200, "")?;
    write(&tree.join("large"), noise(6, 32 << 20))?;
    filesystem::make(&files, FILES_SIZE, &tree)
}

/// The guest gave back a file of 32 MiB and free space, and a range of 8 MiB.
fn check_space(before: [u64; 2], after: [u64; 2]) -> Result<()> {
    must(before[0] >= FILES_SIZE * 9 / 10, || {
        format!("files.img had only {} bytes to begin with", before[0])
    })?;
    must(after[0] <= FILES_SIZE / 2, || {
        format!("files.img takes {} bytes after the trim, {} before", after[0], before[0])
    })?;
    must(before[1] - after[1] == HOLE.len() as u64, || {
        format!("raw.img takes {} bytes after 8 MiB were discarded, {} before", after[1], before[1])
    })
}

fn check_files(folder: &Path) -> Result<()> {
    let outcome = Outcome { before: folder.to_owned(), after: folder.to_owned() };
    let files = outcome.files("files.img")?;
    for list in ["data.sha256", "out.sha256"] {
        filesystem::check_sums(&files, &files.join(list), "").context(list)?;
    }
    must(!files.join("large").exists(), || "the deleted file is back".to_owned())
}

fn check_raw(image: &Path) -> Result<()> {
    let expected = noise(5, RAW_SIZE);
    let found = read_at(image, 0, 2 * RAW_SIZE)?;
    must(found[..HOLE.start] == expected[..HOLE.start], || "raw.img changed below the hole".to_owned())?;
    must(found[HOLE.end..RAW_SIZE] == expected[HOLE.end..], || "raw.img changed above the hole".to_owned())?;
    must(found[HOLE].iter().all(|byte| *byte == 0), || {
        "what was discarded from raw.img reads as something".to_owned()
    })?;
    let mut lines: Vec<u8> = (1..=100_000).flat_map(|n| format!("{n}\n").into_bytes()).collect();
    lines.truncate(WRITTEN);
    must(found[RAW_SIZE..RAW_SIZE + WRITTEN] == lines, || {
        "the new space of raw.img holds something else than the guest wrote".to_owned()
    })
}
