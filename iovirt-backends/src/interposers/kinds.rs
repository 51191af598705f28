//! Which kinds of request a stage is about.

use iovirt_core::Request;
use std::fmt::{self, Display, Formatter};
use std::str::FromStr;
use thiserror::Error;

/// The kinds of request that a stage is about, by name, for any family: `all`, or names with `+` between them, as in
/// `read+flush`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Kinds {
    /// Empty for all.
    names: Vec<String>,
}

/// A name that is no kind of request of a family.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("there is no {family} request called `{name}` (allowed: all, or some of {}, with + between them)", known.join(", "))]
pub struct UnknownKind {
    /// The name.
    pub name: String,
    /// The family of requests.
    pub family: &'static str,
    /// The names that there are.
    pub known: &'static [&'static str],
}

/// The kinds of one family as bits, by [`Request::kind`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct KindMask(u64);

impl Kinds {
    /// All kinds.
    pub fn all() -> Self {
        Self::default()
    }

    /// Whether all kinds are meant.
    pub fn is_all(&self) -> bool {
        self.names.is_empty()
    }

    /// The kinds of one family.
    pub(super) fn mask<R: Request>(&self) -> Result<KindMask, UnknownKind> {
        let bit = |name: &String| match R::KINDS.iter().position(|known| known == name) {
            Some(kind) => Ok(1 << kind),
            None => Err(UnknownKind { name: name.clone(), family: R::FAMILY, known: R::KINDS }),
        };
        let named = self.names.iter().try_fold(0, |mask, name| Ok(mask | bit(name)?))?;
        Ok(KindMask(if self.is_all() { u64::MAX } else { named }))
    }
}

impl KindMask {
    #[inline]
    pub(super) fn has(self, kind: usize) -> bool {
        self.0 >> kind & 1 != 0
    }
}

/// Any text is some names; whether a family has kinds of these names shows when the stage is made.
impl FromStr for Kinds {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let all = text == "all";
        Ok(Self { names: if all { Vec::new() } else { text.split('+').map(str::to_owned).collect() } })
    }
}

impl Display for Kinds {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        if self.is_all() { f.write_str("all") } else { f.write_str(&self.names.join("+")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use iovirt_core::request::block::BlockRequest;

    #[test]
    fn names_are_checked_against_the_family() {
        let kinds = |text: &str| text.parse::<Kinds>().unwrap();
        let mask = kinds("read+flush").mask::<BlockRequest>().unwrap();
        assert_eq!((0..5).map(|kind| mask.has(kind)).collect::<Vec<_>>(), [true, false, true, false, false]);
        assert!(kinds("all").mask::<BlockRequest>().unwrap().has(4));
        for text in ["all", "read", "read+write-zeroes"] {
            assert_eq!(kinds(text).to_string(), text);
        }
        assert_eq!(
            kinds("read+raed").mask::<BlockRequest>().unwrap_err().to_string(),
            "there is no block request called `raed` (allowed: all, or some of read, write, flush, discard, \
             write-zeroes, with + between them)"
        );
        assert!(kinds("").mask::<BlockRequest>().is_err());
    }
}
