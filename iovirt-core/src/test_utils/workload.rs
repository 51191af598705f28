//! A seeded load that knows what it may find.

use super::driver::{Driver, Stuck, describe};
use super::io::{BlockIo, IoDone, IoId};
use super::oracle::{FlushToken, Oracle, WriteToken};
use super::rng::Rng;
use super::stamp::{Content, stamped};
use crate::request::block::{BlockCaps, BlockFlags, BlockOp, BlockOutput, SECTOR};
use std::collections::BTreeMap;
use std::ops::Range;
use thiserror::Error;

/// Where and how a [`Workload`] works.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkloadConfig {
    /// The sectors it writes to; aligned to the logical block. Two workloads share none.
    pub sectors: Range<u64>,
    /// Longest request in logical blocks.
    pub max_blocks: u64,
    /// Of how many requests one is a flush; zero for none.
    pub flush_one_in: u64,
    /// Of how many writes one has FUA; zero for none.
    pub fua_one_in: u64,
    /// The content of the disk comes back: reads are checked.
    pub keeps_data: bool,
}

impl WorkloadConfig {
    /// The first `blocks` logical blocks of a disk, or all where it has fewer.
    pub fn new(caps: &BlockCaps, blocks: u64) -> Self {
        let blocks = blocks.min(caps.capacity / u64::from(caps.logical_block));
        let sectors = 0..blocks * (u64::from(caps.logical_block) / SECTOR);
        Self { sectors, max_blocks: 8, flush_one_in: 8, fua_one_in: 6, keeps_data: true }
    }
}

/// A promise that was not kept.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Violation {
    /// The wrong data.
    #[error("wrong data: {0}")]
    Data(String),
    /// A request failed that should not have.
    #[error("{0}")]
    Failed(String),
    /// A request came home changed, or was dropped.
    #[error("{0}")]
    Lost(String),
    /// Nothing came home any more.
    #[error(transparent)]
    Stuck(#[from] Stuck),
}

enum Expected {
    Read { sectors: Range<u64> },
    Write { token: WriteToken, fua: bool },
    Flush(FlushToken),
}

/// Writes sectors that say who wrote them, flushes, reads, and knows by an [`Oracle`] what may be found, now and after a
/// cut. Reads and writes that overlap a write in flight are not made.
pub struct Workload {
    config: WorkloadConfig,
    caps: BlockCaps,
    oracle: Oracle,
    rng: Rng,
    expected: BTreeMap<IoId, Expected>,
    /// The ranges in flight, and whether each is a write.
    busy: BTreeMap<IoId, (Range<u64>, bool)>,
    finished: u64,
}

impl std::fmt::Debug for Workload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Workload")
            .field("config", &self.config)
            .field("in_flight", &self.expected.len())
            .finish_non_exhaustive()
    }
}

impl Workload {
    /// A load for a disk of these capabilities whose sectors are zero.
    pub fn new(config: WorkloadConfig, caps: &BlockCaps, seed: u64) -> Self {
        Self {
            oracle: Oracle::new(config.sectors.end, caps.durability),
            config,
            caps: caps.clone(),
            rng: Rng::new(seed),
            expected: BTreeMap::new(),
            busy: BTreeMap::new(),
            finished: 0,
        }
    }

    /// How many requests came home.
    pub fn finished(&self) -> u64 {
        self.finished
    }

    /// What may be found.
    pub fn oracle(&self) -> &Oracle {
        &self.oracle
    }

    fn block(&self) -> u64 {
        u64::from(self.caps.logical_block) / SECTOR
    }

    /// A range of whole blocks of at most that many bytes.
    fn choose(&mut self, max_bytes: u64) -> Range<u64> {
        let block = self.block();
        let max = self.config.max_blocks.min(max_bytes / u64::from(self.caps.logical_block)).max(1);
        let blocks = (self.config.sectors.end - self.config.sectors.start) / block;
        let len = self.rng.between(1, max.min(blocks));
        let first = self.config.sectors.start / block + self.rng.below(blocks - len + 1);
        first * block..(first + len) * block
    }

