//! What the guests of several cases have in common.

use std::path::Path;

use super::Place;
use crate::cmd::Cmd;
use crate::error::{Context, Error, Result, write};
use crate::lab::cases::add_files;
use crate::lab::filesystem::{self, noise};

/// Bytes on the disk that `guest/load.sh` writes.
pub(crate) const LOAD_SIZE: usize = 16 << 20;

/// Makes the disk that `guest/load.sh` writes.
pub(crate) fn make_load_disk(place: &Place) -> Result<()> {
    write(&place.folder.join("load.img"), noise(3, LOAD_SIZE))
}

/// Makes a disk with files, their sums in `data.sha256`; some 30 MiB that no file system compresses.
pub(crate) fn make_file_disk(place: &Place) -> Result<()> {
    let tree = place.folder.join("tree");
    add_files(&tree, "data", 40, "")?;
    for number in 0..6 {
        write(&tree.join(format!("data/large-{number:02}")), noise(100 + number, 4 << 20))?;
    }
    filesystem::write_sums(&tree, "data", "", &tree.join("data.sha256"))?;
    filesystem::make(&place.folder.join("files.img"), 96 << 20, &tree)
}

/// The SHA-256 of a file.
pub(crate) fn sum(file: &Path) -> Result<String> {
    let said = Cmd::new("sha256sum").arg(file).text()?;
    said.split_whitespace().next().map(str::to_owned).ok_or_else(|| Error::new("sha256sum said nothing"))
}

/// The word behind some words in what a guest said.
pub(crate) fn word_after<'a>(said: &'a str, words: &str) -> Result<&'a str> {
    said.lines()
        .find_map(|line| line.split_once(words))
        .and_then(|(_, rest)| rest.split_whitespace().next())
        .ok_or_else(|| Error::new(format!("the guest did not say '{words}'")))
}

/// A number behind some words in what a guest said.
pub(crate) fn number_after(said: &str, words: &str) -> Result<u64> {
    word_after(said, words)?.parse().context(words)
}

/// The disk that `guest/load.sh` wrote must be what the guest read of it last.
pub(crate) fn check_load_disk(place: &Place, said: &str) -> Result<()> {
    let (image, read) = (sum(&place.folder.join("load.img"))?, word_after(said, "guest: the disk is ")?);
    if image == read {
        return Ok(());
    }
    Err(Error::new(format!("load.img has the sum {image}, and the guest read {read}")))
}
