//! What a network says of itself, and what it refuses.

use super::{Bench, NetDriver, Rule, ensure, frame};
use crate::backend::Backend;
use crate::request::net::{ETHERNET_HEADER, MacAddr, NetCaps, NetError, NetOutput, Offload, Offloads};

pub(super) const RULES: &[Rule] = &[
    ("net/caps", well_formed),
    ("net/caps-stable", stable),
    ("net/named", named),
    ("net/lengths", lengths),
    ("net/unsupported", unsupported),
];

fn well_formed(bench: &mut Bench<'_>) -> Result<u64, String> {
    let caps = bench.backend().caps();
    ensure!(caps.mtu >= NetCaps::MIN_MTU, "an MTU of {}", caps.mtu);
    let least = u32::from(caps.mtu) + ETHERNET_HEADER;
    ensure!(caps.max_frame >= least, "frames of at most {} where {least} follow", caps.max_frame);
    ensure!(caps.pairs > 0, "no pair of queues");
    for offloads in [caps.tx_offloads, caps.rx_offloads] {
        ensure!(offloads == offloads.sound(), "offloads without those that they go with: {offloads:?}");
    }
    ensure!(caps.mac.is_none_or(MacAddr::is_unicast), "the address {:?} is a group's", caps.mac);
    Ok(1)
}

fn stable(bench: &mut Bench<'_>) -> Result<u64, String> {
    let mut line = bench.open()?;
    line.carry(&[frame(0, 60)])?;
    let (before, after) = (&line.caps, line.backend.caps());
    ensure!(*before == *after, "the capabilities changed from {before:?} to {after:?} without a reason");
    Ok(1)
}

fn named(bench: &mut Bench<'_>) -> Result<u64, String> {
    let stages = bench.backend().list_stages();
    ensure!(stages.iter().next().is_some(), "the stack names no stage");
    for stage in stages.iter() {
        let plain = |letter: char| letter.is_ascii_lowercase() || letter.is_ascii_digit() || letter == '-';
        let good = !stage.name.is_empty() && stage.name.chars().all(plain);
        ensure!(good, "{:?} is no name that a description could have", stage.name);
    }
    Ok(stages.iter().count() as u64)
}

fn lengths(bench: &mut Bench<'_>) -> Result<u64, String> {
    let mut line = bench.open()?;
    let (least, most) = (ETHERNET_HEADER as usize, line.caps.max_frame as usize);
    let refused = NetOutput::Failed(NetError::BadLength);
    let cases = [
        (1, refused),
        (least - 1, refused),
        (least, NetOutput::Done),
        (most, NetOutput::Done),
        (most + 1, refused),
    ];
    for (len, wanted) in cases {
        line.sender.send([vec![0x5a; len].as_slice()]);
        let home = line.all_sent()?;
        ensure!(
            home.len() == 1 && home[0].1 == wanted,
            "a frame of {len} bytes gave {:?}, not {wanted:?}",
            home.first().map(|home| home.1)
        );
    }
    Ok(5)
}

/// Headers that the network must refuse for a frame of 60 bytes: of offloads that it lacks, and such as describe no frame.
fn refused_offloads(caps: &NetCaps) -> Vec<Offload> {
    let sum = Offload { flags: 1, csum_start: 34, csum_offset: 16, ..Offload::default() };
    let cut = Offload { gso_type: 1, gso_size: 20, hdr_len: 54, ..sum };
    let six = Offload { gso_type: 4, csum_start: 40, ..cut };
    let lacking = [
        (Offloads::CSUM, sum),
        (Offloads::TSO4, cut),
        (Offloads::TSO6, six),
        (Offloads::ECN, Offload { gso_type: 0x81, ..cut }),
    ];
    let lacking = lacking.into_iter().filter(|(offload, _)| !caps.tx_offloads.contains(*offload));
    let senseless = [
        Offload { csum_start: 59, ..sum },
        Offload { csum_start: u16::MAX, csum_offset: u16::MAX, ..sum },
        Offload { flags: 0, ..cut },
        Offload { gso_size: 0, ..cut },
        Offload { gso_size: u16::MAX, ..cut },
        Offload { gso_type: 3, ..cut },
        Offload { gso_type: 0xff, ..cut },
    ];
    lacking.map(|(_, offload)| offload).chain(senseless).collect()
}

/// What a stack cannot do it refuses, and does not.
fn unsupported(bench: &mut Bench<'_>) -> Result<u64, String> {
    let mut line = bench.open()?;
    let refused = NetOutput::Failed(NetError::Unsupported);
    for offload in refused_offloads(&line.caps) {
        line.sender.send_offloaded(&frame(0, 60), offload);
        let home = line.all_sent()?;
        ensure!(home[0].1 == refused, "{offload:?} gave {:?}", home[0].1);
    }
    // A pair that there is not: one way and the other.
    let pair = line.caps.pairs;
    let mut beyond = NetDriver::new(&line.backend, pair, 2)?;
    beyond.send([frame(0, 60).as_slice()]);
    beyond.post(1);
    std::mem::swap(&mut line.sender, &mut beyond);
    for (op, output, _) in line.all_sent()? {
        ensure!(output == refused, "a {op:?} on pair {pair}, which there is not, gave {output:?}");
    }
    Ok(4)
}
