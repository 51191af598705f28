//! Stages that a kill finds out: one that keeps writes in user memory, honestly or not, and one that writes to the wrong place.

use iovirt::registry::{Family, KeyInfo, Maturity, StageInfo, StageRow, ValueKind};
use iovirt_core::dma::SgLimits;
use iovirt_core::pipeline::{BoxBackend, BoxInterposer, BoxQueue, EventListener, Stages};
use iovirt_core::prelude::*;
use iovirt_core::request::block::{BlockCaps, BlockError, BlockFlags, BlockOp, BlockOutput, BlockRequest};
use iovirt_core::stage::{Client, Flow, Hook, HookLayer, HookStage, Return};
use iovirt_core::state::{StageStates, StateError};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

const HOARD: StageInfo = StageInfo {
    name: "hoard",
    family: Family::Block,
    maturity: Maturity::Experimental,
    help: "Completes writes at once and does them later",
    keys: &[
        KeyInfo::default("flush", ValueKind::Choice(&["waits", "lies"]), "waits", "what a flush does"),
        KeyInfo::default("fua", ValueKind::Choice(&["waits", "lies"]), "waits", "what a write with FUA does"),
    ],
};

const ASTRAY: StageInfo = StageInfo {
    name: "astray",
    family: Family::Block,
    maturity: Maturity::Experimental,
    help: "Writes now and then to the sector before",
    keys: &[],
};

/// How long a write is kept.
const KEPT: Duration = Duration::from_millis(2);
/// Writes kept at most; the next ones wait for their turn.
const MOST: usize = 256;

