//! Requests to a virtio disk: chains of any buffers with any content.
//!
//! The input is a list of requests: how many buffers and which (place, length, direction), and what memory holds there.
//! One device serves a whole input, and is reset where it wants that; in the end it must serve an honest request.

use crate::chains;
use crate::device;
use crate::input::Input;
use iovirt_core::test_utils::hostile::{Exchange, QueueSetup, RawDriver, Split, feature, status};
use std::cell::RefCell;

thread_local! {
    static DRIVER: RefCell<Option<RawDriver>> = const { RefCell::new(None) };
}

/// Makes the requests of an input.
///
/// # Panics
/// Where the device does, or does not work any more.
pub fn run(data: &[u8]) {
    DRIVER.with_borrow_mut(|driver| {
        let driver = driver.get_or_insert_with(|| RawDriver::new(device::disk(None), 4));
        requests(driver, data);
        start(driver);
        let answer = driver.exchange(&read(), &Split::whole()).expect("an honest request is served");
        assert_eq!(answer.last(), Some(&0));
    });
}

/// A read of the first sector.
pub fn read() -> Exchange {
    Exchange::new("read", vec![0; 16], 513, |_| Ok(()))
}

fn start(driver: &mut RawDriver) {
    let setup = QueueSetup::good(&driver.layout(), 16);
    driver.start(feature::ALL, &setup).expect("the device starts after a reset");
}

fn requests(driver: &mut RawDriver, data: &[u8]) {
    let mut input = Input::new(data);
    start(driver);
    for _ in 0..16 {
        if input.is_empty() {
            return;
        }
        chains::offer(driver, &mut input, 0);
        driver.kick();
        driver.step();
        if driver.status() & status::NEEDS_RESET != 0 {
            start(driver);
        } else {
            assert!(driver.take_used().is_some(), "a memory disk answers in one step");
        }
    }
}

/// Each request type once.
pub fn seeds() -> Vec<Vec<u8>> {
    let place = |offset: u16, writable: bool| ((offset << 2) | u16::from(writable) << 1).to_le_bytes();
    let request = |kind: u32, sector: u64, extra: &[u8], data: u16, data_in: bool| {
        let header = [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes(), extra].concat();
        let mut seed = vec![2];
        let head = 16 + extra.len() as u16;
        seed.extend([place(0, false), head.to_le_bytes()].concat());
        seed.extend([place(512, data_in), data.to_le_bytes()].concat());
        seed.extend([place(8192, true), 1_u16.to_le_bytes()].concat());
        seed.push(header.len() as u8);
        seed.extend(header);
        seed
    };
    let range = [&8_u64.to_le_bytes()[..], &4_u32.to_le_bytes(), &1_u32.to_le_bytes()].concat();
    vec![
        request(0, 0, &[], 512, true),
        request(1, 3, &[], 1024, false),
        request(4, 0, &[], 0, false),
        request(8, 0, &[], 20, true),
        request(11, 0, &range, 0, false),
        request(13, 0, &range, 0, false),
        [request(1, 3, &[], 1024, false), request(0, 3, &[], 1024, true), request(99, 0, &[], 0, true)]
            .concat(),
    ]
}
