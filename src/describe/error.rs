//! What is wrong with a description, and where.

use super::model::Place;
use iovirt_core::AttachError;
use std::fmt::{self, Display, Formatter};
use std::ops::RangeInclusive;

/// What is wrong with a description, and where. Its words name the stage, the key and what is allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DescribeError {
    place: Place,
    kind: Box<DescribeErrorKind>,
}

/// What is wrong with a description.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DescribeErrorKind {
    /// The grammar wants something else here.
    Syntax {
        /// What stands there.
        found: String,
        /// What may stand there.
        expected: &'static str,
    },
    /// A string in quotes does not end.
    Unclosed,
    /// More of something than is allowed.
    TooMuch {
        /// Of what.
        what: &'static str,
        /// How many are allowed.
        limit: usize,
    },
    /// A key is given twice.
    RepeatedKey {
        /// The stage.
        stage: String,
        /// The key.
        key: String,
    },
    /// No stage has that name.
    UnknownStage {
        /// The name that was given.
        name: String,
        /// The names that would do.
        allowed: Vec<String>,
    },
    /// The stage cannot stand there.
    WrongPlace {
        /// The stage.
        stage: String,
        /// What it is: `a front-end`.
        is: &'static str,
        /// What belongs there: `a back-end`.
        wanted: &'static str,
    },
    /// The stage is for another family of requests than the rest of the pipeline.
    WrongFamily {
        /// The stage.
        stage: String,
        /// Its family.
        is: &'static str,
        /// The pipeline's family.
        wanted: &'static str,
    },
    /// The stage takes another number of pipelines in brackets.
    BranchCount {
        /// The stage.
        stage: String,
        /// How many there are.
        given: usize,
        /// How many there can be.
        allowed: RangeInclusive<usize>,
    },
    /// The stage takes nothing in brackets.
    NoBranches {
        /// The stage.
        stage: String,
    },
    /// The stage has no such key.
    UnknownKey {
        /// The stage.
        stage: String,
        /// The key that was given.
        key: String,
        /// The keys of the stage.
        allowed: Vec<String>,
    },
    /// A key that must be given is not.
    MissingKey {
        /// The stage.
        stage: String,
        /// The key.
        key: String,
        /// What its value can be.
        allowed: String,
    },
    /// The value is none that the key can have.
    BadValue {
        /// The stage.
        stage: String,
        /// The key.
        key: String,
        /// The value that was given.
        value: String,
        /// What it can be.
        allowed: String,
    },
    /// The stage is known, but not part of this build.
    Unavailable {
        /// The stage.
        stage: String,
    },
    /// The stage refused its options or what is below it, or the host refused the stage.
    Refused {
        /// The stage.
        stage: String,
        /// Why.
        reason: String,
    },
    /// A builder asked for a key in a way that the stage's table of keys does not have: a bug in the stage.
    Table {
        /// The stage.
        stage: String,
        /// The key.
        key: String,
    },
}

impl DescribeError {
    pub(crate) fn new(place: Place, kind: DescribeErrorKind) -> Self {
        Self { place, kind: Box::new(kind) }
    }

    /// A refusal by that stage, with the reason in one sentence.
    pub fn refused(stage: impl Into<String>, reason: impl Display) -> Self {
        let (stage, reason) = (stage.into(), reason.to_string());
        Self::new(Place::default(), DescribeErrorKind::Refused { stage, reason })
    }

    /// The error with a place, where it has none.
    pub(crate) fn or_at(self, place: Place) -> Self {
        Self { place: Place(self.place.0.or(place.0)), ..self }
    }

    /// Where: the column, counted from 1 in characters. `None` where the description was not read from text.
    pub fn column(&self) -> Option<u32> {
        self.place.0
    }

    /// What is wrong.
    pub fn kind(&self) -> &DescribeErrorKind {
        &self.kind
    }
}

impl std::error::Error for DescribeError {}

impl From<AttachError> for DescribeError {
    fn from(error: AttachError) -> Self {
        Self::refused(error.stage, error.reason)
    }
}

impl Display for DescribeError {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        if let Some(column) = self.place.0 {
            write!(f, "column {column}: ")?;
        }
        self.kind.fmt(f)
    }
}

