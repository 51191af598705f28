//! What a disk may be found to hold, after any history of writes, flushes and cuts.

use super::stamp::{Content, read_stamp};
use crate::request::block::{Durability, SECTOR};
use std::collections::VecDeque;
use std::ops::Range;

/// Keeps, of each sector, every version that may legally be found.
///
/// ```text
///   durable      completed, not flushed      in flight
///   ┌───┐        ┌───┐ ┌───┐ ┌───┐           ┌───┐
///   │ 3 │        │ 5 │ │ 8 │ │ 9 │           │ 12│
///   └───┘        └───┘ └───┘ └───┘           └───┘
///   └───────── any of them after a cut ──────────┘
///                            └─ any of them now ─┘
/// ```
///
/// Writes to one sector do not overlap in time (the client waits for the first, as the contract asks of one who cares
/// for the order), so the versions of a sector stand in the order of their effect. What one write put into several
/// sectors may survive in some of them: the unit of tearing is the sector.
#[derive(Clone, Debug)]
pub struct Oracle {
    sectors: Vec<History>,
    promise: Durability,
    version: u64,
    completed: u64,
}

#[derive(Clone, Debug)]
struct History {
    /// The first is durable.
    versions: VecDeque<Version>,
    /// Of `versions`, the first that may be read now.
    readable: usize,
}

#[derive(Clone, Copy, Debug)]
struct Version {
    content: Content,
    /// Its write.
    write: u64,
    /// How many writes had completed when this one did; `None` while it is in flight, and where it failed.
    completed: Option<u64>,
}

/// A write under way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WriteToken {
    write: u64,
    sectors: Range<u64>,
}

impl WriteToken {
    /// The sectors that it writes.
    pub fn sectors(&self) -> &Range<u64> {
        &self.sectors
    }
}

/// A flush under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlushToken {
    covers: u64,
}

impl History {
    const fn of(content: Content) -> Version {
        Version { content, write: 0, completed: Some(0) }
    }

    /// Forgets what is older than the version at that index: it is durable.
    fn settle(&mut self, at: usize) {
        self.versions.drain(..at);
        self.readable = self.readable.saturating_sub(at);
    }

    fn allows(&self, from: usize, found: Content) -> bool {
        let legal = |version: &Version| version.content == found || version.content == Content::Any;
        self.versions.iter().skip(from).any(legal)
    }

    fn describe(&self, from: usize) -> String {
        let name = |version: &Version| match version.completed {
            Some(_) => format!("{:?}", version.content),
            None => format!("{:?} (not completed)", version.content),
        };
        self.versions.iter().skip(from).map(name).collect::<Vec<_>>().join(", ")
    }
}

impl Oracle {
    /// A disk of that many sectors, all zero and durable, with that promise.
    pub fn new(sectors: u64, promise: Durability) -> Self {
        let history = History { versions: VecDeque::from([History::of(Content::Zero)]), readable: 0 };
        Self { sectors: vec![history; sectors as usize], promise, version: 0, completed: 0 }
    }

    /// How many sectors there are.
    pub fn sectors(&self) -> u64 {
        self.sectors.len() as u64
    }

    /// A number for the next write, never given before.
    pub fn next_version(&mut self) -> u64 {
        self.version += 1;
        self.version
    }

    fn histories(&mut self, range: &Range<u64>) -> &mut [History] {
        &mut self.sectors[range.start as usize..range.end as usize]
    }

    /// A write of that content begins: its sectors may hold it from now on.
    pub fn begin_write(&mut self, sectors: Range<u64>, content: Content) -> WriteToken {
        let write = self.next_version();
        for history in self.histories(&sectors) {
            history.versions.push_back(Version { content, write, completed: None });
        }
        WriteToken { write, sectors }
    }

    /// A write has ended. Where it is done, its sectors hold it and nothing older; with `fua` it is durable, as it is on a
    /// disk that is write-through. Where it failed, any sector may hold the old content or the new.
    pub fn end_write(&mut self, token: &WriteToken, done: bool, fua: bool) {
        if !done {
            return;
        }
        self.completed += 1;
        let completed = self.completed;
        let durable = match self.promise {
            Durability::WriteThrough => true,
            Durability::WriteBack => fua,
            Durability::Unsafe => false,
        };
        for history in self.histories(&token.sectors) {
            let Some(at) = history.versions.iter().rposition(|version| version.write == token.write) else {
                continue;
            };
            history.versions[at].completed = Some(completed);
            history.readable = at;
            if durable {
                history.settle(at);
            }
        }
    }

    /// A flush begins: it covers the writes that have completed.
    pub fn begin_flush(&self) -> FlushToken {
        FlushToken { covers: self.completed }
    }

