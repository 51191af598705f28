//! Any sequence of accesses of a virtio-pci function's windows and configuration space, with rings in memory, life-cycle calls
//! and steps of the worker.
//!
//! In the end a reset must bring back a device that serves an honest request.

use crate::blk_request::read;
use crate::device;
use crate::input::Input;
use iovirt_core::test_utils::hostile::{QueueSetup, RawDriver, Split, feature};
use iovirt_frontends::pci::PciFunction;

/// Plays an input.
///
/// # Panics
/// Where the device does, or does not work any more.
pub fn run(data: &[u8]) {
    let (target, function) = device::pci_disk();
    let mut driver = RawDriver::new(target, 4);
    let mut input = Input::new(data);
    for _ in 0..256 {
        if input.is_empty() {
            break;
        }
        play(&mut driver, &*function, &mut input);
    }
    let _ = driver.frontend().resume();
    let setup = QueueSetup::good(&driver.layout(), 16);
    driver.start(feature::ALL, &setup).expect("the device starts after a reset");
    let answer = driver.exchange(&read(), &Split::whole()).expect("an honest request is served");
    assert_eq!(answer.last(), Some(&0));
}

fn play(driver: &mut RawDriver, function: &dyn PciFunction, input: &mut Input<'_>) {
    let layout = driver.layout();
    let mut bytes = [0; 16];
    match input.u8() % 11 {
        0 => {
            let (offset, len) = (u64::from(input.u8() % 0x40), 1 << (input.u8() % 4));
            let _ = function.write(0, offset, input.bytes(len));
        }
        1 => {
            let (region, offset) = (usize::from(input.u8() % 3), u64::from(input.u16()));
            let len = usize::from(input.u8() % 17);
            let _ = function.write(region, offset, input.bytes(len));
        }
        2 => {
            let (region, offset) = (usize::from(input.u8() % 3), u64::from(input.u16()));
            let len = usize::from(input.u8() % 17);
            function.read(region, offset, &mut bytes[..len]);
        }
        3 => driver.step(),
        4 => {
            let queue = u64::from(input.u8() % 3);
            let _ = function.write(0, 0x3000 + queue * 4, &[0; 2]);
        }
        5 => driver.put(layout.desc + u64::from(input.u16() % 0x400), input.bytes(16)),
        6 => driver.put(layout.avail + u64::from(input.u8()), input.bytes(4)),
        7 => set_queue(driver, function, input),
        8 => {
            let (offset, len) = (u16::from(input.u8()), usize::from(input.u8() % 9));
            let _ = function.write_config(offset, input.bytes(len));
            function.read_config(offset, &mut bytes[..len]);
        }
        9 => {
            let _ = match input.u8() % 4 {
                0 => function.drain(),
                1 => function.resume(),
                2 => function.reset(),
                _ => {
                    let _ = function.save();
                    return;
                }
            };
        }
        _ => {
            let value = input.u8();
            let _ = function.write(0, 0x14, &[value]);
        }
    }
}

fn set_queue(driver: &RawDriver, function: &dyn PciFunction, input: &mut Input<'_>) {
    let (layout, queue) = (driver.layout(), u16::from(input.u8() % 3));
    let size = 1_u16 << (input.u8() % 8);
    let _ = function.write(0, 0x16, &queue.to_le_bytes());
    let _ = function.write(0, 0x18, &size.to_le_bytes());
    let _ = function.write(0, 0x1a, &[input.u8(), 0]);
    for (offset, address) in [(0x20, layout.desc), (0x28, layout.avail), (0x30, layout.used)] {
        let _ = function.write(0, offset, &address.to_le_bytes());
    }
    let _ = function.write(0, 0x1c, &[1, 0]);
}

/// A life as it should be; one with a queue reset and bus master taken away; one with vectors; one whose ring turns out to be of no use
/// while it is reset, which the driver is told by a message.
pub fn seeds() -> Vec<Vec<u8>> {
    let features = [&[0, 8, 2, 0, 0, 0, 0][..], &[0, 12, 2, 0, 0, 0, 0x30], &[0, 8, 2, 1, 0, 0, 0]].concat();
    let up =
        [&[8, 4, 2, 6, 0, 10, 1, 10, 3][..], &features, &[0, 12, 2, 1, 1, 0, 0, 10, 11, 7, 0, 4, 1, 10, 15]]
            .concat();
    let desc = [&[5, 0, 0][..], &0x5_0000_u64.to_le_bytes(), &16_u32.to_le_bytes(), &[1, 0, 1, 0]].concat();
    let status =
        [&[5, 16, 0][..], &0x5_1000_u64.to_le_bytes(), &513_u32.to_le_bytes(), &[2, 0, 0, 0]].concat();
    let offer = [desc, status, vec![6, 2, 1, 0, 0, 0], vec![4, 0]].concat();
    let vector =
        [&[1, 1, 0x10, 0, 8][..], &0xfee0_0000_u64.to_le_bytes(), &[1, 1, 0x1c, 0, 4, 0, 0, 0, 0]].concat();
    let large = [
        &[10, 1, 10, 3][..],
        &features,
        &[0, 12, 2, 1, 1, 0, 0, 10, 11, 7, 0, 7, 1, 10, 15, 0, 0x10, 1, 0, 0],
    ]
    .concat();
    vec![
        [&up[..], &offer, &[3, 3]].concat(),
        [&up[..], &offer, &[0, 0x3a, 1, 1, 0, 3, 8, 4, 2, 2, 0, 3, 8, 4, 2, 6, 0, 3]].concat(),
        [&vector[..], &[8, 0x42, 2, 0, 0x80], &up, &offer, &[3, 9, 0, 3, 9, 3, 9, 1, 3, 9, 2]].concat(),
        vec![2, 0, 0, 0x20, 4, 2, 1, 0, 0x10, 8, 9, 0, 3],
        large,
    ]
}
