//! Chains go home in the order in which they were taken, where that is asked for.
//!
//! A frame that a stage drops, that fails or that is none comes home before those that wait further down. Over vhost-user its chain waits for
//! theirs: a card whose daemon was killed goes on at the used index, where a chain that overtook would stand for one that it overtook.

use crate::virtio::queue::{Head, QueueConfig};
use crate::virtio::ring::ReturnOrder;
use std::collections::VecDeque;

/// How many places behind the one whose turn it is may have been taken and be home: an honest driver has no more chains than the largest ring
/// holds, and one that offers heads again that it has not got back must not fill memory.
const MOST_EARLY: usize = QueueConfig::MAX_SIZE as usize;

/// Whose turn it is to go home.
#[derive(Debug)]
pub(super) struct Turns {
    order: ReturnOrder,
    /// Chains taken so far: the next one's place.
    taken: u64,
    /// The place whose turn it is.
    next: u64,
    /// Those of the places behind `next` that are home already.
    early: VecDeque<Option<Head>>,
}

impl Turns {
    pub(super) fn with_capacity(chains: usize) -> Self {
        let early = VecDeque::with_capacity(chains);
        Self { order: ReturnOrder::AsDone, taken: 0, next: 0, early }
    }

    /// None is out: a driver begins.
    pub(super) fn begin(&mut self) {
        (self.taken, self.next) = (0, 0);
        self.early.clear();
    }

    /// Whether no chain may be taken before one goes home.
    #[inline]
    pub(super) fn is_full(&self) -> bool {
        self.early.len() >= MOST_EARLY
    }

    /// A place for a chain that was taken from a ring with that order, which is the same until the next [`Turns::begin`].
    #[inline]
    pub(super) fn take(&mut self, order: ReturnOrder) -> u64 {
        self.order = order;
        let place = self.taken;
        self.taken += 1;
        place
    }

    /// The chain of that place is home. Hands out those whose turn has come.
    #[inline]
    pub(super) fn come_home(&mut self, place: u64, head: Head, mut go: impl FnMut(Head)) {
        if self.order == ReturnOrder::AsDone {
            return go(head);
        }
        if place != self.next {
            return self.wait(place, head);
        }
        self.next += 1;
        go(head);
        if !self.early.is_empty() {
            self.follow(go);
        }
    }

    #[cold]
    fn wait(&mut self, place: u64, head: Head) {
        let behind = (place - self.next) as usize;
        if self.early.len() < behind {
            self.early.resize(behind, None);
        }
        self.early[behind - 1] = Some(head);
    }

    /// The next one's place is the first of `early`.
    #[cold]
    fn follow(&mut self, mut go: impl FnMut(Head)) {
        while let Some(Some(head)) = self.early.pop_front() {
            self.next += 1;
            go(head);
        }
    }

    /// The chains that wait for their turn, with their places.
    pub(super) fn waiting(&self) -> impl Iterator<Item = (u64, Head)> {
        let places = self.next + 1..;
        places.zip(&self.early).filter_map(|(place, head)| head.map(|head| (place, head)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_driver_that_offers_chains_without_end_is_not_followed() {
        let (mut turns, mut gone) = (Turns::with_capacity(4), 0);
        let first = turns.take(ReturnOrder::AsTaken);
        while !turns.is_full() {
            let place = turns.take(ReturnOrder::AsTaken);
            turns.come_home(place, Head::from_saved(7), |_| gone += 1);
        }
        assert_eq!((gone, turns.waiting().count()), (0, MOST_EARLY));
        turns.come_home(first, Head::from_saved(0), |_| gone += 1);
        assert_eq!((gone, turns.is_full()), (MOST_EARLY + 1, false));
    }

    #[test]
    fn where_no_order_is_asked_for_nobody_waits() {
        let (mut turns, mut gone) = (Turns::with_capacity(4), Vec::new());
        let places = [(); 3].map(|()| turns.take(ReturnOrder::AsDone));
        for at in [2, 0, 1] {
            turns.come_home(places[at], Head::from_saved(at as u16), |head| gone.push(head.index()));
        }
        assert_eq!((gone, turns.waiting().count()), (vec![2, 0, 1], 0));
        // The next driver's ring has an order.
        turns.begin();
        let [first, second] = [(); 2].map(|()| turns.take(ReturnOrder::AsTaken));
        let mut gone = Vec::new();
        turns.come_home(second, Head::from_saved(1), |head| gone.push(head.index()));
        turns.come_home(first, Head::from_saved(0), |head| gone.push(head.index()));
        assert_eq!(gone, [0, 1]);
    }

    proptest! {
        /// Zero takes a chain, all else brings one home.
        #[test]
        fn chains_go_home_as_they_were_taken_in_whatever_order_they_come(
            steps in prop::collection::vec(prop_oneof![Just(0), 1..64usize], 0..300),
        ) {
            let (mut turns, mut out, mut gone) = (Turns::with_capacity(4), Vec::new(), Vec::new());
            for step in steps {
                if step == 0 || out.is_empty() {
                    out.push(turns.take(ReturnOrder::AsTaken));
                } else {
                    let place = out.swap_remove(step % out.len());
                    turns.come_home(place, Head::from_saved(place as u16), |head| gone.push(head.index()));
                }
                prop_assert!(turns.waiting().all(|(place, head)| place as u16 == head.index()));
                let mut left: Vec<_> = turns.waiting().map(|(place, _)| place).chain(out.iter().copied()).collect();
                left.sort_unstable();
                prop_assert!(left.into_iter().eq(gone.len() as u64..turns.taken), "each is out, waits or has gone");
            }
            prop_assert!(gone.iter().copied().eq(0..gone.len() as u16));
        }
    }
}
