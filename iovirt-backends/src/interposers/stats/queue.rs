//! The data plane.

use super::shard::Shard;
use iovirt_core::stage::{Flow, Hook, Return};
use iovirt_core::{Completion, Depth, Request, Time, WorkerContext};
use std::sync::Arc;

/// Stands for a tag that is not in use; no clock gets there.
const IDLE: Time = Time::from_nanos(u64::MAX);

/// The data plane of a [`Stats`](super::Stats) stage.
#[derive(Debug)]
pub struct StatsHook {
    shard: Arc<Shard>,
    /// When each request in flight was submitted, by tag.
    started: Box<[Time]>,
}

impl StatsHook {
    pub(super) fn new(shard: Arc<Shard>, depth: Depth) -> Self {
        Self { shard, started: vec![IDLE; depth.get()].into() }
    }
}

impl<R: Request> Hook<R> for StatsHook {
    #[inline]
    fn on_submit(&mut self, cx: &mut WorkerContext<'_>, request: &mut R) -> Flow<R::Output> {
        // A tag beyond the depth is the client's breach; the queue below has its own answer to it.
        if let Some(started) = self.started.get_mut(request.tag().index()) {
            if *started == IDLE {
                self.shard.submitted();
            } else {
                self.shard.lost();
            }
            *started = cx.now();
        }
        Flow::Pass
    }

    #[inline]
    fn on_complete(&mut self, cx: &mut WorkerContext<'_>, completion: &mut Completion<R>) -> Return {
        let request = &completion.request;
        if let Some(started) = self.started.get_mut(request.tag().index()) {
            let since = std::mem::replace(started, IDLE);
            let latency = cx.now().as_nanos().saturating_sub(since.as_nanos());
            let moved = (!R::is_failure(&completion.output)).then(|| request.cost().bytes);
            self.shard.completed(request.kind(), latency, moved);
        }
        Return::Pass
    }
}

impl Drop for StatsHook {
    fn drop(&mut self) {
        self.shard.close();
    }
}
