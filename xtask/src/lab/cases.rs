//! The cases: what a guest does with which devices, and what must be true afterwards. One file each, or for each family; a
//! new one is a file here, its script in `xtask/lab/guest/`, and a line in [`ALL`].

mod builtin;
mod discard;
mod exit_code;
mod net;
mod pci;
mod pci_pin;
mod readonly;
mod removed;
mod resize;
mod rootfs;
mod save_restore;
mod smp;
mod stuck;
mod swap;
mod terminated;
mod vanished;

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use crate::error::{Context, Error, Result, read, write};
use crate::lab::filesystem::{self, noise};
use crate::lab::kernel::Series;
use crate::lab::parts::Parts;

/// Every case, in the order in which they run.
pub(crate) const ALL: [&Case; 22] = [
    &builtin::CASE,
    &exit_code::CASE,
    &rootfs::CASE,
    &discard::CASE,
    &readonly::CASE,
    &resize::CASE,
    &smp::CASE,
    &pci::CASE,
    &pci_pin::CASE,
    &save_restore::CASE,
    &swap::CASE,
    &removed::CASE,
    &stuck::CASE,
    &vanished::CASE,
    &terminated::CASE,
    &net::MMIO,
    &net::PCI,
    &net::QUEUES,
    &net::FAULT,
    &net::GONE,
    &net::RESTORE,
    &net::GIB,
];

/// What a case's machine runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Boots {
    /// Debian's kernel, with the case's script.
    Linux,
    /// The guest that is built into our VMM.
    OwnGuest,
}

/// When a case runs that nobody named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Usual {
    /// On every kernel.
    EveryKernel,
    /// On one: what it shows depends little on the guest, and takes its time.
    OneKernel,
    /// On none: under its load the emulation crashes too often.
    Never,
}

/// A case. Files are named relative to the case's own folder.
#[derive(Debug)]
pub(crate) struct Case {
    /// Its name, which is that of the guest's script too.
    pub name: &'static str,
    /// One line about it.
    pub about: &'static str,
    /// What runs in the machine.
    pub boots: Boots,
    /// How many processors the guest has.
    pub processors: u32,
    /// The device that holds the guest's root file system, if not the RAM disk.
    pub root: Option<&'static str>,
    /// Our devices, as pipelines.
    pub devices: &'static [&'static str],
    /// Those of them that are on the PCI bus.
    pub pci_devices: &'static [&'static str],
    /// What the lab machine does in place of just running our VMM, which is `guest` in this shell script, to be run in the
    /// background. Such a case may have no reference.
    pub host: Option<&'static str>,
    /// On which kernels it runs if it is not named.
    pub usual: Usual,
    /// Further words for the guest kernel's command line.
    pub words: &'static str,
    /// Further options of our VMM.
    pub options: &'static [&'static str],
    /// The same devices in QEMU's words, for runs against QEMU's own.
    pub reference: &'static [&'static str],
    /// What to tell QEMU's monitor once the guest says that it is ready.
    pub command: Option<&'static str>,
    /// The exit code that the guest must end with.
    pub code: i32,
    /// How many seconds the VMM may take.
    pub limit: u32,
    /// Makes the images, in the case's folder.
    pub prepare: fn(&Parts, &Path) -> Result<()>,
    /// Checks the images after the guest is gone.
    pub check: fn(&Outcome) -> Result<()>,
}

impl Case {
    /// Whether a card on a tap is among its devices.
    pub(crate) fn has_card(&self) -> bool {
        let pipelines = self.devices.iter().chain(self.pci_devices);
        pipelines.chain(self.options).any(|words| words.contains("tap"))
    }
}

/// A case on a kernel.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Run {
    /// What is done.
    pub case: &'static Case,
    /// The guest's kernel.
    pub kernel: Series,
}

impl fmt::Display for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.case.boots {
            Boots::Linux => f.pad(&format!("{}-{}", self.case.name, self.kernel.name())),
            Boots::OwnGuest => f.pad(self.case.name),
        }
    }
}

