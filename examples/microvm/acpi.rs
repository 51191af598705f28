//! ACPI tables: processors, interrupt controllers, power control and the devices that no bus would reveal.

use acpi_tables::aml::{
    AddressSpace as AddressWindow, AddressSpaceCacheable, Device, EISAName, IO, Interrupt, Memory32Fixed,
    Name, Package, PackageBuilder, Path, ResourceTemplate, Scope,
};
use acpi_tables::facs::FACS;
use acpi_tables::fadt::{FADTBuilder, Flags, PmProfile};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::mcfg::MCFG;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, aml};
use iovirt::frontends::pci;

use crate::layout::{
    IO_APIC, LOCAL_APIC, MMIO_LEN, PCI_ECAM, PCI_GSIS, PCI_MEMORY, PCI_PORTS, SCI_GSI, SERIAL_GSI, Slot,
};
use crate::{power, rtc, serial};

const OEM: [u8; 6] = *b"IOVIRT";
const OEM_TABLE: [u8; 8] = *b"MICROVM ";
const OEM_REVISION: u32 = 1;

/// Boot architecture flags: legacy devices are there; a keyboard controller, VGA and MSI are not.
const BOOT_LEGACY_DEVICES: u16 = 1;
const BOOT_NO_VGA: u16 = 1 << 2;

// Structures of the interrupt table.
const MADT_LOCAL_APIC: u8 = 0;
const MADT_IO_APIC: u8 = 1;
const MADT_OVERRIDE: u8 = 2;
const MADT_LOCAL_APIC_NMI: u8 = 4;
const MADT_PC_COMPATIBLE: u32 = 1;
const MADT_ENABLED: u32 = 1;
const ALL_PROCESSORS: u8 = 0xff;
const SAME_AS_BUS: u16 = 0;
const LEVEL_ACTIVE_HIGH: u16 = 0b1101;

/// What the tables are about.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Hardware<'a> {
    pub(crate) vcpus: u8,
    /// virtio-mmio devices.
    pub(crate) slots: &'a [Slot],
    /// Whether there is a PCI bus.
    pub(crate) pci: bool,
}

/// All tables as one image to be placed at `base`. The RSDP comes first.
pub(crate) fn tables(base: u64, hardware: &Hardware<'_>) -> Vec<u8> {
    let mut image = Image { base, bytes: vec![0; Rsdp::len()] };
    let facs = image.add(&FACS::new());
    let dsdt = image.add(&dsdt(hardware));
    let fadt = image.add(&fadt(facs as u32, dsdt as u32));
    let madt = image.add(&madt(hardware.vcpus));
    let mut xsdt = XSDT::new(OEM, OEM_TABLE, OEM_REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    if hardware.pci {
        let mut mcfg = MCFG::new(OEM, OEM_TABLE, OEM_REVISION);
        mcfg.add_ecam(PCI_ECAM, 0, 0, 0);
        xsdt.add_entry(image.add(&mcfg));
    }
    let xsdt = image.add(&xsdt);
    let mut rsdp = Vec::new();
    Rsdp::new(OEM, xsdt).to_aml_bytes(&mut rsdp);
    image.bytes[..rsdp.len()].copy_from_slice(&rsdp);
    image.bytes
}

/// Tables one after another in memory.
struct Image {
    base: u64,
    bytes: Vec<u8>,
}

impl Image {
    /// Appends a table and returns its address. The FACS wants 64-byte alignment, so all get it.
    fn add(&mut self, table: &dyn Aml) -> u64 {
        self.bytes.resize(self.bytes.len().next_multiple_of(64), 0);
        let address = self.base + self.bytes.len() as u64;
        table.to_aml_bytes(&mut self.bytes);
        address
    }
}

fn fadt(facs: u32, dsdt: u32) -> impl Aml {
    // Power and sleep buttons and a fixed clock alarm do not exist, which these flags say.
    let mut fadt = FADTBuilder::new(OEM, OEM_TABLE, OEM_REVISION)
        .firmware_ctrl_32(facs)
        .dsdt_32(dsdt)
        .preferred_pm_profile(PmProfile::EnterpriseServer)
        .flag(Flags::Wbinvd)
        .flag(Flags::ProcC1)
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton)
        .flag(Flags::FixRtc)
        .flag(Flags::ResetRegSup);
    // No SMI command port: ACPI mode is always on.
    fadt.sci_int = (SCI_GSI as u16).into();
    fadt.pm1a_evt_blk = u32::from(power::PM1_EVENT).into();
    fadt.pm1_evt_len = 4;
    fadt.pm1a_cnt_blk = u32::from(power::PM1_CONTROL).into();
    fadt.pm1_cnt_len = 2;
    // Beyond what the specification allows for a state: deeper idle states do not exist.
    fadt.p_lvl2_lat = 0xffff.into();
    fadt.p_lvl3_lat = 0xffff.into();
    fadt.century = rtc::CENTURY;
    fadt.iapc_boot_arch = (BOOT_LEGACY_DEVICES | BOOT_NO_VGA).into();
    fadt.reset_reg =
        GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, u64::from(power::PM_RESET));
    fadt.reset_value = power::PM_RESET_VALUE;
    fadt.finalize()
}

