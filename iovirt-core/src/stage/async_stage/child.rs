//! Requests of a stage's own to what is below.

use super::StandIn;
use super::shared::Shared;
use crate::dma::SgList;
use crate::request::block::{BlockFlags, BlockOp, BlockRequest, RangeOverflow};
use crate::request::{Request, Tag};
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

/// A child's tag; free again once this is dropped.
struct Lease<R: StandIn> {
    shared: Rc<Shared<R>>,
    tag: Tag,
    /// The call is below and frees the tag when it comes home.
    below: bool,
}

impl<R: StandIn> Lease<R> {
    fn put_memory(&self, sg: Box<SgList>) {
        self.shared.calls.borrow_mut().put_memory(sg);
    }
}

impl<R: StandIn> Drop for Lease<R> {
    fn drop(&mut self) {
        let mut calls = self.shared.calls.borrow_mut();
        if self.below {
            calls.abandon(self.tag);
        } else {
            calls.free_child(self.tag);
        }
    }
}

/// Tag and memory of a request to be: fill the memory, then say what is asked for.
pub struct Child<R: StandIn> {
    lease: Lease<R>,
    sg: Box<SgList>,
}

impl<R: StandIn> Child<R> {
    pub(super) fn new(shared: Rc<Shared<R>>, tag: Tag, sg: Box<SgList>) -> Self {
        Self { lease: Lease { shared, tag, below: false }, sg }
    }

    /// The memory. A part of the handler's own request is put there by [`SgList::slice_into`] without copying data; that
    /// request completes only once such children came home.
    pub fn sg_mut(&mut self) -> &mut SgList {
        &mut self.sg
    }

    /// The request that `make` makes of the tag and the memory; it is sent when it is first polled.
    ///
    /// # Errors
    /// That of `make`, which gives the memory back with it.
    pub fn try_call<E>(
        self,
        make: impl FnOnce(Tag, Box<SgList>) -> Result<R, (E, Box<SgList>)>,
    ) -> Result<ChildCall<R>, E> {
        let Self { lease, sg } = self;
        match make(lease.tag, sg) {
            Ok(request) => {
                debug_assert_eq!(request.tag(), lease.tag, "a child keeps the tag that it was given");
                Ok(ChildCall { lease: Some(lease), request: Some(request) })
            }
            Err((error, sg)) => {
                lease.put_memory(sg);
                Err(error)
            }
        }
    }
}

impl Child<BlockRequest> {
    /// A read or a write of all of the memory at `offset`.
    ///
    /// # Errors
    /// Where the range ends beyond 2^63.
    pub fn transfer(
        self,
        op: BlockOp,
        flags: BlockFlags,
        offset: u64,
    ) -> Result<ChildCall<BlockRequest>, RangeOverflow> {
        self.try_call(|tag, sg| match BlockRequest::transfer(op, tag, offset, sg) {
            Ok(request) => Ok(request.with_flags(flags)),
            Err(refused) => Err((refused.error, refused.sg)),
        })
    }

    /// A discard or a write-zeroes.
    ///
    /// # Errors
    /// Where the range ends beyond 2^63.
    pub fn ranged(
        self,
        op: BlockOp,
        flags: BlockFlags,
        offset: u64,
        len: u64,
    ) -> Result<ChildCall<BlockRequest>, RangeOverflow> {
        self.try_call(|tag, sg| match BlockRequest::ranged(op, tag, offset, len, sg) {
            Ok(request) => Ok(request.with_flags(flags)),
            Err(refused) => Err((refused.error, refused.sg)),
        })
    }

    /// A flush.
    pub fn flush(self) -> ChildCall<BlockRequest> {
        let Self { lease, sg } = self;
        let request = BlockRequest::flush(lease.tag, sg);
        ChildCall { lease: Some(lease), request: Some(request) }
    }
}

/// A child under way. Where it is dropped before it came home, the handler's own request waits for it all the same.
pub struct ChildCall<R: StandIn> {
    lease: Option<Lease<R>>,
    /// What was not sent yet.
    request: Option<R>,
}

impl<R: StandIn> Future for ChildCall<R> {
    type Output = Answer<R>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Answer<R>> {
        let request = self.request.take();
        // Polled again after its answer, it has none any more.
        let Some(lease) = &mut self.lease else { return Poll::Pending };
        if let Some(request) = request {
            lease.shared.calls.borrow_mut().submit(request, cx.waker());
            lease.below = true;
            return Poll::Pending;
        }
        let outcome = lease.shared.calls.borrow_mut().ask(lease.tag, cx.waker());
        let Poll::Ready(outcome) = outcome else { return Poll::Pending };
        lease.below = false;
        let (request, output) = match outcome {
            Some(completion) => (Some(completion.request), completion.output),
            None => (None, R::aborted()),
        };
        match self.lease.take() {
            Some(lease) => Poll::Ready(Answer { lease, request, output }),
            None => Poll::Pending,
        }
    }
}

impl<R: StandIn> Drop for ChildCall<R> {
    fn drop(&mut self) {
        if let (Some(lease), Some(sg)) = (&self.lease, self.request.take().and_then(Request::into_memory)) {
            lease.put_memory(sg);
        }
    }
}

/// A child that came home. Dropping it frees its tag and its memory for the next one.
pub struct Answer<R: StandIn> {
    lease: Lease<R>,
    request: Option<R>,
    output: R::Output,
}

impl<R: StandIn> Answer<R> {
    /// What became of it.
    pub fn output(&self) -> R::Output {
        self.output
    }

    /// The child with its memory; `None` where a stage below lost it, and then it counts as given up.
    pub fn request(&self) -> Option<&R> {
        self.request.as_ref()
    }
}

impl<R: StandIn> Drop for Answer<R> {
    fn drop(&mut self) {
        if let Some(sg) = self.request.take().and_then(Request::into_memory) {
            self.lease.put_memory(sg);
        }
    }
}

macro_rules! debug_by_tag {
    ($name:ident, $self:ident => $tag:expr) => {
        impl<R: StandIn> fmt::Debug for $name<R> {
            fn fmt(&$self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({:?})"), $tag)
            }
        }
    };
}

debug_by_tag!(Child, self => self.lease.tag);
debug_by_tag!(ChildCall, self => self.lease.as_ref().map(|lease| lease.tag));
debug_by_tag!(Answer, self => self.lease.tag);
