//! Control of a file while a guest uses it.

use super::config::FileAccess;
use super::disk::Disk;
use super::probe;
use iovirt_core::pipeline::Event;
use iovirt_core::sync::{Arc, Mutex, PoisonError};
use iovirt_core::{BackendError, BackendErrorKind};
use std::path::Path;

/// Changes a [`FileBackend`](super::FileBackend) while it runs; found in a pipeline by the name `file`.
#[derive(Debug)]
pub struct FileControl {
    disk: Arc<Disk>,
    /// One change of size at a time.
    changing: Mutex<()>,
}

impl FileControl {
    pub(super) fn new(disk: Arc<Disk>) -> Self {
        Self { disk, changing: Mutex::new(()) }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.disk.config().path
    }

    /// Size of the disk in bytes, as guests see it.
    pub fn capacity(&self) -> u64 {
        self.disk.caps().capacity
    }

    /// Makes the file `bytes` long, a multiple of the logical block size, and tells all listeners. A file that grows stays
    /// sparse. A request under way on a part that is cut off fails with
    /// [`BlockError::Io`](iovirt_core::request::block::BlockError::Io). Blocks for as long as the host takes.
    ///
    /// # Errors
    /// Where the size is not allowed, the file is read-only, or the host refuses. A block device is as large as it is: see
    /// [`FileControl::refresh`].
    pub fn resize(&self, bytes: u64) -> Result<u64, BackendError> {
        let path = self.path().display();
        if self.disk.is_device() {
            let now = self.refresh()?;
            if now == bytes {
                return Ok(now);
            }
            return Err(BackendError::new(
                BackendErrorKind::Unsupported,
                format!(
                    "{path} is a block device of {now} bytes: change its size where it is made, then refresh"
                ),
            ));
        }
        if self.disk.config().access == FileAccess::ReadOnly {
            return Err(BackendError::config(format!("{path} is open read-only and keeps its size")));
        }
        let block = u64::from(self.disk.caps().logical_block);
        if bytes == 0 || !bytes.is_multiple_of(block) || i64::try_from(bytes).is_err() {
            return Err(BackendError::config(format!(
                "{path} cannot be made {bytes} bytes long: multiples of {block} bytes are allowed, up to 2^63"
            )));
        }
        let _one = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let set_len = || {
            self.disk.file().set_len(bytes).map_err(|error| {
                BackendError::host(format!("{path} cannot be made {bytes} bytes long"), error)
            })?;
            // The new size is durable after the next flush, and a drain ends with one.
            self.disk.note_writes();
            Ok(())
        };
        let before = self.capacity();
        if bytes < before {
            // The guest's view shrinks first, so that no new request reaches what is about to go.
            self.announce(bytes);
            set_len().inspect_err(|_| self.announce(before))?;
        } else {
            set_len()?;
            self.announce(bytes);
        }
        Ok(bytes)
    }

    /// Reads the size of the file or the block device again, for one that was changed from outside, and tells all listeners
    /// where it is another. Bytes behind the last whole block are not exposed.
    ///
    /// # Errors
    /// Where the host does not tell the size.
    pub fn refresh(&self) -> Result<u64, BackendError> {
        let _one = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let size = probe::size(self.disk.file(), self.disk.facts().medium).map_err(|error| {
            BackendError::host(format!("the size of {} cannot be found out", self.path().display()), error)
        })?;
        let capacity = size - size % u64::from(self.disk.caps().logical_block);
        self.announce(capacity);
        Ok(capacity)
    }

    fn announce(&self, capacity: u64) {
        self.disk.change_caps(Event::Resized, |caps| caps.capacity = capacity);
    }
}