pub(crate) fn rows() -> [StageRow; 2] {
    const WORDS: [(&str, Word); 2] = [("waits", Word::Waits), ("lies", Word::Lies)];
    let hoard = StageRow::block_interposer(HOARD, |options| {
        let (flush, fua) = (options.choice("flush", &WORDS)?, options.choice("fua", &WORDS)?);
        Ok(BoxInterposer::new(Hoard { flush, fua }))
    });
    [hoard, StageRow::block_interposer(ASTRAY, |_| Ok(BoxInterposer::new(HookLayer::new(Astray(0)))))]
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Word {
    Waits,
    Lies,
}

/// A cache in user memory.
#[derive(Clone, Copy, Debug)]
struct Hoard {
    flush: Word,
    fua: Word,
}

#[derive(Debug)]
struct Hoarding {
    hoard: Hoard,
    below: BoxBackend<BlockRequest>,
}

impl Interposer<BlockRequest, BoxBackend<BlockRequest>> for Hoard {
    type Stacked = Hoarding;

    fn attach(self, below: BoxBackend<BlockRequest>) -> Result<Hoarding, AttachError> {
        Ok(Hoarding { hoard: self, below })
    }
}

impl Backend<BlockRequest> for Hoarding {
    type Queue = HoardQueue;

    fn caps(&self) -> Arc<BlockCaps> {
        self.below.caps()
    }

    fn open(&self, cx: &mut WorkerContext<'_>, depth: Depth) -> Result<HoardQueue, BackendError> {
        let queue: BoxQueue<BlockRequest> = self.below.open(cx, depth)?;
        let below = Client::new(cx, queue, depth, SgLimits::default());
        Ok(HoardQueue { hoard: self.hoard, below, line: VecDeque::new(), ready: Vec::new(), draining: false })
    }

    fn stages(&self, stages: &mut Stages) {
        stages.push(HOARD.name);
        self.below.stages(stages);
    }

    fn subscribe(&self, listener: &Arc<dyn EventListener>) {
        self.below.subscribe(listener);
    }

    fn save(&self, states: &mut StageStates) -> Result<(), StateError> {
        self.below.save(states)
    }

    fn restore(&self, states: &mut StageStates) -> Result<(), StateError> {
        self.below.restore(states)
    }
}

/// What is still to be done, one after another.
struct Item {
    due: Time,
    op: BlockOp,
    flags: BlockFlags,
    offset: u64,
    bytes: Vec<u8>,
    /// The request that waits for it; without one it was acknowledged long ago.
    owner: Option<BlockRequest>,
}

struct HoardQueue {
    hoard: Hoard,
    below: Client<BlockRequest, Option<BlockRequest>>,
    line: VecDeque<Item>,
    ready: Vec<Completion<BlockRequest>>,
    draining: bool,
}

impl HoardQueue {
    fn waits(&self, request: &BlockRequest) -> bool {
        let word = match request.op() {
            BlockOp::Flush => self.hoard.flush,
            _ if request.flags().contains(BlockFlags::FUA) => self.hoard.fua,
            _ => Word::Lies,
        };
        word == Word::Waits || self.line.len() >= MOST
    }

    fn start(&mut self, cx: &mut WorkerContext<'_>, item: Item) {
        let (tag, mut sg) = self.below.begin().expect("one at a time");
        let request = if item.op == BlockOp::Flush {
            BlockRequest::flush(tag, sg)
        } else {
            sg.push_host(item.bytes.len()).and_then(|()| sg.copy_from(0, &item.bytes)).expect("room");
            BlockRequest::transfer(item.op, tag, item.offset, sg)
                .expect("a good range")
                .with_flags(item.flags)
        };
        self.below.submit(cx, request, item.owner);
        self.below.kick(cx);
    }
}

impl Queue<BlockRequest> for HoardQueue {
    fn submit(&mut self, cx: &mut WorkerContext<'_>, request: BlockRequest) {
        if !matches!(request.op(), BlockOp::Write | BlockOp::Flush) {
            let output = BlockOutput::Failed(BlockError::Unsupported);
            self.ready.push(Completion { request, output });
            return cx.run_again();
        }
        let mut bytes = vec![0; request.sg().len() as usize];
        request.sg().copy_to(0, &mut bytes).expect("its own length");
        let (op, flags, offset) = (request.op(), request.flags(), request.offset());
        let owner = if self.waits(&request) {
            Some(request)
        } else {
            self.ready.push(Completion { request, output: BlockOutput::Done });
            None
        };
        cx.run_again();
        self.line.push_back(Item { due: cx.now() + KEPT, op, flags, offset, bytes, owner });
    }

    fn kick(&mut self, _: &mut WorkerContext<'_>) {}

    fn poll(&mut self, cx: &mut WorkerContext<'_>, done: &mut Completions<BlockRequest>) {
        loop {
            let finished = self.below.poll(cx, |_, finished| {
                if let Some(owner) = finished.context {
                    done.push(owner, finished.output);
                }
            });
            let hurry = self.draining || self.line.iter().any(|item| item.owner.is_some());
            let due = |item: &Item| hurry || item.due <= cx.now();
            if self.below.in_flight() == 0 && self.line.front().is_some_and(due) {
                let item = self.line.pop_front().expect("looked at just now");
                self.start(cx, item);
            } else if finished == 0 {
                break;
            }
        }
        if let Some(item) = self.line.front() {
            cx.wake_at(item.due.max(cx.now() + Duration::from_micros(100)));
        }
        done.append(&mut self.ready);
    }

    fn drain(&mut self, cx: &mut WorkerContext<'_>) {
        self.draining = true;
        self.below.queue().drain(cx);
    }

    fn resume(&mut self, cx: &mut WorkerContext<'_>) {
        self.draining = false;
        self.below.queue().resume(cx);
    }

    fn mode(&self) -> Mode {
        match self.below.mode() {
            Mode::Quiesced if !self.line.is_empty() || !self.ready.is_empty() => Mode::Draining,
            mode => mode,
        }
    }

    fn in_flight(&self) -> usize {
        let waiting = self.line.iter().filter(|item| item.owner.is_some()).count();
        waiting + self.ready.len() + self.below.contexts().flatten().count()
    }
}

/// Writes so far.
#[derive(Clone, Copy, Debug)]
struct Astray(u64);

impl HookStage<BlockRequest> for Astray {
    type Hook = Astray;

    fn name(&self) -> &str {
        ASTRAY.name
    }

    fn caps(&self, below: &BlockCaps) -> Result<BlockCaps, AttachError> {
        Ok(below.clone())
    }

    fn hook(&self, _: &mut WorkerContext<'_>, _: Depth) -> Astray {
        *self
    }
}

impl Hook<BlockRequest> for Astray {
    fn on_submit(&mut self, _: &mut WorkerContext<'_>, request: &mut BlockRequest) -> Flow<BlockOutput> {
        self.0 += 1;
        if request.op() == BlockOp::Write && self.0.is_multiple_of(50) {
            let _ = request.set_offset(request.offset().saturating_sub(512));
        }
        Flow::Pass
    }

    fn on_complete(&mut self, _: &mut WorkerContext<'_>, _: &mut Completion<BlockRequest>) -> Return {
        Return::Pass
    }
}
