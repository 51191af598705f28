//! Where lists rest between requests.

use std::sync::Arc;

use super::{DmaView, LostTags, LostWaker, MemoryMap, SgLimits, SgList};

/// A pool of lists with one owner, usually a device queue. Lists travel with requests and come home with their
/// completions; one that is dropped on the way while [armed](SgList::arm) is reported by
/// [`take_lost`](SgPool::take_lost).
#[derive(Debug)]
pub struct SgPool {
    // Boxed because requests carry the box itself: taking one moves a pointer.
    #[allow(clippy::vec_box)]
    idle: Vec<Box<SgList>>,
    depth: usize,
    limits: SgLimits,
    lost: Arc<LostTags>,
    /// The map of the last [`refresh`](SgPool::refresh): what lists that come home hold from then on.
    map: Option<Arc<MemoryMap>>,
}

impl SgPool {
    /// A pool of `depth` lists, all made now.
    pub fn new(depth: usize, limits: SgLimits) -> Self {
        let lost = Arc::new(LostTags::new(depth));
        let idle = (0..depth).map(|_| Box::new(SgList::pooled(limits, &lost))).collect();
        Self { idle, depth, limits, lost, map: None }
    }

    /// An empty list. Makes one where none is idle: beyond the depth, or in place of one that was lost.
    #[inline]
    pub fn take(&mut self) -> Box<SgList> {
        self.idle.pop().unwrap_or_else(|| Box::new(SgList::pooled(self.limits, &self.lost)))
    }

    /// Takes a list back, disarmed and cleared. One that is too many, or of another pool, is freed.
    #[inline]
    pub fn put(&mut self, mut list: Box<SgList>) {
        list.disarm();
        if self.idle.len() < self.depth && list.is_of(&self.lost) {
            list.reset(self.map.as_ref());
            self.idle.push(list);
        } else {
            Self::free(list);
        }
    }

    #[cold]
    #[inline(never)]
    fn free(list: Box<SgList>) {
        drop(list);
    }

    /// Appends the tags of lists that were dropped while armed to `tags`, and returns how many. One relaxed
    /// load when there are none.
    #[inline]
    pub fn take_lost(&mut self, tags: &mut Vec<u32>) -> usize {
        self.lost.take(tags)
    }

    /// Sets what is called when a list is lost, on the thread that lost it; usually wakes the owner.
    pub fn set_lost_waker(&mut self, waker: Option<LostWaker>) {
        self.lost.set_waker(waker);
    }

    /// Lets idle lists, and those in flight once they come home, hold the view's map in place of an older one, which can
    /// then be unmapped. Call it when [`DmaView::refresh`] returned true.
    pub fn refresh(&mut self, view: &DmaView) {
        self.idle.iter_mut().for_each(|list| list.rehome(view.map()));
        self.map = Some(Arc::clone(view.map()));
    }

    /// How many lists it keeps at most.
    pub fn depth(&self) -> usize {
        self.depth
    }

    /// How many lists are idle.
    pub fn idle(&self) -> usize {
        self.idle.len()
    }
}
