use super::save_restore::prepare_files;
use super::{BLANK, Case, must};
use crate::error::read;

/// Signals.
pub(super) const CASE: Case = Case {
    name: "terminated",
    about: "SIGTERM, SIGINT while the machine pauses, and the control socket end the VMM; what is in flight is finished",
    devices: &[
        "virtio-blk,serial=sign -> file,path=sign.img",
        "virtio-blk,serial=files -> file,path=files.img",
    ],
    host: Some(include_str!("../../../lab/host/terminated.sh")),
    limit: 300,
    prepare: |_, folder| prepare_files(folder, "files.img"),
    check: |outcome| {
        let errors = String::from_utf8_lossy(&read(&outcome.after.join("errors.log"))?).into_owned();
        must(!errors.contains("still in flight"), || "requests were in flight at the end".into())?;
        for wanted in ["ended by signal 15", "ended by signal 2", "ended over the control socket"] {
            must(errors.contains(wanted), || format!("the VMM did not say '{wanted}'"))?;
        }
        let console = String::from_utf8_lossy(&read(&outcome.after.join("console.log"))?).into_owned();
        for wanted in ["host: TERM: the VMM ended with 143", "host: INT: the VMM ended with 130"] {
            must(console.contains(wanted), || format!("the console lacks '{wanted}'"))?;
        }
        Ok(())
    },
    ..BLANK
};
