//! How often a guest left its processor, and what for: as this process sees it, and as KVM counts it.

use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use serde::Serialize;

use crate::bus::RangeExits;

/// Kinds of exits that reach this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ExitKind {
    PortRead,
    PortWrite,
    MmioRead,
    MmioWrite,
    Halt,
    Interrupted,
    Shutdown,
    SystemEvent,
    Error,
    Other,
}

/// All kinds with their names in reports, in the order of the enum.
pub(crate) const EXIT_KINDS: [(ExitKind, &str); 10] = [
    (ExitKind::PortRead, "port-read"),
    (ExitKind::PortWrite, "port-write"),
    (ExitKind::MmioRead, "mmio-read"),
    (ExitKind::MmioWrite, "mmio-write"),
    (ExitKind::Halt, "halt"),
    (ExitKind::Interrupted, "interrupted"),
    (ExitKind::Shutdown, "shutdown"),
    (ExitKind::SystemEvent, "system-event"),
    (ExitKind::Error, "error"),
    (ExitKind::Other, "other"),
];

/// One vCPU's counters. Its own thread writes, others may read at any time.
#[derive(Debug, Default)]
pub(crate) struct ExitCounters([AtomicU64; EXIT_KINDS.len()]);

impl ExitCounters {
    pub(crate) fn count(&self, kind: ExitKind) {
        self.0[kind as usize].fetch_add(1, Relaxed);
    }

    pub(crate) fn get(&self, kind: ExitKind) -> u64 {
        self.0[kind as usize].load(Relaxed)
    }

    /// Exits of all kinds so far.
    pub(crate) fn sum(&self) -> u64 {
        self.0.iter().map(|count| count.load(Relaxed)).sum()
    }
}

/// One of KVM's own counters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct KvmStat {
    pub(crate) name: String,
    pub(crate) value: u64,
}

/// One vCPU's exits.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct VcpuReport {
    /// Exits to this process by kind, in the order of [`EXIT_KINDS`].
    pub(crate) exits: Vec<(&'static str, u64)>,
    /// KVM's counters, which include what it handled by itself. Empty where this kernel has none.
    pub(crate) kvm: Vec<KvmStat>,
}

/// What a guest cost in exits.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct ExitReport {
    pub(crate) vcpus: Vec<VcpuReport>,
    /// KVM's counters for the whole machine.
    pub(crate) vm: Vec<KvmStat>,
    /// Exits by port range.
    pub(crate) ports: Vec<RangeExits>,
    /// Exits by window of memory-mapped I/O.
    pub(crate) mmio: Vec<RangeExits>,
}

impl ExitReport {
    /// Exits of one kind over all vCPUs.
    pub(crate) fn total(&self, kind: &str) -> u64 {
        self.vcpus.iter().flat_map(|vcpu| &vcpu.exits).filter(|exit| exit.0 == kind).map(|exit| exit.1).sum()
    }

    /// One of KVM's counters over all vCPUs; 0 where this kernel has none.
    pub(crate) fn counted_by_kvm(&self, name: &str) -> u64 {
        let stats = self.vcpus.iter().flat_map(|vcpu| &vcpu.kvm);
        stats.filter(|stat| stat.name == name).map(|stat| stat.value).sum()
    }
}

/// `KVM_GET_STATS_FD`: `_IO(0xAE, 0xce)`.
const KVM_GET_STATS_FD: libc::Ioctl = 0xaece;
/// More than any kernel has; a limit only against a broken header.
const MOST_STATS: u32 = 4096;
const DESCRIPTOR_LEN: usize = 16;

/// KVM's binary statistics of a machine or a vCPU (Linux 5.14 and later).
#[derive(Debug)]
pub(crate) struct StatsFd(File);

impl StatsFd {
    /// The statistics of the machine or vCPU behind `fd`, where this kernel has them.
    pub(crate) fn open(fd: &impl AsRawFd) -> Option<Self> {
        // SAFETY: the ioctl takes no argument; on a descriptor of another kind it fails.
        let stats = unsafe { libc::ioctl(fd.as_raw_fd(), KVM_GET_STATS_FD, 0) };
        // SAFETY: the kernel just made this descriptor for us, and nobody else knows it.
        (stats >= 0).then(|| Self(unsafe { File::from_raw_fd(stats) }))
    }

    /// All counters with a single value; histograms are left out. Empty when the kernel's answer makes no sense.
    pub(crate) fn read(&self) -> Vec<KvmStat> {
        self.try_read().unwrap_or_default()
    }

    fn try_read(&self) -> Option<Vec<KvmStat>> {
        let read = |offset: u64, len: usize| -> Option<Vec<u8>> {
            let mut bytes = vec![0; len];
            self.0.read_exact_at(&mut bytes, offset).ok()?;
            Some(bytes)
        };
        // Header: flags, name size, number of descriptors, offsets of the id, the descriptors and the data.
        let header = read(0, 24)?;
        let [name_size, count, descriptors, data] = [4, 8, 16, 20].map(|at| u32_at(&header, at));
        if name_size > MOST_STATS || count > MOST_STATS {
            return None;
        }
        let entry = DESCRIPTOR_LEN + name_size as usize;
        let table = read(u64::from(descriptors), entry * count as usize)?;
        let mut stats = Vec::new();
        for descriptor in table.chunks_exact(entry) {
            // Descriptor: flags, exponent (2 bytes), number of values (2 bytes), offset, bucket size, name.
            let values = u32_at(descriptor, 4) >> 16;
            if values != 1 {
                continue;
            }
            let value = read(u64::from(data) + u64::from(u32_at(descriptor, 8)), 8)?;
            let name = descriptor[DESCRIPTOR_LEN..].split(|byte| *byte == 0).next().unwrap_or_default();
            stats.push(KvmStat {
                name: String::from_utf8_lossy(name).into_owned(),
                value: u64::from_le_bytes(value.try_into().ok()?),
            });
        }
        Some(stats)
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes[at..at + 4].iter().rev().fold(0, |value, byte| value << 8 | u32::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn kinds_are_in_the_order_of_the_enum() {
        assert!(EXIT_KINDS.iter().enumerate().all(|(at, (kind, _))| *kind as usize == at));
    }

    #[test]
    fn statistics_are_parsed_and_broken_ones_ignored() {
        let mut bytes: Vec<u8> = [0u32, 8, 2, 24, 24, 72].into_iter().flat_map(u32::to_le_bytes).collect();
        for (values, offset, name) in [(1u32, 0u32, b"exits\0\0\0"), (20, 8, b"histo\0\0\0")] {
            for number in [0, values << 16, offset, 0] {
                bytes.extend(number.to_le_bytes());
            }
            bytes.extend(name);
        }
        bytes.extend(77u64.to_le_bytes());
        let mut file = tempfile();
        file.write_all(&bytes).unwrap();
        assert_eq!(StatsFd(file).read(), [KvmStat { name: "exits".to_owned(), value: 77 }]);

        let mut file = tempfile();
        file.write_all(&[0xff; 64]).unwrap();
        assert!(StatsFd(file).read().is_empty());
        let file = tempfile();
        assert!(StatsFd::open(&file).is_none());
    }

    fn tempfile() -> File {
        // SAFETY: the name is a C string, and the descriptor that comes back is ours alone.
        unsafe { File::from_raw_fd(libc::memfd_create(c"stats".as_ptr(), 0)) }
    }
}
