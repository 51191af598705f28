//! Any sequence of register accesses, memory writes, life-cycle calls and steps of the worker.
//!
//! Each step of the input is an operation and its operands. In the end a reset must bring back a device that serves an
//! honest request.

use crate::blk_request::read;
use crate::device;
use crate::input::Input;
use iovirt_core::test_utils::hostile::{QueueSetup, RawDriver, Split, feature, register};

/// Plays an input.
///
/// # Panics
/// Where the device does, or does not work any more.
pub fn run(data: &[u8]) {
    let mut driver = RawDriver::new(device::disk(None), 4);
    let mut input = Input::new(data);
    for _ in 0..256 {
        if input.is_empty() {
            break;
        }
        play(&mut driver, &mut input);
    }
    let _ = driver.frontend().resume();
    let setup = QueueSetup::good(&driver.layout(), 16);
    driver.start(feature::ALL, &setup).expect("the device starts after a reset");
    let answer = driver.exchange(&read(), &Split::whole()).expect("an honest request is served");
    assert_eq!(answer.last(), Some(&0));
}

fn play(driver: &mut RawDriver, input: &mut Input<'_>) {
    let layout = driver.layout();
    match input.u8() % 12 {
        0 | 1 => {
            let _ = driver.write_only(u64::from(input.u8() % 64) * 4, input.u32());
        }
        2 => {
            let (offset, len) = (u64::from(input.u16() % 0x1100), usize::from(input.u8() % 17));
            let _ = driver.frontend().write(0, offset, input.bytes(len));
        }
        3 => {
            let mut bytes = [0; 16];
            let (offset, len) = (u64::from(input.u16() % 0x1100), usize::from(input.u8() % 17));
            driver.frontend().read(0, offset, &mut bytes[..len]);
        }
        4 => driver.step(),
        5 => {
            let _ = driver.write_only(register::QUEUE_NOTIFY, u32::from(input.u8() % 4));
        }
        6 => driver.put(layout.desc + u64::from(input.u16() % 0x400), input.bytes(16)),
        7 => driver.put(layout.avail + u64::from(input.u8()), input.bytes(4)),
        8 => {
            let setup = QueueSetup {
                queue: u32::from(input.u8() % 3),
                ..QueueSetup::good(&layout, 1 << (input.u8() % 8))
            };
            for (offset, value) in [
                (register::QUEUE_SEL, setup.queue),
                (register::QUEUE_NUM, setup.size),
                (register::QUEUE_DESC, setup.desc as u32),
                (register::QUEUE_DRIVER, setup.avail as u32),
                (register::QUEUE_DEVICE, setup.used as u32),
                (register::QUEUE_READY, 1),
            ] {
                let _ = driver.write_only(offset, value);
            }
        }
        9 => {
            let _ = match input.u8() % 4 {
                0 => driver.frontend().drain(),
                1 => driver.frontend().resume(),
                2 => driver.frontend().reset(),
                _ => {
                    let _ = driver.frontend().save();
                    return;
                }
            };
        }
        10 => {
            let _ = driver.write_only(register::STATUS, u32::from(input.u8()));
        }
        _ => {
            let page = u32::from(input.u8() & 1);
            let _ = driver.write_only(register::DRIVER_FEATURES_SEL, page);
            let _ = driver.write_only(register::DRIVER_FEATURES, input.u32());
        }
    }
}

/// A life as it should be, and lives with a drain and a queue taken back in the middle.
pub fn seeds() -> Vec<Vec<u8>> {
    let up = [&[10, 1, 10, 3, 11, 0][..], &[0, 0, 0, 0x30], &[11, 1, 1, 0, 0, 0], &[10, 11, 8, 0, 4, 10, 15]]
        .concat();
    let desc = [&[6, 0, 0][..], &0x5_0000_u64.to_le_bytes(), &16_u32.to_le_bytes(), &[1, 0, 1, 0]].concat();
    let status =
        [&[6, 16, 0][..], &0x5_1000_u64.to_le_bytes(), &513_u32.to_le_bytes(), &[2, 0, 0, 0]].concat();
    let offer = [desc, status, vec![7, 2, 1, 0, 0, 0], vec![5, 0]].concat();
    vec![
        [&up[..], &offer, &[4, 4]].concat(),
        [&up[..], &offer, &[9, 0, 4, 9, 3, 9, 1, 4, 10, 0, 4]].concat(),
        [&up[..], &offer, &[0, 17, 0, 0, 0, 0, 4, 8, 0, 4, 5, 0, 4, 9, 2]].concat(),
        vec![3, 0, 1, 8, 2, 0x20, 1, 1, 1, 9, 0, 4],
    ]
}
