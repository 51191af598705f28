//! Commands to a virtio network card: chains of any buffers with any content on its control queue.
//!
//! The first byte says which features the driver takes: on them depends which queue it is, and which commands there are. Then
//! come chains, see [`chains`]. In the end the card must obey an honest command.

use crate::chains::{self, buffer};
use crate::device;
use crate::input::Input;
use iovirt_core::test_utils::hostile::{Exchange, QueueSetup, RawDriver, Split, feature, status};
use std::cell::RefCell;

/// Several pairs of queues (VIRTIO 1.2, section 5.1.3).
const MULTI_QUEUE: u64 = 1 << 22;

thread_local! {
    static DRIVERS: RefCell<Option<[RawDriver; 2]>> = const { RefCell::new(None) };
}

/// Sends the commands of an input.
///
/// # Panics
/// Where the card does, or does not work any more.
pub fn run(data: &[u8]) {
    DRIVERS.with_borrow_mut(|drivers| {
        // Where the driver knows of one pair only, queue 2 is the control queue, else it is the last one.
        let drivers =
            drivers.get_or_insert_with(|| [2, 4].map(|queue| RawDriver::new(device::card(queue, None), 4)));
        let mut input = Input::new(data);
        let choice = u64::from(input.u8());
        let several = choice & 1 != 0;
        let without = if several { (choice >> 1) << 17 & !MULTI_QUEUE } else { MULTI_QUEUE };
        let driver = &mut drivers[usize::from(several)];
        commands(driver, feature::ALL & !without, &mut input);
        let all = if several { feature::ALL } else { feature::ALL & !MULTI_QUEUE };
        start(driver, all);
        let answer = driver.exchange(&promiscuous(), &Split::whole()).expect("an honest command is answered");
        assert_eq!(answer, [0]);
    });
}

fn promiscuous() -> Exchange {
    Exchange::new("promiscuous", vec![0, 0, 1], 1, |_| Ok(()))
}

fn start(driver: &mut RawDriver, features: u64) {
    let setup = QueueSetup::good(&driver.layout(), 16);
    driver.start(features, &setup).expect("the device starts after a reset");
}

fn commands(driver: &mut RawDriver, features: u64, input: &mut Input<'_>) {
    start(driver, features);
    for _ in 0..16 {
        if input.is_empty() {
            return;
        }
        let buffers = chains::offer(driver, input, 0);
        driver.kick();
        driver.step();
        if driver.status() & status::NEEDS_RESET != 0 {
            start(driver, features);
            continue;
        }
        let (_, written) = driver.take_used().expect("a command is answered in one step");
        assert_eq!(written, 1, "an answer is one byte");
        let answer = buffers.iter().find(|buffer| buffer.writable && buffer.len > 0);
        let answer = answer.expect("an answer needs a place");
        assert!(driver.get(answer.addr, 1)[0] <= 1, "neither yes nor no");
    }
}

/// Each command, as it should be and cut short.
pub fn seeds() -> Vec<Vec<u8>> {
    let command = |bytes: &[u8]| {
        let len = bytes.len() as u16;
        [&[1][..], &buffer(0, false, len), &buffer(1000, true, 1), &[len as u8], bytes].concat()
    };
    let table =
        |entries: u32, addresses: &[[u8; 6]]| [&entries.to_le_bytes()[..], &addresses.concat()].concat();
    let mac = [2, 0, 0, 0, 0, 9];
    let tables = [&[1, 0][..], &table(2, &[mac, [4; 6]]), &table(1, &[[1; 6]])].concat();
    let many = [&[1, 0][..], &table(40, &[mac; 40]), &table(0, &[])].concat();
    let all = [
        command(&[0, 0, 0]),
        command(&[0, 1, 1]),
        command(&tables),
        command(&[&[1, 1][..], &mac].concat()),
        command(&[4, 0, 2, 0]),
        command(&[4, 0, 1, 0]),
        command(&[2, 0, 0, 0]),
    ];
    let mut seeds: Vec<Vec<u8>> = [0, 1]
        .into_iter()
        .flat_map(|features| all.iter().map(move |command| [&[features], &command[..]].concat()))
        .collect();
    seeds.push([&[1], &all.concat()[..]].concat());
    seeds.push([&[1], &command(&many)[..]].concat());
    seeds.push([&[1], &command(&[1, 0, 255, 255, 255, 255])[..]].concat());
    seeds.push([&[1], &command(&[1, 1, 2, 0])[..]].concat());
    seeds
}
