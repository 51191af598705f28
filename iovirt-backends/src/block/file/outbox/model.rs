//! Every order of events between threads that leave results and the worker that fetches them.
//!
//! Seen to fail where the flag is set before the result is there.

use super::Outbox;
use iovirt_core::Worker;
use iovirt_core::model::{Sleeper, check, settle, worker};
use loom::thread;
use std::sync::Arc;

/// A queue that fetches whenever its worker runs.
struct Owner {
    worker: Worker,
    outbox: Arc<Outbox<u32>>,
    spare: Vec<u32>,
    fetched: Vec<u32>,
}

impl Sleeper for Owner {
    fn worker(&self) -> &Worker {
        &self.worker
    }

    fn step(&mut self) {
        self.worker.run().unwrap();
        self.outbox.exchange(&mut self.spare);
        self.fetched.append(&mut self.spare);
    }
}

#[test]
fn loom_every_result_is_fetched() {
    check(3, || {
        let mut worker = worker();
        let outbox = Arc::new(Outbox::new(2, worker.with_context(|cx| cx.waker())));
        let threads = [1, 2].map(|result| {
            let outbox = outbox.clone();
            thread::spawn(move || outbox.put(result))
        });
        let mut owner = Owner { worker, outbox, spare: Vec::new(), fetched: Vec::new() };
        owner.step();
        owner.step();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        settle(&mut [&mut owner]);
        owner.fetched.sort_unstable();
        assert_eq!(owner.fetched, [1, 2], "a request never comes home");
    });
}
