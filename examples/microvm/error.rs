//! Everything that can go wrong before and around a running guest, one sentence each.

use std::io;
use std::path::PathBuf;

/// Why the machine cannot be built or run.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MachineError {
    #[error("cannot open /dev/kvm: {0}")]
    OpenKvm(String),
    #[error("this KVM speaks API version {0}, and version 12 is needed")]
    KvmVersion(i32),
    #[error("this KVM lacks {0}, which the machine needs")]
    KvmLacks(&'static str),
    #[error("this KVM cannot run a 64-bit guest: {0}")]
    No64Bit(String),
    #[error("cannot {what}: {source}")]
    Kvm { what: &'static str, source: io::Error },
    #[error("cannot allocate {size} bytes of guest memory: {reason}")]
    Memory { size: u64, reason: String },
    #[error("guest memory of {0} bytes is too small (at least 32M are needed)")]
    MemoryTooSmall(u64),
    #[error("{asked} vCPUs are asked for, and this machine can have 1 to {limit}")]
    VcpuCount { asked: u32, limit: u32 },
    #[error("cannot read {}: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("cannot boot {}: {reason}", path.display())]
    Kernel { path: PathBuf, reason: String },
    #[error("the initrd of {size} bytes does not fit into guest memory below the kernel's limit")]
    InitrdTooLarge { size: u64 },
    #[error("the kernel command line is {len} bytes long, and this kernel takes at most {limit}")]
    CommandLineTooLong { len: usize, limit: usize },
    #[error("cannot write {what} into guest memory: {reason}")]
    GuestWrite { what: &'static str, reason: String },
    #[error("{what} at {base:#x} (length {len:#x}) overlaps {with}")]
    Overlap { what: String, base: u64, len: u64, with: String },
    #[error(transparent)]
    Pci(iovirt::frontends::pci::PciError),
    #[error("there is room for {0} virtio-mmio devices only; further ones go on the PCI bus")]
    NoSlot(usize),
    #[error("--restore: {0}")]
    Snapshot(#[from] crate::snapshot::SnapshotError),
    #[error("cannot {what}: {source}")]
    Host { what: &'static str, source: io::Error },
}

impl MachineError {
    /// Wraps an error number that KVM returned.
    pub(crate) fn kvm(what: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> Self {
        move |error| Self::Kvm { what, source: io::Error::from_raw_os_error(error.errno()) }
    }

    /// Wraps an error of the host's operating system.
    pub(crate) fn host(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Host { what, source }
    }

    /// Wraps a failed access to guest memory.
    pub(crate) fn guest_write<E: std::fmt::Display>(what: &'static str) -> impl FnOnce(E) -> Self {
        move |reason| Self::GuestWrite { what, reason: reason.to_string() }
    }
}
