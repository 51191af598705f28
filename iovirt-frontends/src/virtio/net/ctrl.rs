//! The control queue: receive mode, address, pairs in use, offloads (VIRTIO 1.2, section 5.1.6.5).

use super::config::{
    F_CTRL_GUEST_OFFLOADS, F_CTRL_MAC_ADDR, F_CTRL_RX, F_MQ, guest_features, guest_offloads,
};
use super::device::NetShared;
use super::filter::{TABLE_LEN, Table};
use crate::virtio::queue::Chain;
use crate::virtio::ring::Ring;
use crate::virtio::{QueueError, QueueWork};
use iovirt_core::Mode;
use iovirt_core::dma::{DmaView, SgList};
use iovirt_core::request::net::MacAddr;
use iovirt_core::worker::{Turn, WorkerContext};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use virtio_bindings::virtio_net as bindings;

/// Commands taken in one turn before other lanes have theirs.
const TURN_COMMANDS: usize = 64;
/// Length of a command's class and number in bytes.
const COMMAND_LEN: u64 = 2;
const MAC_LEN: u64 = 6;

/// The answer to a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Ok,
    Error,
}

/// The device's side of the control queue.
pub(super) struct ControlQueue {
    shared: Arc<NetShared>,
    chain: Chain,
    features: u64,
    mode: Mode,
}

impl ControlQueue {
    pub(super) fn new(shared: Arc<NetShared>) -> Self {
        Self { shared, chain: Chain::new(), features: 0, mode: Mode::Running }
    }

    /// Does the command of the chain at hand, and writes the answer.
    fn answer(&mut self, ring: &Ring) -> Result<u32, QueueError> {
        if self.chain.readable().is_empty() {
            return Err(QueueError::Request("a control command is empty"));
        }
        let answer = obey(&self.shared, self.features, self.chain.readable());
        if answer == Answer::Error {
            self.shared.counters.refused_commands.fetch_add(1, Ordering::Relaxed);
        }
        let byte = match answer {
            Answer::Ok => bindings::VIRTIO_NET_OK,
            Answer::Error => bindings::VIRTIO_NET_ERR,
        };
        let writable = self.chain.writable_mut();
        if writable.copy_from(0, &[byte as u8]).is_err() {
            return Err(QueueError::Request("a control command has no room for its answer"));
        }
        writable.mark_dirty(ring.view(), 1);
        Ok(1)
    }
}

/// Does a command.
fn obey(shared: &NetShared, features: u64, command: &SgList) -> Answer {
    let has = |feature: u64| features & feature != 0;
    let Some([class, number]) = bytes::<2>(command, 0) else { return Answer::Error };
    let done = match (u32::from(class), u32::from(number)) {
        (bindings::VIRTIO_NET_CTRL_RX, number) if has(F_CTRL_RX) => set_switch(shared, number, command),
        (bindings::VIRTIO_NET_CTRL_MAC, bindings::VIRTIO_NET_CTRL_MAC_TABLE_SET) if has(F_CTRL_RX) => {
            set_tables(shared, command)
        }
        (bindings::VIRTIO_NET_CTRL_MAC, bindings::VIRTIO_NET_CTRL_MAC_ADDR_SET) if has(F_CTRL_MAC_ADDR) => {
            set_address(shared, command)
        }
        (bindings::VIRTIO_NET_CTRL_MQ, bindings::VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET) if has(F_MQ) => {
            set_pairs(shared, command)
        }
        (bindings::VIRTIO_NET_CTRL_GUEST_OFFLOADS, bindings::VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET)
            if has(F_CTRL_GUEST_OFFLOADS) =>
        {
            set_offloads(shared, features, command)
        }
        _ => None,
    };
    if done.is_some() { Answer::Ok } else { Answer::Error }
}

/// Bytes of a command; `None` where it has not so many.
fn bytes<const N: usize>(command: &SgList, at: u64) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    command.copy_to(at, &mut bytes).ok()?;
    Some(bytes)
}

fn set_switch(shared: &NetShared, number: u32, command: &SgList) -> Option<()> {
    let [value] = bytes(command, COMMAND_LEN)?;
    let on = value != 0;
    match number {
        bindings::VIRTIO_NET_CTRL_RX_PROMISC => shared.mode.change(|mode| mode.promiscuous = on),
        bindings::VIRTIO_NET_CTRL_RX_ALLMULTI => shared.mode.change(|mode| mode.all_multicast = on),
        // The others come with VIRTIO_NET_F_CTRL_RX_EXTRA, which is not on offer.
        _ => return None,
    }
    Some(())
}

/// Both tables at once: each a number of entries and then the entries.
fn set_tables(shared: &NetShared, command: &SgList) -> Option<()> {
    let (unicast, end) = table(command, COMMAND_LEN)?;
    let (multicast, end) = table(command, end)?;
    if end != command.len() {
        return None;
    }
    shared.mode.change(|mode| {
        mode.unicast = unicast;
        mode.multicast = multicast;
    });
    Some(())
}

/// A table that starts there, and where it ends. No more entries are read than are kept.
fn table(command: &SgList, at: u64) -> Option<(Table, u64)> {
    let entries = u64::from(u32::from_le_bytes(bytes(command, at)?));
    let start = at + 4;
    let end = start + entries * MAC_LEN;
    if end > command.len() {
        return None;
    }
    if entries > TABLE_LEN as u64 {
        return Some((Table::Overflow, end));
    }
    let address = |entry| bytes(command, start + entry * MAC_LEN).map(MacAddr);
    let addresses = (0..entries).map(address).collect::<Option<Vec<_>>>()?;
    Some((Table::new(addresses), end))
}

