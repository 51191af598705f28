//! Broken indirect tables.

use super::driver::flag::{INDIRECT, NEXT, WRITE};
use super::{Answer, Bench, Case, QueueSetup, Split, feature};

pub(super) const CASES: &[Case] = &[
    ("indirect-not-negotiated", not_negotiated),
    ("indirect-flags", flags),
    ("indirect-sizes", sizes),
    ("indirect-nowhere", nowhere),
    ("indirect-inside", inside),
    ("indirect-many-buffers", many_buffers),
];

/// Offers a good request through a table, and then changes the descriptor that points to it.
fn offer(bench: &mut Bench<'_>, change: impl FnOnce(&mut (u64, u32), &mut u16)) {
    let exchange = &bench.profile.exchanges[0];
    let split = Split { indirect: true, ..Split::whole() };
    let count = bench.driver.lay_out(exchange, &split, 0).len() as u32;
    let (mut buffer, mut flags) = ((bench.driver.layout().table, 16 * count), INDIRECT);
    change(&mut buffer, &mut flags);
    bench.driver.desc(0, buffer, flags, 1);
    bench.driver.offer(0);
    bench.driver.kick();
}

fn not_negotiated(bench: &mut Bench<'_>) -> Result<u64, String> {
    let without = feature::ALL & !feature::INDIRECT_DESC;
    let layout = bench.driver.layout();
    bench.driver.start(without, &QueueSetup::good(&layout, 16))?;
    offer(bench, |_, _| {});
    bench.expect("a table that was not negotiated", Answer::NeedsReset)?;
    // Features do not change once they were accepted.
    bench.driver.start(without, &QueueSetup::good(&layout, 16))?;
    bench.driver.choose_features(feature::ALL);
    offer(bench, |_, _| {});
    bench.expect("a table that was negotiated too late", Answer::NeedsReset)?;
    Ok(2)
}

fn flags(bench: &mut Bench<'_>) -> Result<u64, String> {
    bench.start()?;
    offer(bench, |_, flags| *flags |= NEXT);
    bench.expect("a table with a next descriptor", Answer::NeedsReset)?;
    // Must be ignored (2.7.5.3.2).
    offer(bench, |_, flags| *flags |= WRITE);
    bench.expect("a table that the device may write", Answer::Returned(0))?;
    offer(bench, |_, flags| *flags |= 0xfff0);
    bench.expect("flags that nobody knows", Answer::Returned(0))?;
    Ok(3)
}

fn sizes(bench: &mut Bench<'_>) -> Result<u64, String> {
    bench.start()?;
    let bad = [0, 1, 15, 17, 31, 33, 16 * 1025, 16 * 65536, 0x8000_0000, 0xffff_fff0, u32::MAX];
    for len in bad {
        offer(bench, |buffer, _| buffer.1 = len);
        bench.expect(&format!("a table of {len} bytes"), Answer::NeedsReset)?;
    }
    offer(bench, |buffer, _| buffer.1 = 16 * 1024);
    bench.expect("a table with entries to spare", Answer::Returned(0))?;
    Ok(bad.len() as u64 + 1)
}

fn nowhere(bench: &mut Bench<'_>) -> Result<u64, String> {
    bench.start()?;
    let end = bench.driver.layout().end;
    let bad = [u64::MAX, u64::MAX - 31, u64::MAX - 15, 1 << 62, end + (1 << 40)];
    for addr in bad {
        offer(bench, |buffer, _| buffer.0 = addr);
        bench.expect(&format!("a table at {addr:#x}"), Answer::NeedsReset)?;
    }
    Ok(bad.len() as u64)
}

/// Nested tables, loops and next descriptors beyond the end, inside a table.
fn inside(bench: &mut Bench<'_>) -> Result<u64, String> {
    let layout = bench.driver.layout();
    let inner = |index: u64| layout.table + 16 * index;
    let table = layout.table;
    let tries: [(&str, u64, u16, u16); 5] = [
        ("a nested table", table, INDIRECT, 0),
        ("a nested table in the end", table, INDIRECT | NEXT, 1),
        ("a table that is a loop", layout.buffers, NEXT, 0),
        ("next behind the table", layout.buffers, NEXT, 2),
        ("next far behind the table", layout.buffers, NEXT, 0xffff),
    ];
    bench.start()?;
    for (what, addr, flags, next) in tries {
        for place in 0..2 {
            offer_broken(bench, inner(place), (addr, 16), flags, next);
            bench.expect(what, Answer::NeedsReset)?;
        }
    }
    Ok(10)
}

fn offer_broken(bench: &mut Bench<'_>, at: u64, buffer: (u64, u32), flags: u16, next: u16) {
    let exchange = &bench.profile.exchanges[0];
    let split = Split { indirect: true, ..Split::whole() };
    bench.driver.lay_out(exchange, &split, 0);
    // The first descriptor always leads to the second.
    bench.driver.desc_at(bench.driver.layout().table, (bench.driver.layout().buffers, 16), NEXT, 1);
    bench.driver.desc_at(at, buffer, flags, next);
    bench.driver.offer(0);
    bench.driver.kick();
}

/// As many buffers as a table may have, of one byte each: more than any device takes, or as many as it takes.
fn many_buffers(bench: &mut Bench<'_>) -> Result<u64, String> {
    for len in [300, 1000, 1024_u32] {
        bench.start()?;
        let exchanges = bench.profile.exchanges.iter();
        let Some(exchange) = exchanges.max_by_key(|exchange| exchange.writable) else { return Ok(0) };
        let cuts = (1..len - 1).map(|cut| cut.min(exchange.writable)).collect();
        let split = Split { writable: cuts, indirect: true, ..Split::whole() };
        bench.driver.lay_out(exchange, &split, 0);
        bench.driver.offer(0);
        bench.driver.kick();
        let answer = bench.driver.answer();
        super::ensure!(matches!(answer, Answer::Returned(_)), "{len} buffers: the answer was {answer:?}");
    }
    Ok(3)
}
