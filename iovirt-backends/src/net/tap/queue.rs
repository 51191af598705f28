//! The data plane.

use super::device::{Tap, TapPair};
use super::sys::{self, Attachment, Pieces};
use crate::net::finished::Finished;
use iovirt_core::request::net::{
    MAX_GSO_FRAME, NetCaps, NetError, NetOp, NetRequest, Offload, Offloads, add_checksum,
};
use iovirt_core::worker::{Trigger, Watch};
use iovirt_core::{Completions, Depth, Mode, Queue, WorkerContext};
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// The data plane of a [`TapBackend`](super::TapBackend): for sending, receiving or both.
#[derive(Debug)]
pub struct TapQueue {
    tap: Arc<Tap>,
    caps: Arc<NetCaps>,
    /// The pair of the first request.
    pair: Option<u16>,
    /// The one that came last is used next: its memory is still in the cache.
    tokens: Vec<NetRequest>,
    finished: Finished,
    pieces: Pieces,
    /// Frames read in one poll at most.
    budget: usize,
    /// Where this plane receives.
    watch: Option<Watch>,
}

/// What a look at the tap gave.
enum Read {
    Frame,
    /// A frame that the receiver cannot have; it is gone.
    Unfit,
    /// There is none.
    Dry,
    Failed(NetError),
}

impl TapQueue {
    pub(super) fn new(tap: Arc<Tap>, depth: Depth) -> Self {
        Self {
            caps: tap.caps(),
            tap,
            pair: None,
            tokens: Vec::with_capacity(depth.get()),
            finished: Finished::new(depth),
            pieces: Pieces::default(),
            budget: depth.get() * 2,
            watch: None,
        }
    }

    fn refusal(&self, request: &NetRequest) -> Option<NetError> {
        if self.pair.is_some_and(|pair| pair != request.pair()) {
            return Some(NetError::Unsupported);
        }
        if request.op() == NetOp::Receive && self.finished.is_draining() {
            return Some(NetError::Aborted);
        }
        if self.tap.is_gone() {
            return Some(NetError::Io);
        }
        self.caps.check(request).err()
    }

    fn pair(&self) -> Option<&TapPair> {
        self.tap.pairs.get(usize::from(self.pair?))
    }

    fn write(&mut self, request: &NetRequest) -> Result<(), NetError> {
        let Some(pair) = self.tap.pairs.get(usize::from(request.pair())) else {
            return Err(NetError::Unsupported);
        };
        let (sg, offload) = (request.sg(), request.offload());
        let mut result = sys::write(pair.file.as_fd(), sg, offload, &mut self.pieces);
        if result.as_ref().is_err_and(is_detached)
            && pair.switch(Attachment::Attached).is_ok_and(|changed| changed)
        {
            // The receiving side of this pair has not begun yet, or has ended.
            result = sys::write(pair.file.as_fd(), sg, offload, &mut self.pieces);
        }
        result.map_err(|error| {
            if error.raw_os_error() == Some(libc::EFAULT) {
                sg.notice_shrunk();
            }
            self.failure(&error)
        })
    }

    /// Becomes the plane that receives on its pair, frames to which this is left to be done.
    fn begin_receiving(&mut self, cx: &mut WorkerContext<'_>, accepted: Offloads) -> Result<(), NetError> {
        let pair =
            self.tap.pairs.get(usize::from(self.pair.unwrap_or(u16::MAX))).ok_or(NetError::Unsupported)?;
        if self.watch.is_none() {
            if !pair.claim() {
                return Err(NetError::Unsupported);
            }
            match cx.watch(&pair.file, Trigger::Edge) {
                Ok(watch) => self.watch = Some(watch),
                Err(error) => {
                    pair.release();
                    tracing::warn!(tap = self.tap.name, %error, "the tap cannot be watched");
                    return Err(NetError::Io);
                }
            }
        }
        if !self.tap.leaves(accepted) {
            self.tap.leave(pair, accepted).map_err(|error| self.failure(&error))?;
        }
        if self.tokens.is_empty() {
            pair.switch(Attachment::Attached).map_err(|error| self.failure(&error))?;
        }
        Ok(())
    }

    fn failure(&self, error: &io::Error) -> NetError {
        match error.raw_os_error() {
            Some(libc::EBADFD) => self.tap.vanish(),
            Some(libc::EAGAIN | libc::ENOBUFS | libc::ENOMEM) => return NetError::NoRoom,
            // The interface is down, or whatever else the host has against this frame: counters tell.
            _ => {}
        }
        NetError::Io
    }