    /// A flush has ended.
    pub fn end_flush(&mut self, token: FlushToken, done: bool) {
        if !done || self.promise != Durability::WriteBack {
            return;
        }
        for history in &mut self.sectors {
            let covered = |version: &Version| version.completed.is_some_and(|at| at <= token.covers);
            if let Some(at) = history.versions.iter().rposition(covered) {
                history.settle(at);
            }
        }
    }

    /// Checks what a read brought from `first` on.
    ///
    /// # Errors
    /// The first sector that is wrong, in words.
    pub fn check_read(&self, first: u64, data: &[u8]) -> Result<(), String> {
        for (sector, bytes) in (first..).zip(data.chunks(SECTOR as usize)) {
            let history = &self.sectors[sector as usize];
            check(sector, history, history.readable, bytes)?;
        }
        Ok(())
    }

    /// Checks what is found from `first` on after a cut, and takes it for what the disk holds from now on.
    ///
    /// # Errors
    /// The first sector that is wrong, in words.
    pub fn check_after_cut(&mut self, first: u64, data: &[u8]) -> Result<(), String> {
        for (sector, bytes) in (first..).zip(data.chunks(SECTOR as usize)) {
            let history = &mut self.sectors[sector as usize];
            let mut found = check(sector, history, 0, bytes)?;
            if history.allows(0, Content::Any) {
                // A discarded sector may read otherwise the next time.
                found = Content::Any;
            }
            history.versions = VecDeque::from([History::of(found)]);
            history.readable = 0;
        }
        Ok(())
    }
}

fn check(sector: u64, history: &History, from: usize, bytes: &[u8]) -> Result<Content, String> {
    let found = read_stamp(sector, bytes);
    match &found {
        Ok(content) if history.allows(from, *content) => Ok(*content),
        // Whatever a discarded sector holds, it is of no interest.
        Err(_) if history.allows(from, Content::Any) => Ok(Content::Any),
        found => {
            let found = match found {
                Ok(content) => format!("{content:?}"),
                Err(words) => words.clone(),
            };
            Err(format!("sector {sector} holds {found}; it may hold {}", history.describe(from)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::stamp::stamped;
    use super::*;

    fn write(oracle: &mut Oracle, fua: bool) -> Vec<u8> {
        let version = oracle.next_version();
        let token = oracle.begin_write(0..1, Content::Version(version));
        oracle.end_write(&token, true, fua);
        stamped(0, 1, version)
    }

    #[test]
    fn what_was_flushed_stays_and_what_came_later_may() {
        let mut oracle = Oracle::new(1, Durability::WriteBack);
        let old = write(&mut oracle, false);
        let flushed = write(&mut oracle, false);
        let flush = oracle.begin_flush();
        let later = write(&mut oracle, false);
        oracle.end_flush(flush, true);
        assert!(oracle.clone().check_after_cut(0, &old).is_err());
        assert!(oracle.clone().check_after_cut(0, &flushed).is_ok());
        assert!(oracle.clone().check_after_cut(0, &later).is_ok());
        assert!(oracle.check_read(0, &flushed).is_err(), "a read gives the latest");
        assert!(oracle.check_read(0, &later).is_ok());
        oracle.check_after_cut(0, &flushed).unwrap();
        assert!(oracle.check_read(0, &later).is_err(), "what a cut took stays away");
    }

    #[test]
    fn a_failed_flush_or_an_unsafe_disk_promises_nothing() {
        let mut failed = Oracle::new(1, Durability::WriteBack);
        let mut unsafe_disk = Oracle::new(1, Durability::Unsafe);
        for (oracle, done) in [(&mut failed, false), (&mut unsafe_disk, true)] {
            write(oracle, true);
            write(oracle, false);
            let flush = oracle.begin_flush();
            oracle.end_flush(flush, done);
        }
        assert!(failed.clone().check_after_cut(0, &[0; 512]).is_err(), "FUA made one durable");
        assert!(unsafe_disk.check_after_cut(0, &[0; 512]).is_ok());
    }

    #[test]
    fn a_failed_write_leaves_either() {
        let mut oracle = Oracle::new(1, Durability::WriteThrough);
        let before = write(&mut oracle, false);
        let version = oracle.next_version();
        let token = oracle.begin_write(0..1, Content::Version(version));
        oracle.end_write(&token, false, false);
        assert!(oracle.check_read(0, &before).is_ok());
        assert!(oracle.check_read(0, &stamped(0, 1, version)).is_ok());
        assert!(oracle.check_read(0, &[0; 512]).is_err());
    }
}
