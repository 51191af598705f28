//! Puts a kernel, its initrd and its command line into guest memory, as the boot protocols say.
//!
//! | file | entry |
//! |---|---|
//! | bzImage | Linux's 64-bit protocol |
//! | ELF with a PVH note | PVH |
//! | ELF without one | Linux's 64-bit protocol, at the file's entry address |

use std::fs::File;
use std::io::{Read, Seek};
use std::path::{Path, PathBuf};

use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use linux_loader::loader::elf::PvhBootCapability;
use linux_loader::loader::{BzImage, Elf, KernelLoader, KernelLoaderResult};
use vm_memory::{ByteValued, Bytes, GuestAddress, GuestMemoryMmap};

use crate::entry::{self, Entry};
use crate::error::MachineError;
use crate::layout::{
    ACPI_TABLES, ACPI_TABLES_LEN, COMMAND_LINE, COMMAND_LINE_MAX, HOLE_START, MIB, START_INFO, ZERO_PAGE,
};
use crate::{acpi, layout};

const ELF_MAGIC: [u8; 4] = *b"\x7fELF";
const BOOT_FLAG: u16 = 0xaa55;
const HEADER_MAGIC: u32 = 0x5372_6448;
const UNKNOWN_LOADER: u8 = 0xff;
/// The first protocol version whose header tells about 64-bit entries.
const PROTOCOL_2_12: u16 = 0x020c;
const XLOAD_64_BIT: u16 = 1;
/// From the start of the protected-mode code to the 64-bit entry.
const ENTRY_64: u64 = 0x200;
const KERNEL_ALIGNMENT: u32 = 0x100_0000;
/// Where an initrd must end when the kernel does not say: 2 GiB less a page.
const DEFAULT_INITRD_LIMIT: u64 = 0x7fff_ffff;
/// What Linux takes when the kernel is an ELF file, which does not say.
const DEFAULT_COMMAND_LINE_LIMIT: usize = 2047;
const PAGE: u64 = 0x1000;

const PVH_MAGIC: u32 = 0x336e_c578;
const PVH_VERSION: u32 = 1;
const PVH_MODULES: u64 = START_INFO + 0x80;
const PVH_MEMORY_MAP: u64 = START_INFO + 0x100;

/// What to boot.
#[derive(Clone, Debug)]
pub(crate) struct BootSource {
    pub(crate) kernel: PathBuf,
    pub(crate) initrd: Option<PathBuf>,
    pub(crate) command_line: String,
}

/// A kernel in memory.
struct Loaded {
    entry: Entry,
    /// The header of a bzImage.
    header: Option<setup_header>,
    /// The first address behind all that the kernel needs until it manages memory by itself.
    end: u64,
}

/// Start and length of what was loaded besides.
#[derive(Clone, Copy, Debug, Default)]
struct Extent {
    start: u64,
    len: u64,
}

/// Loads everything and returns how to enter the kernel.
pub(crate) fn load(
    memory: &GuestMemoryMmap,
    memory_size: u64,
    source: &BootSource,
    hardware: &acpi::Hardware<'_>,
) -> Result<Entry, MachineError> {
    let kernel = load_kernel(memory, &source.kernel)?;
    let initrd = match &source.initrd {
        Some(path) => load_initrd(memory, memory_size, path, &kernel)?,
        None => Extent::default(),
    };
    load_command_line(memory, &source.command_line, kernel.header.as_ref())?;

    let tables = acpi::tables(ACPI_TABLES, hardware);
    debug_assert!(tables.len() as u64 <= ACPI_TABLES_LEN);
    write(memory, ACPI_TABLES, &tables, "the ACPI tables")?;

    match kernel.entry {
        Entry::Linux64(_) => write_zero_page(memory, memory_size, &kernel, initrd)?,
        Entry::Pvh(_) => write_start_info(memory, memory_size, initrd)?,
    }
    entry::write_tables(memory, kernel.entry)?;
    Ok(kernel.entry)
}

fn open(path: &Path) -> Result<File, MachineError> {
    File::open(path).map_err(|source| MachineError::Read { path: path.to_owned(), source })
}

