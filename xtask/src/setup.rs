//! Programs that steps need, and how to get them: on Debian, as root, they are installed; anywhere else the line to
//! run is printed and the step fails. Nobody's package sources are changed.

mod debian;

use crate::cmd;
use crate::error::{Error, Result};

/// A program and the Debian package it comes in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tool {
    /// The program's name.
    pub program: &'static str,
    /// The Debian package.
    pub package: &'static str,
}

const fn tool(program: &'static str, package: &'static str) -> Tool {
    Tool { program, package }
}

/// The compiler driver that links Rust programs and builds the lab's exit helper.
pub(crate) const CC: Tool = tool("cc", "gcc");
/// The compiler that builds libFuzzer.
pub(crate) const CXX: Tool = tool("c++", "g++");
/// The machine emulator that the lab runs in.
pub(crate) const QEMU: Tool = tool("qemu-system-x86_64", "qemu-system-x86");
/// Makes file systems from folders.
pub(crate) const MKFS: Tool = tool("mkfs.ext4", "e2fsprogs");
/// Checks file systems.
pub(crate) const E2FSCK: Tool = tool("e2fsck", "e2fsprogs");
/// Reads file systems without mounting them.
pub(crate) const DEBUGFS: Tool = tool("debugfs", "e2fsprogs");
/// Serves disks over NBD, for the tests of our client.
pub(crate) const NBDKIT: Tool = tool("nbdkit", "nbdkit");
/// Serves disk images over NBD, for the same.
pub(crate) const QEMU_NBD: Tool = tool("qemu-nbd", "qemu-utils");
/// Serves disk images over vhost-user, for the tests of our driver and as the peer of `bench-peers`.
pub(crate) const STORAGE_DAEMON: Tool = tool("qemu-storage-daemon", "qemu-utils");
/// Makes devices and addresses in a network namespace, for the tests of tap devices.
pub(crate) const IP: Tool = tool("ip", "iproute2");
/// Counts the instructions of programs.
pub(crate) const VALGRIND: Tool = tool("valgrind", "valgrind");
/// Makes a whole Debian system.
pub(crate) const MMDEBSTRAP: Tool = tool("mmdebstrap", "mmdebstrap");
/// Gives who is not root further users, which a system needs.
pub(crate) const NEWUIDMAP: Tool = tool("newuidmap", "uidmap");
/// Makes the network namespace.
pub(crate) const UNSHARE: Tool = tool("unshare", "util-linux");
/// Makes disks of files, for the tests of block devices.
pub(crate) const LOSETUP: Tool = tool("losetup", "mount");
/// Unpacks Debian packages.
pub(crate) const DPKG: Tool = tool("dpkg", "dpkg");
/// Unpacks kernels.
pub(crate) const LZ4: Tool = tool("lz4", "lz4");
/// Unpacks kernels.
pub(crate) const ZSTD: Tool = tool("zstd", "zstd");
/// Unpacks kernels and modules.
pub(crate) const XZ: Tool = tool("xz", "xz-utils");
/// Lists the shared libraries of a program.
pub(crate) const LDD: Tool = tool("ldd", "libc-bin");

/// Lists what a program needs of shared libraries.
pub(crate) const READELF: Tool = tool("readelf", "binutils");

/// Makes sure that all these programs are there.
pub(crate) fn ensure(tools: &[Tool]) -> Result<()> {
    let absent = missing(tools);
    if absent.is_empty() {
        return Ok(());
    }
    let mut packages: Vec<&str> = absent.iter().map(|tool| tool.package).collect();
    packages.sort_unstable();
    packages.dedup();
    if !debian::is_debian() {
        let programs: Vec<&str> = absent.iter().map(|tool| tool.program).collect();
        return Err(Error::new(format!(
            "missing programs: {}. They come in these Debian packages: {}",
            programs.join(", "),
            packages.join(" ")
        )));
    }
    if !debian::is_root() {
        return Err(Error::new(format!(
            "missing packages; run this and try again:\n    sudo apt-get install -y --no-install-recommends {}",
            packages.join(" ")
        )));
    }
    debian::install(&packages)?;
    let absent = missing(tools);
    if absent.is_empty() {
        return Ok(());
    }
    Err(Error::new(format!(
        "installed {}, still without {}",
        packages.join(" "),
        absent.iter().map(|tool| tool.program).collect::<Vec<_>>().join(", ")
    )))
}

/// Fetches a Debian package without installing it; see [`debian::unpacked`].
pub(crate) use debian::unpacked;

/// What a package depends on, and the first of that, which is what a package that only points to another is for.
pub(crate) use debian::{dependencies, points_to};

/// Where this system's own packages come from.
pub(crate) use debian::{Source, source};

/// Whether we may do what only root may.
pub(crate) use debian::is_root;

fn missing(tools: &[Tool]) -> Vec<Tool> {
    tools.iter().filter(|tool| cmd::find(tool.program).is_none()).copied().collect()
}
