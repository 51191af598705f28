//! Counts the locks that a thread takes.

use std::cell::RefCell;
use std::collections::BTreeMap;

thread_local! {
    /// How often this thread took each lock, by the lock's address, while somebody counts.
    static TAKEN: RefCell<Option<BTreeMap<usize, u64>>> = const { RefCell::new(None) };
}

/// Locks that a thread took while it was counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LockCount {
    /// How often a lock was taken.
    pub total: u64,
    /// How often the one lock was taken that was taken most.
    pub most: u64,
}

/// Runs `work` and counts the mutexes of [`sync`](crate::sync) that this thread takes in it. Without debug assertions nothing
/// is counted.
pub fn count_locks(work: impl FnOnce()) -> LockCount {
    TAKEN.set(Some(BTreeMap::new()));
    work();
    let taken = TAKEN.take().unwrap_or_default();
    LockCount { total: taken.values().sum(), most: taken.values().copied().max().unwrap_or(0) }
}

/// A mutex that counts.
#[cfg(debug_assertions)]
#[derive(Debug, Default)]
pub struct Mutex<T: ?Sized> {
    inner: std::sync::Mutex<T>,
}

#[cfg(debug_assertions)]
impl<T> Mutex<T> {
    /// As [`std::sync::Mutex::new`].
    pub const fn new(value: T) -> Self {
        Self { inner: std::sync::Mutex::new(value) }
    }

    /// As [`std::sync::Mutex::into_inner`].
    ///
    /// # Errors
    /// Where a thread panicked with the lock.
    pub fn into_inner(self) -> std::sync::LockResult<T> {
        self.inner.into_inner()
    }
}

#[cfg(debug_assertions)]
impl<T: ?Sized> Mutex<T> {
    /// As [`std::sync::Mutex::lock`].
    ///
    /// # Errors
    /// Where a thread panicked with the lock.
    pub fn lock(&self) -> std::sync::LockResult<std::sync::MutexGuard<'_, T>> {
        let address = (&raw const self.inner).cast::<()>().addr();
        // A thread that ends drops what it owns, with locks, when its counters may be gone already.
        let _ = TAKEN.try_with(|taken| {
            if let Some(taken) = taken.borrow_mut().as_mut() {
                *taken.entry(address).or_default() += 1;
            }
        });
        self.inner.lock()
    }

    /// As [`std::sync::Mutex::get_mut`].
    ///
    /// # Errors
    /// Where a thread panicked with the lock.
    pub fn get_mut(&mut self) -> std::sync::LockResult<&mut T> {
        self.inner.get_mut()
    }
}

#[cfg(all(test, debug_assertions))]
mod tests {
    use super::*;
    use std::cell::RefCell;
    use std::sync::Arc;

    /// Takes a lock when its thread ends.
    struct Late(Arc<Mutex<u32>>);

    impl Drop for Late {
        fn drop(&mut self) {
            *self.0.lock().unwrap() += 1;
        }
    }

    #[test]
    fn a_thread_that_ends_can_still_take_locks() {
        thread_local! {
            static LATE: RefCell<Option<Late>> = const { RefCell::new(None) };
        }
        let shared = Arc::new(Mutex::new(0));
        let late = Late(shared.clone());
        let count = count_locks(|| {
            let own = shared.clone();
            let thread = std::thread::spawn(move || {
                LATE.set(Some(late));
                // After the other, so that its counters go first.
                count_locks(|| *own.lock().unwrap() += 1)
            });
            assert_eq!(thread.join().unwrap(), LockCount { total: 1, most: 1 });
            *shared.lock().unwrap() += 1;
        });
        assert_eq!(count, LockCount { total: 1, most: 1 }, "this thread's alone");
        assert_eq!(*shared.lock().unwrap(), 3);
    }
}
