//! The work disk: the folder that becomes `/lab` in the lab machine.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use crate::cmd::{self, Cmd};
use crate::error::{Context, Result, copy, write};
use crate::lab::Options;
use crate::lab::cases::{Boots, Case, Run};
use crate::lab::filesystem;
use crate::lab::kernel::Series;
use crate::lab::machine::{empty_folder, folder};
use crate::lab::parts::{Parts, add_program};

/// What the scripts of cases use.
const HOST_LIBRARY: &str = include_str!("../../lab/host/lib.sh");
/// Room on the work disk. The file is sparse.
const SIZE: u64 = 4 << 30;

/// A folder in the making, and what is made of it.
#[derive(Debug)]
pub(crate) struct Work {
    /// The folder of this run.
    pub run: PathBuf,
    /// The folder that becomes `/lab`.
    pub tree: PathBuf,
    /// Kernels and friends.
    pub parts: Parts,
}

impl Work {
    /// An empty one, with the kernels and RAM disks of guests.
    pub(crate) fn new(kernels: &[Series]) -> Result<Self> {
        let parts = Parts::obtain(&folder().join("packages"), kernels)?;
        let run = folder().join("run");
        empty_folder(&run)?;
        write(&run.join("host.cpio"), parts.host()?)?;
        let tree = run.join("tree");
        for folder in ["bin", "lib", "files"] {
            let folder = tree.join(folder);
            fs::create_dir_all(&folder).context(folder.display())?;
        }
        for (series, kernel) in &parts.guests {
            let folder = tree.join("kernels").join(series.name());
            copy(&kernel.image, &folder.join("bzImage"))?;
            copy(&kernel.elf, &folder.join("vmlinux"))?;
            write(&folder.join("guest.cpio"), parts.guest(kernel)?)?;
        }
        // A person in the machine finds the first of them at hand.
        if let Some((series, _)) = parts.guests.first() {
            for file in ["bzImage", "vmlinux", "guest.cpio"] {
                let link = tree.join(file);
                let to = format!("kernels/{}/{file}", series.name());
                std::os::unix::fs::symlink(to, &link).context(link.display())?;
            }
        }
        Ok(Self { run, tree, parts })
    }

    /// Builds our VMM and adds it and the files that the options name.
    pub(crate) fn add_programs(&self, options: &Options) -> Result<()> {
        for file in &options.add {
            self.add_file(file)?;
        }
        let program = if let Some(file) = &options.vmm {
            file.clone()
        } else {
            let arguments = ["build", "--release", "--example", "microvm"];
            Cmd::cargo().args(arguments).show()?;
            cmd::target().join("release/examples/microvm")
        };
        let to = add_program(&program, &self.tree.join("bin"), &self.tree.join("lib"))?;
        let place = self.tree.join("bin/microvm");
        fs::rename(&to, &place).context(place.display())?;
        let link = self.tree.join("microvm");
        std::os::unix::fs::symlink("bin/microvm", &link).context(link.display())
    }

    /// Adds a file of this machine to `/lab/files`; gives back its place there.
    pub(crate) fn add_file(&self, file: &Path) -> Result<String> {
        let to = add_program(file, &self.tree.join("files"), &self.tree.join("lib"))?;
        let name = to.file_name().unwrap_or_default().to_string_lossy();
        Ok(format!("/lab/files/{name}"))
    }

    /// Makes the images of a run and its script.
    pub(crate) fn add_run(&self, run: Run) -> Result<()> {
        let folder = self.before(run);
        fs::create_dir_all(&folder).context(folder.display())?;
        (run.case.prepare)(&self.parts, &folder).context(format_args!("preparing {run}"))?;
        write(&folder.join("run.sh"), run_script(run.case, run.kernel))
    }

    /// The folder of a run as it was made.
    pub(crate) fn before(&self, run: Run) -> PathBuf {
        self.tree.join("cases").join(run.to_string())
    }

    /// Makes the disk of the folder.
    pub(crate) fn disk(&self) -> Result<PathBuf> {
        let disk = self.run.join("work.img");
        File::create(&disk).context(disk.display())?;
        filesystem::make(&disk, SIZE, &self.tree)?;
        Ok(disk)
    }
}

/// The command line of our VMM for a case, as a shell script that runs in the case's folder.
fn run_script(case: &Case, kernel: Series) -> String {
    let mut words = Vec::new();
    if case.boots == Boots::Linux {
        let folder = format!("/lab/kernels/{}", kernel.name());
        words.extend(["--kernel".to_owned(), format!("{folder}/bzImage")]);
        words.extend(["--initrd".to_owned(), format!("{folder}/guest.cpio")]);
        words.extend(["--cmdline".to_owned(), case.words()]);
    }
    words.extend(["--memory", "256M", "--vcpus"].map(str::to_owned));
    words.push(case.processors.to_string());
    for device in case.devices {
        words.extend(["--device".to_owned(), (*device).to_owned()]);
    }
    for device in case.pci_devices {
        words.extend(["--pci-device".to_owned(), (*device).to_owned()]);
    }
    words.extend(case.options.iter().map(|word| (*word).to_owned()));
    let vmm = quoted(&words);
    let Some(script) = case.host else { return format!("exec /lab/bin/microvm {vmm}\n") };
    // Whatever becomes of the script, no VMM outlives the case.
    let limit = format!("exec timeout -s KILL {}", case.limit);
    format!(
        "guest() {{\n\t{limit} /lab/bin/microvm {vmm} \"$@\"\n}}\n\
         restored() {{\n\t{limit} /lab/bin/microvm --restore \"$@\"\n}}\n{HOST_LIBRARY}{script}"
    )
}

/// Words as a shell takes them apart again.
pub(crate) fn quoted<S: AsRef<str>>(words: &[S]) -> String {
    words
        .iter()
        .map(|word| {
            let word = word.as_ref();
            let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_/.,=:".contains(&byte);
            if !word.is_empty() && word.bytes().all(plain) {
                word.to_owned()
            } else {
                format!("'{}'", word.replace('\'', r"'\''"))
            }
        })
        .collect::<Vec<_>>()
        .join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_quoted_where_a_shell_would_change_them() {
        assert_eq!(quoted(&["a", "b -> c"]), "a 'b -> c'");
        assert_eq!(quoted(&["it's", ""]), r"'it'\''s' ''");
    }

    #[test]
    fn the_script_of_a_case_names_its_devices() {
        let case = Case { name: "x", devices: &["virtio-blk -> null,size=1M"], ..crate::lab::cases::BLANK };
        let script = run_script(&case, Series::V6_12);
        assert!(script.contains("--kernel /lab/kernels/6.12/bzImage"));
        assert!(script.contains("--device 'virtio-blk -> null,size=1M'"));
        assert!(script.contains("'console=ttyS0 quiet panic=-1 lab.case=x'"));
        assert!(!run_script(&Case { boots: Boots::OwnGuest, ..case }, Series::V6_1).contains("--kernel"));
    }
}
