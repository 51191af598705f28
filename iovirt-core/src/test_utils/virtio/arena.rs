//! The guest's memory, and its allocator.

use crate::dma::{Access, DmaSpace};
use std::collections::BTreeMap;
use std::ptr::NonNull;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use virtio_drivers::{BufferDirection, Hal, PhysAddr};

/// Guest physical address of the first byte: not zero, so that an address taken for an offset is noticed.
const BASE: u64 = 0x1000_0000;
/// Size in bytes; the host provides a page when it is touched first.
const SIZE: u64 = 512 << 20;
const PAGE: usize = virtio_drivers::PAGE_SIZE;

/// The guest's memory: 512 MiB for the whole process, since `virtio-drivers` knows one HAL per type.
#[derive(Debug)]
pub struct Arena {
    space: DmaSpace,
    host: NonNull<u8>,
    free: Mutex<Free>,
}

#[derive(Debug)]
struct Free {
    /// Offset of the first page that was never given out.
    fresh: usize,
    /// Offsets of what was given back, by number of pages.
    returned: BTreeMap<usize, Vec<usize>>,
}

// SAFETY: the pointer is to memory that `space` keeps mapped; what is behind it is handed out exclusively.
unsafe impl Send for Arena {}
// SAFETY: as above; the allocator's state is behind a lock.
unsafe impl Sync for Arena {}

impl Arena {
    /// The process's arena.
    ///
    /// # Panics
    /// Where the host has no address space left for it.
    pub fn get() -> &'static Self {
        static ARENA: OnceLock<Arena> = OnceLock::new();
        ARENA.get_or_init(|| {
            let space = DmaSpace::anonymous(&[(BASE, SIZE)]).expect("address space for the arena");
            let mut host = None;
            space
                .view()
                .resolve(BASE, SIZE, Access::Write, &mut |segment| {
                    host = NonNull::new(segment.iovec().as_ptr())
                })
                .expect("the arena is one region");
            let free = Free { fresh: 0, returned: BTreeMap::new() };
            Self { space, host: host.expect("a mapping is not at zero"), free: Mutex::new(free) }
        })
    }

    /// The memory as devices see it.
    pub fn space(&self) -> &DmaSpace {
        &self.space
    }

    fn free(&self) -> MutexGuard<'_, Free> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn allocate(&self, pages: usize) -> usize {
        let mut free = self.free();
        if let Some(offset) = free.returned.get_mut(&pages).and_then(Vec::pop) {
            return offset;
        }
        let offset = free.fresh;
        free.fresh += pages * PAGE;
        assert!(free.fresh as u64 <= SIZE, "the in-process guest has used up its {SIZE} bytes of memory");
        offset
    }

    fn give_back(&self, offset: usize, pages: usize) {
        self.free().returned.entry(pages).or_default().push(offset);
    }

    fn host(&self, offset: usize) -> NonNull<u8> {
        assert!((offset as u64) < SIZE);
        // SAFETY: the offset is within the one mapping that `host` points to.
        unsafe { self.host.add(offset) }
    }

    /// The offset of a host address that lies in the arena.
    fn offset_of(&self, host: NonNull<u8>) -> Option<usize> {
        let offset = host.as_ptr().addr().checked_sub(self.host.as_ptr().addr())?;
        ((offset as u64) < SIZE).then_some(offset)
    }
}

/// `virtio-drivers`' way to the [`Arena`]. Buffers that lie in the arena are shared as they are, others are copied.
#[derive(Debug)]
pub struct ArenaHal;

// SAFETY: pages are page-aligned, as the arena's mapping is, zeroed, and given out exclusively until they are given back.
unsafe impl Hal for ArenaHal {
    fn dma_alloc(pages: usize, _: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        let arena = Arena::get();
        let offset = arena.allocate(pages);
        let host = arena.host(offset);
        // SAFETY: these pages have just been allocated and nobody else knows them.
        unsafe { host.as_ptr().write_bytes(0, pages * PAGE) };
        (BASE + offset as u64, host)
    }

    unsafe fn dma_dealloc(paddr: PhysAddr, _: NonNull<u8>, pages: usize) -> i32 {
        Arena::get().give_back((paddr - BASE) as usize, pages);
        0
    }

    unsafe fn mmio_phys_to_virt(_: PhysAddr, _: usize) -> NonNull<u8> {
        unreachable!("registers are accessed through the device's front-end")
    }

    unsafe fn share(buffer: NonNull<[u8]>, direction: BufferDirection) -> PhysAddr {
        let arena = Arena::get();
        if let Some(offset) = arena.offset_of(buffer.cast()) {
            return BASE + offset as u64;
        }
        let offset = arena.allocate(buffer.len().div_ceil(PAGE));
        if direction != BufferDirection::DeviceToDriver {
            let source = buffer.as_ptr().cast::<u8>();
            // SAFETY: the caller's buffer is valid, and the pages have just been allocated for its length.
            unsafe { source.copy_to_nonoverlapping(arena.host(offset).as_ptr(), buffer.len()) };
        }
        BASE + offset as u64
    }

    unsafe fn unshare(paddr: PhysAddr, buffer: NonNull<[u8]>, direction: BufferDirection) {
        let arena = Arena::get();
        if arena.offset_of(buffer.cast()).is_some() {
            return;
        }
        let offset = (paddr - BASE) as usize;
        if direction != BufferDirection::DriverToDevice {
            let source = arena.host(offset).as_ptr();
            // SAFETY: the caller's buffer is valid, and `share` has allocated pages for its length.
            unsafe { source.copy_to_nonoverlapping(buffer.as_ptr().cast::<u8>(), buffer.len()) };
        }
        arena.give_back(offset, buffer.len().div_ceil(PAGE));
    }
}
