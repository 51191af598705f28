//! Every order of events between whoever loses requests and their client, and between a new memory map and who follows it.
//!
//! Seen to fail where: the flag of lost tags is set after the wake-up; the generation is counted outside the map's lock.

use super::lost::LostTags;
use super::{DmaSpace, MemoryMap, Region};
use crate::model::{check, is_caught};
use crate::sync::atomic::{AtomicBool, Ordering};
use loom::thread;
use std::sync::Arc;

/// Two threads lose a request each; the owner looks whenever it is woken.
fn lose(looks_when_woken: bool) {
    let (lost, woken) = (Arc::new(LostTags::new(2)), Arc::new(AtomicBool::new(false)));
    let wake = woken.clone();
    lost.set_waker(Some(Arc::new(move || {
        wake.swap(true, Ordering::SeqCst);
    })));
    let losers: Vec<_> = (0..2)
        .map(|tag| {
            let lost = lost.clone();
            thread::spawn(move || lost.report(tag))
        })
        .collect();
    let mut tags = Vec::new();
    let mut look = |due: bool| {
        if due {
            lost.take(&mut tags);
        }
    };
    look(woken.swap(false, Ordering::SeqCst));
    losers.into_iter().for_each(|loser| loser.join().unwrap());
    look(looks_when_woken && woken.swap(false, Ordering::SeqCst));
    tags.sort_unstable();
    assert_eq!(tags, [0, 1], "a client waits for a request that was lost");
}

#[test]
fn loom_no_lost_tag_is_lost_again() {
    check(3, || lose(true));
}

#[test]
fn loom_a_client_that_does_not_heed_its_waker_is_caught() {
    assert!(is_caught(3, || lose(false)));
}

/// A map that can be told by where its memory begins.
fn map(number: u64) -> MemoryMap {
    MemoryMap::new(vec![Region::anonymous(number << 12, 4096).unwrap()]).unwrap()
}

#[test]
fn loom_a_generation_comes_with_its_map() {
    check(3, || {
        let space = DmaSpace::new(map(0));
        let other = space.clone();
        let replacing = thread::spawn(move || {
            other.replace(map(1));
            other.replace(map(2));
        });
        let mut view = space.view();
        let mut last = 0;
        let mut look = |view: &super::DmaView| {
            let (map, generation) = space.snapshot();
            assert_eq!(map.regions()[0].base() >> 12, generation);
            let seen = view.map().regions()[0].base() >> 12;
            assert!(seen >= last && seen <= 2, "a map comes back");
            last = seen;
        };
        for _ in 0..2 {
            view.refresh();
            look(&view);
        }
        replacing.join().unwrap();
        view.refresh();
        look(&view);
        assert_eq!(last, 2, "a view keeps an old map");
    });
}
