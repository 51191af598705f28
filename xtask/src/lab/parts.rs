//! The files that the lab machine and its guest are made of.

use std::fs;
use std::path::{Path, PathBuf};

use crate::cmd::{self, Cmd};
use crate::error::{Context, Result, copy, read, write};
use crate::lab::cpio::Cpio;
use crate::lab::fio;
use crate::lab::kernel::{Kernel, Module, Series};
use crate::setup;

const HOST_INIT: &[u8] = include_bytes!("../../lab/host-init.sh");
const GUEST_INIT: &[u8] = include_bytes!("../../lab/guest/init.sh");
const GUEST_MAIN: &[u8] = include_bytes!("../../lab/guest/main.sh");

/// What the host needs: KVM for both makers' processors would be loaded by hand; the machine we ask QEMU for is AMD's.
const HOST_MODULES: [&str; 5] = ["virtio_pci", "virtio_blk", "kvm-amd", "ext4", "tun"];
/// What the guest needs for our devices.
const GUEST_MODULES: [&str; 5] = ["virtio_mmio", "virtio_pci", "virtio_blk", "virtio_net", "ext4"];

/// Folders that every system starts with.
const FOLDERS: [&str; 8] = ["bin", "sbin", "dev", "proc", "sys", "tmp", "run", "cases"];

/// All that is fetched or built once for a run.
#[derive(Debug)]
pub(crate) struct Parts {
    /// The lab machine's own kernel.
    pub host_kernel: Kernel,
    /// Those of guests.
    pub guests: Vec<(Series, Kernel)>,
    busybox: Vec<u8>,
    cache: PathBuf,
    /// The program itself, which needs no libraries.
    pub busybox_file: PathBuf,
    /// Our own programs: their names and what they are.
    programs: Vec<(&'static str, Vec<u8>)>,
}

/// Our own programs in all systems, from `xtask/lab/NAME.c`.
const PROGRAMS: [&str; 2] = ["exit", "pump"];

impl Parts {
    /// Fetches and builds them; `cache` keeps what was fetched.
    pub(crate) fn obtain(cache: &Path, guests: &[Series]) -> Result<Self> {
        let host_kernel = Kernel::newest(cache)?;
        let guests = guests
            .iter()
            .map(|series| Ok((*series, Kernel::of(cache, *series)?)))
            .collect::<Result<Vec<_>>>()?;
        let tree = setup::unpacked(cache, "busybox-static")?;
        let busybox = ["bin/busybox", "usr/bin/busybox"]
            .iter()
            .map(|path| tree.join(path))
            .find(|path| path.is_file())
            .unwrap_or_else(|| tree.join("bin/busybox"));
        let programs = PROGRAMS.iter().map(|name| Ok((*name, compiled(cache, name)?)));
        let programs = programs.collect::<Result<Vec<_>>>()?;
        let cache = cache.to_owned();
        Ok(Self { host_kernel, guests, busybox: read(&busybox)?, busybox_file: busybox, programs, cache })
    }

    /// The initial RAM disk of the host.
    pub(crate) fn host(&self) -> Result<Vec<u8>> {
        let mut cpio = self.system(&self.host_kernel, &HOST_MODULES)?;
        cpio.program("init", HOST_INIT);
        Ok(cpio.finish())
    }

    /// The initial RAM disk of a guest with this kernel, with the script of every case.
    pub(crate) fn guest(&self, kernel: &Kernel) -> Result<Vec<u8>> {
        let mut cpio = self.system(kernel, &GUEST_MODULES)?;
        cpio.program("init", GUEST_INIT);
        cpio.program("sbin/init", GUEST_MAIN);
        for (name, script) in guest_scripts()? {
            cpio.file(&format!("cases/{name}"), &script);
        }
        Ok(cpio.finish())
    }

    /// A root file system for the guest, as a folder: boots and runs the case that the kernel's command line names.
    pub(crate) fn guest_tree(&self, tree: &Path) -> Result<()> {
        for folder in FOLDERS {
            let folder = tree.join(folder);
            fs::create_dir_all(&folder).context(folder.display())?;
        }
        program(&tree.join("bin/busybox"), &self.busybox)?;
        for (name, content) in &self.programs {
            program(&tree.join(format!("bin/lab-{name}")), content)?;
        }
        program(&tree.join("sbin/init"), GUEST_MAIN)?;
        for (name, script) in guest_scripts()? {
            write(&tree.join("cases").join(name), script)?;
        }
        Ok(())
    }

    /// Puts the disk with fio, `fio.img`, into the folder of a case.
    pub(crate) fn add_fio(&self, folder: &Path) -> Result<()> {
        copy(&fio::disk(&self.cache)?, &folder.join("fio.img"))
    }

    fn system(&self, kernel: &Kernel, modules: &[&str]) -> Result<Cpio> {
        let mut cpio = Cpio::default();
        for folder in FOLDERS {
            cpio.folder(folder);
        }
        cpio.folder("modules");
        cpio.program("bin/busybox", &self.busybox);
        cpio.link("bin/sh", "busybox");
        for (name, content) in &self.programs {
            cpio.program(&format!("bin/lab-{name}"), content);
        }
        let modules = kernel.modules(modules)?;
        for (place, Module { name, content }) in modules.iter().enumerate() {
            cpio.file(&format!("modules/{place:02}-{name}.ko"), content);
        }
        Ok(cpio)
    }
}

/// A program of ours, without libraries.
fn compiled(cache: &Path, name: &str) -> Result<Vec<u8>> {
    let program = cache.join(format!("lab-{name}"));
    Cmd::new("cc")
        .args(["-O2", "-static", "-s", "-o"])
        .arg(&program)
        .arg(cmd::root().join(format!("xtask/lab/{name}.c")))
        .quiet()?;
    read(&program)
}

fn guest_scripts() -> Result<Vec<(String, Vec<u8>)>> {
    let folder = cmd::root().join("xtask/lab/guest");
    let mut scripts = Vec::new();
    for entry in fs::read_dir(&folder).context(folder.display())? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        scripts.push((name, read(&entry.path())?));
    }
    scripts.sort();
    Ok(scripts)
}

fn program(path: &Path, content: &[u8]) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    write(path, content)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).context(path.display())
}

/// Copies a program into `folder` and the shared libraries it needs into `libraries`.
pub(crate) fn add_program(file: &Path, folder: &Path, libraries: &Path) -> Result<PathBuf> {
    let to = folder.join(file.file_name().unwrap_or_default());
    copy(file, &to)?;
    // ldd refuses scripts and static programs: those need nothing.
    if read(file)?.starts_with(b"\x7fELF") {
        let said = Cmd::new("ldd").arg(file).text().unwrap_or_default();
        for library in said.lines().filter_map(library) {
            let name = library.file_name().unwrap_or_default();
            copy(library, &libraries.join(name))?;
        }
    }
    Ok(to)
}

/// The file in a line of `ldd`: `name => /file (address)` or `/file (address)`.
fn library(line: &str) -> Option<&Path> {
    line.split_whitespace().find(|word| word.starts_with('/')).map(Path::new)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_found_in_lines_of_ldd() {
        let of = |line| library(line).and_then(Path::to_str);
        assert_eq!(of("\tlibc.so.6 => /lib/libc.so.6 (0x0)"), Some("/lib/libc.so.6"));
        assert_eq!(of("\t/lib64/ld.so.2 (0x0)"), Some("/lib64/ld.so.2"));
        assert_eq!(of("\tlinux-vdso.so.1 (0x0)"), None);
        assert_eq!(of("\tstatically linked"), None);
    }
}
