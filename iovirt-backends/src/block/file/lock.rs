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
//!
//! QEMU's tools forbid nothing when they only read a raw image (`qemu-img info`), so they get in beside a writer, ours as
//! well as theirs.

use super::config::{FileAccess, FileConfig, Lock};
use super::sys::{self, ByteLock};
use iovirt_core::{BackendError, BackendErrorKind};
use std::fs::{self, DirEntry, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

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

/// How long a lock is waited for that is nobody's. Seen were 150 milliseconds.
const AFTERLIFE: Duration = Duration::from_secs(5);
/// How often it is looked for.
const AGAIN: Duration = Duration::from_millis(2);

/// Takes the locks.
///
/// A process that was killed with requests in its io_uring keeps its files open a little longer than it lives: until the host
/// has finished the requests and taken the ring down. So a lock without an owner is waited for, and whoever takes a disk
/// over gets it when no write of the dead can come any more.
///
/// # Errors
/// [`BackendErrorKind::Busy`] where somebody else's are in the way; none is held then.
pub(super) fn acquire(file: &File, config: &FileConfig) -> Result<(), BackendError> {
    if config.lock == Lock::Off {
        return Ok(());
    }
    let start = Instant::now();
    loop {
        match try_acquire(file.as_fd(), config.access) {
            Ok(true) => return Ok(()),
            Ok(false) => {
                release(file, config);
                let owner = owner(file);
                if owner.is_some() || start.elapsed() >= AFTERLIFE {
                    return Err(in_use(config, owner));
                }
                thread::sleep(AGAIN);
            }
            Err(error) => return without_locks(file, config, error),
        }
    }
}

fn in_use(config: &FileConfig, owner: Option<String>) -> BackendError {
    let path = config.path.display();
    let whom = owner.unwrap_or_else(|| "another process".to_owned());
    BackendError::new(
        BackendErrorKind::Busy,
        format!("{path} is in use by {whom}; lock=off opens it all the same"),
    )
}

/// What follows where the host could not lock: a file system that does not know locks does without.
fn without_locks(file: &File, config: &FileConfig, error: io::Error) -> Result<(), BackendError> {
    let path = config.path.display();
    if matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::EINVAL)) {
        tracing::warn!(%path, %error, "this file cannot be locked; nothing keeps a second writer out");
        return Ok(());
    }
    release(file, config);
    Err(BackendError::host(format!("{path} cannot be locked (lock=off does without)"), error))
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

/// Who has locks on the file, as far as `/proc` shows it to us. Called when we hold none, so that our own descriptor, of
/// which a process that we are just starting has a copy, is nobody's.
fn owner(file: &File) -> Option<String> {
    let ours = file.metadata().ok()?;
    let holds = |process: &Path, fd: &DirEntry| {
        fs::metadata(fd.path()).is_ok_and(|other| (other.dev(), other.ino()) == (ours.dev(), ours.ino()))
            && fs::read_to_string(process.join("fdinfo").join(fd.file_name()))
                .is_ok_and(|info| info.lines().any(|line| line.starts_with("lock:")))
    };
    let me = std::process::id();
    for process in fs::read_dir("/proc").ok()?.flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let Ok(fds) = fs::read_dir(process.path().join("fd")) else { continue };
        if !fds.flatten().any(|fd| holds(&process.path(), &fd)) {
            continue;
        }
        if pid == me {
            return Some("this process".to_owned());
        }
        let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
        return Some(format!("another process ({}, pid {pid})", name.trim_end()));
    }
    None
}
