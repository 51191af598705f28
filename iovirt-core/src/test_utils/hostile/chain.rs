//! One request, cut into descriptors in any way.

use super::ensure;
use crate::test_utils::rng::Rng;
use std::fmt;
use std::sync::Arc;

/// One buffer of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffer {
    /// Its address in guest memory.
    pub addr: u64,
    /// Its length in bytes.
    pub len: u32,
    /// Whether the device writes it.
    pub writable: bool,
}

/// What is right about an answer, and what is wrong with another.
type Check = dyn Fn(&[u8]) -> Result<(), String> + Send + Sync;

/// A request and its answer, as bytes.
#[derive(Clone)]
pub struct Exchange {
    /// What it is called in a failure.
    pub name: &'static str,
    /// What the device reads.
    pub readable: Vec<u8>,
    /// How many bytes the device writes.
    pub writable: u32,
    check: Arc<Check>,
}

impl Exchange {
    /// A request; `check` looks at what the device wrote.
    pub fn new(
        name: &'static str,
        readable: Vec<u8>,
        writable: u32,
        check: impl Fn(&[u8]) -> Result<(), String> + Send + Sync + 'static,
    ) -> Self {
        Self { name, readable, writable, check: Arc::new(check) }
    }

    /// Whether that answer is right.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check(&self, answer: &[u8]) -> Result<(), String> {
        ensure!(answer.len() == self.writable as usize, "{}: {} bytes came back", self.name, answer.len());
        (self.check)(answer).map_err(|error| format!("{}: {error}", self.name))
    }
}

impl fmt::Debug for Exchange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exchange").field("name", &self.name).finish_non_exhaustive()
    }
}

/// How a request is cut into descriptors.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Split {
    /// Where the readable part is cut: offsets in ascending order. Equal ones make descriptors of no bytes.
    pub readable: Vec<u32>,
    /// Where the writable part is cut.
    pub writable: Vec<u32>,
    /// Whether the descriptors stand in an indirect table.
    pub indirect: bool,
    /// Bytes between one buffer and the next; zero leaves them touching.
    pub gap: u32,
}

impl Split {
    /// One descriptor for what the device reads, and one for what it writes.
    pub fn whole() -> Self {
        Self { gap: 32, ..Self::default() }
    }

    /// A descriptor for each byte.
    pub fn bytes(exchange: &Exchange) -> Self {
        let cuts = |len: u32| (1..len).collect();
        Self {
            readable: cuts(exchange.readable.len() as u32),
            writable: cuts(exchange.writable),
            indirect: true,
            gap: 3,
        }
    }

    /// Any split with at most `most` descriptors.
    pub fn random(rng: &mut Rng, exchange: &Exchange, most: usize) -> Self {
        let readable = exchange.readable.len() as u32;
        let first = rng.index(most - 1);
        Self {
            readable: cuts(rng, readable, first),
            writable: cuts(rng, exchange.writable, most - 2 - first),
            indirect: rng.one_in(2),
            gap: rng.below(40) as u32,
        }
    }

    /// How many descriptors it makes.
    pub fn descriptors(&self) -> usize {
        self.readable.len() + self.writable.len() + 2
    }

    /// The buffers of a request from `addr` on.
    pub fn buffers(&self, exchange: &Exchange, addr: u64) -> Vec<Buffer> {
        let mut buffers = Vec::with_capacity(self.descriptors());
        let mut at = addr;
        let parts = [
            (&self.readable, exchange.readable.len() as u32, false),
            (&self.writable, exchange.writable, true),
        ];
        for (cuts, len, writable) in parts {
            let mut from = 0;
            for &to in cuts.iter().chain([&len]) {
                buffers.push(Buffer { addr: at, len: to - from, writable });
                at += u64::from(to - from + self.gap);
                from = to;
            }
        }
        buffers
    }
}

/// Up to `most` cuts, near the ends more often than elsewhere: there a header or a status byte is cut off or merged.
fn cuts(rng: &mut Rng, len: u32, most: usize) -> Vec<u32> {
    let mut cuts: Vec<u32> = (0..rng.index(most + 1))
        .map(|_| match rng.below(4) {
            0 => rng.below(u64::from(len.min(18)) + 1) as u32,
            1 => len - rng.below(u64::from(len.min(18)) + 1) as u32,
            _ => rng.below(u64::from(len) + 1) as u32,
        })
        .collect();
    cuts.sort_unstable();
    cuts
}
