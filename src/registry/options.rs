//! A stage's options, checked against its row of the table.

use super::{KeyInfo, Need, StageInfo};
use crate::describe::{
    DescribeError, DescribeErrorKind, Place, StageSpec, parse_size, parse_switch, parse_time,
};
use iovirt_backends::interposers::Kinds;
use std::fmt::Display;
use std::path::PathBuf;
use std::time::Duration;

/// A stage's options, checked: every key is one that the stage has, every value one that its key can have, and none that
/// must be given is missing.
#[derive(Clone, Copy, Debug)]
pub struct Options<'a> {
    info: &'a StageInfo,
    spec: &'a StageSpec,
}

/// A type that an option's value can be taken as.
pub trait OptionValue: Sized {
    /// The value, from the text of a description.
    fn from_text(text: &str) -> Option<Self>;
}

impl<'a> Options<'a> {
    /// Checks a stage's options against its row.
    ///
    /// # Errors
    /// The first that is wrong, or the first that is missing.
    pub fn check(info: &'a StageInfo, spec: &'a StageSpec) -> Result<Self, DescribeError> {
        for ((key, value), (key_place, value_place)) in spec.options().zip(spec.places()) {
            let Some(known) = find(info, key) else {
                let allowed = info.keys.iter().map(|known| known.name.into()).collect();
                let kind =
                    DescribeErrorKind::UnknownKey { stage: info.name.into(), key: key.into(), allowed };
                return Err(DescribeError::new(key_place, kind));
            };
            if !known.value.accepts(value) {
                let allowed = format!("it takes {}", known.value);
                return Err(DescribeError::new(value_place, bad_value(info, key, value, allowed)));
            }
        }
        let missing = |key: &&KeyInfo| key.need == Need::Required && spec.get(key.name).is_none();
        match info.keys.iter().find(missing) {
            None => Ok(Self { info, spec }),
            Some(KeyInfo { name, value, help, .. }) => {
                let (stage, key, allowed) = (info.name.into(), (*name).into(), format!("{help} ({value})"));
                let kind = DescribeErrorKind::MissingKey { stage, key, allowed };
                Err(DescribeError::new(spec.place(), kind))
            }
        }
    }

    /// The value of a key that is given or has a default.
    ///
    /// # Errors
    /// Where the value is beyond what `T` holds; or, as a bug in the stage, where its row has no such key or no default for
    /// it.
    pub fn required<T: OptionValue>(&self, key: &str) -> Result<T, DescribeError> {
        self.optional(key)?.ok_or_else(|| self.table(key))
    }

    /// The value of a key, if it is given or has a default.
    ///
    /// # Errors
    /// As [`Options::required`], where there is a value.
    pub fn optional<T: OptionValue>(&self, key: &str) -> Result<Option<T>, DescribeError> {
        let beyond = || self.bad_value(key, "that is beyond what the stage can hold");
        self.text(key)?.map(|text| T::from_text(text).ok_or_else(beyond)).transpose()
    }

    /// What the word of a key stands for, of a key that is given or has a default.
    ///
    /// # Errors
    /// As [`Options::required`].
    pub fn choice<T: Copy>(&self, key: &str, meanings: &[(&str, T)]) -> Result<T, DescribeError> {
        let text = self.text(key)?;
        let meaning = meanings.iter().find(|(word, _)| Some(*word) == text);
        meaning.map(|(_, meaning)| *meaning).ok_or_else(|| self.table(key))
    }

    /// A refusal of a value that the row allows, for what a row cannot say: `size` must be a multiple of something.
    pub fn bad_value(&self, key: &str, allowed: impl Into<String>) -> DescribeError {
        let given = self.spec.options().zip(self.spec.places()).find(|((known, _), _)| *known == key);
        let place = given.map_or(self.spec.place(), |(_, (_, value_place))| value_place);
        let value = self.text(key).ok().flatten().unwrap_or_default();
        DescribeError::new(place, bad_value(self.info, key, value, allowed.into()))
    }

    /// A refusal of the stage as a whole, with the reason in one sentence.
    pub fn refused(&self, reason: impl Display) -> DescribeError {
        DescribeError::refused(self.info.name, reason).or_at(self.spec.place())
    }

    /// The text of a value, given or default.
    fn text(&self, key: &str) -> Result<Option<&'a str>, DescribeError> {
        let known = find(self.info, key).ok_or_else(|| self.table(key))?;
        Ok(self.spec.get(key).or(match known.need {
            Need::Default(text) => Some(text),
            Need::Required | Need::Optional => None,
        }))
    }

    fn table(&self, key: &str) -> DescribeError {
        let (stage, key) = (self.info.name.into(), key.into());
        DescribeError::new(Place::default(), DescribeErrorKind::Table { stage, key })
    }
}

fn find<'a>(info: &'a StageInfo, key: &str) -> Option<&'a KeyInfo> {
    info.keys.iter().find(|known| known.name == key)
}

fn bad_value(info: &StageInfo, key: &str, value: &str, allowed: String) -> DescribeErrorKind {
    DescribeErrorKind::BadValue { stage: info.name.into(), key: key.into(), value: value.into(), allowed }
}

/// A size or a number.
impl OptionValue for u64 {
    fn from_text(text: &str) -> Option<Self> {
        parse_size(text)
    }
}

macro_rules! narrower {
    ($($int:ty),*) => { $(
        /// A size or a number.
        impl OptionValue for $int {
            fn from_text(text: &str) -> Option<Self> {
                parse_size(text)?.try_into().ok()
            }
        }
    )* };
}

narrower!(u8, u16, u32, usize);

/// A switch.
impl OptionValue for bool {
    fn from_text(text: &str) -> Option<Self> {
        parse_switch(text)
    }
}

/// A time.
impl OptionValue for Duration {
    fn from_text(text: &str) -> Option<Self> {
        parse_time(text)
    }
}

/// Any value.
impl OptionValue for String {
    fn from_text(text: &str) -> Option<Self> {
        Some(text.into())
    }
}

/// A path.
impl OptionValue for PathBuf {
    fn from_text(text: &str) -> Option<Self> {
        Some(text.into())
    }
}

/// Kinds of request; whether there are such is for the stage to say.
impl OptionValue for Kinds {
    fn from_text(text: &str) -> Option<Self> {
        text.parse().ok()
    }
}
