//! Futures that talk to each other inside one queue: on one thread, without locks, without an executor.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};

/// Place for one value, and for one who waits for it: a oneshot channel that can be used again.
pub struct Mailbox<T> {
    value: RefCell<Option<T>>,
    waker: RefCell<Option<Waker>>,
}

impl<T> Mailbox<T> {
    /// An empty one.
    pub fn new() -> Self {
        Self { value: RefCell::new(None), waker: RefCell::new(None) }
    }

    /// Puts a value there; gives back the one that was there.
    pub fn put(&self, value: T) -> Option<T> {
        let before = self.value.replace(Some(value));
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
        before
    }

    /// Takes the value without waiting.
    pub fn try_take(&self) -> Option<T> {
        self.value.take()
    }

    /// Waits for a value. Where two wait, the later one gets it.
    pub fn take(&self) -> impl Future<Output = T> + '_ {
        std::future::poll_fn(|cx| {
            if let Some(value) = self.value.take() {
                return Poll::Ready(value);
            }
            remember(&mut self.waker.borrow_mut(), cx.waker());
            Poll::Pending
        })
    }
}

impl<T> Default for Mailbox<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> fmt::Debug for Mailbox<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mailbox").field("full", &self.value.borrow().is_some()).finish_non_exhaustive()
    }
}

/// Keeps a waker, without touching its count where it is the one that is kept already.
pub(super) fn remember(place: &mut Option<Waker>, waker: &Waker) {
    match place {
        Some(known) => known.clone_from(waker),
        none => *none = Some(waker.clone()),
    }
}

/// So many at a time, in the order in which they asked. With one permit, a lock that is held across an `await`.
pub struct Semaphore {
    permits: Cell<usize>,
    next: Cell<u64>,
    waiting: RefCell<VecDeque<(u64, Waker)>>,
}

impl Semaphore {
    /// That many permits.
    pub fn new(permits: usize) -> Self {
        Self { permits: Cell::new(permits), next: Cell::new(0), waiting: RefCell::default() }
    }

    /// Waits for a permit.
    pub fn acquire(&self) -> Acquire<'_> {
        Acquire { semaphore: self, turn: None }
    }

    fn wake_first(&self) {
        if self.permits.get() > 0
            && let Some((_, waker)) = self.waiting.borrow().front()
        {
            waker.wake_by_ref();
        }
    }
}

impl fmt::Debug for Semaphore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Semaphore")
            .field("permits", &self.permits.get())
            .field("waiting", &self.waiting.borrow().len())
            .finish_non_exhaustive()
    }
}

/// The future of [`Semaphore::acquire`].
#[derive(Debug)]
pub struct Acquire<'a> {
    semaphore: &'a Semaphore,
    turn: Option<u64>,
}

impl<'a> Future for Acquire<'a> {
    type Output = Permit<'a>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Permit<'a>> {
        let semaphore = self.semaphore;
        let mut waiting = semaphore.waiting.borrow_mut();
        let first = waiting.front().is_none_or(|(turn, _)| Some(*turn) == self.turn);
        if first && semaphore.permits.get() > 0 {
            semaphore.permits.set(semaphore.permits.get() - 1);
            if self.turn.take().is_some() {
                waiting.pop_front();
            }
            drop(waiting);
            semaphore.wake_first();
            return Poll::Ready(Permit { semaphore });
        }
        match self.turn {
            Some(mine) => {
                if let Some((_, waker)) = waiting.iter_mut().find(|(turn, _)| *turn == mine) {
                    waker.clone_from(cx.waker());
                }
            }
            None => {
                let turn = semaphore.next.replace(semaphore.next.get().wrapping_add(1));
                waiting.push_back((turn, cx.waker().clone()));
                drop(waiting);
                self.turn = Some(turn);
            }
        }
        Poll::Pending
    }
}

impl Drop for Acquire<'_> {
    fn drop(&mut self) {
        if let Some(mine) = self.turn {
            self.semaphore.waiting.borrow_mut().retain(|(turn, _)| *turn != mine);
            self.semaphore.wake_first();
        }
    }
}

/// Leave to go on, until it is dropped.
#[derive(Debug)]
pub struct Permit<'a> {
    semaphore: &'a Semaphore,
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        self.semaphore.permits.set(self.semaphore.permits.get() + 1);
        self.semaphore.wake_first();
    }
}

/// Which of two futures was first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Race<A, B> {
    /// The first one.
    Left(A),
    /// The second one.
    Right(B),
}

/// Waits for the first of two; the other one is dropped. Where both are there it is the first that counts.
pub async fn race<A, B>(left: impl Future<Output = A>, right: impl Future<Output = B>) -> Race<A, B> {
    let (mut left, mut right) = (pin!(left), pin!(right));
    std::future::poll_fn(|cx| {
        if let Poll::Ready(output) = left.as_mut().poll(cx) {
            return Poll::Ready(Race::Left(output));
        }
        right.as_mut().poll(cx).map(Race::Right)
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn poll<F: Future>(future: Pin<&mut F>) -> Option<F::Output> {
        match future.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(output) => Some(output),
            Poll::Pending => None,
        }
    }

    #[test]
    fn permits_go_in_order_and_come_back() {
        let semaphore = Semaphore::new(1);
        let (mut first, mut second, mut third) =
            (Box::pin(semaphore.acquire()), Box::pin(semaphore.acquire()), Box::pin(semaphore.acquire()));
        let permit = poll(first.as_mut()).expect("the only permit");
        assert!(poll(second.as_mut()).is_none());
        assert!(poll(third.as_mut()).is_none());
        drop(permit);
        assert!(poll(third.as_mut()).is_none(), "the second is before it");
        drop(second);
        let permit = poll(third.as_mut()).expect("nobody is before it any more");
        drop(permit);
        assert_eq!(semaphore.permits.get(), 1);
        assert!(semaphore.waiting.borrow().is_empty());
    }

    #[test]
    fn a_mailbox_can_be_used_again() {
        let mailbox = Mailbox::new();
        for round in 0..3 {
            let mut taking = Box::pin(mailbox.take());
            assert_eq!(poll(taking.as_mut()), None);
            assert_eq!(mailbox.put(round), None);
            assert_eq!(poll(taking.as_mut()), Some(round));
        }
    }

    #[test]
    fn the_first_future_wins() {
        let never = std::future::pending::<()>;
        assert_eq!(poll(pin!(race(std::future::ready(1), never()))), Some(Race::Left(1)));
        assert_eq!(poll(pin!(race(never(), std::future::ready(1)))), Some(Race::Right(1)));
        assert_eq!(poll(pin!(race(never(), never()))), None);
    }
}