    fn is_free(&self, range: &Range<u64>, write: bool) -> bool {
        let overlaps = |other: &Range<u64>| other.start < range.end && range.start < other.end;
        !self.busy.values().any(|(other, writes)| (write || *writes) && overlaps(other))
    }

    /// Submits a random request; false at full depth. A choice that overlaps what is in flight is passed over.
    pub fn submit(&mut self, driver: &mut Driver) -> bool {
        if self.config.flush_one_in > 0 && self.rng.one_in(self.config.flush_one_in) {
            let token = self.oracle.begin_flush();
            let Some(id) = driver.submit(BlockIo::flush()) else { return false };
            self.expected.insert(id, Expected::Flush(token));
            return true;
        }
        let (op, max_bytes) = self.choose_op();
        let sectors = self.choose(max_bytes);
        if !self.is_free(&sectors, op != BlockOp::Read) {
            return true;
        }
        let (offset, len) = (sectors.start * SECTOR, (sectors.end - sectors.start) * SECTOR);
        let mut io = match op {
            BlockOp::Discard => BlockIo::discard(offset, len),
            BlockOp::WriteZeroes => BlockIo::write_zeroes(offset, len),
            _ => BlockIo::read(offset, len),
        };
        let mut content = self.content_after(op);
        if op == BlockOp::Write {
            let version = self.oracle.next_version();
            io = BlockIo::write(offset, stamped(sectors.start, sectors.end - sectors.start, version));
            content = Content::Version(version);
        }
        let forced = matches!(op, BlockOp::Write | BlockOp::WriteZeroes);
        let fua = forced && self.config.fua_one_in > 0 && self.rng.one_in(self.config.fua_one_in);
        if fua {
            io.flags |= BlockFlags::FUA;
        }
        let Some(id) = driver.submit(io) else { return false };
        self.busy.insert(id, (sectors.clone(), op != BlockOp::Read));
        let expected = match op {
            BlockOp::Read => Expected::Read { sectors },
            _ => Expected::Write { token: self.oracle.begin_write(sectors, content), fua },
        };
        self.expected.insert(id, expected);
        true
    }

    fn choose_op(&mut self) -> (BlockOp, u64) {
        let read = if self.config.keeps_data { 3 } else { 2 };
        match (self.rng.below(12), self.caps.discard, self.caps.write_zeroes) {
            (0, Some(limits), _) => (BlockOp::Discard, limits.max_bytes),
            (1, _, Some(limits)) => (BlockOp::WriteZeroes, limits.max_bytes),
            (choice, _, _) if choice < 2 + read => (BlockOp::Read, u64::MAX),
            _ => (BlockOp::Write, u64::MAX),
        }
    }

    fn content_after(&self, op: BlockOp) -> Content {
        match op {
            BlockOp::Discard if self.caps.discard.is_none_or(|limits| !limits.reads_zero) => Content::Any,
            // A range that is not aligned to the limit may be discarded in part only.
            BlockOp::Discard if self.caps.discard.is_some_and(|limits| limits.alignment > SECTOR as u32) => {
                Content::Any
            }
            _ => Content::Zero,
        }
    }

    /// Submits a few requests and lets the stack take one turn.
    ///
    /// # Errors
    /// The first promise that was not kept.
    pub fn turn(&mut self, driver: &mut Driver) -> Result<(), Violation> {
        for _ in 0..self.rng.between(1, 4) {
            if !self.submit(driver) {
                break;
            }
        }
        let done = driver.turn();
        self.take(done)
    }

    /// Turns until that many more requests came home.
    ///
    /// # Errors
    /// The first promise that was not kept.
    pub fn run(&mut self, driver: &mut Driver, requests: u64) -> Result<(), Violation> {
        let target = self.finished + requests;
        while self.finished < target {
            let before = self.finished;
            self.turn(driver)?;
            if self.finished == before && !self.expected.is_empty() {
                self.wait(driver, |load| load.finished > before)?;
            }
        }
        Ok(())
    }

    /// Waits until nothing is in flight.
    ///
    /// # Errors
    /// The first promise that was not kept.
    pub fn finish(&mut self, driver: &mut Driver) -> Result<(), Violation> {
        self.wait(driver, |load| load.expected.is_empty())
    }

