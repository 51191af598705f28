//! What was promised to be durable is there after a loss of power.

use super::{Profile, Report, ensure, new_driver, words};
use crate::backend::Backend;
use crate::pipeline::BoxBackend;
use crate::request::block::{BlockRequest, Durability};
use crate::test_utils::driver::Driver;
use crate::test_utils::power_loss::{PowerLossConfig, PowerLossDisk, Sabotage};
use crate::test_utils::rng::Rng;
use crate::test_utils::workload::{Violation, Workload, WorkloadConfig};

/// The disks that a stack is put above, and the rule of each.
pub const RULES: [(&str, Durability, bool); 3] = [
    ("durability/write-through", Durability::WriteThrough, true),
    ("durability/write-back", Durability::WriteBack, true),
    ("durability/write-back-no-fua", Durability::WriteBack, false),
];

/// The rule of an honest stack: what is durable below is not called less than durable above, and the reverse.
pub const HONEST: &str = "durability/honest";

/// Logical blocks of a disk.
const BLOCKS: u64 = 128;

/// A stack above a disk that loses power.
pub type StackFactory<'a> = dyn Fn(BoxBackend<BlockRequest>) -> BoxBackend<BlockRequest> + 'a;

/// Puts the stack above disks of every durability, cuts the power [`Profile::rounds`] times in the middle of load, puts the
/// stack together anew above what survived, and checks by what the **stack** promised.
///
/// The stack is driven as a front-end does it: FUA is emulated where the stack lacks it.
pub fn run(stack: &StackFactory<'_>, profile: &Profile) -> Report {
    run_on(stack, profile, None)
}

/// The same above a broken disk: to show that the suite fails.
pub fn run_sabotaged(stack: &StackFactory<'_>, profile: &Profile, sabotage: Sabotage) -> Report {
    run_on(stack, profile, Some(sabotage))
}

fn run_on(stack: &StackFactory<'_>, profile: &Profile, sabotage: Option<Sabotage>) -> Report {
    let profile = profile.resolved();
    let mut report = Report::new(&profile);
    report.add(&profile, HONEST, || honest(stack));
    for (rule, durability, fua) in RULES {
        let capacity = BLOCKS * 4096;
        let mut config = PowerLossConfig::new(capacity).durability(durability).fua(fua);
        config.sabotage = sabotage;
        report.add(&profile, rule, || cuts(stack, &config, &profile));
    }
    report
}

/// A stack over a disk that promises nothing promises nothing.
fn honest(stack: &StackFactory<'_>) -> Result<u64, String> {
    let disk = PowerLossDisk::boxed(PowerLossConfig::new(BLOCKS * 4096).durability(Durability::Unsafe));
    let caps = stack(disk).caps();
    ensure!(
        caps.durability == Durability::Unsafe,
        "above a disk that promises nothing the stack promises {:?}",
        caps.durability
    );
    Ok(1)
}

fn cuts(stack: &StackFactory<'_>, config: &PowerLossConfig, profile: &Profile) -> Result<u64, String> {
    let mut driver = new_driver(profile.seed, profile)?;
    let mut rng = Rng::new(profile.seed);
    for round in 0..profile.rounds {
        let seed = rng.next_u64();
        one_life(stack, &config.clone().seed(seed), &mut driver, seed, profile)
            .map_err(|violation| format!("round {round}: {violation}"))?;
    }
    Ok(profile.rounds)
}

/// Load, a cut in its midst, a check; and all of it once more on what survived.
fn one_life(
    stack: &StackFactory<'_>,
    config: &PowerLossConfig,
    driver: &mut Driver,
    seed: u64,
    profile: &Profile,
) -> Result<(), Violation> {
    let mut rng = Rng::new(seed);
    driver.reseed(rng.next_u64());
    let (disk, mut power) = PowerLossDisk::new(config.clone());
    let mut top = stack(BoxBackend::new(disk));
    let caps = top.caps();
    let block = u64::from(caps.logical_block);
    // Few blocks, so that the same ones are written again and again.
    let blocks = (caps.capacity / block).min(rng.between(4, 24));
    let plan = WorkloadConfig { max_blocks: 4, ..WorkloadConfig::new(&caps, blocks) };
    let mut load = Workload::new(plan, &caps, rng.next_u64());
    let depth = profile.depth.min(rng.between(1, 16) as u32);
    for _ in 0..2 {
        let opened = driver.open_with_fua(&top, depth);
        opened.map_err(|error| Violation::Failed(words(error)))?;
        load.run(driver, rng.between(1, 40))?;
        // The power goes while requests are in flight; the stack goes with it.
        driver.close();
        drop(top);
        let (disk, handle) = power.cut(rng.next_u64());
        power = handle;
        top = stack(BoxBackend::new(disk));
        let opened = driver.open_with_fua(&top, depth);
        opened.map_err(|error| Violation::Failed(words(error)))?;
        load.verify_after_cut(driver)?;
    }
    Ok(())
}
