//! What a disk with a volatile cache holds: one durable version of each unit, and those written since.

use crate::test_utils::rng::Rng;
use std::collections::BTreeMap;

/// Versions of a unit that are remembered at most; those between the oldest and the newest are forgotten beyond it.
const REMEMBERED: usize = 8;

#[derive(Debug)]
pub(super) struct Medium {
    unit: usize,
    durable: Vec<u8>,
    /// In the order of the units, so that a seed means the same in every run.
    volatile: BTreeMap<usize, Vec<Version>>,
    written: u64,
}

#[derive(Debug)]
struct Version {
    number: u64,
    data: Box<[u8]>,
}

impl Medium {
    pub(super) fn new(content: Vec<u8>, unit: usize) -> Self {
        assert!(unit.is_power_of_two(), "the unit of tearing must be a power of two");
        assert!(content.len().is_multiple_of(unit), "the capacity must be a multiple of the unit of tearing");
        Self { unit, durable: content, volatile: BTreeMap::new(), written: 0 }
    }

    /// The number of the last write that took effect.
    pub(super) fn written(&self) -> u64 {
        self.written
    }

    /// A write takes effect in the cache; gives its number.
    pub(super) fn write(&mut self, offset: usize, data: &[u8]) -> u64 {
        self.written += 1;
        let mut at = 0;
        while at < data.len() {
            let index = (offset + at) / self.unit;
            let within = (offset + at) % self.unit;
            let len = (self.unit - within).min(data.len() - at);
            let mut whole: Box<[u8]> = self.unit_now(index).into();
            whole[within..within + len].copy_from_slice(&data[at..at + len]);
            let versions = self.volatile.entry(index).or_default();
            versions.push(Version { number: self.written, data: whole });
            if versions.len() > REMEMBERED {
                versions.remove(1);
            }
            at += len;
        }
        self.written
    }

    fn unit_now(&self, index: usize) -> &[u8] {
        match self.volatile.get(&index).and_then(|versions| versions.last()) {
            Some(version) => &version.data,
            None => &self.durable[index * self.unit..][..self.unit],
        }
    }

    pub(super) fn read(&self, offset: usize, data: &mut [u8]) {
        let mut at = 0;
        while at < data.len() {
            let within = (offset + at) % self.unit;
            let len = (self.unit - within).min(data.len() - at);
            let unit = self.unit_now((offset + at) / self.unit);
            data[at..at + len].copy_from_slice(&unit[within..within + len]);
            at += len;
        }
    }

    /// Makes durable whatever was written up to that number, but for the unit `except`.
    pub(super) fn flush(&mut self, up_to: u64, except: Option<usize>) {
        let Self { unit, durable, volatile, .. } = self;
        volatile.retain(|&index, versions| {
            if except != Some(index) {
                settle(versions, up_to, &mut durable[index * *unit..][..*unit]);
            }
            !versions.is_empty()
        });
    }

    /// Makes the range durable as it is now.
    pub(super) fn flush_range(&mut self, offset: usize, len: usize) {
        for index in offset / self.unit..(offset + len).div_ceil(self.unit) {
            if let Some(mut versions) = self.volatile.remove(&index) {
                settle(&mut versions, u64::MAX, &mut self.durable[index * self.unit..][..self.unit]);
            }
        }
    }

    /// The unit that was written last and is not durable.
    pub(super) fn newest_volatile(&self) -> Option<usize> {
        let newest = |versions: &Vec<Version>| versions.last().map_or(0, |version| version.number);
        self.volatile.iter().max_by_key(|(_, versions)| newest(versions)).map(|(&index, _)| index)
    }

    /// What would be read now.
    pub(super) fn content(&self) -> Vec<u8> {
        let mut content = self.durable.clone();
        for (&index, versions) in &self.volatile {
            if let Some(version) = versions.last() {
                content[index * self.unit..][..self.unit].copy_from_slice(&version.data);
            }
        }
        content
    }

    /// What a loss of power leaves.
    pub(super) fn survivors(&self, rng: &mut Rng) -> Vec<u8> {
        let mut content = self.durable.clone();
        // The extremes are worth a share of their own: a random choice per unit would never meet them.
        let fate = rng.below(8);
        for (&index, versions) in &self.volatile {
            let survivor = match fate {
                0 => 0,
                1 => versions.len(),
                _ => rng.index(versions.len() + 1),
            };
            if let Some(version) = survivor.checked_sub(1).map(|at| &versions[at]) {
                content[index * self.unit..][..self.unit].copy_from_slice(&version.data);
            }
        }
        content
    }
}

/// Moves what was written up to that number to the durable unit.
fn settle(versions: &mut Vec<Version>, up_to: u64, durable: &mut [u8]) {
    let settled = versions.iter().take_while(|version| version.number <= up_to).count();
    if let Some(version) = versions[..settled].last() {
        durable.copy_from_slice(&version.data);
    }
    versions.drain(..settled);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flush_takes_what_came_before_it_and_no_more() {
        let mut medium = Medium::new(vec![0; 4096], 512);
        let first = medium.write(0, &[1; 1024]);
        medium.write(512, &[2; 512]);
        medium.flush(first, None);
        assert_eq!(medium.durable[..512], [1; 512]);
        assert_eq!(medium.durable[512..1024], [1; 512]);
        assert_eq!(medium.content()[512..1024], [2; 512]);
    }

    #[test]
    fn a_cut_leaves_each_unit_one_of_its_versions() {
        let mut medium = Medium::new(vec![0; 1024], 512);
        medium.write(0, &[1; 1024]);
        medium.write(0, &[2; 1024]);
        let mut seen = std::collections::BTreeSet::new();
        for seed in 0..200 {
            let content = medium.survivors(&mut Rng::new(seed));
            assert!(content[..512].iter().all(|&byte| byte == content[0]));
            seen.insert((content[0], content[512]));
        }
        assert_eq!(seen.len(), 9, "every version of one unit with every version of the other: {seen:?}");
    }
}
