//! Saved state that was changed on the way.
//!
//! The first byte of the input says what follows: an envelope as it is, or a list of changes (place, value) of a good one,
//! whose checksum is made to fit. What is restored is resumed, rung, drained, saved and reset.

use crate::blk_request::read;
use crate::device;
use crate::input::Input;
use iovirt_core::dma::DmaSpace;
use iovirt_core::test_utils::hostile::{QueueSetup, RawDriver, Split, feature};
use std::cell::OnceCell;

thread_local! {
    static GOOD: OnceCell<(DmaSpace, Vec<u8>)> = const { OnceCell::new() };
}

/// Restores an input.
///
/// # Panics
/// Where the device does, or does not work any more.
pub fn run(data: &[u8]) {
    let (space, good) = GOOD.with(|cell| cell.get_or_init(good).clone());
    let mut input = Input::new(data);
    let state = match input.u8() % 4 {
        0 => input.all().to_vec(),
        _ => {
            let mut state = good;
            let payload = 4 + 1 + usize::from(state[4]) + 2 + 4 + 4;
            while !input.is_empty() {
                let at = payload + usize::from(input.u16()) % (state.len() - payload);
                state[at] = input.u8();
            }
            mend(&mut state, payload);
            state
        }
    };
    let mut driver = RawDriver::new(device::disk(Some(space)), 4);
    if driver.frontend().restore(&state).is_ok() {
        let resumed = driver.frontend().resume();
        driver.wait_for(&resumed);
        for queue in 0..2 {
            driver.notify(queue);
            driver.step();
        }
        let drained = driver.frontend().drain();
        driver.wait_for(&drained);
        driver.frontend().save().expect("a device at rest can be saved");
    }
    let _ = driver.frontend().resume();
    let setup = QueueSetup::good(&driver.layout(), 16);
    driver.start(feature::ALL, &setup).expect("the device starts after a reset");
    let answer = driver.exchange(&read(), &Split::whole()).expect("an honest request is served");
    assert_eq!(answer.last(), Some(&0));
}

fn mend(state: &mut [u8], payload: usize) {
    let crc = crc32fast::hash(&state[payload..]);
    state[payload - 4..payload].copy_from_slice(&crc.to_le_bytes());
}

/// A device that has served a request, and its memory.
fn good() -> (DmaSpace, Vec<u8>) {
    let target = device::disk(None);
    let space = target.space.clone();
    let mut driver = RawDriver::new(target, 4);
    let setup = QueueSetup::good(&driver.layout(), 16);
    driver.start(feature::ALL, &setup).expect("it starts");
    driver.exchange(&read(), &Split::whole()).expect("it serves");
    let drained = driver.frontend().drain();
    driver.wait_for(&drained);
    let saved = driver.frontend().save().expect("it can be saved");
    (space, saved)
}

/// The good state as it is, and with a change here and there.
pub fn seeds() -> Vec<Vec<u8>> {
    let (_, good) = good();
    vec![
        [&[0], &good[..]].concat(),
        vec![1],
        vec![1, 20, 0, 1],
        vec![1, 60, 0, 0xff, 61, 0, 0xff],
        vec![1, 30, 0, 64],
    ]
}
