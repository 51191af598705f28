//! For stages that judge frames: none that is refused is seen by anybody, and none is changed once it was judged.

use super::{DEPTH, Line, NetDriver, Wire, WireConfig, ensure, frame};
use crate::backend::Backend;
use crate::dma::DmaSpace;
use crate::pipeline::BoxBackend;
use crate::request::net::NetRequest;
use crate::test_utils::conformance::{Profile, Report};
use crate::test_utils::rng::Rng;
use std::sync::{Arc, Mutex, PoisonError};

/// Says of a frame whether it may pass.
pub type Verdicts = Arc<dyn Fn(&[u8]) -> bool + Send + Sync>;

/// Puts a stage that obeys these verdicts, both ways, above a network.
pub type JudgeFactory<'a> = dyn Fn(Verdicts, BoxBackend<NetRequest>) -> BoxBackend<NetRequest> + 'a;

/// The rules of a stage that judges.
pub const JUDGE_RULES: [&str; 3] = ["judge/unseen", "judge/token-again", "judge/stable"];

/// Runs every rule on fresh stacks over a [`Wire`].
pub fn judge(factory: &JudgeFactory<'_>, profile: &Profile) -> Report {
    let profile = profile.resolved();
    let mut report = Report::new(&profile);
    report.add(&profile, JUDGE_RULES[0], || unseen(factory, &profile));
    report.add(&profile, JUDGE_RULES[1], || token_again(factory, &profile));
    report.add(&profile, JUDGE_RULES[2], || stable(factory, &profile));
    report
}

/// Where a frame says whether it may pass.
const MARK: usize = 19;

fn marked(number: u32, good: bool) -> Vec<u8> {
    let mut frame = frame(number, 60);
    frame[MARK] = u8::from(good);
    frame
}

fn is_good(frame: &[u8]) -> bool {
    frame.get(MARK) == Some(&1)
}

/// A sender past the stage and a receiver above it, over one wire.
fn upward(factory: &JudgeFactory<'_>, profile: &Profile) -> Result<Line, String> {
    let wire = Wire::boxed(WireConfig::default());
    let stack = factory(Arc::new(is_good), wire.clone());
    Ok(Line {
        sender: NetDriver::new(&wire, 0, DEPTH)?,
        receiver: NetDriver::new(&stack, 0, DEPTH)?,
        caps: (*stack.caps()).clone(),
        backend: stack,
        patience: profile.patience,
    })
}

/// Good and bad frames in any order: the good ones come, as they were sent.
fn unseen(factory: &JudgeFactory<'_>, profile: &Profile) -> Result<u64, String> {
    let (mut line, mut rng) = (upward(factory, profile)?, Rng::new(profile.seed));
    for round in 0..profile.rounds {
        let batch: Vec<_> = (0..rng.between(1, u64::from(DEPTH) / 2))
            .map(|at| marked((round * 16 + at) as u32, rng.one_in(2)))
            .collect();
        let came = line.exchange(&batch).map_err(|error| format!("round {round}: {error}"))?;
        ensure!(came.iter().all(|frame| is_good(frame)), "round {round}: a frame that was refused was shown");
        let wanted: Vec<_> = batch.into_iter().filter(|frame| is_good(frame)).collect();
        ensure!(came == wanted, "round {round}: {} of {} good frames came", came.len(), wanted.len());
    }
    Ok(profile.rounds)
}

/// The tokens of bad frames are below again: as many good ones come behind them as there are tokens.
fn token_again(factory: &JudgeFactory<'_>, profile: &Profile) -> Result<u64, String> {
    let mut line = upward(factory, profile)?;
    line.receiver.post(DEPTH as usize);
    for round in 0..profile.rounds.div_ceil(4) {
        let bad: Vec<_> = (0..DEPTH).map(|number| marked(number, false)).collect();
        let came = line.exchange(&bad).map_err(|error| format!("round {round}: {error}"))?;
        ensure!(came.is_empty(), "round {round}: a frame that was refused was shown");
    }
    let good: Vec<_> = (0..DEPTH).map(|number| marked(number, true)).collect();
    line.carry(&good).map_err(|error| format!("behind frames that were refused: {error}"))?;
    Ok(profile.rounds.div_ceil(4))
}

/// A guest that changes a frame between the verdict and the wire: what comes out is what was judged.
fn stable(factory: &JudgeFactory<'_>, profile: &Profile) -> Result<u64, String> {
    let guest = Arc::new(Mutex::new(None::<(DmaSpace, u64, u64)>));
    let scribbles = guest.clone();
    let verdict = move |frame: &[u8]| {
        let good = is_good(frame);
        let guest = scribbles.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((space, base, slots)) = &*guest {
            // The first half of each frame in flight lies in a slot of the guest's.
            let mut bad = marked(u32::MAX, false);
            bad.truncate(30);
            for slot in 0..*slots {
                // The driver's memory is mapped.
                let _ = space.view().write(base + slot * super::driver::SLOT, &bad);
            }
        }
        good
    };
    let wire = Wire::boxed(WireConfig::default());
    let stack = factory(Arc::new(verdict), wire.clone());
    let mut line = Line {
        sender: NetDriver::new(&stack, 0, DEPTH)?,
        receiver: NetDriver::new(&wire, 0, DEPTH)?,
        caps: (*stack.caps()).clone(),
        backend: stack,
        patience: profile.patience,
    };
    let slots = (line.sender.space().clone(), super::driver::BASE, u64::from(DEPTH));
    *guest.lock().unwrap_or_else(PoisonError::into_inner) = Some(slots);
    for number in 0..profile.rounds {
        let sent = marked(number as u32, true);
        let came = line.exchange(&[sent])?;
        ensure!(came.iter().all(|frame| is_good(frame)), "a frame was changed after it had been judged");
        ensure!(came.len() == 1, "{} frames came of one", came.len());
    }
    Ok(profile.rounds)
}
