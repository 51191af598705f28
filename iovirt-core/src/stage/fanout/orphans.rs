//! Requests of a queue that is gone, of which branches may still carry out children.

use super::children::Generations;
use crate::dma::SgPool;
use crate::request::Tag;
use crate::stage::ranges::{RangeLocks, RangeTicket};
use crate::sync::{Arc, Mutex, PoisonError};

/// Keeps the ranges of such requests theirs until the branches have let go of the memory of all their children.
pub(super) struct Orphans {
    pools: Vec<SgPool>,
    generations: Generations,
    held: Vec<Orphan>,
    locks: Arc<RangeLocks>,
}

/// One request: its tag, the branches that its children are on, and its range.
pub(super) struct Orphan {
    pub(super) tag: Tag,
    pub(super) children: u64,
    pub(super) ticket: RangeTicket,
}

impl Orphans {
    pub(super) fn keep(
        pools: Vec<SgPool>,
        generations: Generations,
        held: Vec<Orphan>,
        locks: Arc<RangeLocks>,
    ) {
        let orphans = Arc::new(Mutex::new(Self { pools, generations, held, locks }));
        let mut kept = orphans.lock().unwrap_or_else(PoisonError::into_inner);
        for pool in &mut kept.pools {
            let waked = orphans.clone();
            // The pools then hold what holds them, until `let_go` ends that.
            pool.set_lost_waker(Some(Arc::new(move || {
                waked.lock().unwrap_or_else(PoisonError::into_inner).let_go();
            })));
        }
        // What was lost before is told to nobody else.
        kept.let_go();
    }

    fn let_go(&mut self) {
        let mut lost = Vec::new();
        for (branch, pool) in self.pools.iter_mut().enumerate() {
            pool.take_lost(&mut lost);
            for tag in lost.drain(..).filter_map(|number| self.generations.lost(branch, number)) {
                self.held.iter_mut().filter(|orphan| orphan.tag == tag).for_each(|orphan| {
                    orphan.children &= !(1 << branch);
                });
            }
        }
        let locks = &self.locks;
        self.held.retain(|orphan| {
            if orphan.children == 0 {
                locks.release(orphan.ticket);
            }
            orphan.children != 0
        });
        if self.held.is_empty() {
            self.pools.iter_mut().for_each(|pool| pool.set_lost_waker(None));
        }
    }
}