fn load_kernel(memory: &GuestMemoryMmap, path: &Path) -> Result<Loaded, MachineError> {
    let read_error = |source| MachineError::Read { path: path.to_owned(), source };
    let refused = |reason: &str| MachineError::Kernel { path: path.to_owned(), reason: reason.to_owned() };
    let mut file = open(path)?;
    let mut magic = [0; ELF_MAGIC.len()];
    file.read_exact(&mut magic).map_err(read_error)?;
    file.rewind().map_err(read_error)?;
    if magic == ELF_MAGIC {
        let loaded = Elf::load(memory, None, &mut file, Some(GuestAddress(MIB)))
            .map_err(|error| refused(&error.to_string()))?;
        let entry = match loaded.pvh_boot_cap {
            PvhBootCapability::PvhEntryPresent(address) => Entry::Pvh(address.0),
            _ => Entry::Linux64(loaded.kernel_load.0),
        };
        return Ok(Loaded { entry, header: None, end: loaded.kernel_end });
    }
    let KernelLoaderResult { kernel_load, kernel_end, setup_header, .. } =
        BzImage::load(memory, None, &mut file, Some(GuestAddress(MIB))).map_err(|error| {
            refused(&format!("it is neither an ELF file nor a bzImage that fits into memory ({error})"))
        })?;
    let header = setup_header.ok_or_else(|| refused("its header is missing"))?;
    if header.version < PROTOCOL_2_12 || header.xloadflags & XLOAD_64_BIT == 0 {
        return Err(refused("it has no 64-bit entry"));
    }
    // The kernel unpacks itself where it was linked to run, or where it lies, whichever is higher.
    let unpacked = { header.pref_address }.max(kernel_load.0) + u64::from(header.init_size);
    Ok(Loaded {
        entry: Entry::Linux64(kernel_load.0 + ENTRY_64),
        header: Some(header),
        end: unpacked.max(kernel_end),
    })
}

/// Loads the initrd as high as the kernel can reach it, out of its way.
fn load_initrd(
    memory: &GuestMemoryMmap,
    memory_size: u64,
    path: &Path,
    kernel: &Loaded,
) -> Result<Extent, MachineError> {
    let mut file = open(path)?;
    let size = file.metadata().map_err(|source| MachineError::Read { path: path.to_owned(), source })?.len();
    let limit =
        kernel.header.as_ref().map_or(DEFAULT_INITRD_LIMIT, |header| u64::from(header.initrd_addr_max));
    let end = memory_size.min(HOLE_START).min(limit.saturating_add(1));
    let start = end
        .checked_sub(size)
        .map(|start| start & !(PAGE - 1))
        .filter(|start| *start >= kernel.end)
        .ok_or(MachineError::InitrdTooLarge { size })?;
    memory
        .read_exact_volatile_from(GuestAddress(start), &mut file, size as usize)
        .map_err(|error| MachineError::Kernel { path: path.to_owned(), reason: error.to_string() })?;
    Ok(Extent { start, len: size })
}

fn load_command_line(
    memory: &GuestMemoryMmap,
    text: &str,
    header: Option<&setup_header>,
) -> Result<(), MachineError> {
    let limit = header.map_or(DEFAULT_COMMAND_LINE_LIMIT, |header| header.cmdline_size as usize);
    let limit = limit.min(COMMAND_LINE_MAX - 1);
    if text.len() > limit {
        return Err(MachineError::CommandLineTooLong { len: text.len(), limit });
    }
    let mut bytes = text.as_bytes().to_vec();
    bytes.push(0);
    write(memory, COMMAND_LINE, &bytes, "the command line")
}

