//! What happens to a stack while it runs.

use crate::sync::{Arc, Mutex, PoisonError, Weak};

/// Something changed below. An event carries no data: whoever hears it asks [`Backend::caps`](crate::Backend::caps)
/// again, so that a late or doubled event does no harm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// The capacity changed.
    Resized,
    /// Another capability changed.
    CapsChanged,
}

/// Hears of events. Called on any thread; does not block.
pub trait EventListener: Send + Sync {
    /// Something changed.
    fn event(&self, event: Event);
}

/// The listeners of a back-end: what [`Backend::subscribe`](crate::Backend::subscribe) fills.
#[derive(Default)]
pub struct Listeners {
    list: Mutex<Vec<Weak<dyn EventListener>>>,
}

impl Listeners {
    /// Adds one; those that are gone are forgotten.
    pub fn add(&self, listener: &Arc<dyn EventListener>) {
        let mut list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
        list.retain(|known| known.strong_count() > 0);
        list.push(Arc::downgrade(listener));
    }

    /// Tells all of them.
    pub fn announce(&self, event: Event) {
        let list = self.list.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for listener in list.iter().filter_map(Weak::upgrade) {
            listener.event(event);
        }
    }
}

impl std::fmt::Debug for Listeners {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let count = self.list.lock().unwrap_or_else(PoisonError::into_inner).len();
        f.debug_struct("Listeners").field("count", &count).finish()
    }
}
