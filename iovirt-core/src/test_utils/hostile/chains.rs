//! Broken chains, and chains that only look broken.

use super::driver::flag::{NEXT, WRITE};
use super::{Answer, Bench, Case, Direction, QueueSetup, Split, ensure, feature};

pub(super) const CASES: &[Case] = &[
    ("chain-loops", loops),
    ("chain-to-nowhere", to_nowhere),
    ("chain-memory-to-nowhere", memory_to_nowhere),
    ("chain-wrong-direction", wrong_direction),
    ("chain-readable-after-writable", readable_after_writable),
    ("chain-zero-lengths", zero_lengths),
    ("chain-index-jumps", index_jumps),
    ("chain-offered-again", offered_again),
];

/// A chain that comes back to itself, at any length.
fn loops(bench: &mut Bench<'_>) -> Result<u64, String> {
    let mut count = 0;
    for len in 1..=16 {
        bench.start()?;
        let at = bench.driver.layout().buffers;
        for index in 0..len {
            let next = if index + 1 == len { bench.rng.below(u64::from(len)) as u16 } else { index + 1 };
            bench.driver.desc(index, (at, 16), NEXT, next);
        }
        bench.driver.offer(0);
        bench.driver.kick();
        bench.expect(&format!("a loop of {len}"), Answer::NeedsReset)?;
        count += 1;
    }
    Ok(count)
}

/// Heads and next descriptors that do not exist.
fn to_nowhere(bench: &mut Bench<'_>) -> Result<u64, String> {
    let beyond = [16, 17, 255, 1024, 0x7fff, 0x8000, 0xffff];
    bench.start()?;
    for &index in &beyond {
        bench.driver.offer(index);
        bench.driver.kick();
        bench.expect(&format!("head {index}"), Answer::NeedsReset)?;
        bench.driver.desc(0, (bench.driver.layout().buffers, 16), NEXT, index);
        bench.driver.offer(0);
        bench.driver.kick();
        bench.expect(&format!("next {index}"), Answer::NeedsReset)?;
    }
    Ok(2 * beyond.len() as u64)
}

/// Buffers that are not, or not all, in memory, and those whose end overflows.
fn memory_to_nowhere(bench: &mut Bench<'_>) -> Result<u64, String> {
    let end = bench.driver.layout().end;
    let mut bad = vec![(u64::MAX, 1), (u64::MAX - 15, 16), (u64::MAX - 7, 16), (1 << 63, 512), (0, u32::MAX)];
    bad.extend([(end - 1, u32::MAX), (u64::MAX - u64::from(u32::MAX), u32::MAX), (end - 512, 0x8000_0000)]);
    bench.start()?;
    for &buffer in &bad {
        for flags in [0, WRITE] {
            bench.driver.desc(0, buffer, flags, 0);
            bench.driver.offer(0);
            bench.driver.kick();
            bench.expect(&format!("a buffer at {buffer:#x?}"), Answer::NeedsReset)?;
        }
    }
    Ok(2 * bad.len() as u64)
}

/// A request that can only be read, one that can only be written, and one without any buffer.
fn wrong_direction(bench: &mut Bench<'_>) -> Result<u64, String> {
    bench.start()?;
    let at = bench.driver.layout().buffers;
    for (what, flags, len) in [("only readable", 0, 1024), ("only writable", WRITE, 1024), ("empty", 0, 0)] {
        bench.driver.put(at, &[0; 1024]);
        bench.driver.look_at(at);
        bench.driver.desc(0, (at, len), flags, 0);
        bench.driver.offer(0);
        bench.driver.kick();
        let is_served = match bench.profile.direction {
            Direction::Both => false,
            // What cannot be sent is given back.
            Direction::Readable => true,
            Direction::Writable => flags == WRITE,
        };
        bench.expect(what, if is_served { Answer::Returned(0) } else { Answer::NeedsReset })?;
    }
    Ok(3)
}

/// The specification forbids it (2.7.4.2).
fn readable_after_writable(bench: &mut Bench<'_>) -> Result<u64, String> {
    for indirect in [false, true] {
        bench.start()?;
        let exchange = &bench.profile.exchanges[0];
        let mut buffers = bench.driver.lay_out(exchange, &Split::whole(), 0);
        buffers.push(super::Buffer { addr: bench.driver.layout().buffers, len: 1, writable: false });
        bench.driver.chain(&buffers, indirect, 0);
        bench.driver.offer(0);
        bench.driver.kick();
        bench.expect("a readable buffer in the end", Answer::NeedsReset)?;
    }
    Ok(2)
}

/// Descriptors of no bytes add nothing, wherever they point.
fn zero_lengths(bench: &mut Bench<'_>) -> Result<u64, String> {
    let mut count = 0;
    for addr in [0, bench.driver.layout().buffers, u64::MAX] {
        for place in 0..=2 {
            bench.start()?;
            let exchange = &bench.profile.exchanges[0];
            let mut buffers = bench.driver.lay_out(exchange, &Split::whole(), 0);
            buffers.insert(place, super::Buffer { addr, len: 0, writable: place == 2 });
            bench.driver.chain(&buffers, place == 1, 0);
            bench.driver.offer(0);
            bench.driver.kick();
            bench.expect(&format!("no bytes at {addr:#x}, place {place}"), Answer::Returned(0))?;
            count += 1;
        }
    }
    Ok(count)
}

/// An available index that goes back, or ahead by more than the ring has entries.
fn index_jumps(bench: &mut Bench<'_>) -> Result<u64, String> {
    let jumps = [17, 18, 256, 0x7fff, 0x8000, 0xfff0, 0xffff];
    for jump in jumps {
        for served_before in [false, true] {
            bench.start()?;
            if served_before {
                bench.serve_now()?;
            }
            let from = u16::from(served_before);
            bench.driver.store(bench.driver.layout().avail + 2, from.wrapping_add(jump));
            bench.driver.kick();
            bench.expect(&format!("a jump by {jump}"), Answer::NeedsReset)?;
        }
    }
    Ok(2 * jumps.len() as u64)
}

/// One chain in every entry of the ring, ring after ring: as many come back as were offered.
fn offered_again(bench: &mut Bench<'_>) -> Result<u64, String> {
    let layout = bench.driver.layout();
    bench.driver.start(feature::ALL, &QueueSetup::good(&layout, 16))?;
    let exchange = &bench.profile.exchanges[0];
    bench.driver.lay_out(exchange, &Split::whole(), 3);
    for round in 1..=20_u16 {
        for _ in 0..16 {
            bench.driver.offer(3);
        }
        bench.driver.kick();
        bench.driver.wait(|driver| driver.used_index() == round * 16)?;
    }
    let mut count = 0;
    while let Some((head, _)) = bench.driver.take_used() {
        ensure!(head == 3, "chain {head} came back");
        count += 1;
        if count == 320 {
            break;
        }
    }
    Ok(count)
}
