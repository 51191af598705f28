//! What requests are made of, whatever a program can be asked for.

use std::time::Duration;

use iovirt::describe::{parse_size, parse_time};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};

/// The longest line in bytes, without its end.
pub(crate) const LONGEST_LINE: usize = 64 << 10;

/// How many characters of an error are told.
const TOLD: usize = 300;

/// A number of bytes: a number, or text such as `"128M"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Size(pub(crate) u64);

/// How long something may take, such as `"10s"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Deadline(pub(crate) Duration);

impl Deadline {
    /// The longest that a client may ask for.
    const LONGEST: Duration = Duration::from_secs(3600);
}

impl Default for Deadline {
    fn default() -> Self {
        Self(Duration::from_secs(10))
    }
}

/// The stage below which stacks are exchanged, where a request names none.
pub(crate) fn swappable() -> String {
    "swappable".into()
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "a size is a number of bytes or text such as \"128M\"")]
        enum Written {
            Number(u64),
            Text(String),
        }
        match Written::deserialize(deserializer)? {
            Written::Number(bytes) => Some(bytes),
            Written::Text(text) => parse_size(&text),
        }
        .map(Self)
        .ok_or_else(|| serde::de::Error::custom("a size is a number of bytes or text such as \"128M\""))
    }
}

impl<'de> Deserialize<'de> for Deadline {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let limit = parse_time(&String::deserialize(deserializer)?).filter(|limit| *limit <= Self::LONGEST);
        let wrong = || serde::de::Error::custom("a deadline is a time up to an hour, such as \"10s\"");
        limit.map(Self).ok_or_else(wrong)
    }
}

/// The request on a line.
pub(crate) fn parse<R: DeserializeOwned>(line: &[u8]) -> Result<R, String> {
    if line.len() > LONGEST_LINE {
        return Err(too_long());
    }
    serde_json::from_slice(line).map_err(|error| {
        // It may quote what the client sent.
        let told: String = error.to_string().chars().filter(|char| !char.is_control()).take(TOLD).collect();
        format!("this is no request: {told}")
    })
}

/// What is said of a line that is too long.
pub(crate) fn too_long() -> String {
    format!("a request is one line of at most {LONGEST_LINE} bytes")
}
