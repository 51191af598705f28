//! The receive queue: tokens below, and frames that wait for the guest's buffers.

use super::config::{F_MRG_RXBUF, guest_offloads};
use super::deliver::{Deliverer, Delivery};
use super::device::NetShared;
use crate::virtio::ring::Ring;
use crate::virtio::{QueueError, QueueWork};
use iovirt_core::dma::{DmaSpace, DmaView, MemoryMap, SgLimits, SgList};
use iovirt_core::request::net::{NetOutput, NetRequest, Offload, Offloads};
use iovirt_core::stage::{Client, Finished};
use iovirt_core::worker::{Turn, WorkerContext};
use iovirt_core::{Backend, BackendError, Depth, Mode, Queue, Time};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Rounds of one turn before other lanes have theirs; each brings home at most as many frames as there are tokens.
const TURN_ROUNDS: usize = 2;
/// How long after a token came home without a frame the next ones go down: what is below may be gone for good.
const RETRY: Duration = Duration::from_secs(1);
/// How long a frame waits for more buffers where the guest has some, but not enough for it.
const PATIENCE: Duration = Duration::from_millis(100);
/// Host memory of a token: the longest frame and some more, so that a stage can put something in front of it.
const TOKEN_LIMITS: SgLimits = SgLimits { segments: 16, host_bytes: 128 << 10 };

/// The device's side of a receive queue.
pub(super) struct ReceiveQueue {
    shared: Arc<NetShared>,
    pair: u16,
    depth: usize,
    client: Client<NetRequest, ()>,
    deliverer: Deliverer,
    /// Frames for which the guest has no buffer yet, in order.
    waiting: VecDeque<(SgList, Offload)>,
    /// Lists of frames that are gone, to be used again.
    spare: Vec<SgList>,
    /// When tokens go down again.
    retry_at: Option<Time>,
    /// When the first of the waiting frames is given up.
    patience_ends: Option<Time>,
    /// The driver does not use this pair: no tokens are below, or they are on their way up.
    resting: bool,
    /// What may be left to be done to frames for the guest, by the features.
    negotiated: Offloads,
    /// Tokens that accept what the guest no longer does, or less, are on their way up.
    recalling: bool,
}

impl ReceiveQueue {
    pub(super) fn open(
        shared: Arc<NetShared>,
        pair: u16,
        cx: &mut WorkerContext<'_>,
        depth: Depth,
    ) -> Result<Self, BackendError> {
        let queue = shared.backend.open(cx, depth)?;
        shared.add_receiver(cx.waker());
        let mut client = Client::new(cx, queue, depth, TOKEN_LIMITS);
        // Tokens are below for as long as no frame comes, and hold no map of guest memory meanwhile.
        client.refresh(&DmaSpace::new(MemoryMap::empty()).view());
        Ok(Self {
            deliverer: Deliverer::new(&shared.mode),
            shared,
            pair,
            depth: depth.get(),
            client,
            waiting: VecDeque::with_capacity(depth.get()),
            spare: Vec::with_capacity(depth.get()),
            retry_at: None,
            patience_ends: None,
            resting: false,
            negotiated: Offloads::empty(),
            recalling: false,
        })
    }

    /// Follows the driver's wish to use this pair or not.
    fn follow_pairs(&mut self, cx: &mut WorkerContext<'_>) {
        let resting = self.pair >= self.shared.active_pairs.load(Ordering::SeqCst);
        if resting == self.resting {
            return;
        }
        self.resting = resting;
        if resting {
            self.client.queue().drain(cx);
        } else {
            self.client.queue().resume(cx);
        }
    }

    /// Follows the driver's wish for offloads, within what was negotiated: tokens that say something else come up first.
    fn follow_offloads(&mut self, cx: &mut WorkerContext<'_>) {
        let accepts = self.negotiated & self.shared.guest_offloads();
        if accepts != self.deliverer.accepts {
            let Self { deliverer, waiting, .. } = self;
            deliverer.accepts = accepts;
            waiting.retain(|(frame, offload)| offload.is_bare() || deliverer.takes(frame.len(), *offload));
            if self.client.in_flight() > 0 && !self.resting {
                self.recalling = true;
                self.client.queue().drain(cx);
            }
        }
        self.end_recall(cx);
    }

    fn end_recall(&mut self, cx: &mut WorkerContext<'_>) {
        if self.recalling && self.client.in_flight() == 0 {
            self.recalling = false;
            if !self.resting {
                self.client.queue().resume(cx);
            }
        }
    }

    /// Sends tokens down, so many that there is room for every frame they bring.
    #[inline]
    fn post_tokens(&mut self, cx: &mut WorkerContext<'_>) {
        if self.resting || self.recalling {
            return;
        }
        if let Some(retry_at) = self.retry_at {
            if cx.now() < retry_at {
                cx.wake_at(retry_at);
                return;
            }
            self.retry_at = None;
        }
        let room = self.depth.saturating_sub(self.client.in_flight() + self.waiting.len());
        for _ in 0..room {
            let Some((tag, sg)) = self.client.begin() else { break };
            let token = NetRequest::receive(tag, self.pair, sg).accepting(self.deliverer.accepts);
            self.client.submit(cx, token, ());
        }
        if room > 0 {
            self.client.kick(cx);
        }
    }

