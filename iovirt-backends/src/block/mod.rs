//! Back-ends for block requests.
//!
//! | back-end | what it is | lives in |
//! |---|---|---|
//! | [`null`] | keeps nothing: for measuring what is above it | nothing |
//! | [`memory`] | a sparse RAM disk | the host's memory |
//! | [`file`](mod@file) | a disk in a file or a block device | the host's file system |
//! | [`nbd`] | a disk on an NBD server | the server |
//!
//! [`at_once`] is the data plane of those that do their work at once, and [`align`] the adapter that lets requests of any alignment reach a host that demands one.

pub mod align;
pub mod at_once;
pub mod file;
pub mod memory;
pub mod nbd;
pub mod null;

use iovirt_core::BackendError;
use iovirt_core::request::block::SECTOR;

/// Refuses a size that no disk can have.
fn check_size(size: u64) -> Result<(), BackendError> {
    if size == 0 || !size.is_multiple_of(SECTOR) || i64::try_from(size).is_err() {
        return Err(BackendError::config(format!(
            "a disk cannot have {size} bytes: the size is a multiple of {SECTOR}, above zero and below 2^63"
        )));
    }
    Ok(())
}
