//! The files that are served.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::points::Target;
use crate::cmd;
use crate::error::{Context, Result};

/// Bytes written at once while filling.
const PIECE: usize = 1 << 20;
/// `O_DIRECT`, as the standard library has no name for it: architectures differ.
#[cfg(any(target_arch = "x86_64", target_arch = "riscv64"))]
const O_DIRECT: i32 = 0o40000;
#[cfg(target_arch = "aarch64")]
const O_DIRECT: i32 = 0o200_000;

/// The files, full of data. The one in memory goes away with this.
#[derive(Debug)]
pub(crate) struct Files {
    bytes: u64,
    tmpfs: PathBuf,
    disk: PathBuf,
}

impl Files {
    /// Makes the files that the targets need, of so many bytes; the one on a disk in `folder`.
    pub(crate) fn new(targets: &[Target], bytes: u64, folder: &Path) -> Result<Self> {
        let tmpfs = PathBuf::from(format!("/dev/shm/iovirt-bench-peers-{}.img", std::process::id()));
        let files = Self { bytes, tmpfs, disk: folder.join("disk.img") };
        for target in targets {
            if let Some(path) = files.path(*target) {
                println!("filling {}", path.display());
                fill(path, bytes)?;
                open(path, *target)?;
            }
        }
        Ok(files)
    }

    /// The file of a target, if it has one.
    pub(crate) fn path(&self, target: Target) -> Option<&Path> {
        match target {
            Target::Null => None,
            Target::Tmpfs => Some(&self.tmpfs),
            Target::Direct => Some(&self.disk),
        }
    }

    /// Bytes of each disk.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.tmpfs);
        let _ = fs::remove_file(&self.disk);
    }
}

/// Opens a target's file as servers do.
pub(crate) fn open(path: &Path, target: Target) -> Result<File> {
    let flags = if target == Target::Direct { O_DIRECT } else { 0 };
    OpenOptions::new().read(true).write(true).custom_flags(flags).open(path).context(path.display())
}

/// A file of data that cannot be compressed, all of it written and synced.
fn fill(path: &Path, bytes: u64) -> Result<()> {
    let mut file = File::create(path).context(path.display())?;
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut piece = vec![0; PIECE];
    for _ in 0..bytes / PIECE as u64 {
        for word in piece.chunks_exact_mut(8) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            word.copy_from_slice(&state.to_le_bytes());
        }
        file.write_all(&piece).context(path.display())?;
    }
    file.sync_all().context(path.display())
}

/// The folder for the file on a disk, sockets and results.
pub(crate) fn folder() -> Result<PathBuf> {
    let folder = cmd::target().join("bench-peers");
    fs::create_dir_all(&folder).context(folder.display())?;
    Ok(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_full_and_go_away() {
        let folder = std::env::temp_dir().join(format!("iovirt-bench-peers-test-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let files = Files::new(&[Target::Tmpfs], 2 << 20, &folder).unwrap();
        let path = files.path(Target::Tmpfs).unwrap().to_owned();
        let content = fs::read(&path).unwrap();
        assert_eq!(content.len(), 2 << 20);
        assert_ne!(content[..PIECE], content[PIECE..]);
        drop(files);
        assert!(!path.exists());
        fs::remove_dir_all(&folder).unwrap();
    }
}