    /// Reads a frame into a token.
    fn read(&mut self, token: &mut NetRequest) -> Read {
        let Some(pair) = self.tap.pairs.get(usize::from(token.pair())) else {
            return Read::Failed(NetError::Unsupported);
        };
        let accepted = token.accepts();
        let longest = if accepted.intersects(Offloads::TSO) { MAX_GSO_FRAME } else { self.tap.max_frame };
        // One byte more than the longest frame has, to notice one that is longer.
        let room = longest.max(self.tap.max_frame) as usize + 1;
        let sg = token.sg_mut();
        if sg.push_host(room).is_err() {
            return Read::Failed(NetError::BadLength);
        }
        loop {
            match sys::read(pair.file.as_fd(), sg, &mut self.pieces) {
                Ok((len, offload)) => {
                    sg.trim_back((room - len) as u64);
                    return self.judge(token, offload, len == room);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Read::Dry,
                Err(error) => return Read::Failed(self.failure(&error)),
            }
        }
    }

    /// Whether the receiver can have a frame to which that is left to be done.
    #[inline]
    fn judge(&self, token: &mut NetRequest, offload: Offload, is_cut_off: bool) -> Read {
        let longest = if offload.is_gso() { MAX_GSO_FRAME } else { self.tap.max_frame };
        if is_cut_off || token.sg().len() > u64::from(longest) {
            self.tap.too_long.fetch_add(1, Ordering::Relaxed);
            return Read::Unfit;
        }
        if offload.is_plain() && offload.flags == 0 || finish(token, offload) {
            return Read::Frame;
        }
        self.tap.unfinished.fetch_add(1, Ordering::Relaxed);
        Read::Unfit
    }

    /// Reads until there is no frame or no token.
    fn fill_tokens(&mut self, cx: &mut WorkerContext<'_>) {
        for _ in 0..self.budget {
            let Some(mut token) = self.tokens.pop() else { return };
            match self.read(&mut token) {
                Read::Frame => self.finished.push(token, Ok(())),
                Read::Unfit => {
                    token.renew();
                    self.tokens.push(token);
                }
                Read::Dry => {
                    token.renew();
                    self.tokens.push(token);
                    return;
                }
                Read::Failed(error) => {
                    token.renew();
                    self.finished.push(token, Err(error));
                }
            }
        }
        // The watch tells of what comes, not of what is there.
        cx.run_again();
    }
}

/// Does to a frame what its receiver does not do, or notes what is left; false where that is not possible.
fn finish(token: &mut NetRequest, offload: Offload) -> bool {
    let accepted = token.accepts();
    let Ok(needed) = offload.check(token.sg().len()) else { return false };
    if accepted.contains(needed) {
        if accepted.contains(Offloads::CSUM) {
            token.set_offload(offload);
        }
        return true;
    }
    let bytes = token.sg_mut().host_bytes();
    needed == Offloads::CSUM && bytes.is_some_and(|bytes| add_checksum(bytes, offload).is_ok())
}

/// What the host says of a queue that it gives no frames, and of one whose device is gone.
fn is_detached(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EBADFD)
}

impl Queue<NetRequest> for TapQueue {
    #[inline]
    fn submit(&mut self, cx: &mut WorkerContext<'_>, request: NetRequest) {
        if let Some(error) = self.refusal(&request) {
            self.finished.push(request, Err(error));
            return;
        }
        self.pair = Some(request.pair());
        match request.op() {
            NetOp::Transmit => {
                let result = self.write(&request);
                self.finished.push(request, result);
            }
            NetOp::Receive => match self.begin_receiving(cx, request.accepts()) {
                Ok(()) => self.tokens.push(request),
                Err(error) => self.finished.push(request, Err(error)),
            },
        }
    }

    #[inline]
    fn kick(&mut self, cx: &mut WorkerContext<'_>) {
        if self.finished.len() > 0 {
            // The system calls took their time inside this turn; whoever measures above sees it.
            cx.tick();
        }
    }

    #[inline]
    fn poll(&mut self, cx: &mut WorkerContext<'_>, done: &mut Completions<NetRequest>) {
        self.fill_tokens(cx);
        self.finished.bring_up(done);
    }

    fn drain(&mut self, cx: &mut WorkerContext<'_>) {
        self.finished.drain();
        for token in self.tokens.drain(..) {
            self.finished.push(token, Err(NetError::Aborted));
        }
        if self.watch.is_some()
            && let Some(pair) = self.pair()
            && let Err(error) = pair.switch(Attachment::Detached)
        {
            tracing::warn!(tap = self.tap.name, %error, "the tap goes on giving frames to a queue at rest");
        }
        cx.run_again();
    }

    fn resume(&mut self, _: &mut WorkerContext<'_>) {
        self.finished.resume();
    }

    fn mode(&self) -> Mode {
        self.finished.mode(self.in_flight())
    }

    fn in_flight(&self) -> usize {
        self.tokens.len() + self.finished.len()
    }
}

impl Drop for TapQueue {
    fn drop(&mut self) {
        if self.watch.is_some()
            && let Some(pair) = self.pair()
        {
            pair.release();
        }
    }
}
