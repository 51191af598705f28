//! A Unix socket that is its owner's alone, and gone with whoever listens.

use std::fs::Permissions;
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// A socket somebody listens on; it is removed with this value.
#[derive(Debug)]
pub(crate) struct Socket {
    path: PathBuf,
    listener: UnixListener,
}

impl Socket {
    /// A socket at `path`, whose clients wait until they are served. One there that nobody listens to any more is replaced.
    pub(crate) fn bind(path: &Path) -> io::Result<Self> {
        remove_dead(path)?;
        let socket = Self { path: path.to_owned(), listener: UnixListener::bind(path)? };
        std::fs::set_permissions(path, Permissions::from_mode(0o600))?;
        Ok(socket)
    }

    /// Another handle to the listening end.
    pub(crate) fn listener(&self) -> io::Result<UnixListener> {
        self.listener.try_clone()
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Removes a socket that a process left behind, and nothing else.
fn remove_dead(path: &Path) -> io::Result<()> {
    let is_socket = std::fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket());
    let refused = |error: io::Error| error.kind() == io::ErrorKind::ConnectionRefused;
    if is_socket && UnixStream::connect(path).is_err_and(refused) {
        return std::fs::remove_file(path);
    }
    Ok(())
}
