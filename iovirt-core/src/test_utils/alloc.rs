//! Counting what a piece of code allocates.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};

/// The host's allocator, counting. A test binary installs it:
///
/// ```
/// use iovirt_core::test_utils::{CountingAllocator, count_allocations};
///
/// #[global_allocator]
/// static ALLOCATOR: CountingAllocator = CountingAllocator::new();
///
/// let (count, list) = count_allocations(|| vec![0u8; 100]);
/// assert_eq!((count.allocations, count.bytes), (1, 100));
/// # drop(list);
/// ```
#[derive(Debug)]
pub struct CountingAllocator;

thread_local! {
    // Constant and without a destructor, so that counting allocates nothing itself.
    static MINE: Cell<AllocationCount> = const { Cell::new(AllocationCount::ZERO) };
}

static ALL: Counters =
    Counters { allocations: AtomicU64::new(0), frees: AtomicU64::new(0), bytes: AtomicU64::new(0) };

struct Counters {
    allocations: AtomicU64,
    frees: AtomicU64,
    bytes: AtomicU64,
}

/// What was allocated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AllocationCount {
    /// Calls that allocated; growing or shrinking in place counts.
    pub allocations: u64,
    /// Calls that freed.
    pub frees: u64,
    /// Bytes asked for, without what was freed.
    pub bytes: u64,
}

impl AllocationCount {
    const ZERO: Self = Self { allocations: 0, frees: 0, bytes: 0 };

    fn since(self, earlier: Self) -> Self {
        Self {
            allocations: self.allocations - earlier.allocations,
            frees: self.frees - earlier.frees,
            bytes: self.bytes - earlier.bytes,
        }
    }
}

impl CountingAllocator {
    /// For a `#[global_allocator]`.
    pub const fn new() -> Self {
        Self
    }
}

impl Default for CountingAllocator {
    fn default() -> Self {
        Self::new()
    }
}

fn allocated(bytes: usize) {
    ALL.allocations.fetch_add(1, Ordering::Relaxed);
    ALL.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    // A thread that is being torn down still allocates; nobody asks for its count any more.
    let _ = MINE.try_with(|mine| {
        let count = mine.get();
        mine.set(AllocationCount {
            allocations: count.allocations + 1,
            bytes: count.bytes + bytes as u64,
            ..count
        });
    });
}

fn freed() {
    ALL.frees.fetch_add(1, Ordering::Relaxed);
    let _ = MINE.try_with(|mine| {
        let count = mine.get();
        mine.set(AllocationCount { frees: count.frees + 1, ..count });
    });
}

// SAFETY: every call goes to the host's allocator with the arguments it came with; counting neither allocates nor panics.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        allocated(layout.size());
        // SAFETY: the caller's promises are those that the host's allocator asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        allocated(layout.size());
        // SAFETY: as in `alloc`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        allocated(new_size);
        // SAFETY: as in `alloc`.
        unsafe { System.realloc(ptr, layout, new_size) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        freed();
        // SAFETY: as in `alloc`.
        unsafe { System.dealloc(ptr, layout) }
    }
}

/// What `action` allocates on the thread that calls this.
///
/// # Panics
/// Where the binary does not run on a [`CountingAllocator`]: a count of nothing would prove nothing.
pub fn count_allocations<T>(action: impl FnOnce() -> T) -> (AllocationCount, T) {
    assert_installed();
    let before = MINE.get();
    let result = action();
    (MINE.get().since(before), result)
}

/// What all threads allocate while `action` runs.
///
/// # Panics
/// As [`count_allocations`].
pub fn count_all_allocations<T>(action: impl FnOnce() -> T) -> (AllocationCount, T) {
    assert_installed();
    let before = all();
    let result = action();
    (all().since(before), result)
}

fn all() -> AllocationCount {
    AllocationCount {
        allocations: ALL.allocations.load(Ordering::Relaxed),
        frees: ALL.frees.load(Ordering::Relaxed),
        bytes: ALL.bytes.load(Ordering::Relaxed),
    }
}

fn assert_installed() {
    let before = MINE.get().allocations;
    drop(std::hint::black_box(Box::new(0_u64)));
    assert!(MINE.get().allocations > before, "this binary's #[global_allocator] is not a CountingAllocator");
}
