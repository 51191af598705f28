//! Advisory locks that keep two writers from one image.
//!
//! QEMU's tools lock single bytes of an image with open-file-description locks (`fcntl(2)`, `F_OFD_SETLK`): byte 100 + *n*
//! is held, shared, by whoever uses permission *n*, and byte 200 + *n* by whoever does not allow others to use it. Whoever
//! takes a permission looks for a lock on the byte that forbids it, and the other way round. The permissions are
//! consistent reading (0), writing (1), writing what is there already (2) and resizing (3).
//!
//! This back-end does the same: as a writer it uses the permissions to read, to write and to resize and allows others none
//! of the last two; as a reader it uses the permission to read and allows others only that. All locks are taken before any
//! is looked for, so of two that come at once at most one gets in (and perhaps none). A program that locks the whole file
//! is in conflict with all of this too.

use super::config::{FileAccess, FileConfig, Lock};
use super::sys::{self, ByteLock};
use iovirt_core::{BackendError, BackendErrorKind};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;

const USED: i64 = 100;
const FORBIDDEN: i64 = 200;

const READ: i64 = 0;
const WRITE: i64 = 1;
const RESIZE: i64 = 3;

/// The permissions that are used, and those that are not allowed to others.
fn permissions(access: FileAccess) -> (&'static [i64], &'static [i64]) {
    match access {
        FileAccess::ReadWrite => (&[READ, WRITE, RESIZE], &[WRITE, RESIZE]),
        FileAccess::ReadOnly => (&[READ], &[WRITE, RESIZE]),
    }
}

/// Takes the locks.
///
/// # Errors
/// [`BackendErrorKind::Busy`] where somebody else's are in the way; none is held then.
pub(super) fn acquire(file: &File, config: &FileConfig) -> Result<(), BackendError> {
    if config.lock == Lock::Off {
        return Ok(());
    }
    match try_acquire(file.as_fd(), config.access) {
        Ok(true) => Ok(()),
        Ok(false) => {
            release(file, config);
            let path = config.path.display();
            let whom = owner(file).unwrap_or_else(|| "another process".to_owned());
            Err(BackendError::new(
                BackendErrorKind::Busy,
                format!("{path} is in use by {whom}; lock=off opens it all the same"),
            ))
        }
        Err(error)
            if matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::EINVAL)) =>
        {
            tracing::warn!(path = %config.path.display(), %error, "this file cannot be locked; nothing keeps a second writer out");
            Ok(())
        }
        Err(error) => {
            release(file, config);
            let path = config.path.display();
            Err(BackendError::host(format!("{path} cannot be locked (lock=off does without)"), error))
        }
    }
}

fn try_acquire(fd: BorrowedFd<'_>, access: FileAccess) -> io::Result<bool> {
    let (used, forbidden) = permissions(access);
    let held = used.iter().map(|permission| USED + permission);
    for byte in held.chain(forbidden.iter().map(|permission| FORBIDDEN + permission)) {
        if !sys::lock_byte(fd, byte, ByteLock::Share)? {
            return Ok(false);
        }
    }
    let forbids = used.iter().map(|permission| FORBIDDEN + permission);
    for byte in forbids.chain(forbidden.iter().map(|permission| USED + permission)) {
        if sys::byte_is_locked(fd, byte)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Lets go of the locks, also where an embedder keeps a duplicate of the descriptor.
pub(super) fn release(file: &File, config: &FileConfig) {
    if config.lock == Lock::Off {
        return;
    }
    let (used, forbidden) = permissions(config.access);
    let held = used.iter().map(|permission| USED + permission);
    for byte in held.chain(forbidden.iter().map(|permission| FORBIDDEN + permission)) {
        // Letting go fails only where taking did.
        let _ = sys::lock_byte(file.as_fd(), byte, ByteLock::Release);
    }
}

/// Who has the file open, as far as `/proc` shows it to us.
fn owner(file: &File) -> Option<String> {
    let ours = file.metadata().ok()?;
    let is_it = |fd: &std::fs::DirEntry| {
        std::fs::metadata(fd.path()).is_ok_and(|other| (other.dev(), other.ino()) == (ours.dev(), ours.ino()))
    };
    let me = std::process::id();
    for process in std::fs::read_dir("/proc").ok()?.flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let Ok(mut fds) = std::fs::read_dir(process.path().join("fd")) else { continue };
        if pid != me && fds.any(|fd| fd.is_ok_and(|fd| is_it(&fd))) {
            let name = std::fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            return Some(format!("another process ({}, pid {pid})", name.trim_end()));
        }
    }
    let fds = std::fs::read_dir("/proc/self/fd").ok()?;
    let open_here = fds.flatten().filter(is_it).count();
    (open_here > 1).then(|| "this process".to_owned())
}
