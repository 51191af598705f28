//! Any sequence of configuration accesses, by the ports and by ECAM, on a bus with two functions.
//!
//! What is fixed stays as it was, and the windows are where the registers say: a model that knows only the specification reads
//! the registers and says which addresses are decoded.

use crate::device;
use crate::input::Input;
use iovirt_core::frontend::RegionKind;
use iovirt_frontends::pci::{BarListener, BarMove, PciAddress, PciBus};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

const FUNCTION: u64 = 1 << 15;

/// Where windows are, by what was announced.
#[derive(Debug, Default)]
struct Announced(Mutex<BTreeMap<(PciAddress, usize), u64>>);

impl BarListener for Announced {
    fn moved(&self, change: &BarMove) {
        let mut windows = self.0.lock().expect("nobody panicked");
        let key = (change.address, change.region);
        let before = match change.to {
            Some(to) => windows.insert(key, to),
            None => windows.remove(&key),
        };
        assert_eq!(before, change.from, "{change:?}");
    }
}

/// Plays an input.
///
/// # Panics
/// Where something moved that is fixed, or a window is not where its registers say.
pub fn run(data: &[u8]) {
    let bus = device::bus();
    let announced = Arc::new(Announced::default());
    bus.set_listener(announced.clone());
    let fixed = fixed_bytes(&bus);
    let mut input = Input::new(data);
    for _ in 0..256 {
        if input.is_empty() {
            break;
        }
        play(&bus, &mut input);
        check_windows(&bus, &announced);
    }
    assert_eq!(fixed_bytes(&bus), fixed, "what is fixed has changed");
}

fn play(bus: &PciBus, input: &mut Input<'_>) {
    let mut bytes = [0; 8];
    match input.u8() % 7 {
        0 => {
            let _ = bus.write_config_port(0, &input.u32().to_le_bytes());
        }
        1 => {
            // One of the functions, any register.
            let selected = 1 << 31 | u32::from(input.u8() & 1) << 11 | u32::from(input.u8());
            let _ = bus.write_config_port(0, &selected.to_le_bytes());
        }
        2 => {
            let (port, len) = (u64::from(input.u8() % 10), usize::from(input.u8() % 9));
            let _ = bus.write_config_port(port, input.bytes(len));
        }
        3 => {
            let (port, len) = (u64::from(input.u8() % 10), usize::from(input.u8() % 9));
            bus.read_config_port(port, &mut bytes[..len]);
        }
        4 => {
            let (offset, len) = (u64::from(input.u32()), usize::from(input.u8() % 9));
            let _ = bus.write_ecam(offset, input.bytes(len));
        }
        5 => {
            // The header of the disk: command register and windows.
            let offset =
                FUNCTION + u64::from([4_u8, 0x10, 0x14, 0x18, 0x1c, 0x3c][usize::from(input.u8() % 6)]);
            let _ = bus.write_ecam(offset, &input.u32().to_le_bytes());
        }
        _ => {
            let (offset, len) = (u64::from(input.u32() % 0x2_0000), usize::from(input.u8() % 9));
            bus.read_ecam(offset, &mut bytes[..len]);
        }
    }
}

fn word(bus: &PciBus, register: u64) -> u32 {
    let mut word = [0; 4];
    bus.read_ecam(FUNCTION + register, &mut word);
    u32::from_le_bytes(word)
}

/// Both windows of the disk have 64 bits and are in memory.
fn check_windows(bus: &PciBus, announced: &Announced) {
    let on = word(bus, 4) & 2 != 0;
    let disk = PciAddress::new(1, 0).expect("a place");
    for (region, (register, size)) in [(0x10, 0x4000_u64), (0x18, 0x2000)].into_iter().enumerate() {
        let address = u64::from(word(bus, register + 4)) << 32 | u64::from(word(bus, register) & !15);
        let expected = (on && address != 0 && address.checked_add(size).is_some()).then_some(address);
        let windows = announced.0.lock().expect("nobody panicked");
        assert_eq!(windows.get(&(disk, region)).copied(), expected, "region {region}");
    }
}

/// Identity, class, header type, and the capabilities' numbers and links: everything that no guest can write.
fn fixed_bytes(bus: &PciBus) -> Vec<u8> {
    let mut bytes = vec![0; 256];
    for (at, byte) in (0..).zip(&mut bytes) {
        bus.read_ecam(FUNCTION + at, std::slice::from_mut(byte));
    }
    let mut fixed = [&bytes[..4], &bytes[8..12], &bytes[14..15], &bytes[0x2c..0x35]].concat();
    let mut at = usize::from(bytes[0x34]);
    while at != 0 {
        fixed.extend([at as u8, bytes[at], bytes[at + 1]]);
        at = usize::from(bytes[at + 1]);
    }
    // The windows answer or do not, but never with an access that only begins in them.
    let mut far = [0; 8];
    bus.read(RegionKind::Mmio, u64::MAX, &mut far);
    assert_eq!(far, [0xff; 8]);
    fixed
}

/// A guest that sizes, places and switches on; one that moves windows about; the access through the configuration space.
pub fn seeds() -> Vec<Vec<u8>> {
    let header = |register: u8, value: u32| [&[5, register][..], &value.to_le_bytes()].concat();
    let ports = |register: u8, value: u32| {
        [&[1, 1, register, 2, 4, 4][..], &value.to_le_bytes(), &[1, 1, register, 3, 4, 4]].concat()
    };
    vec![
        [header(1, u32::MAX), header(2, u32::MAX), header(1, 0xc000_0000), header(2, 0), header(0, 6)]
            .concat(),
        [header(0, 2), header(1, 0xd000_0000), header(2, 1), header(1, 0), header(0, 0)].concat(),
        [ports(0x10, 0xc100_0000), ports(4, 0x0407), ports(0x42, 0xc000_0000), ports(0xa0, 0)].concat(),
        [ports(0x94, 0), ports(0x98, 0x14), ports(0x9c, 1), ports(0xa0, 1)].concat(),
    ]
}
