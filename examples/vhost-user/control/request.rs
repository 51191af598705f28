//! What a client can ask for, a line of JSON each. Those that both have are as the example `microvm`'s.

use serde::Deserialize;

use crate::common::control_socket::request::{Deadline, Size, swappable};

/// One thing to do.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(tag = "do", rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) enum Request {
    /// Lists the devices and their stages.
    Devices {},
    /// What devices and stages counted so far.
    Stats {},
    /// Changes the size of a disk.
    Resize { device: usize, size: Size },
    /// Drains a device, or all.
    Pause {
        device: Option<usize>,
        #[serde(default)]
        deadline: Deadline,
    },
    /// The way back from a pause.
    Resume { device: Option<usize> },
    /// Puts another stack in the place of the one below a stage.
    Swap {
        device: usize,
        #[serde(default = "swappable")]
        stage: String,
        to: String,
        #[serde(default)]
        deadline: Deadline,
    },
    /// Puts a stack into a place that was made vacant.
    Add {
        device: usize,
        #[serde(default = "swappable")]
        stage: String,
        to: String,
        #[serde(default)]
        deadline: Deadline,
    },
    /// Takes the stack below a stage away.
    Remove {
        device: usize,
        #[serde(default = "swappable")]
        stage: String,
        #[serde(default)]
        deadline: Deadline,
    },
    /// Changes the settings of a stage.
    Set { device: usize, to: String },
    /// Lets requests go on that a stage holds.
    Release { device: usize, stage: String },
    /// Ends the process as a signal does.
    Quit {},
}
