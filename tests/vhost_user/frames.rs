//! Frames that an honest driver of a card sends, and that come back to it.

use std::time::Duration;
use vhost_user_driver::net::NetDriver;
use vhost_user_driver::{Error, Options};

/// How many frames a network may lose: those that come before there is anything to receive into.
const LOST: u32 = 5;

/// Several pairs (`VIRTIO_NET_F_MQ`): without, the third queue would be the one for control.
pub(crate) fn options(queues: u16) -> Options {
    Options { queues, features: Options::net().features | 1 << 22, ..Options::net() }
}

/// A frame to another station than the card: one that was told nothing takes it.
pub(crate) fn frame(pair: usize, number: u32) -> Vec<u8> {
    let mut frame = vec![0xff; 60 + number as usize % 1400];
    frame[..6].copy_from_slice(&[2, 0, 0, 0, 1, pair as u8]);
    frame[6..12].copy_from_slice(&[2, 0, 0, 0, 0, pair as u8]);
    frame[12..14].copy_from_slice(&[0x08, 0x00]);
    let at = frame.len() - 4;
    frame[at..].copy_from_slice(&number.to_le_bytes());
    frame
}

/// So many frames over each pair, each there and back before the next.
pub(crate) fn round_trips(driver: &mut NetDriver, count: u32) {
    std::thread::scope(|scope| {
        for (pair, (receiver, sender)) in driver.pairs.iter_mut().enumerate() {
            scope.spawn(move || {
                let (mut back, mut lost) = ([0; 2048], 0);
                for number in 0..count {
                    let sent = frame(pair, number);
                    loop {
                        assert!(sender.send(&sent).unwrap(), "a buffer");
                        sender.publish().unwrap();
                        match receiver.next(&mut back, Duration::from_secs(2)) {
                            Ok(len) if back[..len] == sent => break,
                            Ok(len) => panic!("pair {pair}, frame {number}: another of {len} bytes"),
                            Err(Error::TimedOut) => lost += 1,
                            Err(error) => panic!("pair {pair}, frame {number}: {error}"),
                        }
                        assert!(lost < LOST, "pair {pair}, frame {number}: lost again and again");
                    }
                }
            });
        }
    });
}
