use std::path::Path;

use super::save_restore::{FIO, written};
use super::{BLANK, Case, Usual};
use crate::error::{Result, write};
use crate::lab::filesystem::noise;
use crate::lab::fio;
use crate::lab::parts::Parts;

/// A machine saved with requests in flight.
pub(super) const CASE: Case = Case {
    name: "stuck",
    usual: Usual::OneKernel,
    about: "a machine is saved while its disk is stuck with fio's requests, which are done after the restore; another grew meanwhile",
    devices: &[
        "virtio-blk,serial=sign -> file,path=sign.img",
        "virtio-blk,serial=load -> fault -> stats -> file,path=load.img",
        FIO,
    ],
    host: Some(include_str!("../../../lab/host/stuck.sh")),
    limit: 240,
    prepare,
    check: |outcome| fio::check_written(&written(outcome, "load.img", 18, 1 << 20..2 << 20)?),
    ..BLANK
};

fn prepare(parts: &Parts, folder: &Path) -> Result<()> {
    parts.add_fio(folder)?;
    write(&folder.join("sign.img"), noise(16, 1 << 20))?;
    write(&folder.join("load.img"), noise(18, 4 << 20))
}
