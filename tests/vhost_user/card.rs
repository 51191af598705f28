//! A card whose server ends with frames in flight, and comes back.
//!
//! Nobody keeps a record of its chains: rings go on at the used index, as QEMU's cards do. [`NetDriver::reconnect`] looks for what
//! would be lost or returned twice; here frames are looked at.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::frames::{frame, options};
use vhost_user_driver::net::{NetDriver, Receiver, Sender};

/// How long frames may take until they flow again.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long a frame may take before another one is sent: stages drop some.
const AGAIN: Duration = Duration::from_millis(5);
/// Frames of each pair at the end, so that every buffer has its turn.
const AT_LAST: u32 = 600;

/// The number of a frame.
pub(crate) fn number(frame: &[u8]) -> u32 {
    frame.last_chunk().map_or(0, |last| u32::from_le_bytes(*last))
}

/// What one pair sent and received.
#[derive(Default)]
struct Flow {
    pair: usize,
    /// What each chain was, from the first that did not come home.
    offered: Vec<u32>,
    /// The next frame's number.
    next: u32,
    /// Frames from this one on may come.
    awaited: u32,
    received: u32,
}

impl Flow {
    /// Sends up to `count` frames, as many as there are buffers for, with chains between them that are none.
    fn send(&mut self, sender: &mut Sender, count: u32) {
        for _ in 0..count {
            let sent = frame(self.pair, self.next);
            if !sender.send(if self.next % 5 == 4 { &[] } else { &sent }).unwrap() {
                break;
            }
            self.offered.push(self.next);
            self.next += 1;
        }
        sender.publish().unwrap();
    }

    /// Takes the frames that are there, each of which comes behind the last.
    fn take(&mut self, receiver: &mut Receiver) {
        let mut back = [0; 2048];
        while let Some(len) = receiver.receive(&mut back).unwrap() {
            let (pair, came) = (self.pair, number(&back[..len]));
            assert!(back[..len] == frame(pair, came), "pair {pair}: frame {came} is not what was sent");
            let expected = self.awaited..self.next;
            assert!(expected.contains(&came), "pair {pair}: frame {came} where one of {expected:?} may come");
            self.awaited = came + 1;
            self.received += 1;
        }
        receiver.publish().unwrap();
    }

    /// The server has gone. Chains that came home have been sent, and only the others may be sent once more.
    fn end_of_life(&mut self, (receiver, sender): &mut (Receiver, Sender)) {
        self.take(receiver);
        let left = usize::from(sender.reclaim().unwrap());
        self.offered.drain(..self.offered.len() - left);
        self.awaited = self.offered.first().copied().unwrap_or(self.next);
    }

    /// Sends until frames come that the server's new life has seen first, and every chain is home.
    fn go_on(&mut self, (receiver, sender): &mut (Receiver, Sender), frames: u32) {
        let (first, begun) = (self.next, Instant::now());
        let enough = self.received + frames;
        while self.awaited <= first || self.received < enough || sender.reclaim().unwrap() > 0 {
            assert!(
                begun.elapsed() < PATIENCE,
                "pair {}: {} chains in flight",
                self.pair,
                sender.queue().ring().in_flight()
            );
            if self.awaited <= first || self.received < enough {
                self.send(sender, 3);
            }
            receiver.wait(AGAIN).unwrap();
            self.take(receiver);
        }
        self.offered.clear();
        let ring = receiver.queue().ring();
        assert_eq!(ring.in_flight(), ring.slots(), "buffers are with the device");
    }
}

/// A driver over a server that `start` gives, with its socket, and that ends where it is dropped: `lives` times, with frames in flight on
/// two pairs.
pub(crate) fn outlives_servers<S>(lives: u64, mut start: impl FnMut() -> (PathBuf, S)) {
    let (path, mut server) = start();
    let mut driver = NetDriver::connect(&path, &options(4)).unwrap();
    let mut flows = [0, 1].map(|pair| Flow { pair, ..Flow::default() });
    let mut cut_short = 0;
    for life in 0..lives {
        for (flow, (receiver, sender)) in flows.iter_mut().zip(&mut driver.pairs) {
            flow.send(sender, 1 + (life as u32 * 37 + flow.pair as u32 * 101) % 256);
            if life % 3 == 0 {
                flow.take(receiver);
            }
        }
        // In the middle of it, or before any of it.
        std::thread::sleep(Duration::from_micros(life % 7 * 60));
        drop(server);
        for (flow, pair) in flows.iter_mut().zip(&mut driver.pairs) {
            flow.end_of_life(pair);
            cut_short += flow.offered.len();
        }
        let path;
        (path, server) = start();
        driver.reconnect(&path).unwrap_or_else(|error| panic!("life {life}: {error}"));
        for (flow, pair) in flows.iter_mut().zip(&mut driver.pairs) {
            flow.go_on(pair, if life + 1 == lives { AT_LAST } else { 1 });
        }
    }
    println!("{lives} lives: {cut_short} chains in flight at their ends");
    assert!(cut_short > 0, "no server ended with a chain in flight");
    drop(server);
}
