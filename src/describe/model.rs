//! What a description says, as data.

/// One device: its front-end and what is below it.
///
/// [`Display`](std::fmt::Display) and [`FromStr`](std::str::FromStr) turn it into text and back: what is printed parses to
/// an equal description, as long as it stays within the bounds of the [parser](super).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    /// The emulated device.
    pub frontend: StageSpec,
    /// What is below it.
    pub below: Chain,
}

/// Interposers, and the back-end that they stand above.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// The interposers from the top down.
    pub stages: Vec<StageSpec>,
    /// What does the work.
    pub backend: Node,
}

/// The end of a chain: a back-end, or a stage that spreads requests over several chains.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// The stage.
    pub stage: StageSpec,
    /// The chains in its brackets; none for a back-end.
    pub branches: Vec<Chain>,
}

/// One stage: its name, and its options in the order in which they stand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StageSpec {
    name: String,
    place: Place,
    options: Vec<StageOption>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct StageOption {
    pub(super) key: String,
    pub(super) value: String,
    pub(super) key_place: Place,
    pub(super) value_place: Place,
}

/// Where something stood in a text: its column, counted from 1 in characters; nowhere where it was made by a program.
///
/// All places are equal: descriptions that differ in their layout alone are the same.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Place(pub(crate) Option<u32>);

impl PartialEq for Place {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Place {}

impl StageSpec {
    /// A stage without options.
    pub fn new(name: impl Into<String>) -> Self {
        Self::at(name.into(), Place::default())
    }

    pub(super) fn at(name: String, place: Place) -> Self {
        Self { name, place, options: Vec::new() }
    }

    /// The stage with that option: one more, or in place of the one that has the key.
    #[must_use]
    pub fn with(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        let (key, value, place) = (key.into(), value.into(), Place::default());
        match self.options.iter_mut().find(|option| option.key == key) {
            Some(option) => option.value = value,
            None => self.push(StageOption { key, value, key_place: place, value_place: place }),
        }
        self
    }

    pub(super) fn push(&mut self, option: StageOption) {
        self.options.push(option);
    }

    /// The stage's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The options in the order in which they stand, as key and value.
    pub fn options(&self) -> impl ExactSizeIterator<Item = (&str, &str)> {
        self.options.iter().map(|option| (option.key.as_str(), option.value.as_str()))
    }

    /// The value of that key.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.options().find(|(known, _)| *known == key).map(|(_, value)| value)
    }

    pub(crate) fn place(&self) -> Place {
        self.place
    }

    /// Where each option stood: its key and its value.
    pub(crate) fn places(&self) -> impl Iterator<Item = (Place, Place)> {
        self.options.iter().map(|option| (option.key_place, option.value_place))
    }
}

impl Chain {
    /// Interposers from the top down, above a back-end.
    pub fn new(stages: Vec<StageSpec>, backend: StageSpec) -> Self {
        Self { stages, backend: Node { stage: backend, branches: Vec::new() } }
    }
}
