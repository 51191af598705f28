//! The host's calls.

use iovirt_core::dma::IoVec;

/// The host's page size in bytes.
pub(super) fn page_size() -> u32 {
    // SAFETY: sysconf reads a number and touches no memory of ours.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    u32::try_from(size).ok().filter(|size| size.is_power_of_two()).unwrap_or(4096)
}

/// Gives whole pages of an anonymous mapping back to the host; they read as zeroes from then on. False where the host
/// refuses, as it does for locked memory; an unknown part has been given back then.
///
/// # Safety
/// The piece must be whole pages of a private anonymous mapping to which no Rust reference exists.
pub(super) unsafe fn give_back(piece: &IoVec) -> bool {
    // SAFETY: as promised by the caller. The mapping stays, so whoever copies from or to it meanwhile finds memory: the
    // old bytes or zeroes.
    unsafe { libc::madvise(piece.as_ptr().cast(), piece.len(), libc::MADV_DONTNEED) == 0 }
}
