//! A network card whose frames come back.

use iovirt::backends::net::loopback::LoopbackControl;
use iovirt::core::Frontend;
use iovirt_embedder::Error;
use iovirt_embedder::guest::net::Card;
use iovirt_embedder::machine::Machine;

/// A frame that says which one it is, to everybody.
fn frame(number: u32, len: usize) -> Vec<u8> {
    let mut frame = [[0xff; 6], [0x52, 0x54, 0, 0, 0, 1]].concat();
    frame.extend([0x88, 0xb5]);
    frame.extend(number.to_le_bytes());
    frame.extend((frame.len()..len).map(|at| (at as u32 ^ number) as u8));
    frame
}

#[test]
fn frames_come_back_equal_and_in_order() -> Result<(), Error> {
    let machine = Machine::new()?;
    let window = machine.plug("virtio-net,mac=52:54:00:00:00:01 -> stats -> valve -> loopback")?;
    let memory = machine.memory();
    let mut card = Card::start(&window, memory, 0x10_0000)?;
    let network = window.device().stages().control::<LoopbackControl>("loopback").ok_or("a loopback")?;
    // As on any network, a frame is lost that comes before somebody listens: the receiving queue starts on its own.
    while network.snapshot().carried == 0 {
        card.send(&window, memory, &[frame(u32::MAX, 60)])?;
        card.wait_for_sent(&window, memory)?;
    }
    assert_eq!(card.wait(&window, memory)?, [frame(u32::MAX, 60)]);
    let (mut sent, mut received) = (0, 0);
    while received < 1000u32 {
        let wave: Vec<_> = (sent..(sent + 16).min(1000))
            .map(|number| frame(number, 60 + (number * 7) as usize % 1400))
            .collect();
        sent += card.send(&window, memory, &wave)? as u32;
        while received < sent {
            for found in card.wait(&window, memory)? {
                assert!(found == frame(received, found.len()), "frame {received} came back as another");
                assert_eq!(found.len(), 60 + (received * 7) as usize % 1400);
                received += 1;
            }
        }
    }
    Ok(())
}
