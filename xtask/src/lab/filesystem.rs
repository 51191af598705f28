//! File systems made from folders, read back and checked, without mounting and without root.

use std::fmt::Write;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::cmd::Cmd;
use crate::error::{Context, Error, Result};

/// Makes an ext4 file system of `size` bytes in `image` out of a folder. What `image` holds already stays where the
/// file system doesn't write.
pub(crate) fn make(image: &Path, size: u64, folder: &Path) -> Result<()> {
    let file =
        File::options().create(true).truncate(false).write(true).open(image).context(image.display())?;
    file.set_len(size).context(image.display())?;
    Cmd::new("mkfs.ext4")
        .args(["-q", "-F", "-b", "4096", "-m", "0"])
        .args(["-E", "nodiscard,root_owner=0:0,lazy_itable_init=1"])
        .arg("-d")
        .args([folder, image])
        .quiet()
}

/// Copies a folder (or file) of the file system in `image` into the folder `to`.
pub(crate) fn copy_out(image: &Path, path: &str, to: &Path) -> Result<()> {
    fs::create_dir_all(to).context(to.display())?;
    let request = format!("rdump {path} {}", to.display());
    Cmd::new("debugfs").args(["-R", &request]).arg(image).quiet()?;
    let name = path.rsplit('/').next().unwrap_or(path);
    if to.join(name).exists() {
        Ok(())
    } else {
        Err(Error::new(format!("{} holds no {path}", image.display())))
    }
}

/// Checks the file system in `image`; it must be clean.
pub(crate) fn check(image: &Path) -> Result<()> {
    Cmd::new("e2fsck").args(["-f", "-n"]).arg(image).quiet()
}

/// Writes the list that `sha256sum -c` takes for all files below `folder` of the tree; paths in it start with
/// `prefix`.
pub(crate) fn write_sums(tree: &Path, folder: &str, prefix: &str, list: &Path) -> Result<()> {
    let mut names: Vec<String> = fs::read_dir(tree.join(folder))
        .context(folder)?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect();
    names.sort_unstable();
    let sums = Cmd::new("sha256sum")
        .args(names.iter().map(|name| format!("{folder}/{name}")))
        .folder(tree)
        .text()?;
    let mut text = String::new();
    for line in sums.lines() {
        let (sum, path) =
            line.split_once("  ").ok_or_else(|| Error::new(format!("sha256sum said {line}")))?;
        let _ = writeln!(text, "{sum}  {prefix}{path}");
    }
    crate::error::write(list, text)
}

/// Checks the files of a tree against a list as [`write_sums`] writes it; `prefix` is taken off the paths in it.
pub(crate) fn check_sums(tree: &Path, list: &Path, prefix: &str) -> Result<()> {
    let text = fs::read_to_string(list).context(list.display())?;
    if text.trim().is_empty() {
        return Err(Error::new(format!("{} lists nothing", list.display())));
    }
    let relative = text.replace(&format!("  {prefix}"), "  ");
    let plain = list.with_extension("relative");
    crate::error::write(&plain, relative)?;
    Cmd::new("sha256sum").args(["--quiet", "--strict", "-c"]).arg(&plain).folder(tree).quiet()
}

/// Bytes that look random and are the same in every run.
pub(crate) fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// Part of a file.
pub(crate) fn read_at(path: &Path, offset: u64, length: usize) -> Result<Vec<u8>> {
    let mut bytes = vec![0; length];
    File::open(path)
        .and_then(|file| file.read_exact_at(&mut bytes, offset))
        .context(format_args!("{length} bytes at {offset} of {}", path.display()))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn noise_has_its_length_and_depends_on_its_seed() {
        assert_eq!(noise(1, 1001).len(), 1001);
        assert_eq!(noise(7, 64), noise(7, 64));
        assert_ne!(noise(7, 64), noise(8, 64));
        assert!(noise(3, 4096).chunks(512).all(|sector| sector != [0; 512]));
    }
}
