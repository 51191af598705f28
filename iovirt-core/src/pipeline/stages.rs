//! What a stack says of itself: its stages by name, with their control handles.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

/// The stages of a stack, from the top down.
#[derive(Clone, Debug, Default)]
pub struct Stages {
    list: Vec<StageInfo>,
}

/// One stage: its name, and the handle by which it is controlled while it runs.
#[derive(Clone)]
pub struct StageInfo {
    /// The name, as in a description: `stats`, `file`.
    pub name: String,
    control: Option<Arc<dyn Any + Send + Sync>>,
}

impl Stages {
    /// Adds the next stage down, without a control handle.
    pub fn push(&mut self, name: impl Into<String>) {
        self.list.push(StageInfo { name: name.into(), control: None });
    }

    /// Adds the next stage down with its control handle.
    pub fn push_controlled(&mut self, name: impl Into<String>, control: Arc<dyn Any + Send + Sync>) {
        self.list.push(StageInfo { name: name.into(), control: Some(control) });
    }

    /// The stages from the top down.
    pub fn iter(&self) -> impl Iterator<Item = &StageInfo> {
        self.list.iter()
    }

    /// The control handle of type `C` of the topmost stage called `name`.
    pub fn control<C: Send + Sync + 'static>(&self, name: &str) -> Option<Arc<C>> {
        self.list.iter().filter(|stage| stage.name == name).find_map(StageInfo::control)
    }

    /// All control handles of type `C`, from the top down.
    pub fn controls<C: Send + Sync + 'static>(&self) -> impl Iterator<Item = (&str, Arc<C>)> {
        self.list.iter().filter_map(|stage| Some((stage.name.as_str(), stage.control()?)))
    }
}

impl StageInfo {
    /// The stage's control handle, if it has one of type `C`.
    pub fn control<C: Send + Sync + 'static>(&self) -> Option<Arc<C>> {
        self.control.clone()?.downcast().ok()
    }
}

impl fmt::Debug for StageInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StageInfo")
            .field("name", &self.name)
            .field("controlled", &self.control.is_some())
            .finish()
    }
}
