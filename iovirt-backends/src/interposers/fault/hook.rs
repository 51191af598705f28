//! The data plane.

use super::FaultKind;
use super::control::{FaultControl, Settings};
use crate::interposers::chance::Chance;
use crate::interposers::live::LiveQueue;
use iovirt_core::stage::{Flow, Held, Hook};
use iovirt_core::{Depth, Request, Tag, WorkerContext};
use std::sync::Arc;

/// The data plane of a [`Fault`](super::Fault) stage.
#[derive(Debug)]
pub struct FaultHook {
    control: Arc<FaultControl>,
    live: LiveQueue<Settings>,
    strikes: Strikes,
    /// Held in order to be dropped at the next poll.
    to_drop: Vec<Tag>,
}

/// Who is struck: counting and chance.
#[derive(Debug)]
struct Strikes {
    seen: u64,
    chance: Chance,
}

impl Strikes {
    fn new(live: &LiveQueue<Settings>) -> Self {
        Self { seen: 0, chance: Chance::new(live.settings().config.seed, live.number()) }
    }
}

impl FaultHook {
    pub(super) fn new(control: Arc<FaultControl>, cx: &WorkerContext<'_>, depth: Depth) -> Self {
        let live = control.live.open(cx);
        let strikes = Strikes::new(&live);
        Self { control, live, strikes, to_drop: Vec::with_capacity(depth.get()) }
    }

    /// What becomes of that request, if it is struck.
    #[inline]
    fn strike(&mut self, kind: usize) -> Option<FaultKind> {
        if self.live.refresh() {
            self.strikes = Strikes::new(&self.live);
        }
        let Settings { config, mask } = self.live.settings();
        if (config.every == 0 && config.permille == 0) || !mask.has(kind) {
            return None;
        }
        let strikes = &mut self.strikes;
        strikes.seen += 1;
        let counted = config.every > 0 && strikes.seen.is_multiple_of(config.every);
        let drawn = config.permille > 0 && strikes.chance.below(1000) < u64::from(config.permille);
        (counted || drawn).then_some(config.kind)
    }
}

impl<R: Request> Hook<R> for FaultHook {
    #[inline]
    fn on_submit(&mut self, cx: &mut WorkerContext<'_>, request: &mut R) -> Flow<R::Output> {
        let Some(kind) = self.strike(request.kind()) else { return Flow::Pass };
        self.control.counters.count(kind);
        match kind {
            FaultKind::Error => Flow::Complete(R::failed()),
            FaultKind::Stall => Flow::Hold,
            FaultKind::Hang => Flow::Keep,
            FaultKind::Drop => {
                self.to_drop.push(request.tag());
                cx.run_again();
                Flow::Hold
            }
        }
    }

    fn on_poll(&mut self, _: &mut WorkerContext<'_>, held: &mut Held<'_, R>) {
        for tag in self.to_drop.drain(..) {
            drop(held.take(tag));
        }
        if self.live.take_release() {
            held.release_all();
        }
    }
}
