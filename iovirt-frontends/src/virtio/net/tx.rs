//! The transmit queue: chains into requests.

use super::config::host_offloads;
use super::counters::Tally;
use super::device::NetShared;
use super::packet::take_frame;
use super::turns::Turns;
use crate::virtio::again::take_again;
use crate::virtio::queue::{Chain, Head};
use crate::virtio::ring::Ring;
use crate::virtio::{QueueError, QueueWork};
use iovirt_core::dma::{DmaView, SgLimits, SgList};
use iovirt_core::request::net::{NetOutput, NetRequest, Offload, Offloads};
use iovirt_core::stage::{Client, Finished};
use iovirt_core::worker::{Turn, WorkerContext};
use iovirt_core::{Backend, BackendError, Depth, Mode, Queue, Tag};
use std::sync::Arc;

/// Chains taken in one turn before other lanes have theirs: the bound on one doorbell's work.
const TURN_CHAINS: usize = 256;
/// Most pieces of one frame: what the host's vectored calls take, but for those of a header in front.
const LIMITS: SgLimits = SgLimits { segments: 1022, host_bytes: 128 << 10 };

/// The device's side of a transmit queue.
pub(super) struct TransmitQueue {
    shared: Arc<NetShared>,
    pair: u16,
    client: Client<NetRequest, Sending>,
    chain: Chain,
    /// What the guest may leave to be done to frames.
    negotiated: Offloads,
    turns: Turns,
    sent: Tally,
    failed: Tally,
    malformed: Tally,
}

/// What is known of a frame in flight.
#[derive(Clone, Copy, Debug)]
struct Sending {
    head: Head,
    /// Its place in the order of frames, which tags do not tell.
    place: u64,
}

impl TransmitQueue {
    pub(super) fn open(
        shared: Arc<NetShared>,
        pair: u16,
        cx: &mut WorkerContext<'_>,
        depth: Depth,
    ) -> Result<Self, BackendError> {
        let queue = shared.backend.open(cx, depth)?;
        Ok(Self {
            shared,
            pair,
            client: Client::new(cx, queue, depth, LIMITS),
            chain: Chain::new(),
            negotiated: Offloads::empty(),
            turns: Turns::with_capacity(depth.get()),
            sent: Tally::default(),
            failed: Tally::default(),
            malformed: Tally::default(),
        })
    }

    /// Takes up to `budget` chains and says how many it took.
    #[inline]
    fn take_chains(
        &mut self,
        cx: &mut WorkerContext<'_>,
        ring: &mut Ring,
        budget: &mut usize,
    ) -> Result<usize, QueueError> {
        let mut taken = 0;
        while *budget > 0 && !self.turns.is_full() {
            let Some((tag, sg)) = self.client.begin() else { return Ok(taken) };
            match ring.pop(&mut self.chain) {
                Ok(Some(head)) => {
                    taken += 1;
                    *budget = budget.saturating_sub(self.chain.weight());
                    self.start(cx, ring, head, (tag, sg));
                }
                Ok(None) => {
                    self.client.abandon(tag, sg);
                    return Ok(taken);
                }
                Err(error) => {
                    self.client.abandon(tag, sg);
                    return Err(error.into());
                }
            }
        }
        Ok(taken)
    }

    /// Sends the frame of the chain at hand; what is none is given back and counted.
    #[inline]
    fn start(
        &mut self,
        cx: &mut WorkerContext<'_>,
        ring: &mut Ring,
        head: Head,
        (tag, mut sg): (Tag, Box<SgList>),
    ) {
        let place = self.turns.take(ring.return_order());
        let (readable, _) = self.chain.parts_mut();
        let request = match take_frame(readable, &mut sg) {
            Some(offload) if offload.is_plain() => NetRequest::transmit(tag, self.pair, sg),
            Some(offload) if self.may_leave(offload, sg.len()) => {
                let offload = offload.as_sent(sg.len());
                NetRequest::transmit(tag, self.pair, sg).with_offload(offload)
            }
            _ => {
                self.malformed.count();
                self.client.abandon(tag, sg);
                self.turns.come_home(place, head, |head| ring.push_used(head, 0));
                return;
            }
        };
        self.client.submit(cx, request, Sending { head, place });
    }