fn set_address(shared: &NetShared, command: &SgList) -> Option<()> {
    let mac = MacAddr(bytes(command, COMMAND_LEN)?);
    if !mac.is_unicast() {
        return None;
    }
    shared.mode.change(|mode| mode.mac = mac);
    Some(())
}

fn set_pairs(shared: &NetShared, command: &SgList) -> Option<()> {
    let pairs = u16::from_le_bytes(bytes(command, COMMAND_LEN)?);
    if pairs == 0 || pairs > shared.pairs {
        return None;
    }
    shared.set_active_pairs(pairs);
    Some(())
}

/// Those that were negotiated, and no others (section 5.1.6.5.6).
fn set_offloads(shared: &NetShared, features: u64, command: &SgList) -> Option<()> {
    let wanted = u64::from_le_bytes(bytes(command, COMMAND_LEN)?);
    let offloads = guest_offloads(wanted);
    if guest_features(offloads) != wanted || wanted & !features != 0 {
        return None;
    }
    shared.set_guest_offloads(offloads);
    Some(())
}

impl QueueWork for ControlQueue {
    fn start(&mut self, features: u64) {
        self.features = features;
    }

    fn memory_changed(&mut self, view: &DmaView) {
        self.chain.rehome(view);
    }

    fn serve(&mut self, _: &mut WorkerContext<'_>, ring: &mut Ring) -> Result<Turn, QueueError> {
        ring.disable_notifications();
        for _ in 0..TURN_COMMANDS {
            match ring.pop(&mut self.chain)? {
                Some(head) => {
                    let written = self.answer(ring).inspect_err(|_| ring.publish())?;
                    ring.push_used(head, written);
                    ring.count_chains(1);
                }
                None => {
                    ring.publish();
                    if !ring.enable_notifications() {
                        return Ok(Turn::Idle);
                    }
                }
            }
        }
        ring.publish();
        Ok(Turn::Again)
    }

    fn settle(&mut self, _: &mut WorkerContext<'_>, _: Option<&mut Ring>) -> Result<(), QueueError> {
        Ok(())
    }

    fn resubmit(
        &mut self,
        _: &mut WorkerContext<'_>,
        _: &mut Ring,
        heads: &[u16],
    ) -> Result<usize, QueueError> {
        // A command is answered in the turn that takes it.
        if heads.is_empty() { Ok(0) } else { Err(QueueError::NoneInFlight) }
    }

    fn drain(&mut self, _: &mut WorkerContext<'_>) {
        self.mode = Mode::Quiesced;
    }

    fn resume(&mut self, cx: &mut WorkerContext<'_>) {
        self.mode = Mode::Running;
        cx.run_again();
    }

    fn mode(&self) -> Mode {
        self.mode
    }

    fn in_flight(&self) -> usize {
        0
    }

    fn heads_in_flight(&self) -> Vec<u16> {
        Vec::new()
    }
}

/// Queue 2 of a device with several pairs: which it is, the negotiated features tell (section 5.1.2).
pub(super) struct EitherQueue {
    pub(super) receive: super::rx::ReceiveQueue,
    pub(super) control: ControlQueue,
    pub(super) is_control: bool,
}

impl EitherQueue {
    fn work(&mut self) -> &mut dyn QueueWork {
        if self.is_control { &mut self.control } else { &mut self.receive }
    }

    fn seen(&self) -> &dyn QueueWork {
        if self.is_control { &self.control } else { &self.receive }
    }

    /// What is below has a queue for the pair that no driver uses, and gives it its turns: a stack may be exchanged.
    fn attend(&mut self, cx: &mut WorkerContext<'_>) -> Result<(), QueueError> {
        if self.is_control { self.receive.settle(cx, None) } else { Ok(()) }
    }
}

impl QueueWork for EitherQueue {
    fn start(&mut self, features: u64) {
        self.is_control = features & F_MQ == 0;
        self.work().start(features);
    }

    fn memory_changed(&mut self, view: &DmaView) {
        self.receive.memory_changed(view);
        self.control.memory_changed(view);
    }

    fn serve(&mut self, cx: &mut WorkerContext<'_>, ring: &mut Ring) -> Result<Turn, QueueError> {
        self.attend(cx)?;
        self.work().serve(cx, ring)
    }

    fn settle(&mut self, cx: &mut WorkerContext<'_>, ring: Option<&mut Ring>) -> Result<(), QueueError> {
        self.attend(cx)?;
        self.work().settle(cx, ring)
    }

    fn resubmit(
        &mut self,
        cx: &mut WorkerContext<'_>,
        ring: &mut Ring,
        heads: &[u16],
    ) -> Result<usize, QueueError> {
        self.work().resubmit(cx, ring, heads)
    }

    fn drain(&mut self, cx: &mut WorkerContext<'_>) {
        self.work().drain(cx);
    }

    fn resume(&mut self, cx: &mut WorkerContext<'_>) {
        self.work().resume(cx);
    }

    fn mode(&self) -> Mode {
        self.seen().mode()
    }

    fn in_flight(&self) -> usize {
        self.seen().in_flight()
    }

    fn heads_in_flight(&self) -> Vec<u16> {
        self.seen().heads_in_flight()
    }
}
