//! A disk with a whole Debian on it, from its partition table and boot loader to fio: what a user's guest is.

use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::cmd::{self, Cmd};
use crate::error::{Context, Error, Result, read};
use crate::setup::{self, Source};

/// What makes it.
const FILES: [&str; 4] = ["make.sh", "grub.cfg", "lab.service", "run"];
/// Size of the disk in bytes.
const SIZE: u64 = 1 << 30;
/// Where its only partition begins, in bytes: there is room for the boot loader before it.
pub(crate) const PARTITION: u64 = 1 << 20;
const SECTOR: u64 = 512;
/// Where the partition table lies in the first sector, behind the boot loader's code.
const TABLE: usize = 446;
/// The table's four entries of 16 bytes, and the two that say that it is one.
const TABLE_LEN: usize = 66;

/// The disk, made once in `cache`.
pub(crate) fn disk(cache: &Path) -> Result<PathBuf> {
    let disk = cache.join(format!("debian-{:016x}.img", fingerprint()?));
    if disk.is_file() {
        return Ok(disk);
    }
    setup::ensure(&[setup::MMDEBSTRAP, setup::UNSHARE])?;
    println!("making a Debian system");
    let folder = cache.join("debian.part");
    fs::create_dir_all(&folder).context(folder.display())?;
    make_system(&folder)?;
    let image = folder.join("root.img");
    add_boot_loader(&image, &read(&folder.join("boot.img"))?, &read(&folder.join("core.img"))?)?;
    // Under its own name last: a run that was ended leaves no half disk that the next one takes.
    fs::rename(&image, &disk).context(disk.display())?;
    fs::remove_dir_all(&folder).context(folder.display())?;
    Ok(disk)
}

/// Of all that makes the disk what it is, but for the packages.
fn fingerprint() -> Result<u64> {
    let mut hasher = DefaultHasher::new();
    setup::source()?.release.hash(&mut hasher);
    for file in FILES {
        read(&folder().join(file))?.hash(&mut hasher);
    }
    Ok(hasher.finish())
}

/// Where they are.
fn folder() -> PathBuf {
    cmd::root().join("xtask/lab/debian")
}

/// The file system at its place, and GRUB's two images beside it.
fn make_system(folder: &Path) -> Result<()> {
    let Source { mirror, release } = setup::source()?;
    let make = if setup::is_root() {
        Cmd::new("unshare").args(["--mount", "sh"])
    } else {
        setup::ensure(&[setup::NEWUIDMAP])?;
        Cmd::new("unshare").args(["--user", "--map-root-user", "--map-auto", "--mount", "sh"])
    };
    make.arg(self::folder().join("make.sh"))
        .args([&release, &mirror])
        .arg(folder)
        .arg(((SIZE - PARTITION) / 1024).to_string())
        .quiet()
}

/// GRUB's first sector with the partition table, and the rest of it before the partition.
fn add_boot_loader(image: &Path, boot: &[u8], core: &[u8]) -> Result<()> {
    if core.len() as u64 > PARTITION - SECTOR {
        return Err(Error::new(format!("GRUB's core has {} bytes, too many", core.len())));
    }
    let file = File::options().write(true).open(image).context(image.display())?;
    file.set_len(SIZE).context(image.display())?;
    file.write_all_at(&first_sector(boot)?, 0)
        .and_then(|()| file.write_all_at(core, SECTOR))
        .context(image.display())
}

fn first_sector(boot: &[u8]) -> Result<[u8; SECTOR as usize]> {
    let mut sector: [u8; SECTOR as usize] =
        boot.try_into().map_err(|_| Error::new(format!("GRUB's first sector has {} bytes", boot.len())))?;
    let mut table = [0; TABLE_LEN];
    // Active, of type Linux; the addresses by cylinders say that there are none.
    table[..8].copy_from_slice(&[0x80, 0xfe, 0xff, 0xff, 0x83, 0xfe, 0xff, 0xff]);
    let sectors = [PARTITION, SIZE - PARTITION].map(|bytes| ((bytes / SECTOR) as u32).to_le_bytes());
    table[8..16].copy_from_slice(&sectors.concat());
    table[64..].copy_from_slice(&[0x55, 0xaa]);
    sector[TABLE..].copy_from_slice(&table);
    Ok(sector)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_partition_table_stands_behind_the_boot_code() {
        let sector = first_sector(&[7; 512]).unwrap();
        assert!(sector[..TABLE].iter().all(|byte| *byte == 7));
        assert_eq!(sector[TABLE], 0x80);
        assert_eq!(sector[TABLE + 8..TABLE + 16], [0, 8, 0, 0, 0, 0xf8, 0x1f, 0]);
        assert_eq!(sector[510..], [0x55, 0xaa]);
        assert!(first_sector(&[7; 511]).is_err());
    }
}
