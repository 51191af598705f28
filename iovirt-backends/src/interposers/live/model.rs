//! Every order of events between a control handle and the queues of its stage.
//!
//! Seen to fail where the counter of changes is read again after the settings.

use super::{Live, LiveQueue};
use iovirt_core::Worker;
use iovirt_core::model::{Sleeper, check, settle, worker};
use loom::thread;
use std::sync::Arc;

/// A queue that holds something until it is told to let go.
struct Holder {
    worker: Worker,
    queue: LiveQueue<u32>,
    released: bool,
}

impl Holder {
    fn open(live: &Arc<Live<u32>>) -> Self {
        let mut worker = worker();
        let queue = worker.with_context(|cx| live.open(cx));
        Self { worker, queue, released: false }
    }
}

impl Sleeper for Holder {
    fn worker(&self) -> &Worker {
        &self.worker
    }

    fn step(&mut self) {
        self.worker.run().unwrap();
        self.released |= self.queue.take_release();
    }
}

#[test]
fn loom_every_queue_hears_that_it_is_to_let_go() {
    check(3, || {
        let live = Arc::new(Live::new(0));
        let mut holder = Holder::open(&live);
        let control = live.clone();
        let releasing = thread::spawn(move || control.release());
        holder.step();
        holder.step();
        // One that is opened meanwhile holds nothing yet: it must neither hang nor be forgotten by a later word.
        let mut late = Holder::open(&live);
        releasing.join().unwrap();
        settle(&mut [&mut holder, &mut late]);
        assert!(holder.released, "a queue holds on for ever");
        live.release();
        late.released = false;
        settle(&mut [&mut holder, &mut late]);
        assert!(late.released);
    });
}

#[test]
fn loom_every_queue_follows_the_settings() {
    check(3, || {
        let live = Arc::new(Live::new(0));
        let control = live.clone();
        let setting = thread::spawn(move || {
            control.set(1);
            control.set(2);
        });
        let mut holder = Holder::open(&live);
        let mut last = *holder.queue.settings();
        holder.queue.refresh();
        assert!(*holder.queue.settings() >= last, "old settings come back");
        last = *holder.queue.settings();
        setting.join().unwrap();
        holder.queue.refresh();
        assert_eq!((*holder.queue.settings(), last <= 2), (2, true), "a queue keeps old settings");
    });
}