    fn wait(&mut self, driver: &mut Driver, enough: impl Fn(&Self) -> bool) -> Result<(), Violation> {
        let mut result = Ok(());
        driver.turn_until(|_, done| {
            result = self.take(done);
            result.is_err() || enough(self)
        })?;
        result
    }

    /// Takes what came home, for a test that drives the queue itself.
    ///
    /// # Errors
    /// The first promise that was not kept.
    pub fn take(&mut self, done: Vec<IoDone>) -> Result<(), Violation> {
        done.into_iter().try_for_each(|done| self.take_one(&done))
    }

    fn take_one(&mut self, done: &IoDone) -> Result<(), Violation> {
        let Some(expected) = self.expected.remove(&done.id) else { return Ok(()) };
        self.busy.remove(&done.id);
        self.finished += 1;
        if done.lost {
            return Err(Violation::Lost(format!("dropped instead of completed: {}", describe(&done.io))));
        }
        if let Some(mangled) = &done.mangled {
            return Err(Violation::Lost(mangled.clone()));
        }
        let success = done.output == BlockOutput::Done;
        match expected {
            Expected::Write { token, fua } => self.oracle.end_write(&token, success, fua),
            Expected::Flush(token) => self.oracle.end_flush(token, success),
            Expected::Read { sectors } => {
                if success && self.config.keeps_data {
                    let wrong = |error| Violation::Data(format!("a read of {sectors:?} found that {error}"));
                    self.oracle.check_read(sectors.start, &done.data).map_err(wrong)?;
                }
            }
        }
        if !success {
            return Err(Violation::Failed(format!("{} gave {:?}", describe(&done.io), done.output)));
        }
        Ok(())
    }

    /// Reads everything back and checks it: with nothing in flight.
    ///
    /// # Errors
    /// The first promise that was not kept.
    pub fn verify(&mut self, driver: &mut Driver) -> Result<(), Violation> {
        let wrong = |error| Violation::Data(format!("the disk was read back: {error}"));
        self.read_back(driver, |oracle, first, data| oracle.check_read(first, data).map_err(wrong))
    }

    /// Submits reads of everything, whose data is checked when they come home: with nothing in flight on a queue that has
    /// room for them. For a test that drives the queue itself.
    pub fn submit_read_back(&mut self, driver: &mut Driver) {
        const CHUNK: u64 = 256;
        let Range { start, end } = self.config.sectors;
        for first in (start..end).step_by(CHUNK as usize) {
            let sectors = first..(first + CHUNK).min(end);
            let read = BlockIo::read(first * SECTOR, (sectors.end - first) * SECTOR);
            if let Some(id) = driver.submit(read) {
                self.expected.insert(id, Expected::Read { sectors });
            }
        }
    }

    /// The queue went with what was in flight: any of its writes may have been done, or not.
    pub fn forget_in_flight(&mut self) {
        self.expected.clear();
        self.busy.clear();
    }

    /// The power went and came back, and `driver` has the stack's new queue open: reads everything and checks that it is
    /// what may be found. What was in flight is forgotten.
    ///
    /// # Errors
    /// The first promise that was not kept.
    pub fn verify_after_cut(&mut self, driver: &mut Driver) -> Result<(), Violation> {
        self.forget_in_flight();
        let wrong = |error| Violation::Data(format!("after a loss of power {error}"));
        self.read_back(driver, |oracle, first, data| oracle.check_after_cut(first, data).map_err(wrong))
    }

    fn read_back(
        &mut self,
        driver: &mut Driver,
        mut check: impl FnMut(&mut Oracle, u64, &[u8]) -> Result<(), Violation>,
    ) -> Result<(), Violation> {
        const CHUNK: u64 = 256;
        let Range { start, end } = self.config.sectors;
        for first in (start..end).step_by(CHUNK as usize) {
            let sectors = CHUNK.min(end - first);
            let done = driver.run(BlockIo::read(first * SECTOR, sectors * SECTOR))?;
            if done.output != BlockOutput::Done {
                return Err(Violation::Failed(format!("{} gave {:?}", describe(&done.io), done.output)));
            }
            check(&mut self.oracle, first, &done.data)?;
        }
        Ok(())
    }
}
