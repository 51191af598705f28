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

/// How long a lock is waited for that is nobody's, or whose owner is dying. Seen were 150 milliseconds.
const AFTERLIFE: Duration = Duration::from_secs(5);
/// How often it is looked for.
const AGAIN: Duration = Duration::from_millis(2);
/// How often in a row its owner must be seen alive: between taking up a deadly signal and beginning to die, nothing tells.
const LOOKS: u32 = 5;

/// Takes the locks.
///
/// A process that was killed is still there for a moment, and with requests in its io_uring it keeps its files open a little longer
/// than it lives: until the host has finished the requests and taken the ring down. So a lock whose owner is dying, or that has
/// none, is waited for, and whoever takes a disk over gets it when no write of the dead can come any more.
///
/// # Errors
/// [`BackendErrorKind::Busy`] where somebody else's are in the way; none is held then.
pub(super) fn acquire(file: &File, config: &FileConfig) -> Result<(), BackendError> {
    if config.lock == Lock::Off {
        return Ok(());
    }
    let (start, mut alive) = (Instant::now(), 0);
    loop {
        match try_acquire(file.as_fd(), config.access) {
            Ok(true) => return Ok(()),
            Ok(false) => {
                release(file, config);
                let owner = owner(file);
                let lives = owner.as_ref().is_some_and(|owner| !owner.is_dying);
                alive = if lives { alive + 1 } else { 0 };
                if alive >= LOOKS || start.elapsed() >= AFTERLIFE {
                    return Err(in_use(config, owner));
                }
                thread::sleep(AGAIN);
            }
            Err(error) => return without_locks(file, config, error),
        }
    }
}

fn in_use(config: &FileConfig, owner: Option<Owner>) -> BackendError {
    let path = config.path.display();
    let whom = owner.map_or_else(|| "another process".to_owned(), |owner| owner.name);
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

/// Who has locks on a file.
struct Owner {
    name: String,
    /// It was killed, and has not let go yet.
    is_dying: bool,
}

/// Who has locks on the file, as far as `/proc` shows it to us. Called when we hold none, so that our own descriptor, of
/// which a process that we are just starting has a copy, is nobody's.
fn owner(file: &File) -> Option<Owner> {
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
            return Some(Owner { name: "this process".to_owned(), is_dying: false });
        }
        let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
        return Some(Owner {
            name: format!("another process ({}, pid {pid})", name.trim_end()),
            is_dying: is_dying(&process.path()),
        });
    }
    None
}

/// Whether a process was killed or is ending, as its `/proc` folder tells.
fn is_dying(process: &Path) -> bool {
    let text = |file: &str| fs::read_to_string(process.join(file)).unwrap_or_default();
    is_ending(&text("stat")) || is_killed(&text("status"))
}

/// Whether the kernel has begun to take the process down, as `/proc/PID/stat` says: its flags, the seventh field behind its name,
/// which may hold anything.
fn is_ending(stat: &str) -> bool {
    const EXITING: u64 = 0x4;
    let behind = stat.rsplit_once(')').map_or("", |(_, behind)| behind);
    let flags = behind.split_whitespace().nth(6).and_then(|flags| flags.parse::<u64>().ok());
    flags.is_some_and(|flags| flags & EXITING != 0)
}

/// Whether SIGKILL waits for the process, as `/proc/PID/status` says.
fn is_killed(status: &str) -> bool {
    const KILL: u64 = 1 << (libc::SIGKILL - 1);
    status
        .lines()
        .filter_map(|line| line.strip_prefix("SigPnd:").or_else(|| line.strip_prefix("ShdPnd:")))
        .filter_map(|set| u64::from_str_radix(set.trim(), 16).ok())
        .any(|set| set & KILL != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_says_of_the_dying_is_understood() {
        assert!(!is_dying(Path::new("/proc/self")));
        assert!(!is_dying(Path::new("/proc/nobody")));
        assert!(!is_ending("7 (a) 4 4 4 (b) S 1 7 7 0 -1 4194304 100"));
        assert!(is_ending("7 (a) R 1 7 7 0 -1 4228100 100"));
        assert!(!is_killed(
            "SigPnd:\t0000000000000000\nShdPnd:\t0000000000004000\nSigCgt:\t0000000000000100\n"
        ));
        assert!(is_killed("Name:\tx\nSigPnd:\t0000000000000100\n"));
        assert!(is_killed("ShdPnd:\t0000000000000100\n"));
    }
}