fn madt(vcpus: u8) -> Sdt {
    let mut madt = Sdt::new(*b"APIC", 36, 5, OEM, OEM_TABLE, OEM_REVISION);
    madt.append_slice(&LOCAL_APIC.to_le_bytes());
    madt.append_slice(&MADT_PC_COMPATIBLE.to_le_bytes());
    for id in 0..vcpus {
        madt.append_slice(&[MADT_LOCAL_APIC, 8, id, id]);
        madt.append_slice(&MADT_ENABLED.to_le_bytes());
    }
    madt.append_slice(&[MADT_IO_APIC, 12, 0, 0]);
    madt.append_slice(&IO_APIC.to_le_bytes());
    madt.append_slice(&0u32.to_le_bytes());
    // The timer's line 0 arrives at pin 2, where KVM puts it; ACPI's own line is level-triggered.
    for (source, gsi, flags) in [(0, 2, SAME_AS_BUS), (SCI_GSI as u8, SCI_GSI, LEVEL_ACTIVE_HIGH)] {
        madt.append_slice(&[MADT_OVERRIDE, 10, 0, source]);
        madt.append_slice(&gsi.to_le_bytes());
        madt.append_slice(&flags.to_le_bytes());
    }
    madt.append_slice(&[MADT_LOCAL_APIC_NMI, 6, ALL_PROCESSORS]);
    madt.append_slice(&SAME_AS_BUS.to_le_bytes());
    madt.append_slice(&[1]);
    madt
}

fn dsdt(hardware: &Hardware<'_>) -> Sdt {
    let mut code = Vec::new();
    let (sleep_type, zero) = (power::SLEEP_TYPE_S5, aml::ZERO);
    let s5 = Package::new(vec![&sleep_type, &sleep_type, &zero, &zero]);
    Name::new("_S5_".into(), &s5).to_aml_bytes(&mut code);

    let serial = resource_device(
        "COM1",
        &EISAName::new("PNP0501"),
        0,
        vec![
            &IO::new(serial::COM1_PORT, serial::COM1_PORT, 1, serial::COM1_LEN as u8),
            &interrupt(SERIAL_GSI),
        ],
    );
    let clock = resource_device(
        "RTC_",
        &EISAName::new("PNP0B00"),
        0,
        vec![&IO::new(rtc::RTC_PORT, rtc::RTC_PORT, 1, 2)],
    );
    let mut devices = vec![serial, clock];
    for slot in hardware.slots {
        devices.push(resource_device(
            &format!("VR{:02X}", slot.index),
            &"LNRO0005",
            slot.index as u32,
            vec![&Memory32Fixed::new(true, slot.address as u32, MMIO_LEN as u32), &interrupt(slot.gsi)],
        ));
    }
    if hardware.pci {
        devices.push(pci_bus());
    }
    let devices: Vec<Raw> = devices.into_iter().map(Raw).collect();
    Scope::new("\\_SB_".into(), devices.iter().map(|device| device as &dyn Aml).collect())
        .to_aml_bytes(&mut code);

    let mut dsdt = Sdt::new(*b"DSDT", 36, 2, OEM, OEM_TABLE, OEM_REVISION);
    dsdt.append_slice(&code);
    dsdt
}

/// The PCI bus: the addresses that it forwards, and where the pins of its devices arrive.
fn pci_bus() -> Vec<u8> {
    let (hid, cid) = (Name::new("_HID".into(), &EISAName::new("PNP0A08")), EISAName::new("PNP0A03"));
    let (cid, zero) = (Name::new("_CID".into(), &cid), aml::ZERO);
    let [uid, segment, number] = ["_UID", "_SEG", "_BBN"].map(|name| Name::new(name.into(), &zero));
    let last = |range: std::ops::Range<u64>| range.end - 1;
    let buses = AddressWindow::new_bus_number(0_u16, 0);
    let mechanism = IO::new(pci::CONFIG_PORT, pci::CONFIG_PORT, 1, pci::CONFIG_PORT_LEN as u8);
    let ports = AddressWindow::new_io(PCI_PORTS.start as u16, last(PCI_PORTS) as u16, None);
    let memory = AddressWindow::new_memory(
        AddressSpaceCacheable::NotCacheable,
        true,
        PCI_MEMORY.start as u32,
        last(PCI_MEMORY) as u32,
        None,
    );
    let resources = ResourceTemplate::new(vec![&buses, &mechanism, &ports, &memory]);
    let resources = Name::new("_CRS".into(), &resources);
    let routes = Name::new("_PRT".into(), &interrupt_routes());
    let mut bytes = Vec::new();
    let parts: Vec<&dyn Aml> = vec![&hid, &cid, &uid, &segment, &number, &resources, &routes];
    Device::new(Path::new("PCI0"), parts).to_aml_bytes(&mut bytes);
    bytes
}

