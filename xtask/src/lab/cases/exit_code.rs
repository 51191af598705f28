use super::{BLANK, Case};

/// The guest's exit code arrives.
pub(super) const CASE: Case = Case {
    name: "exit-code",
    about: "no device; the guest's exit code 42 is that of the VMM",
    code: 42,
    ..BLANK
};
