//! Child requests in the making.

use crate::dma::{SgList, SgPool};
use crate::request::{Depth, Request, Tag};

/// Bits of an armed list's number that hold the tag: enough for [`Depth::MAX`] tags. The others hold its generation.
const TAG_BITS: u32 = 20;
const _: () = assert!(Depth::MAX <= 1 << TAG_BITS);

/// How often each tag was given to a child of each branch: tells a list that was lost from the next one of its tag. (A
/// branch may complete a child with another list than it came with, and drop that one later.)
#[derive(Debug)]
pub(super) struct Generations {
    depth: usize,
    counts: Vec<u32>,
}

impl Generations {
    pub(super) fn new(branches: usize, depth: Depth) -> Self {
        Self { depth: depth.get(), counts: vec![0; branches * depth.get()] }
    }

    /// A number for the list of the next child.
    fn next(&mut self, branch: usize, tag: Tag) -> u32 {
        let count = &mut self.counts[branch * self.depth + tag.index()];
        *count = count.wrapping_add(1 << TAG_BITS);
        *count | tag.get()
    }

    /// The tag of a list that was lost, unless it is an older one's.
    pub(super) fn lost(&self, branch: usize, number: u32) -> Option<Tag> {
        let tag = tag_of(number);
        let count = self.counts.get(branch * self.depth + tag.index())?;
        (*count | tag.get() == number).then_some(tag)
    }
}

/// The tag in a list's number, of whatever generation.
fn tag_of(number: u32) -> Tag {
    Tag::new(number & ((1 << TAG_BITS) - 1))
}

/// A child that came home.
#[derive(Debug)]
pub struct Child<'a, R: Request> {
    /// The number of its branch.
    pub branch: usize,
    /// The child, with its memory; `None` where the branch dropped it. Its memory goes back to the stage's pool afterwards.
    pub request: Option<&'a mut R>,
    /// What became of it; [`Request::aborted`] where the branch dropped it.
    pub output: R::Output,
}

/// Starts children of one request.
#[derive(Debug)]
pub struct Children<'a, R: Request> {
    pub(super) caps: &'a R::Caps,
    pub(super) tag: Tag,
    /// The branches with a child in flight, by bit.
    pub(super) busy: &'a mut u64,
    pub(super) pools: &'a mut [SgPool],
    pub(super) generations: &'a mut Generations,
    pub(super) started: &'a mut Vec<(usize, R)>,
}

impl<R: Request> Children<'_, R> {
    /// The capabilities of the whole, as they are now.
    pub fn caps(&self) -> &R::Caps {
        self.caps
    }

    /// How many branches there are.
    pub fn branches(&self) -> usize {
        self.pools.len()
    }

    /// Whether the request has a child in flight on that branch, or started there.
    pub fn is_busy(&self, branch: usize) -> bool {
        *self.busy & 1 << branch != 0
    }

    /// Starts a child: `make` gets its tag and an empty list, and gives the request, or the list back where there is none
    /// after all. Says whether one was started.
    ///
    /// # Panics
    /// Where the branch is busy, or there is none of that number.
    pub fn start(
        &mut self,
        branch: usize,
        make: impl FnOnce(Tag, Box<SgList>) -> Result<R, Box<SgList>>,
    ) -> bool {
        assert!(!self.is_busy(branch), "branch {branch} has a child of this request already");
        let mut list = self.pools[branch].take();
        // Where the branch drops the child, its list says so.
        list.arm(self.generations.next(branch, self.tag));
        match make(self.tag, list) {
            Ok(child) => {
                debug_assert_eq!(child.tag(), self.tag, "a child has the tag that it was given");
                *self.busy |= 1 << branch;
                self.started.push((branch, child));
                true
            }
            Err(list) => {
                self.pools[branch].put(list);
                false
            }
        }
    }
}