impl Display for DescribeErrorKind {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Syntax { found, expected } => write!(f, "{found} where {expected} is expected"),
            Self::Unclosed => write!(f, "a string in double quotes does not end"),
            Self::TooMuch { what, limit } => write!(f, "more than {limit} {what}"),
            Self::RepeatedKey { stage, key } => {
                write!(f, "{} of {} is given twice", shown(key), shown(stage))
            }
            Self::UnknownStage { name, allowed } => {
                write!(f, "there is no stage {}{}", shown(name), Choice { given: name, allowed })
            }
            Self::WrongPlace { stage, is, wanted } => {
                write!(f, "{} is {is}, and {wanted} belongs here", shown(stage))
            }
            Self::WrongFamily { stage, is, wanted } => {
                write!(f, "{} is for {is} requests in a pipeline for {wanted} requests", shown(stage))
            }
            Self::BranchCount { stage, given, allowed } => {
                let (stage, allowed) = (shown(stage), Count(allowed));
                match given {
                    0 => write!(f, "{stage} takes {allowed} in brackets, and there is none"),
                    1 => write!(f, "{stage} takes {allowed} in brackets, and 1 is given"),
                    given => write!(f, "{stage} takes {allowed} in brackets, and {given} are given"),
                }
            }
            Self::NoBranches { stage } => write!(f, "{} takes nothing in brackets", shown(stage)),
            Self::UnknownKey { stage, key, allowed } if allowed.is_empty() => {
                write!(f, "{} has no key {}, it takes no options", shown(stage), shown(key))
            }
            Self::UnknownKey { stage, key, allowed } => {
                let choice = Choice { given: key, allowed };
                write!(f, "{} has no key {}{choice}", shown(stage), shown(key))
            }
            Self::MissingKey { stage, key, allowed } => {
                write!(f, "{} needs {}: {allowed}", shown(stage), shown(key))
            }
            Self::BadValue { stage, key, value, allowed } => {
                write!(f, "{} of {} cannot be {}: {allowed}", shown(key), shown(stage), shown(value))
            }
            Self::Unavailable { stage } => {
                write!(f, "{} is known but not part of this build", shown(stage))
            }
            Self::Refused { stage, reason } => write!(f, "{}: {reason}", shown(stage)),
            Self::Table { stage, key } => {
                write!(f, "{} asked for {} in a way its own table does not have", shown(stage), shown(key))
            }
        }
    }
}

/// How many pipelines a stage takes, in words.
pub(crate) struct Count<'a>(pub(crate) &'a RangeInclusive<usize>);

impl Display for Count<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match (*self.0.start(), *self.0.end()) {
            (1, 1) => f.write_str("1 pipeline"),
            (least, most) if least == most => write!(f, "{least} pipelines"),
            (least, most) => write!(f, "{least} to {most} pipelines"),
        }
    }
}

/// `; did you mean … ?` and what is allowed.
struct Choice<'a> {
    given: &'a str,
    allowed: &'a [String],
}

impl Display for Choice<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        if let Some(near) = nearest(self.given, self.allowed.iter().map(String::as_str)) {
            write!(f, "; did you mean `{near}`?")?;
        }
        write!(f, " (allowed: {})", self.allowed.join(", "))
    }
}

/// A word that somebody else wrote, fit for a message: on one line and of bounded length.
pub(super) fn shown(word: &str) -> String {
    const MOST: usize = 48;
    let mut chars = word.chars();
    let mut shown: String = chars.by_ref().take(MOST).flat_map(char::escape_debug).collect();
    if chars.next().is_some() {
        shown.push('…');
    }
    format!("`{shown}`")
}

/// The candidate that `word` was most likely meant to be, if any is near.
fn nearest<'a>(word: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    // Longer words are near nothing, and comparing them would take long.
    if word.len() > 64 {
        return None;
    }
    let near = candidates.map(|candidate| (distance(word, candidate), candidate));
    let (distance, candidate) = near.min_by_key(|(distance, _)| *distance)?;
    (distance <= 1 + candidate.len() / 4).then_some(candidate)
}

/// How many characters must be added, removed, changed, or swapped with their neighbour.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut before_last: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    let mut previous = None;
    for (row, char) in a.chars().enumerate() {
        let mut current = vec![row + 1];
        for (column, &other) in b.iter().enumerate() {
            let changed = last[column] + usize::from(char != other);
            let mut least = changed.min(last[column + 1] + 1).min(current[column] + 1);
            if column > 0 && previous == Some(other) && b[column - 1] == char {
                least = least.min(before_last[column - 1] + 1);
            }
            current.push(least);
        }
        previous = Some(char);
        before_last = std::mem::replace(&mut last, current);
    }
    last[b.len()]
}
