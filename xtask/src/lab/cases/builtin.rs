use super::{BLANK, Boots, Case, Outcome, must};
use crate::error::{Result, read};

/// Our own guest, which needs no kernel, on the same KVM as Linux.
pub(super) const CASE: Case = Case {
    name: "builtin",
    about: "without --kernel, our own guest drives disks and networks over mmio and PCI and finds everything right",
    boots: Boots::OwnGuest,
    devices: &PIPELINES,
    pci_devices: &PIPELINES,
    check,
    ..BLANK
};

/// Our VMM puts an image of its own in place of the file.
const PIPELINES: [&str; 2] = ["virtio-blk -> stats -> file,path=none.img", "virtio-net -> stats -> loopback"];

fn check(outcome: &Outcome) -> Result<()> {
    let report = read(&outcome.after.join("console.log"))?;
    let report = String::from_utf8_lossy(&report);
    // Where KVM could not run the guest, the in-process driver would have passed as well.
    for words in ["KVM, built-in guest", "all is well", "holds the same bytes"] {
        must(report.contains(words), || format!("the report does not say '{words}'"))?;
    }
    Ok(())
}
