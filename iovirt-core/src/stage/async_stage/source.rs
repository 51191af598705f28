//! Descriptors that futures wait for.

use super::io::Io;
use super::shared::Shared;
use super::sync::remember;
use crate::request::Request;
use crate::worker::{Trigger, Watch, WorkerContext};
use std::fmt;
use std::future::Future;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::rc::Rc;
use std::task::{Poll, Waker};

/// What a future waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interest {
    /// Data, or the end of it.
    Readable,
    /// Room for data.
    Writable,
}

impl Interest {
    fn trigger(self) -> Trigger {
        match self {
            Self::Readable => Trigger::Level,
            Self::Writable => Trigger::Writable,
        }
    }
}

/// The descriptors of one queue that are waited for.
#[derive(Debug, Default)]
pub(super) struct Sources {
    entries: Vec<Option<Entry>>,
    /// Somebody began to wait.
    changed: bool,
}

#[derive(Debug)]
struct Entry {
    fd: RawFd,
    sides: [Side; 2],
}

#[derive(Debug, Default)]
struct Side {
    waker: Option<Waker>,
    watch: Option<Watch>,
    error: Option<io::Error>,
}

struct Raw(RawFd);

impl AsRawFd for Raw {
    fn as_raw_fd(&self) -> RawFd {
        self.0
    }
}

impl Sources {
    fn add(&mut self, fd: RawFd) -> usize {
        let entry = Some(Entry { fd, sides: Default::default() });
        if let Some(free) = self.entries.iter().position(Option::is_none) {
            self.entries[free] = entry;
            return free;
        }
        self.entries.push(entry);
        self.entries.len() - 1
    }

    fn side(&mut self, entry: usize, interest: Interest) -> Option<&mut Side> {
        Some(&mut self.entries.get_mut(entry)?.as_mut()?.sides[interest as usize])
    }

    /// Any of the descriptors may be ready: whoever waits tries again.
    pub(super) fn wake(&mut self) {
        for side in self.entries.iter_mut().flatten().flat_map(|entry| &mut entry.sides) {
            if let Some(waker) = side.waker.take() {
                waker.wake();
            }
        }
        // A descriptor is writable nearly always, and would give the lane one turn after the other.
        for entry in self.entries.iter_mut().flatten() {
            entry.sides[Interest::Writable as usize].watch = None;
        }
    }

    /// Watches what somebody began to wait for.
    pub(super) fn arm(&mut self, cx: &mut WorkerContext<'_>) {
        if !std::mem::take(&mut self.changed) {
            return;
        }
        for entry in self.entries.iter_mut().flatten() {
            for (side, interest) in entry.sides.iter_mut().zip([Interest::Readable, Interest::Writable]) {
                if side.waker.is_none() || side.watch.is_some() {
                    continue;
                }
                match cx.watch(&Raw(entry.fd), interest.trigger()) {
                    Ok(watch) => side.watch = Some(watch),
                    Err(error) => {
                        side.error = Some(error);
                        side.waker.take().into_iter().for_each(Waker::wake);
                    }
                }
            }
        }
    }
}

/// A descriptor that does not block, and that futures of one queue wait for. One future at a time waits for each
/// [`Interest`]; what several of them share stands behind a [`Semaphore`](super::Semaphore).
pub struct Source<R: Request, S: AsRawFd> {
    shared: Rc<Shared<R>>,
    entry: usize,
    inner: S,
}

impl<R: Request, S: AsRawFd> Source<R, S> {
    pub(super) fn new(io: &Io<R>, inner: S) -> Self {
        let shared = io.shared().clone();
        let entry = shared.sources.borrow_mut().add(inner.as_raw_fd());
        Self { shared, entry, inner }
    }

    /// The descriptor.
    pub fn get_ref(&self) -> &S {
        &self.inner
    }

    /// Does `operation` as soon as the descriptor lets it: again after [`io::ErrorKind::WouldBlock`], once it is ready, and
    /// after [`io::ErrorKind::Interrupted`]. After many operations in one turn the others get theirs first.
    ///
    /// # Errors
    /// Those of the operation, and where the worker cannot watch the descriptor.
    pub async fn when<T>(
        &self,
        interest: Interest,
        mut operation: impl FnMut(&S) -> io::Result<T>,
    ) -> io::Result<T> {
        loop {
            if !self.shared.may_operate() {
                super::io::yield_now().await;
                continue;
            }
            match operation(&self.inner) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.wait(interest).await?,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => return result,
            }
        }
    }

    /// Waits until the descriptor may be ready.
    fn wait(&self, interest: Interest) -> impl Future<Output = io::Result<()>> + '_ {
        let mut waits = false;
        std::future::poll_fn(move |cx| {
            let mut sources = self.shared.sources.borrow_mut();
            let Some(side) = sources.side(self.entry, interest) else { return Poll::Ready(Ok(())) };
            if let Some(error) = side.error.take() {
                return Poll::Ready(Err(error));
            }
            // Woken for it, or for something else?
            if waits && side.waker.is_none() {
                return Poll::Ready(Ok(()));
            }
            remember(&mut side.waker, cx.waker());
            sources.changed = true;
            waits = true;
            Poll::Pending
        })
    }
}

impl<R: Request, S: AsRawFd> Drop for Source<R, S> {
    fn drop(&mut self) {
        let entry = self.shared.sources.borrow_mut().entries[self.entry].take();
        drop(entry);
    }
}

impl<R: Request, S: AsRawFd> fmt::Debug for Source<R, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Source(fd {})", self.inner.as_raw_fd())
    }
}
