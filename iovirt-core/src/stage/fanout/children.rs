//! Child requests in the making.

use crate::dma::{SgList, SgPool};
use crate::request::{Request, Tag};

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
        list.arm(self.tag.get());
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
