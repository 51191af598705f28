//! Range locks: who may change which bytes of a disk, over all its queues.
//!
//! For a stage that does a request in steps, or on several branches, and must keep others out of its range until it is
//! through. Nobody blocks: a request whose range is taken waits in its stage, and its lane is woken when the range is its
//! own. One lock for a batch, shared by the queues of a stage.

use crate::request::Tag;
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::{Arc, Mutex, MutexGuard, PoisonError};
use crate::worker::LaneWaker;
use std::ops::Range;

/// How a range is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    /// Beside others that share it.
    Shared,
    /// Alone.
    Exclusive,
}

/// A range that is held or waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RangeTicket(usize);

/// The ranges of one back-end. First come, first served where ranges overlap.
#[derive(Debug, Default)]
pub struct RangeLocks {
    table: Mutex<RangeTable>,
}

/// The table, for a batch of changes under one lock.
#[derive(Debug, Default)]
pub struct RangeTable {
    entries: Vec<Option<Entry>>,
    free: Vec<usize>,
    clients: Vec<Option<ClientState>>,
    next: u64,
    exclusive: usize,
    waiting: usize,
}

#[derive(Debug)]
struct Entry {
    range: Range<u64>,
    hold: Hold,
    granted: bool,
    /// Position in the order of arrival.
    number: u64,
    client: usize,
    tag: Tag,
}

#[derive(Debug)]
struct ClientState {
    granted: Vec<Tag>,
    any: Arc<AtomicBool>,
    waker: LaneWaker,
}

/// The place of one queue.
#[derive(Debug)]
pub struct RangeClient {
    locks: Arc<RangeLocks>,
    id: usize,
    any: Arc<AtomicBool>,
}

impl RangeLocks {
    fn table(&self) -> MutexGuard<'_, RangeTable> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for a queue with room for that many ranges; `waker` is woken when a range that was waited for is granted.
    pub fn client(self: &Arc<Self>, waker: LaneWaker, room: usize) -> RangeClient {
        let any = Arc::new(AtomicBool::new(false));
        let state = ClientState { granted: Vec::with_capacity(room), any: any.clone(), waker };
        let mut table = self.table();
        table.entries.reserve(room);
        table.free.reserve(room);
        let id = match table.clients.iter().position(Option::is_none) {
            Some(free) => {
                table.clients[free] = Some(state);
                free
            }
            None => {
                table.clients.push(Some(state));
                table.clients.len() - 1
            }
        };
        RangeClient { locks: self.clone(), id, any }
    }

    /// Whether no range is held or waited for.
    pub fn is_idle(&self) -> bool {
        let table = self.table();
        table.waiting == 0 && table.exclusive == 0 && table.entries.iter().all(Option::is_none)
    }

    /// Lets go of a range without being a client, for one that is gone.
    pub fn release(&self, ticket: RangeTicket) {
        self.table().release(ticket);
    }
}

impl RangeClient {
    /// The table, for this client's batch.
    pub fn batch(&self) -> MutexGuard<'_, RangeTable> {
        self.locks.table()
    }

    /// Asks for a range: true where it is granted now. Otherwise [`RangeClient::granted`] names the tag later.
    pub fn ask(
        &self,
        table: &mut RangeTable,
        range: Range<u64>,
        hold: Hold,
        tag: Tag,
    ) -> (RangeTicket, bool) {
        table.ask(range, hold, self.id, tag)
    }

    /// Whether ranges were granted that were waited for.
    pub fn has_granted(&self) -> bool {
        self.any.load(Ordering::Relaxed) && self.any.swap(false, Ordering::SeqCst)
    }

    /// Moves the tags of such ranges to the end of `into`.
    pub fn granted(&self, table: &mut RangeTable, into: &mut Vec<Tag>) {
        if let Some(state) = &mut table.clients[self.id] {
            into.append(&mut state.granted);
        }
    }

    /// The locks that this is a place at.
    pub fn locks(&self) -> &Arc<RangeLocks> {
        &self.locks
    }
}

impl Drop for RangeClient {
    fn drop(&mut self) {
        self.locks.table().clients[self.id] = None;
    }
}

impl Entry {
    fn conflicts(&self, range: &Range<u64>, hold: Hold) -> bool {
        (self.hold == Hold::Exclusive || hold == Hold::Exclusive)
            && self.range.start < range.end
            && range.start < self.range.end
    }
}

impl RangeTable {
    fn ask(&mut self, range: Range<u64>, hold: Hold, client: usize, tag: Tag) -> (RangeTicket, bool) {
        let free_of_conflict = self.exclusive == 0 && hold == Hold::Shared;
        let granted =
            free_of_conflict || !self.entries.iter().flatten().any(|entry| entry.conflicts(&range, hold));
        let entry = Entry { range, hold, granted, number: self.next, client, tag };
        self.next += 1;
        self.exclusive += usize::from(hold == Hold::Exclusive);
        self.waiting += usize::from(!granted);
        let index = match self.free.pop() {
            Some(index) => {
                self.entries[index] = Some(entry);
                index
            }
            None => {
                self.entries.push(Some(entry));
                self.entries.len() - 1
            }
        };
        (RangeTicket(index), granted)
    }

    /// Lets go of a range, held or waited for.
    pub fn release(&mut self, ticket: RangeTicket) {
        let Some(gone) = self.entries[ticket.0].take() else { return };
        self.free.push(ticket.0);
        self.exclusive -= usize::from(gone.hold == Hold::Exclusive);
        self.waiting -= usize::from(!gone.granted);
        if self.waiting == 0 {
            return;
        }
        for index in 0..self.entries.len() {
            let Some(entry) = &self.entries[index] else { continue };
            if !entry.granted && entry.conflicts(&gone.range, gone.hold) && self.may_go(entry) {
                self.grant(index);
            }
        }
    }

    /// Whether nobody who came before is in the way.
    fn may_go(&self, entry: &Entry) -> bool {
        let mut before = self.entries.iter().flatten().filter(|other| other.number < entry.number);
        !before.any(|other| other.conflicts(&entry.range, entry.hold))
    }

    fn grant(&mut self, index: usize) {
        let Some(entry) = &mut self.entries[index] else { return };
        entry.granted = true;
        self.waiting -= 1;
        if let Some(client) = &mut self.clients[entry.client] {
            client.granted.push(entry.tag);
            if !client.any.swap(true, Ordering::SeqCst) {
                client.waker.wake();
            }
        }
    }
}
