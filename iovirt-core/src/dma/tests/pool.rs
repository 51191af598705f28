//! Pools and lost lists.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::view;
use crate::dma::{Access, DmaSpace, MemoryMap, Region, SgLimits, SgList, SgPool};

#[test]
fn lists_come_and_go() {
    let view = view();
    let mut pool = SgPool::new(2, SgLimits::default());
    let (mut a, b, c) = (pool.take(), pool.take(), pool.take());
    assert_eq!((pool.depth(), pool.idle()), (2, 0));
    a.push(&view, 0, 4, Access::Read).unwrap();
    for list in [a, b, c, Box::new(SgList::new())] {
        pool.put(list);
    }
    assert_eq!(pool.idle(), 2);
    let again = pool.take();
    assert!(again.is_empty() && !again.is_read_only());
}

#[test]
fn a_lost_list_is_reported_once_and_replaced() {
    let wakes = Arc::new(AtomicUsize::new(0));
    let mut pool = SgPool::new(4, SgLimits::default());
    let counter = wakes.clone();
    pool.set_lost_waker(Some(Arc::new(move || {
        counter.fetch_add(1, Ordering::Relaxed);
    })));
    let mut tags = Vec::new();
    let mut lists: Vec<_> = (0..4).map(|_| pool.take()).collect();
    lists.iter_mut().zip(10..).for_each(|(list, tag)| list.arm(tag));
    let mut home = lists.remove(0);
    assert_eq!(home.disarm(), Some(10));
    drop(home);
    assert_eq!(pool.take_lost(&mut tags), 0, "dropped after it came home");
    pool.put(lists.remove(0));
    std::thread::spawn(move || drop(lists)).join().unwrap();
    assert_eq!((pool.take_lost(&mut tags), wakes.load(Ordering::Relaxed)), (2, 2));
    assert_eq!(tags, [12, 13]);
    assert_eq!(pool.take_lost(&mut tags), 0);
    let lists: Vec<_> = (0..4).map(|_| pool.take()).collect();
    for list in lists {
        pool.put(list);
    }
    assert_eq!((pool.idle(), pool.take_lost(&mut tags)), (4, 0));
}

#[test]
fn a_list_may_outlive_its_pool() {
    let mut pool = SgPool::new(1, SgLimits::default());
    let mut list = pool.take();
    list.arm(1);
    drop(pool);
    drop(list);
}

#[test]
fn idle_lists_let_go_of_an_old_map() {
    let space = DmaSpace::anonymous(&[(0, 0x1000)]).unwrap();
    let mut view = space.view();
    let old = Arc::downgrade(view.map());
    let mut pool = SgPool::new(2, SgLimits::default());
    let mut list = pool.take();
    list.push(&view, 0, 4, Access::Read).unwrap();
    pool.put(list);
    space.replace(MemoryMap::new(vec![Region::anonymous(0, 0x1000).unwrap()]).unwrap());
    assert!(view.refresh());
    assert!(old.upgrade().is_some());
    pool.refresh(&view);
    assert!(old.upgrade().is_none());
}

#[test]
fn lists_that_come_home_late_let_go_of_an_old_map() {
    let space = DmaSpace::anonymous(&[(0, 0x1000)]).unwrap();
    let mut view = space.view();
    let old = Arc::downgrade(view.map());
    let mut pool = SgPool::new(2, SgLimits::default());
    let mut list = pool.take();
    list.push(&view, 0, 4, Access::Read).unwrap();
    space.replace(MemoryMap::new(vec![Region::anonymous(0, 0x1000).unwrap()]).unwrap());
    assert!(view.refresh());
    pool.refresh(&view);
    assert!(old.upgrade().is_some(), "the list in flight still points there");
    pool.put(list);
    assert!(old.upgrade().is_none());
}
