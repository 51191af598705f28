//! What flows through a pipeline: requests down, completions up.

pub mod block;
pub mod net;

use crate::dma::SgList;
use std::fmt;
use std::num::NonZeroU32;

/// One family of I/O: [`block::BlockRequest`], [`net::NetRequest`].
///
/// A request travels by value, so it is small (64 bytes at most; larger parts sit behind a pooled handle). It
/// **owns the memory it works on until it completes**, and it **comes home with its completion**: whoever
/// submitted it gets it back out of [`Queue::poll`](crate::Queue::poll) together with its output, so that its
/// pooled parts are used again without an atomic operation or an allocation.
pub trait Request: Sized + Send + fmt::Debug + 'static {
    /// What a completed request yields; small and `Copy`.
    type Output: Copy + fmt::Debug + Send + 'static;
    /// What a stack can do; read through [`Backend::caps`](crate::Backend::caps).
    type Caps: Clone + PartialEq + fmt::Debug + Send + Sync + 'static;
    /// Names of the operations, indexed by [`Request::kind`]; what metrics are labelled with.
    const KINDS: &'static [&'static str];
    /// The name of the family, as it stands in messages: `block`, `net`.
    const FAMILY: &'static str;
    /// Whether requests of one queue must go on in the order in which they were submitted, as frames must: a stage that holds
    /// requests does not let them overtake each other.
    const IN_ORDER: bool = false;

    /// The tag its client chose: dense, below the depth given at [`Backend::open`](crate::Backend::open).
    fn tag(&self) -> Tag;
    /// Which operation this is, as an index into [`Request::KINDS`].
    fn kind(&self) -> usize;
    /// What the request costs: one operation, and the bytes it moves.
    fn cost(&self) -> Cost;
    /// Gives up the request for its pooled memory, to be used again.
    fn into_memory(self) -> Option<Box<SgList>>;
    /// The output of a request that was given up: dropped by a stage, or discarded by a reset.
    fn aborted() -> Self::Output;
    /// The output of a request that the medium or the host failed; as given up, where the family tells no difference.
    fn failed() -> Self::Output {
        Self::aborted()
    }
    /// What a guest that was told `told` is told of the same place once the stack there was taken away: what it may rely on
    /// stays, and what it can see go, such as a link, goes.
    fn vacant(told: &Self::Caps) -> Self::Caps;
    /// Whether an output means that the request did not do what it asked for.
    fn is_failure(output: &Self::Output) -> bool;
    /// Whether the request only waits for what may come, as a receive token does: a queue that drains does not wait for it,
    /// but completes it as [`Request::aborted`].
    fn is_token(&self) -> bool {
        false
    }
    /// Makes a token that came home as aborted what it was when it was submitted, so that a stage can send it down again.
    /// False, and nothing is done, for every other request and every other output.
    fn renew_token(&mut self, output: &Self::Output) -> bool {
        let _ = output;
        false
    }
}

/// A request's name among those in flight on one queue.
///
/// Tags are dense (below the queue's [`Depth`]), chosen by the queue's client and returned unchanged, so that
/// every stage can keep what it knows of a request in an array.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct Tag(u32);

impl Tag {
    /// The tag of that number.
    pub const fn new(index: u32) -> Self {
        Self(index)
    }

    /// The tag as an array index.
    pub const fn index(self) -> usize {
        self.0 as usize
    }

    /// The tag as a number.
    pub const fn get(self) -> u32 {
        self.0
    }
}

impl fmt::Debug for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}", self.0)
    }
}

/// How many requests may be in flight on one queue at once: 1 to [`Depth::MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Depth(NonZeroU32);

impl Depth {
    /// The largest depth, in requests.
    pub const MAX: u32 = 1 << 20;

    /// A depth of that many requests; `None` where it is zero or above [`Depth::MAX`].
    pub const fn new(requests: u32) -> Option<Self> {
        if requests > Self::MAX {
            return None;
        }
        match NonZeroU32::new(requests) {
            Some(requests) => Some(Self(requests)),
            None => None,
        }
    }

    /// The depth in requests.
    pub const fn get(self) -> usize {
        self.0.get() as usize
    }
}

/// What a request costs a scheduler, a throttle or a meter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Operations.
    pub ops: u32,
    /// Bytes moved between the guest and the back-end.
    pub bytes: u64,
}

/// A request on its way home, with what became of it.
#[derive(Debug)]
pub struct Completion<R: Request> {
    /// The request as it was submitted.
    pub request: R,
    /// What became of it.
    pub output: R::Output,
}

/// The completions that one [`Queue::poll`](crate::Queue::poll) brings up.
///
/// The caller supplies it and empties it; it never grows beyond the queue's depth because each request completes
/// once. A stage appends below its own mark and works on [`Completions::since`] that mark in place.
#[derive(Debug)]
pub struct Completions<R: Request> {
    list: Vec<Completion<R>>,
}

impl<R: Request> Completions<R> {
    /// Room for every request of a queue that deep.
    pub fn with_depth(depth: Depth) -> Self {
        Self { list: Vec::with_capacity(depth.get()) }
    }

    /// Completes a request.
    #[inline]
    pub fn push(&mut self, request: R, output: R::Output) {
        self.list.push(Completion { request, output });
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Those appended since the list had `mark` entries.
    #[inline]
    pub fn since(&mut self, mark: usize) -> &mut [Completion<R>] {
        &mut self.list[mark..]
    }

    /// Takes out those since `mark` of which `keep` says no, and hands them to `taken`. Both keep their order: frames that
    /// pass stay in order, and so do requests that go down again.
    #[inline]
    pub fn retain_since(
        &mut self,
        mark: usize,
        mut keep: impl FnMut(&mut Completion<R>) -> bool,
        mut taken: impl FnMut(R),
    ) {
        let Some(first) = self.list[mark..].iter_mut().position(|completion| !keep(completion)) else {
            return;
        };
        // That one has been asked about already.
        let mut known = true;
        let refuse = |completion: &mut Completion<R>| std::mem::take(&mut known) || !keep(completion);
        for refused in self.list.extract_if(mark + first.., refuse) {
            taken(refused.request);
        }
    }

    /// Moves all of `from` to the end of this list.
    pub fn append(&mut self, from: &mut Vec<Completion<R>>) {
        self.list.append(from);
    }

    /// Empties the list.
    pub fn drain(&mut self) -> impl Iterator<Item = Completion<R>> + '_ {
        self.list.drain(..)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn depth_is_bounded() {
        assert_eq!(Depth::new(0), None);
        assert_eq!(Depth::new(Depth::MAX + 1), None);
        assert_eq!(Depth::new(Depth::MAX).map(Depth::get), Some(Depth::MAX as usize));
    }

    #[test]
    fn what_passes_and_what_is_taken_out_keep_their_order() {
        use crate::dma::{SgLimits, SgPool};
        use net::{NetOutput, NetRequest};

        let mut pool = SgPool::new(9, SgLimits::default());
        let mut done = Completions::with_depth(Depth::new(9).unwrap());
        for tag in 0..9 {
            done.push(NetRequest::receive(Tag::new(tag), 0, pool.take()), NetOutput::Done);
        }
        let mut taken = Vec::new();
        done.retain_since(1, |c| c.request.tag().get() % 3 != 1, |request| taken.push(request.tag().get()));
        let kept: Vec<_> = done.drain().map(|completion| completion.request.tag().get()).collect();
        assert_eq!((kept, taken), (vec![0, 2, 3, 5, 6, 8], vec![1, 4, 7]));
    }
}