/// A case with nothing in it, to fill in from.
pub(crate) const BLANK: Case = Case {
    name: "",
    about: "",
    boots: Boots::Linux,
    processors: 1,
    root: None,
    devices: &[],
    pci_devices: &[],
    host: None,
    usual: Usual::EveryKernel,
    words: "",
    options: &[],
    reference: &[],
    command: None,
    code: 0,
    limit: 120,
    prepare: |_, _| Ok(()),
    check: |_| Ok(()),
};

impl Case {
    /// The guest kernel's command line. Our VMM adds what its own devices need.
    pub(crate) fn words(&self) -> String {
        let root = self.root.map(|root| format!(" root={root}")).unwrap_or_default();
        let words = self.words;
        format!("console=ttyS0 quiet panic=-1 lab.case={}{root}{words}", self.name)
    }
}

/// A case's folder before and after its run.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// The images as they were made.
    pub before: PathBuf,
    /// The images and the logs as the run left them.
    pub after: PathBuf,
}

impl Outcome {
    /// What a file says that the run left.
    pub(crate) fn text(&self, file: &str) -> Result<String> {
        let bytes = read(&self.after.join(file))?;
        Ok(String::from_utf8_lossy(&bytes).replace('\r', ""))
    }

    /// The requests of each queue of the device that has several, as our VMM reports them.
    pub(crate) fn requests_by_queue(&self) -> Result<Vec<u64>> {
        let report = self.text("errors.log")?;
        report
            .lines()
            .find_map(|line| line.trim().strip_prefix("requests by queue: "))
            .ok_or_else(|| Error::new("the report names no queues"))?
            .split(", ")
            .map(|count| count.parse().context(format_args!("'{count}' requests")))
            .collect()
    }

    /// How many bytes of a file are allocated, before and after the run, where the host counted them.
    pub(crate) fn allocated(&self, image: &str) -> Result<(u64, u64)> {
        let count = |list: &str| -> Result<u64> {
            let path = self.after.join(list);
            let text = fs::read_to_string(&path).context(path.display())?;
            text.lines()
                .find_map(|line| {
                    let mut words = line.split_whitespace();
                    let name = words.next()?;
                    let blocks: u64 = words.nth(1)?.parse().ok()?;
                    (name.trim_start_matches("./") == image).then_some(blocks * 512)
                })
                .ok_or_else(|| Error::new(format!("{list} has no {image}")))
        };
        Ok((count("before.txt")?, count("after.txt")?))
    }

    /// The image must be as it was made.
    pub(crate) fn unchanged(&self, image: &str) -> Result<()> {
        if read(&self.before.join(image))? == read(&self.after.join(image))? {
            return Ok(());
        }
        Err(Error::new(format!("{image} was changed")))
    }

    /// The file system in the image must be clean; gives back its files, copied out into a folder.
    pub(crate) fn files(&self, image: &str) -> Result<PathBuf> {
        let image = self.after.join(image);
        filesystem::check(&image)?;
        let files = image.with_extension("files");
        filesystem::copy_out(&image, "/", &files)?;
        Ok(files)
    }
}

/// An error unless the claim is true.
pub(crate) fn must(claim: bool, what: impl FnOnce() -> String) -> Result<()> {
    if claim { Ok(()) } else { Err(Error::new(what())) }
}

/// Fills `folder` of the tree with `count` files of many sizes, and writes their sums into `data.sha256` in the tree.
pub(crate) fn add_files(tree: &Path, folder: &str, count: u64, prefix: &str) -> Result<()> {
    for number in 0..count {
        let length = (number * 7919 % 40_000) as usize + 1;
        let path = tree.join(folder).join(format!("file-{number:03}"));
        write(&path, noise(number + 1, length))?;
    }
    write(&tree.join(folder).join("large-file"), noise(999, 4 << 20))?;
    filesystem::write_sums(tree, folder, prefix, &tree.join("data.sha256"))
}
