//! Memory that the server maps too. With [`sys`](crate::sys), the only file with `unsafe` code.
//!
//! Everything is reached by its offset, and every offset is checked: an access outside of the memory panics, as offsets are
//! ours alone. Values are little-endian, as virtio has them. What both sides use at once (indices, flags) goes through
//! atomics; the rest is copied.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};

/// Memory from a memfd, mapped for reading and writing.
#[derive(Debug)]
pub struct SharedMemory {
    file: File,
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping belongs to this value until it is dropped, whichever thread has it, and nothing in it is tied to a
// thread.
unsafe impl Send for SharedMemory {}
// SAFETY: all that a shared reference does is atomic accesses, and copies of bytes that the other process may write at the
// same time anyway; callers agree on who has a buffer by the ring.
unsafe impl Sync for SharedMemory {}

impl SharedMemory {
    /// Memory of this many bytes, all zeroes, every page there already.
    ///
    /// # Errors
    /// What the host says about the memfd or the mapping.
    pub fn new(len: usize) -> io::Result<Self> {
        // SAFETY: a valid C string, and a call that gives a new descriptor or fails.
        let fd = unsafe { libc::memfd_create(c"vhost-user-driver".as_ptr(), libc::MFD_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is new and nobody else's.
        let file = unsafe { File::from_raw_fd(fd) };
        file.set_len(len as u64)?;
        // SAFETY: a new mapping at a place of the kernel's choice touches nothing that exists.
        let base = unsafe {
            libc::mmap(
                ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_POPULATE,
                file.as_raw_fd(),
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast()).ok_or_else(|| io::Error::other("a mapping at address zero"))?;
        Ok(Self { file, base, len })
    }

    /// The memfd, for the server.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Bytes of it.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Never: there is no mapping of no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Where it is in this process, which is how vhost-user names the places of rings.
    pub fn user_address(&self) -> u64 {
        self.base.as_ptr() as u64
    }

    /// The place of `len` bytes at `offset`.
    #[inline]
    fn at(&self, offset: usize, len: usize) -> *mut u8 {
        assert!(offset <= self.len && len <= self.len - offset, "{len} bytes at {offset} of {}", self.len);
        // SAFETY: just checked to be within the mapping, or at its end.
        unsafe { self.base.as_ptr().add(offset) }
    }

    /// The same, for a value of `N` bytes at a multiple of `N`.
    #[inline]
    fn aligned<const N: usize>(&self, offset: usize) -> *mut u8 {
        assert!(offset.is_multiple_of(N), "{offset} is not a multiple of {N}");
        self.at(offset, N)
    }

    #[inline]
    fn atomic_u16(&self, offset: usize) -> &AtomicU16 {
        // SAFETY: within the mapping and aligned, as just checked (the mapping begins at a page); it lives as long as `self`;
        // in this process these bytes are only reached by atomics or by copies that the ring's owner orders.
        unsafe { AtomicU16::from_ptr(self.aligned::<2>(offset).cast()) }
    }

    #[inline]
    fn atomic_u32(&self, offset: usize) -> &AtomicU32 {
        // SAFETY: as for `atomic_u16`.
        unsafe { AtomicU32::from_ptr(self.aligned::<4>(offset).cast()) }
    }

    #[inline]
    fn atomic_u64(&self, offset: usize) -> &AtomicU64 {
        // SAFETY: as for `atomic_u16`.
        unsafe { AtomicU64::from_ptr(self.aligned::<8>(offset).cast()) }
    }

    /// The 16-bit value at an even offset.
    #[inline]
    pub fn load_u16(&self, offset: usize, order: Ordering) -> u16 {
        u16::from_le(self.atomic_u16(offset).load(order))
    }

    /// Writes a 16-bit value at an even offset.
    #[inline]
    pub fn store_u16(&self, offset: usize, value: u16, order: Ordering) {
        self.atomic_u16(offset).store(value.to_le(), order);
    }

    /// The 32-bit value at a multiple of four.
    #[inline]
    pub fn load_u32(&self, offset: usize) -> u32 {
        u32::from_le(self.atomic_u32(offset).load(Ordering::Relaxed))
    }

    /// Writes a 32-bit value at a multiple of four.
    #[inline]
    pub fn store_u32(&self, offset: usize, value: u32) {
        self.atomic_u32(offset).store(value.to_le(), Ordering::Relaxed);
    }

    /// The 64-bit value at a multiple of eight.
    #[inline]
    pub fn load_u64(&self, offset: usize) -> u64 {
        u64::from_le(self.atomic_u64(offset).load(Ordering::Relaxed))
    }

    /// Writes a 64-bit value at a multiple of eight.
    #[inline]
    pub fn store_u64(&self, offset: usize, value: u64) {
        self.atomic_u64(offset).store(value.to_le(), Ordering::Relaxed);
    }

    /// Copies bytes out.
    pub fn read(&self, offset: usize, to: &mut [u8]) {
        let from = self.at(offset, to.len());
        // SAFETY: checked; our own memory and the mapping do not overlap. The server may write at the same time if it breaks
        // the ring's rules: then some of the bytes are old and some new, and no value depends on them here.
        unsafe { ptr::copy_nonoverlapping(from, to.as_mut_ptr(), to.len()) };
    }

    /// Copies bytes in.
    pub fn write(&self, offset: usize, from: &[u8]) {
        let to = self.at(offset, from.len());
        // SAFETY: as for `read`.
        unsafe { ptr::copy_nonoverlapping(from.as_ptr(), to, from.len()) };
    }

    /// Makes `len` bytes all this value.
    pub fn fill(&self, offset: usize, len: usize, value: u8) {
        let to = self.at(offset, len);
        // SAFETY: checked.
        unsafe { ptr::write_bytes(to, value, len) };
    }

    /// Reads from a file into the memory, by one `pread`; gives how many bytes came.
    ///
    /// # Errors
    /// What the host says.
    pub fn pread(&self, file: &File, at: u64, offset: usize, len: usize) -> io::Result<usize> {
        let to = self.at(offset, len);
        // SAFETY: `len` bytes from `to` are within the mapping, which outlives the call.
        let result = unsafe { libc::pread(file.as_raw_fd(), to.cast(), len, at as libc::off_t) };
        usize::try_from(result).map_err(|_| io::Error::last_os_error())
    }

    /// Writes from the memory to a file, by one `pwrite`; gives how many bytes went.
    ///
    /// # Errors
    /// What the host says.
    pub fn pwrite(&self, file: &File, at: u64, offset: usize, len: usize) -> io::Result<usize> {
        let from = self.at(offset, len);
        // SAFETY: as for `pread`.
        let result = unsafe { libc::pwrite(file.as_raw_fd(), from.cast(), len, at as libc::off_t) };
        usize::try_from(result).map_err(|_| io::Error::last_os_error())
    }
}

impl Drop for SharedMemory {
    fn drop(&mut self) {
        // SAFETY: this mapping is ours and was made with this length; no reference into it outlives `self`.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_little_endian_and_at_their_places() {
        let memory = SharedMemory::new(4096).unwrap();
        memory.store_u16(2, 0x0102, Ordering::Relaxed);
        memory.store_u32(4, 0x0304_0506);
        memory.store_u64(4088, 0x0708_090a_0b0c_0d0e);
        let mut bytes = [0; 8];
        memory.read(0, &mut bytes);
        assert_eq!(bytes, [0, 0, 2, 1, 6, 5, 4, 3]);
        memory.write(4088, &[1, 0, 0, 0, 0, 0, 0, 0x80]);
        assert_eq!(memory.load_u64(4088), 0x8000_0000_0000_0001);
        assert_eq!(memory.load_u16(2, Ordering::Relaxed), 0x0102);
    }

    #[test]
    #[should_panic(expected = "8 bytes at 4096 of 4096")]
    fn nothing_is_reached_beyond_the_end() {
        SharedMemory::new(4096).unwrap().load_u64(4096);
    }

    #[test]
    fn files_are_read_and_written_in_place() {
        let memory = SharedMemory::new(8192).unwrap();
        let file = SharedMemory::new(8192).unwrap();
        memory.write(100, b"there and back");
        assert_eq!(memory.pwrite(file.file(), 4000, 100, 14).unwrap(), 14);
        assert_eq!(memory.pread(file.file(), 4000, 5000, 14).unwrap(), 14);
        let mut back = [0; 14];
        memory.read(5000, &mut back);
        assert_eq!(&back, b"there and back");
    }
}
