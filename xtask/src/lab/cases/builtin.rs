use super::{BLANK, Boots, Case, Outcome, must};
use crate::error::{Result, read};

/// Our own guest, which needs no kernel, on the same KVM as Linux.
pub(super) const CASE: Case = Case {
    name: "builtin",
    about: "without --kernel, our own guest drives a disk and a network and finds everything right",
    boots: Boots::OwnGuest,
    check,
    ..BLANK
};

fn check(outcome: &Outcome) -> Result<()> {
    let report = read(&outcome.after.join("console.log"))?;
    let report = String::from_utf8_lossy(&report);
    // Where KVM could not run the guest, the in-process driver would have passed as well.
    for words in ["KVM, built-in guest", "all is well", "holds the same bytes"] {
        must(report.contains(words), || format!("the report does not say '{words}'"))?;
    }
    Ok(())
}
