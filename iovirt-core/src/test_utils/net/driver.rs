//! The submitting side of a network stack.

use crate::dma::{Access, DmaSpace, DmaView, HostBuffer};
use crate::pipeline::BoxBackend;
use crate::request::Depth;
use crate::request::net::{ETHERNET_HEADER, NetOp, NetOutput, NetRequest, Offload, Offloads};
use crate::test_utils::plane::Plane;
use crate::worker::{Worker, WorkerConfig};
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

/// What came home: what was asked for, what became of it, and the frame.
pub type NetHome = (NetOp, NetOutput, Vec<u8>);

/// Bytes of guest memory for the longest frame.
pub(super) const SLOT: u64 = 128 << 10;

/// Where guest memory begins.
pub(super) const BASE: u64 = 0x10_000;

/// Sends frames out of guest memory and posts tokens, on one data plane of one pair.
///
/// What it sends comes home once it is polled; for all else see [`Plane`].
#[derive(Debug)]
pub struct NetDriver {
    plane: Plane<NetRequest>,
    space: DmaSpace,
    view: DmaView,
    pair: u16,
    foreign: bool,
    left: Vec<Offload>,
}

impl NetDriver {
    /// A data plane for that pair.
    ///
    /// # Errors
    /// Where the host or the back-end refuses it, in words.
    pub fn new(backend: &BoxBackend<NetRequest>, pair: u16, depth: u32) -> Result<Self, String> {
        let depth = Depth::new(depth).ok_or("a depth of zero")?;
        let worker = Worker::new(WorkerConfig::default()).map_err(|error| error.to_string())?;
        let space = DmaSpace::anonymous(&[(BASE, SLOT * depth.get() as u64)]);
        let space = space.map_err(|error| error.to_string())?;
        let view = space.view();
        let plane = Plane::open(worker, backend, depth).map_err(|error| format!("open failed: {error}"))?;
        Ok(Self { plane, space, view, pair, foreign: false, left: Vec::new() })
    }

    /// Posts so many tokens, or as many as there is room for, in one batch; says how many.
    pub fn post(&mut self, count: usize) -> usize {
        self.post_accepting(count, Offloads::empty())
    }

    /// The same for a receiver that takes frames to which that is left to be done.
    pub fn post_accepting(&mut self, count: usize, offloads: Offloads) -> usize {
        let pair = self.pair;
        let token = |plane: &mut Plane<_>| {
            plane.submit(|tag, sg| NetRequest::receive(tag, pair, sg).accepting(offloads))
        };
        let posted = (0..count).take_while(|_| token(&mut self.plane).is_some()).count();
        self.plane.kick();
        posted
    }

    /// Sends frames in one batch, as many as there is room for; says how many.
    pub fn send<'a>(&mut self, frames: impl IntoIterator<Item = &'a [u8]>) -> usize {
        let sent = frames.into_iter().take_while(|frame| self.submit_frame(frame, |request| request)).count();
        self.plane.kick();
        sent
    }

    /// Sends one frame with that metadata; false at full depth.
    pub fn send_offloaded(&mut self, frame: &[u8], offload: Offload) -> bool {
        let sent = self.submit_frame(frame, |request| request.with_offload(offload));
        self.plane.kick();
        sent
    }

    fn submit_frame(&mut self, frame: &[u8], change: impl FnOnce(NetRequest) -> NetRequest) -> bool {
        let Self { plane, view, pair, .. } = self;
        let tag = plane.submit(|tag, mut sg| {
            let addr = BASE + SLOT * tag.index() as u64;
            // Two pieces, one of the guest and one of the host, so that nobody gets by with looking at the first.
            let (guest, host) = frame.split_at(frame.len() / 2);
            view.write(addr, guest).expect("the driver's own memory is mapped");
            sg.push(view, addr, guest.len() as u64, Access::Read).expect("there is room for two segments");
            let mut tail = HostBuffer::new(host.len());
            tail.as_mut_slice()[..host.len()].copy_from_slice(host);
            sg.push_buffer(&Arc::new(tail), 0, host.len()).expect("there is room for two segments");
            change(NetRequest::transmit(tag, *pair, sg))
        });
        tag.is_some()
    }

    /// What came home, by one poll.
    pub fn poll(&mut self) -> Vec<NetHome> {
        let Self { plane, foreign, left, .. } = self;
        plane.poll(|request, output| {
            if request.op() == NetOp::Receive && output == NetOutput::Done {
                left.push(request.offload());
            }
            let mut bytes = vec![0; request.sg().len() as usize];
            // The buffer is as long as the list, so nothing is out of range.
            let _ = request.sg().copy_to(0, &mut bytes);
            *foreign |=
                request.op() == NetOp::Receive && request.sg().segments().any(|segment| segment.is_guest());
            (request.op(), output, bytes)
        })
    }

    /// The frames of the receives that came home, by one poll.
    pub fn received(&mut self) -> Vec<Vec<u8>> {
        let home = self.poll();
        let frames =
            home.into_iter().filter(|(op, output, _)| *op == NetOp::Receive && *output == NetOutput::Done);
        frames.map(|(_, _, frame)| frame).collect()
    }

    /// What was left to be done to each frame that was received, since the last call.
    pub fn take_left(&mut self) -> Vec<Offload> {
        std::mem::take(&mut self.left)
    }

    /// Whether a frame ever came in a guest's memory.
    pub fn saw_guest_memory(&self) -> bool {
        self.foreign
    }

    /// The guest's memory.
    pub fn space(&self) -> &DmaSpace {
        &self.space
    }
}

impl Deref for NetDriver {
    type Target = Plane<NetRequest>;

    fn deref(&self) -> &Plane<NetRequest> {
        &self.plane
    }
}

impl DerefMut for NetDriver {
    fn deref_mut(&mut self) -> &mut Plane<NetRequest> {
        &mut self.plane
    }
}

/// A frame with that number, from one station to another, of at least 18 bytes.
pub fn frame(number: u32, len: usize) -> Vec<u8> {
    let header = ETHERNET_HEADER as usize;
    let mut frame: Vec<u8> = (0..len.max(header + 4) as u32).map(|at| (at ^ number) as u8).collect();
    frame[..header].copy_from_slice(&[0x52, 0x54, 0, 0, 0, 2, 0x52, 0x54, 0, 0, 0, 1, 0x88, 0xb5]);
    frame[header..header + 4].copy_from_slice(&number.to_be_bytes());
    frame
}