/// For each device and pin its line: all functions of a device, no link device, the line's number.
fn interrupt_routes() -> PackageBuilder {
    let mut routes = PackageBuilder::new();
    for device in 0..32_u32 {
        for pin in 0..4_u32 {
            let mut route = PackageBuilder::new();
            route.add_element(&(device << 16 | 0xffff));
            route.add_element(&pin);
            route.add_element(&aml::ZERO);
            route.add_element(&PCI_GSIS[(device + pin) as usize % PCI_GSIS.len()]);
            routes.add_element(&route);
        }
    }
    routes
}

/// An edge-triggered, active-high line of its own.
fn interrupt(gsi: u32) -> Interrupt {
    Interrupt::new(true, true, false, false, gsi)
}

/// A device that consists of its identification and its resources.
fn resource_device(name: &str, hid: &dyn Aml, uid: u32, resources: Vec<&dyn Aml>) -> Vec<u8> {
    let (hid, uid) = (Name::new("_HID".into(), hid), Name::new("_UID".into(), &uid));
    let resources = Name::new("_CRS".into(), &ResourceTemplate::new(resources));
    let mut bytes = Vec::new();
    Device::new(Path::new(name), vec![&hid, &uid, &resources]).to_aml_bytes(&mut bytes);
    bytes
}

/// Code that is already encoded.
struct Raw(Vec<u8>);

impl Aml for Raw {
    fn to_aml_bytes(&self, sink: &mut dyn acpi_tables::AmlSink) {
        sink.vec(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::{ACPI_TABLES, ACPI_TABLES_LEN, Slots};

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    fn number(bytes: &[u8], at: usize, len: usize) -> usize {
        bytes[at..at + len].iter().rev().fold(0, |value, byte| value << 8 | usize::from(*byte))
    }

    /// The table at an address of the image, whose checksum must be right.
    fn table<'a>(image: &'a [u8], address: usize, signature: &str) -> &'a [u8] {
        let start = address - ACPI_TABLES as usize;
        let table = &image[start..start + number(image, start + 4, 4)];
        assert_eq!(&table[..4], signature.as_bytes());
        assert_eq!(sum(table), 0, "checksum of {signature}");
        table
    }

    fn full_image() -> Vec<u8> {
        let mut slots = Slots::default();
        while slots.take().is_ok() {}
        tables(ACPI_TABLES, &Hardware { vcpus: 254, slots: slots.taken(), pci: true })
    }

    #[test]
    fn every_table_is_reached_and_sums_to_zero() {
        let image = full_image();
        assert!(image.len() as u64 <= ACPI_TABLES_LEN);
        assert_eq!((&image[..8], sum(&image[..20]), sum(&image[..36])), (&b"RSD PTR "[..], 0, 0));
        let xsdt = table(&image, number(&image, 24, 8), "XSDT");
        assert_eq!(xsdt.len(), 36 + 3 * 8);
        let fadt = table(&image, number(xsdt, 36, 8), "FACP");
        let madt = table(&image, number(xsdt, 44, 8), "APIC");
        let dsdt = table(&image, number(fadt, 40, 4), "DSDT");
        let facs = number(fadt, 36, 4);
        assert_eq!((facs % 64, &image[facs - ACPI_TABLES as usize..][..4]), (0, &b"FACS"[..]));
        assert_eq!(number(fadt, 56, 4), usize::from(power::PM1_EVENT));
        assert_eq!(number(fadt, 64, 4), usize::from(power::PM1_CONTROL));
        assert_eq!(dsdt.windows(8).filter(|w| w == b"LNRO0005").count(), 12);
        let mcfg = table(&image, number(xsdt, 52, 8), "MCFG");
        assert_eq!((mcfg.len(), number(mcfg, 44, 8)), (60, PCI_ECAM as usize));

        // The interrupt table's structures fill it exactly.
        let mut kinds = [0; 5];
        let mut at = 44;
        while at < madt.len() {
            kinds[usize::from(madt[at])] += 1;
            at += usize::from(madt[at + 1]);
        }
        assert_eq!((at, kinds), (madt.len(), [254, 1, 2, 0, 1]));
    }

    #[test]
    fn an_edge_triggered_line_of_each_slot_is_announced() {
        let image = full_image();
        for gsi in [5u8, 23] {
            let descriptor = [0x89, 6, 0, 0b0011, 1, gsi, 0, 0, 0];
            assert!(image.windows(9).any(|window| window == descriptor), "line {gsi}");
        }
    }

    /// Writes the tables for `iasl -d`; run by hand with `DUMP_ACPI=directory`.
    #[test]
    fn dump() {
        let Some(directory) = std::env::var_os("DUMP_ACPI").map(std::path::PathBuf::from) else { return };
        let image = full_image();
        for (name, signature) in [("dsdt", "DSDT"), ("facp", "FACP"), ("apic", "APIC")] {
            let start = image.windows(4).position(|window| window == signature.as_bytes()).unwrap();
            let bytes = table(&image, ACPI_TABLES as usize + start, signature);
            std::fs::write(directory.join(name).with_extension("aml"), bytes).unwrap();
        }
    }
}