    /// Delivers the frames that wait, as far as the guest has buffers.
    fn deliver_waiting(&mut self, cx: &mut WorkerContext<'_>, ring: &mut Ring) -> Result<(), QueueError> {
        while let Some((frame, offload)) = self.waiting.front() {
            match self.deliverer.deliver_unfinished(ring, frame, *offload)? {
                Delivery::Done => {}
                Delivery::NoBuffer => {
                    self.patience_ends = None;
                    return Ok(());
                }
                Delivery::TooFew => {
                    let ends = *self.patience_ends.get_or_insert(cx.now() + PATIENCE);
                    if cx.now() < ends {
                        cx.wake_at(ends);
                        return Ok(());
                    }
                    self.deliverer.drop_unfit();
                }
            }
            self.patience_ends = None;
            if let Some((mut frame, _)) = self.waiting.pop_front() {
                frame.clear();
                self.spare.push(frame);
            }
        }
        Ok(())
    }

    /// Brings frames home: into the guest's buffers where there is a ring with some, else to those that wait. Says how many
    /// tokens came.
    #[inline]
    fn bring_home(
        &mut self,
        cx: &mut WorkerContext<'_>,
        mut ring: Option<&mut Ring>,
    ) -> Result<usize, QueueError> {
        let Self { shared, client, deliverer, waiting, spare, retry_at, .. } = self;
        let running = client.mode() == Mode::Running;
        let mut broken = None;
        let count = client.poll(cx, |cx, Finished { request, output, .. }| {
            // A token that a stage lost is renewed at once.
            let Some(request) = request else { return };
            if output != NetOutput::Done {
                if running {
                    shared.counters.receive_failed.fetch_add(1, Ordering::Relaxed);
                    *retry_at = Some(cx.now() + RETRY);
                }
                return;
            }
            if broken.is_some() || !deliverer.wants(request.sg()) {
                return;
            }
            let is_bare = request.is_bare();
            if !is_bare && !deliverer.takes(request.sg().len(), request.offload()) {
                return;
            }
            if waiting.is_empty()
                && let Some(ring) = &mut ring
            {
                let delivery = if is_bare {
                    deliverer.deliver(ring, request.sg(), None)
                } else {
                    deliverer.deliver_unfinished(ring, request.sg(), request.offload())
                };
                match delivery {
                    Ok(Delivery::Done) => return,
                    Ok(Delivery::NoBuffer | Delivery::TooFew) => {}
                    Err(error) => {
                        broken = Some(error);
                        return;
                    }
                }
            }
            let offload = request.offload();
            let mut frame = spare.pop().unwrap_or_else(|| SgList::with_limits(TOKEN_LIMITS));
            if request.sg_mut().swap_segments(&mut frame).is_ok() {
                waiting.push_back((frame, offload));
            } else {
                deliverer.drop_unfit();
            }
        });
        broken.map_or(Ok(count), Err)
    }

    fn round(&mut self, cx: &mut WorkerContext<'_>, ring: &mut Ring) -> Result<usize, QueueError> {
        self.deliver_waiting(cx, ring)?;
        self.post_tokens(cx);
        let home = self.bring_home(cx, Some(ring))?;
        self.end_recall(cx);
        Ok(home)
    }
}

impl QueueWork for ReceiveQueue {
    fn start(&mut self, features: u64) {
        self.deliverer.mergeable = features & F_MRG_RXBUF != 0;
        self.negotiated = guest_offloads(features);
        self.deliverer.accepts = self.negotiated & self.shared.guest_offloads();
        self.waiting.clear();
        self.retry_at = None;
        self.patience_ends = None;
    }

    fn memory_changed(&mut self, view: &DmaView) {
        self.deliverer.rehome(view);
        self.spare.iter_mut().for_each(|list| list.rehome(view.map()));
    }

    fn serve(&mut self, cx: &mut WorkerContext<'_>, ring: &mut Ring) -> Result<Turn, QueueError> {
        self.follow_pairs(cx);
        self.follow_offloads(cx);
        self.deliverer.refresh(&self.shared.mode);
        // New buffers are of interest only where frames wait for them.
        ring.disable_notifications();
        for _ in 0..TURN_ROUNDS {
            let result = self.round(cx, ring);
            self.deliverer.report(&self.shared.counters);
            ring.count_chains(self.deliverer.take_returned());
            ring.publish();
            let home = result?;
            if !self.waiting.is_empty() {
                if self.patience_ends.is_some() || !ring.enable_notifications() {
                    return Ok(Turn::Idle);
                }
                continue;
            }
            if home == 0 {
                return Ok(Turn::Idle);
            }
        }
        Ok(Turn::Again)
    }

    fn settle(&mut self, cx: &mut WorkerContext<'_>, ring: Option<&mut Ring>) -> Result<(), QueueError> {
        self.client.kick(cx);
        self.bring_home(cx, None)?;
        if ring.is_none() {
            // The driver took the queue back: nobody waits for these.
            self.waiting.clear();
        }
        self.deliverer.report(&self.shared.counters);
        Ok(())
    }

    fn resubmit(
        &mut self,
        _: &mut WorkerContext<'_>,
        _: &mut Ring,
        heads: &[u16],
    ) -> Result<usize, QueueError> {
        // Buffers are taken only when there is a frame for them, so none is ever in flight.
        if heads.is_empty() { Ok(0) } else { Err(QueueError::NoneInFlight) }
    }

    fn drain(&mut self, cx: &mut WorkerContext<'_>) {
        self.client.queue().drain(cx);
    }

    fn resume(&mut self, cx: &mut WorkerContext<'_>) {
        self.client.queue().resume(cx);
        self.resting = false;
        self.recalling = false;
        self.retry_at = None;
        cx.run_again();
    }

    fn mode(&self) -> Mode {
        self.client.mode()
    }

    fn in_flight(&self) -> usize {
        self.client.in_flight()
    }

    fn heads_in_flight(&self) -> Vec<u16> {
        Vec::new()
    }
}