    /// Whether the guest may leave that to be done to a frame of `len` bytes: all else cannot be sent as it is meant.
    #[cold]
    #[inline(never)]
    fn may_leave(&self, offload: Offload, len: u64) -> bool {
        offload.check(len).is_ok_and(|needed| self.negotiated.contains(needed))
    }

    #[inline]
    fn bring_home(&mut self, cx: &mut WorkerContext<'_>, mut ring: Option<&mut Ring>) {
        let Self { client, turns, sent, failed, .. } = self;
        client.poll(cx, |_, Finished { context, output, .. }| {
            if output == NetOutput::Done {
                sent.count()
            } else {
                failed.count()
            }
            turns.come_home(context.place, context.head, |head| {
                if let Some(ring) = &mut ring {
                    ring.push_used(head, 0);
                }
            });
        });
    }

    fn report(&mut self) {
        let counters = &self.shared.counters;
        self.sent.add_to(&counters.sent);
        self.failed.add_to(&counters.send_failed);
        self.malformed.add_to(&counters.malformed);
    }

    fn rounds(&mut self, cx: &mut WorkerContext<'_>, ring: &mut Ring) -> Result<Turn, QueueError> {
        let mut left = TURN_CHAINS;
        loop {
            self.bring_home(cx, Some(ring));
            let taken = self.take_chains(cx, ring, &mut left).inspect_err(|_| ring.publish())?;
            if taken > 0 {
                ring.count_chains(taken as u64);
                self.client.kick(cx);
                self.bring_home(cx, Some(ring));
            }
            ring.publish();
            if left == 0 {
                return Ok(Turn::Again);
            }
            if taken == 0 && cx.polls() {
                // The driver need not ring its doorbell: the worker looks again by itself.
                return Ok(if left < TURN_CHAINS { Turn::Again } else { Turn::Poll });
            }
            if taken == 0 && (!ring.enable_notifications() || self.client.is_full() || self.turns.is_full()) {
                // Where no more can be taken, the next completion makes room and brings the next turn.
                return Ok(Turn::Idle);
            }
        }
    }
}

impl QueueWork for TransmitQueue {
    fn start(&mut self, features: u64) {
        self.negotiated = host_offloads(features);
        self.turns.begin();
    }

    fn memory_changed(&mut self, view: &DmaView) {
        self.client.refresh(view);
        self.chain.rehome(view);
    }

    fn serve(&mut self, cx: &mut WorkerContext<'_>, ring: &mut Ring) -> Result<Turn, QueueError> {
        ring.disable_notifications();
        let turn = self.rounds(cx, ring);
        self.report();
        turn
    }

    fn settle(&mut self, cx: &mut WorkerContext<'_>, mut ring: Option<&mut Ring>) -> Result<(), QueueError> {
        self.client.kick(cx);
        self.bring_home(cx, ring.as_deref_mut());
        if let Some(ring) = ring {
            ring.publish();
        }
        self.report();
        Ok(())
    }

    fn resubmit(
        &mut self,
        cx: &mut WorkerContext<'_>,
        ring: &mut Ring,
        heads: &[u16],
    ) -> Result<usize, QueueError> {
        let mut taken = 0;
        for &head in heads {
            let chain = take_again(&mut self.client, ring, &mut self.chain, head)?;
            let Some((head, tag, sg)) = chain else { break };
            self.start(cx, ring, head, (tag, sg));
            taken += 1;
        }
        self.client.kick(cx);
        Ok(taken)
    }

    fn drain(&mut self, cx: &mut WorkerContext<'_>) {
        self.client.queue().drain(cx);
    }

    fn resume(&mut self, cx: &mut WorkerContext<'_>) {
        self.client.queue().resume(cx);
        cx.run_again();
    }

    fn mode(&self) -> Mode {
        self.client.mode()
    }

    fn in_flight(&self) -> usize {
        self.client.in_flight()
    }

    /// In the order in which the frames were offered: they are served again in that order. Those that wait for their turn too: a frame
    /// that overtook was dropped or failed, and is tried again.
    fn heads_in_flight(&self) -> Vec<u16> {
        let sending = self.client.contexts().map(|sending| (sending.place, sending.head));
        let mut heads: Vec<_> = sending.chain(self.turns.waiting()).collect();
        heads.sort_unstable();
        heads.into_iter().map(|(_, head)| head.index()).collect()
    }
}
