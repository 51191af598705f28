//! Sectors that say who wrote them.

use super::rng::Rng;
use crate::request::block::SECTOR;

/// What a sector holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Content {
    /// Zeroes: never written, or zeroed.
    Zero,
    /// What the write of that number put there.
    Version(u64),
    /// Of no interest, so that nothing is wrong: discarded.
    Any,
}

/// Fills a sector: its number, the number of the write, and bytes that follow from both, so that a sector that was torn,
/// misplaced or mixed up is none of the versions that were written.
pub fn stamp(sector: u64, version: u64, bytes: &mut [u8]) {
    bytes[..8].copy_from_slice(&sector.to_le_bytes());
    bytes[8..16].copy_from_slice(&version.to_le_bytes());
    Rng::new(sector.rotate_left(32) ^ version).fill(&mut bytes[16..]);
}

/// Stamps a run of sectors.
pub fn stamped(first: u64, sectors: u64, version: u64) -> Vec<u8> {
    let mut bytes = vec![0; (sectors * SECTOR) as usize];
    for (sector, chunk) in (first..).zip(bytes.chunks_mut(SECTOR as usize)) {
        stamp(sector, version, chunk);
    }
    bytes
}

/// What a sector holds.
///
/// # Errors
/// In words, what is there, where it is nothing that was ever written to this sector as a whole.
pub fn read_stamp(sector: u64, bytes: &[u8]) -> Result<Content, String> {
    if bytes.iter().all(|&byte| byte == 0) {
        return Ok(Content::Zero);
    }
    let word = |at: usize| bytes[at..at + 8].iter().rev().fold(0, |word, &byte| word << 8 | u64::from(byte));
    let (found, version) = (word(0), word(8));
    let mut whole = [0; SECTOR as usize];
    stamp(found, version, &mut whole);
    if whole != *bytes {
        let intact = whole.iter().zip(bytes).take_while(|(wanted, found)| wanted == found).count();
        return Err(format!("bytes that nobody wrote (the first {intact} are of version {version})"));
    }
    if found != sector {
        return Err(format!("version {version} of sector {found}"));
    }
    Ok(Content::Version(version))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_is_read_and_damage_is_noticed() {
        let good = stamped(7, 2, 3);
        assert_eq!(read_stamp(7, &good[..512]), Ok(Content::Version(3)));
        assert_eq!(read_stamp(8, &good[512..]), Ok(Content::Version(3)));
        assert_eq!(read_stamp(8, &[0; 512]), Ok(Content::Zero));
        assert!(read_stamp(8, &good[..512]).unwrap_err().contains("of sector 7"));
        for at in [0, 9, 16, 511] {
            let mut bad = good[..512].to_vec();
            bad[at] ^= 1;
            assert!(read_stamp(7, &bad).is_err(), "byte {at}");
        }
        let mut torn = stamped(7, 1, 4);
        torn[..256].copy_from_slice(&good[..256]);
        assert!(read_stamp(7, &torn).is_err());
    }
}
