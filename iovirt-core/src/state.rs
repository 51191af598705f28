//! Saved state: a versioned envelope with a checksum, and one such envelope per stage.
//!
//! An envelope is `"IOVS"`, the kind's name (a length byte and up to 255 bytes), the version (`u16`), the length of the
//! payload (`u32`), its CRC-32 (IEEE), and the payload in postcard's format; all little-endian. The format of a payload is
//! not self-describing: a change of a saved struct is a new version, and a restore that meets a version it does not know
//! says so.

use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::VecDeque;
use thiserror::Error;

const MAGIC: &[u8; 4] = b"IOVS";

/// The largest payload in bytes; a larger one is refused before it is read.
pub const MAX_PAYLOAD: usize = 256 << 20;

/// Why state could not be saved or restored.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum StateError {
    /// The bytes are not an envelope, or fewer than it says.
    #[error("the saved state is cut short or not saved state at all")]
    Malformed,
    /// The payload does not match its checksum.
    #[error("the saved state of {kind} does not match its checksum")]
    Checksum {
        /// Whose state.
        kind: String,
    },
    /// The state of something else.
    #[error("the saved state is of {found}, not of {expected}")]
    Kind {
        /// Whose state was wanted.
        expected: String,
        /// Whose state is there.
        found: String,
    },
    /// A version that this build does not know.
    #[error("the saved state of {kind} has version {found}; this build knows version {known}")]
    Version {
        /// Whose state.
        kind: String,
        /// The version that is there.
        found: u16,
        /// The version that is known.
        known: u16,
    },
    /// The content contradicts itself or the device it is restored into.
    #[error("the saved state of {kind} does not fit: {reason}")]
    Mismatch {
        /// Whose state.
        kind: String,
        /// What does not fit.
        reason: String,
    },
    /// State can only be saved at rest.
    #[error("{kind} cannot be saved now: {reason}")]
    NotNow {
        /// Who cannot.
        kind: String,
        /// Why.
        reason: String,
    },
}

/// A kind of saved state: its name and the version that this build writes and reads.
pub trait SavedState: Serialize + DeserializeOwned {
    /// The name in the envelope.
    const KIND: &'static str;
    /// The version of the payload.
    const VERSION: u16;

    /// The state in its envelope.
    fn to_envelope(&self) -> Vec<u8> {
        // Serialisation into a growing vector fails only for sequences of unknown length, which no saved struct has.
        let payload = postcard::to_allocvec(self).unwrap_or_default();
        let mut bytes = Vec::with_capacity(payload.len() + Self::KIND.len() + 15);
        bytes.extend_from_slice(MAGIC);
        bytes.push(Self::KIND.len() as u8);
        bytes.extend_from_slice(Self::KIND.as_bytes());
        bytes.extend_from_slice(&Self::VERSION.to_le_bytes());
        bytes.extend_from_slice(&(payload.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&crc32fast::hash(&payload).to_le_bytes());
        bytes.extend_from_slice(&payload);
        bytes
    }

    /// The state out of its envelope.
    ///
    /// # Errors
    /// Where the bytes are not an intact envelope of this kind and version.
    fn from_envelope(bytes: &[u8]) -> Result<Self, StateError> {
        let mut reader = Reader { bytes };
        if reader.take(MAGIC.len())? != MAGIC {
            return Err(StateError::Malformed);
        }
        let kind_len = usize::from(reader.take(1)?[0]);
        let kind = String::from_utf8_lossy(reader.take(kind_len)?).into_owned();
        if kind != Self::KIND {
            return Err(StateError::Kind { expected: Self::KIND.into(), found: kind });
        }
        let version = u16::from_le_bytes(reader.array()?);
        if version != Self::VERSION {
            return Err(StateError::Version { kind, found: version, known: Self::VERSION });
        }
        let len = u32::from_le_bytes(reader.array()?) as usize;
        let crc = u32::from_le_bytes(reader.array()?);
        if len > MAX_PAYLOAD || len != reader.bytes.len() {
            return Err(StateError::Malformed);
        }
        if crc32fast::hash(reader.bytes) != crc {
            return Err(StateError::Checksum { kind });
        }
        postcard::from_bytes(reader.bytes)
            .map_err(|error| StateError::Mismatch { kind, reason: error.to_string() })
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
}

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], StateError> {
        let (taken, rest) = self.bytes.split_at_checked(len).ok_or(StateError::Malformed)?;
        self.bytes = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], StateError> {
        self.take(N)?.try_into().map_err(|_| StateError::Malformed)
    }
}

/// The saved states of a stack's stages, from the top down. A stage without state pushes nothing and takes nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, serde::Deserialize)]
pub struct StageStates {
    envelopes: VecDeque<Vec<u8>>,
}

impl StageStates {
    /// Adds the state of the next stage down.
    pub fn push<S: SavedState>(&mut self, state: &S) {
        self.envelopes.push_back(state.to_envelope());
    }

    /// Takes the state of the next stage down.
    ///
    /// # Errors
    /// Where there is none left, or the next one is not that kind's.
    pub fn pop<S: SavedState>(&mut self) -> Result<S, StateError> {
        let envelope = self.envelopes.pop_front().ok_or_else(|| StateError::Mismatch {
            kind: S::KIND.into(),
            reason: "the stack had fewer stages with state when it was saved".into(),
        })?;
        S::from_envelope(&envelope)
    }

    /// Whether every stage took its own.
    pub fn is_empty(&self) -> bool {
        self.envelopes.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Sample {
        number: u64,
        list: Vec<u32>,
    }

    impl SavedState for Sample {
        const KIND: &'static str = "sample";
        const VERSION: u16 = 3;
    }

    fn sample() -> Sample {
        Sample { number: 1 << 40, list: vec![1, 2, 3] }
    }

    #[test]
    fn what_is_saved_is_restored() {
        let mut states = StageStates::default();
        states.push(&sample());
        assert_eq!(states.pop::<Sample>(), Ok(sample()));
        assert!(states.is_empty());
        assert!(matches!(states.pop::<Sample>(), Err(StateError::Mismatch { .. })));
    }

    #[test]
    fn every_cut_and_every_flipped_bit_is_noticed() {
        let good = sample().to_envelope();
        for cut in 0..good.len() {
            assert!(Sample::from_envelope(&good[..cut]).is_err(), "cut at {cut}");
        }
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(Sample::from_envelope(&bad).is_err(), "bit {bit}");
        }
    }
}