fn write_zero_page(
    memory: &GuestMemoryMmap,
    memory_size: u64,
    kernel: &Loaded,
    initrd: Extent,
) -> Result<(), MachineError> {
    let hdr = kernel.header.unwrap_or(setup_header {
        boot_flag: BOOT_FLAG,
        header: HEADER_MAGIC,
        kernel_alignment: KERNEL_ALIGNMENT,
        ..Default::default()
    });
    let mut page = boot_params { hdr, acpi_rsdp_addr: ACPI_TABLES, ..Default::default() };
    page.hdr.type_of_loader = UNKNOWN_LOADER;
    page.hdr.cmd_line_ptr = COMMAND_LINE as u32;
    page.hdr.ramdisk_image = initrd.start as u32;
    page.hdr.ramdisk_size =
        u32::try_from(initrd.len).map_err(|_| MachineError::InitrdTooLarge { size: initrd.len })?;
    for (index, (addr, size, kind)) in layout::memory_map(memory_size).into_iter().enumerate() {
        page.e820_table[index] = boot_e820_entry { addr, size, r#type: kind as u32 };
        page.e820_entries = index as u8 + 1;
    }
    write(memory, ZERO_PAGE, page.as_slice(), "the zero page")
}

/// The PVH start info, its list of modules (one initrd at most) and its memory map.
fn write_start_info(memory: &GuestMemoryMmap, memory_size: u64, initrd: Extent) -> Result<(), MachineError> {
    let map = layout::memory_map(memory_size);
    let modules = u32::from(initrd.len > 0);
    let mut info = Vec::new();
    for value in [PVH_MAGIC, PVH_VERSION, 0, modules] {
        info.extend(value.to_le_bytes());
    }
    for address in [PVH_MODULES, COMMAND_LINE, ACPI_TABLES, PVH_MEMORY_MAP, map.len() as u64] {
        info.extend(address.to_le_bytes());
    }
    write(memory, START_INFO, &info, "the start info")?;
    let module: Vec<u8> = [initrd.start, initrd.len, 0, 0].into_iter().flat_map(u64::to_le_bytes).collect();
    write(memory, PVH_MODULES, &module, "the list of modules")?;
    let entries: Vec<u8> = map
        .into_iter()
        .flat_map(|(start, len, kind)| [start, len, kind as u64])
        .flat_map(u64::to_le_bytes)
        .collect();
    write(memory, PVH_MEMORY_MAP, &entries, "the memory map")
}

fn write(memory: &GuestMemoryMmap, at: u64, bytes: &[u8], what: &'static str) -> Result<(), MachineError> {
    memory.write_slice(bytes, GuestAddress(at)).map_err(MachineError::guest_write(what))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use tempfile::NamedTempFile;

    use super::*;

    const MEMORY: u64 = 64 << 20;

    fn memory() -> GuestMemoryMmap {
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY as usize)]).unwrap()
    }

    fn file(bytes: &[u8]) -> NamedTempFile {
        let mut file = NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
        bytes[at..at + value.len()].copy_from_slice(value);
    }

    /// A bzImage of one sector of set-up code and eight bytes of kernel.
    fn bz_image(xloadflags: u16) -> Vec<u8> {
        let mut image = vec![0; 1024];
        put(&mut image, 0x1f1, &[1]);
        put(&mut image, 0x202, b"HdrS");
        put(&mut image, 0x206, &0x020fu16.to_le_bytes());
        put(&mut image, 0x211, &[1]);
        put(&mut image, 0x214, &0x10_0000u32.to_le_bytes());
        put(&mut image, 0x22c, &0x7fff_ffffu32.to_le_bytes());
        put(&mut image, 0x236, &xloadflags.to_le_bytes());
        put(&mut image, 0x238, &20u32.to_le_bytes());
        put(&mut image, 0x258, &0x100_0000u64.to_le_bytes());
        put(&mut image, 0x260, &0x10_0000u32.to_le_bytes());
        image.extend(b"a kernel");
        image
    }

    /// An ELF file with one loaded segment and one note of the given type.
    fn elf(note: u32) -> Vec<u8> {
        let mut header = vec![0; 64];
        put(&mut header, 0, b"\x7fELF\x02\x01\x01");
        put(&mut header, 0x18, &0x20_0000u64.to_le_bytes());
        put(&mut header, 0x20, &64u64.to_le_bytes());
        put(&mut header, 0x36, &[56, 0, 2, 0]);
        // Type, offset, physical address, length.
        for (kind, offset, address, len) in [(1u32, 176u64, 0x20_0000u64, 8u64), (4, 184, 0, 24)] {
            header.extend(kind.to_le_bytes());
            header.extend([0; 4]);
            for value in [offset, 0, address, len, len, 1] {
                header.extend(value.to_le_bytes());
            }
        }
        header.extend(b"a kernel");
        for value in [4, 8, note] {
            header.extend(value.to_le_bytes());
        }
        header.extend(b"Xen\0");
        header.extend(0x20_0004u64.to_le_bytes());
        header
    }

    fn load_with(memory: &GuestMemoryMmap, kernel: &[u8], command_line: &str) -> Result<Entry, MachineError> {
        let (kernel, initrd) = (file(kernel), file(&[7; 5000]));
        let source = BootSource {
            kernel: kernel.path().to_owned(),
            initrd: Some(initrd.path().to_owned()),
            command_line: command_line.to_owned(),
        };
        load(memory, MEMORY, &source, &acpi::Hardware { vcpus: 1, slots: &[], pci: false })
    }

    fn read<T: ByteValued>(memory: &GuestMemoryMmap, at: u64) -> T {
        memory.read_obj(GuestAddress(at)).unwrap()
    }

    #[test]
    fn a_bz_image_gets_a_zero_page() {
        let memory = memory();
        let entry = load_with(&memory, &bz_image(XLOAD_64_BIT), "quiet").unwrap();
        assert_eq!(entry, Entry::Linux64(0x10_0200));
        assert_eq!(&read::<[u8; 8]>(&memory, 0x10_0000), b"a kernel");
        assert_eq!(&read::<[u8; 6]>(&memory, COMMAND_LINE), b"quiet\0");
        let page: boot_params = read(&memory, ZERO_PAGE);
        let start = u64::from(page.hdr.ramdisk_image);
        assert_eq!((start, { page.hdr.ramdisk_size }), (MEMORY - 2 * PAGE, 5000));
        assert_eq!(read::<[u8; 2]>(&memory, start), [7, 7]);
        assert_eq!((page.e820_entries, { page.e820_table[3].size }), (4, MEMORY - MIB));
        assert_eq!(&read::<[u8; 8]>(&memory, page.acpi_rsdp_addr), b"RSD PTR ");
    }

    #[test]
    fn an_elf_file_boots_by_its_note_or_without_one() {
        let memory = memory();
        assert_eq!(load_with(&memory, &elf(18), "").unwrap(), Entry::Pvh(0x20_0004));
        assert_eq!(&read::<[u8; 8]>(&memory, 0x20_0000), b"a kernel");
        assert_eq!((read::<u32>(&memory, START_INFO), read::<u32>(&memory, START_INFO + 12)), (PVH_MAGIC, 1));
        assert_eq!(read::<u64>(&memory, PVH_MODULES + 8), 5000);
        assert_eq!(load_with(&memory, &elf(17), "").unwrap(), Entry::Linux64(0x20_0000));
        let page: boot_params = read(&memory, ZERO_PAGE);
        assert_eq!(({ page.hdr.boot_flag }, { page.hdr.header }), (BOOT_FLAG, HEADER_MAGIC));
    }

    #[test]
    fn what_cannot_boot_is_refused() {
        let memory = memory();
        let refused = |kernel: &[u8], line| load_with(&memory, kernel, line).unwrap_err().to_string();
        assert!(refused(&bz_image(0), "").ends_with("it has no 64-bit entry"));
        assert!(refused(b"neither this nor that", "").contains("neither an ELF file nor a bzImage"));
        assert!(refused(&elf(18)[..100], "").contains("cannot boot"));
        assert!(refused(b"", "").contains("cannot read"));
        assert!(refused(&bz_image(XLOAD_64_BIT), "more than twenty bytes").contains("22 bytes long"));
        let mut greedy = bz_image(XLOAD_64_BIT);
        put(&mut greedy, 0x260, &(63u32 << 20).to_le_bytes());
        assert!(refused(&greedy, "").contains("does not fit"));
    }
}
