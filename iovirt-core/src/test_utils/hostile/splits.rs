//! A device must not care how a driver cuts a request into descriptors (2.7.4): any split gives what no split gives.

use super::{Bench, Case, QueueSetup, Split, ensure, feature};

pub(super) const CASES: &[Case] = &[("split-anywhere", anywhere)];

fn anywhere(bench: &mut Bench<'_>) -> Result<u64, String> {
    let layout = bench.driver.layout();
    let wanted = [feature::ALL, feature::ALL & !feature::EVENT_IDX];
    let mut count = 0;
    for round in 0..bench.profile.rounds {
        bench.driver.start(wanted[round as usize % 2], &QueueSetup::good(&layout, 64))?;
        for exchange in &bench.profile.exchanges {
            let whole = bench.driver.exchange(exchange, &Split::whole())?;
            exchange.check(&whole)?;
            let mut splits = vec![Split::random(&mut bench.rng, exchange, 60)];
            // A descriptor for each byte, where a device may be expected to take so many.
            if exchange.writable < 100 && exchange.readable.len() < 100 {
                splits.push(Split::bytes(exchange));
            }
            for split in splits {
                let answer = bench.driver.exchange(exchange, &split)?;
                exchange.check(&answer).map_err(|error| format!("{error}, with {split:?}"))?;
                ensure!(answer == whole, "{}: another answer than without {split:?}", exchange.name);
                count += 1;
            }
        }
    }
    Ok(count)
}
