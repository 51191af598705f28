//! What is left to be done to frames goes with them to who takes it, and to nobody else.

use super::{Bench, Line, Rule, ensure};
use crate::request::net::{NetCaps, NetOutput, Offload, Offloads};

pub(super) const RULES: &[Rule] = &[("net/offloads", offloads)];

/// Length of the headers of the frames below in bytes.
const HEADERS: usize = 54;

/// A frame of TCP over IPv4 that is to be summed up, and cut into three where `gso_type` says so.
fn unfinished(caps: &NetCaps, gso_type: u8) -> (Vec<u8>, Offload) {
    let gso_size = (caps.mtu - 40).min(1000);
    let payload = if gso_type == 0 { gso_size } else { gso_size * 2 + gso_size / 2 };
    let mut frame = vec![2; 12];
    let [high, low] = (payload + 40).to_be_bytes();
    frame.extend([8, 0, 0x45, 0, high, low, 0, 1, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    frame.extend([0, 80, 0, 81, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 1, 0, 0, 0, 0, 0]);
    frame.extend((0..payload).map(|at| (at ^ at >> 7) as u8));
    let gso_size = if gso_type == 0 { 0 } else { gso_size };
    let hdr_len = HEADERS as u16;
    (
        frame,
        Offload { flags: Offload::NEEDS_CSUM, gso_type, hdr_len, gso_size, csum_start: 34, csum_offset: 16 },
    )
}

fn offloads(bench: &mut Bench<'_>) -> Result<u64, String> {
    let mut count = 0;
    for accepted in [Offloads::all(), Offloads::CSUM, Offloads::empty()] {
        for gso_type in [0, Offload::GSO_TCPV4] {
            let mut line = bench.open()?;
            let (frame, offload) = unfinished(&line.caps, gso_type);
            let needed = offload.check(frame.len() as u64).map_err(|error| error.to_string())?;
            // What a network does not take it has to refuse, by another rule.
            if line.caps.tx_offloads.contains(needed) {
                carry(&mut line, (&frame, offload), accepted, needed)?;
                count += 1;
            }
        }
    }
    Ok(count)
}

/// Sends the frame to a receiver that accepts so much.
fn carry(
    line: &mut Line,
    (frame, offload): (&[u8], Offload),
    accepted: Offloads,
    needed: Offloads,
) -> Result<(), String> {
    line.receiver.post_accepting(4, accepted);
    let early = Line::settle(&mut line.receiver, line.patience)?;
    ensure!(early.is_empty(), "before any frame was sent, {} tokens came home", early.len());
    line.sender.send_offloaded(frame, offload);
    for (_, output, _) in line.all_sent()? {
        ensure!(output == NetOutput::Done, "a frame with {offload:?} gave {output:?}");
    }
    let home = Line::settle(&mut line.receiver, line.patience)?;
    let left = line.receiver.take_left();
    ensure!(home.len() == left.len() && !home.is_empty(), "a frame with {offload:?} did not come");
    let mut payload = Vec::new();
    for ((_, _, bytes), left) in home.iter().zip(&left) {
        let (len, longest) = (bytes.len(), line.caps.max_frame as usize);
        let is_accepted = left.check(len as u64).is_ok_and(|needed| accepted.contains(needed));
        ensure!(is_accepted, "{left:?} is left to a receiver that accepts {accepted:?}");
        ensure!(left.is_gso() || len <= longest, "{len} bytes came that are not to be cut");
        payload.extend_from_slice(bytes.get(HEADERS..).unwrap_or_default());
    }
    ensure!(payload == frame[HEADERS..], "the frames that came have another payload");
    if line.caps.rx_offloads.contains(needed) && accepted.contains(needed) {
        ensure!(left == [offload], "what was left to be done was {offload:?}, and came as {left:?}");
        ensure!(home[0].2 == frame, "a frame that was left as it is came as another");
    } else {
        let made =
            left.iter().zip(&home).all(|(left, (.., bytes))| !left.is_plain() || bytes[50..52] != [0; 2]);
        ensure!(made, "a frame came without a checksum, and nothing says so");
    }
    Ok(())
}
