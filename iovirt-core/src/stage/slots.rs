//! Tables indexed by tag.

use crate::request::{Depth, Tag};

/// What a stage keeps of each request in flight, by tag: an array, since tags are dense.
#[derive(Debug)]
pub struct SlotTable<T> {
    slots: Vec<Option<T>>,
    used: usize,
}

impl<T> SlotTable<T> {
    /// Empty slots for a queue that deep.
    pub fn new(depth: Depth) -> Self {
        let mut slots = Vec::new();
        slots.resize_with(depth.get(), || None);
        Self { slots, used: 0 }
    }

    /// Fills a slot; gives back what stood there, which is a tag used twice.
    ///
    /// # Panics
    /// Where the tag is not below the depth.
    #[inline]
    pub fn insert(&mut self, tag: Tag, value: T) -> Option<T> {
        let before = self.slots[tag.index()].replace(value);
        self.used += usize::from(before.is_none());
        before
    }

    /// Empties a slot.
    #[inline]
    pub fn take(&mut self, tag: Tag) -> Option<T> {
        let value = self.slots.get_mut(tag.index())?.take();
        self.used -= usize::from(value.is_some());
        value
    }

    /// What stands in a slot.
    #[inline]
    pub fn get(&self, tag: Tag) -> Option<&T> {
        self.slots.get(tag.index())?.as_ref()
    }

    /// What stands in a slot.
    #[inline]
    pub fn get_mut(&mut self, tag: Tag) -> Option<&mut T> {
        self.slots.get_mut(tag.index())?.as_mut()
    }

    /// How many slots are filled.
    #[inline]
    pub fn len(&self) -> usize {
        self.used
    }

    /// Whether no slot is filled.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.used == 0
    }

    /// The filled slots in the order of their tags.
    pub fn iter(&self) -> impl Iterator<Item = (Tag, &T)> {
        let tag = |index: usize| Tag::new(index as u32);
        self.slots.iter().enumerate().filter_map(move |(index, slot)| Some((tag(index), slot.as_ref()?)))
    }

    /// Empties the table, in the order of the tags.
    pub fn drain(&mut self) -> impl Iterator<Item = (Tag, T)> + '_ {
        self.used = 0;
        let tag = |index: usize| Tag::new(index as u32);
        self.slots.iter_mut().enumerate().filter_map(move |(index, slot)| Some((tag(index), slot.take()?)))
    }
}

/// Tags for a client that chooses its own. The tag freed last is given next: its slot is still in the cache.
#[derive(Debug)]
pub struct TagPool {
    free: Vec<Tag>,
    depth: Depth,
}

impl TagPool {
    /// All tags of a queue that deep.
    pub fn new(depth: Depth) -> Self {
        Self { free: (0..depth.get() as u32).rev().map(Tag::new).collect(), depth }
    }

    /// A tag that is not in use; `None` at full depth.
    #[inline]
    pub fn take(&mut self) -> Option<Tag> {
        self.free.pop()
    }

    /// Gives a tag back.
    #[inline]
    pub fn put(&mut self, tag: Tag) {
        debug_assert!(self.free.len() < self.depth.get(), "a tag was freed twice");
        self.free.push(tag);
    }

    /// How many tags are not in use.
    #[inline]
    pub fn available(&self) -> usize {
        self.free.len()
    }

    /// How many tags there are.
    pub fn depth(&self) -> Depth {
        self.depth
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_count_what_they_hold() {
        let mut table = SlotTable::new(Depth::new(4).unwrap());
        assert_eq!(table.insert(Tag::new(2), 'a'), None);
        assert_eq!(table.insert(Tag::new(2), 'b'), Some('a'));
        assert_eq!(table.len(), 1);
        assert_eq!(table.take(Tag::new(2)), Some('b'));
        assert_eq!(table.take(Tag::new(2)), None);
        assert_eq!(table.take(Tag::new(99)), None);
        assert!(table.is_empty());
    }

    #[test]
    fn tags_are_dense_and_run_out() {
        let mut pool = TagPool::new(Depth::new(2).unwrap());
        assert_eq!((pool.take(), pool.take(), pool.take()), (Some(Tag::new(0)), Some(Tag::new(1)), None));
        pool.put(Tag::new(0));
        assert_eq!(pool.take(), Some(Tag::new(0)));
    }
}
