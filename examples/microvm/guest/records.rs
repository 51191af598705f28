//! What the guest told: the debug port, and its records in words that people use.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;

use super::layout::{
    DeviceEntry, KIND_DEVICE, KIND_END, KIND_HELLO, KIND_PHASE, KIND_TROUBLE, Phase, TROUBLE_EXCEPTION,
    TROUBLE_NO_DEVICE, TROUBLE_REFUSED, TROUBLE_SILENT, TROUBLE_SMALL_QUEUE, WORDS, Word,
};
use crate::bus::BusDevice;

/// Records beyond this are not kept: a guest of ours has a handful for each device.
const MOST_RECORDS: usize = 256;

/// Takes records, and when they came.
#[derive(Debug, Default)]
pub(super) struct DebugPort(Mutex<Incoming>);

#[derive(Debug, Default)]
struct Incoming {
    partial: Vec<u32>,
    records: Vec<Record>,
}

/// One record.
#[derive(Clone, Copy, Debug)]
pub(super) struct Record {
    words: [u32; WORDS],
    came: Instant,
}

impl BusDevice for DebugPort {
    fn read(&self, _offset: u64, _data: &mut [u8]) {}

    fn write(&self, _offset: u64, data: &[u8]) {
        let Ok(word) = data.try_into().map(u32::from_le_bytes) else { return };
        let mut incoming = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        incoming.partial.push(word);
        if let Ok(words) = <[u32; WORDS]>::try_from(incoming.partial.as_slice()) {
            incoming.partial.clear();
            if incoming.records.len() < MOST_RECORDS {
                incoming.records.push(Record { words, came: Instant::now() });
            }
        }
    }
}

impl DebugPort {
    /// All records so far.
    pub(super) fn records(&self) -> Vec<Record> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).records.clone()
    }
}

impl Record {
    fn get(&self, word: Word) -> u32 {
        self.words[word as usize]
    }

    /// A number of two words.
    fn wide(&self, word: Word) -> u64 {
        let at = word as usize;
        u64::from(self.words[at]) | u64::from(self.words[at + 1]) << 32
    }

    fn device(&self) -> usize {
        self.get(Word::Offset) as usize / size_of::<DeviceEntry>()
    }
}

/// What the guest did with one device.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct GuestDevice {
    /// Entries of its queue.
    pub(crate) queue_size: u32,
    /// How much of a disk was used, in blocks, or the length of a frame.
    pub(crate) extent: u32,
    pub(crate) phases: Vec<PhaseReport>,
    /// What was not right, for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) trouble: Option<String>,
    /// Whether the image on the host holds what the guest wrote, where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) image_is_right: Option<bool>,
}

/// What the guest counted in one phase.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct PhaseReport {
    pub(crate) phase: Phase,
    pub(crate) requests: u32,
    /// How many of them were under way at a time, at most.
    pub(crate) batch: u32,
    pub(crate) bytes: u32,
    /// Bytes that were compared and found right.
    pub(crate) verified: u32,
    pub(crate) mismatches: u32,
    pub(crate) failures: u32,
    /// The block or frame that was the first to fail or not to match.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) first_bad: Option<u32>,
    pub(crate) doorbells: u32,
    pub(crate) interrupts: u32,
    /// How often the guest's processor slept.
    pub(crate) halts: u32,
    /// All of the phase, and from a doorbell to the last answer of its batch, in microseconds.
    pub(crate) micros: f64,
    pub(crate) wait_min: f64,
    pub(crate) wait_mean: f64,
    pub(crate) wait_max: f64,
}

/// Whether the guest ran at all.
pub(super) fn said_hello(records: &[Record]) -> bool {
    records.iter().any(|record| record.get(Word::Kind) == KIND_HELLO)
}

/// Whether the guest came to its end.
pub(super) fn said_end(records: &[Record]) -> bool {
    records.iter().any(|record| record.get(Word::Kind) == KIND_END)
}

/// What the guest did with each of `count` devices.
pub(super) fn by_device(records: &[Record], count: usize) -> Vec<GuestDevice> {
    let mut devices = vec![GuestDevice::default(); count];
    let clock = cycles_per_micro(records);
    for record in records {
        let Some(device) = devices.get_mut(record.device()) else { continue };
        match record.get(Word::Kind) {
            KIND_DEVICE => {
                device.queue_size = record.get(Word::Size);
                device.extent = record.get(Word::Value);
            }
            KIND_PHASE => device.phases.extend(phase(record, clock)),
            KIND_TROUBLE => device.trouble = Some(trouble(record)),
            _ => {}
        }
    }
    for device in &mut devices {
        if device.trouble.is_none() {
            device.trouble = device.phases.iter().find_map(PhaseReport::trouble);
        }
    }
    devices
}

/// The speed of the guest's clock: it was read when the first and when the last record was sent.
fn cycles_per_micro(records: &[Record]) -> f64 {
    let [first, .., last] = records else { return 1.0 };
    let micros = (last.came - first.came).max(Duration::from_micros(1)).as_secs_f64() * 1e6;
    let read = |record: &Record| match record.get(Word::Kind) {
        KIND_PHASE => record.wide(Word::End),
        _ => record.wide(Word::Start),
    };
    (read(last).saturating_sub(read(first)) as f64 / micros).max(1.0)
}

fn phase(record: &Record, cycles_per_micro: f64) -> Option<PhaseReport> {
    let phase = Phase::ALL.into_iter().find(|phase| *phase as u32 == record.get(Word::What))?;
    let micros = |cycles: u64| cycles as f64 / cycles_per_micro;
    let bad = record.get(Word::Mismatches) > 0 || record.get(Word::Failures) > 0;
    let batches = match phase {
        Phase::Frames | Phase::FramesAlone if record.get(Word::Verified) > 0 => {
            record.get(Word::Doorbells) / 2
        }
        _ => record.get(Word::Doorbells),
    };
    Some(PhaseReport {
        phase,
        requests: record.get(Word::Requests),
        batch: record.get(Word::Requests).div_ceil(batches.max(1)),
        bytes: record.get(Word::Bytes),
        verified: record.get(Word::Verified),
        mismatches: record.get(Word::Mismatches),
        failures: record.get(Word::Failures),
        first_bad: bad.then(|| record.get(Word::FirstBad)),
        doorbells: record.get(Word::Doorbells),
        interrupts: record.get(Word::Interrupts),
        halts: record.get(Word::Halts),
        micros: micros(record.wide(Word::End).saturating_sub(record.wide(Word::Start))),
        wait_min: if batches == 0 { 0.0 } else { micros(record.get(Word::WaitMin).into()) },
        wait_mean: micros(record.wide(Word::Wait)) / f64::from(batches.max(1)),
        wait_max: micros(record.get(Word::WaitMax).into()),
    })
}

impl PhaseReport {
    /// What was not right.
    fn trouble(&self) -> Option<String> {
        let first = self.first_bad?;
        let what = match self.phase {
            Phase::Write => "blocks to be written",
            Phase::Flush => "flushes",
            Phase::Read | Phase::ReadAlone => "blocks that were read",
            Phase::Frames | Phase::FramesAlone => "frames",
        };
        let Self { requests, failures, mismatches, .. } = self;
        Some(format!(
            "of {requests} {what}, {failures} failed and {mismatches} did not hold what was written; the first was number {first}"
        ))
    }
}

/// Why the guest could not drive a device.
fn trouble(record: &Record) -> String {
    let value = record.get(Word::Value);
    match record.get(Word::What) {
        TROUBLE_NO_DEVICE => format!("the guest has no driver for what it found there ({value:#x})"),
        TROUBLE_REFUSED => format!("the device refuses the features {value:#x} and VERSION_1"),
        TROUBLE_SMALL_QUEUE => format!("a queue of {value} entries has no room for a single request"),
        TROUBLE_SILENT => "the first frame did not come back".to_owned(),
        TROUBLE_EXCEPTION => {
            format!("the guest stopped with an exception at, or with error code, {value:#x}")
        }
        other => format!("trouble {other}, {value:#x}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(kind: u32, set: &[(Word, u32)]) -> [u32; WORDS] {
        let mut words = [0; WORDS];
        words[Word::Kind as usize] = kind;
        for (word, value) in set {
            words[*word as usize] = *value;
        }
        words
    }

    fn tell(port: &DebugPort, words: &[u32]) {
        for word in words {
            port.write(0, &word.to_le_bytes());
        }
    }

    #[test]
    fn records_become_phases_and_troubles() {
        let port = DebugPort::default();
        let second = size_of::<DeviceEntry>() as u32;
        tell(&port, &record(KIND_HELLO, &[(Word::Start, 1000)]));
        let read = [
            (Word::What, Phase::Read as u32),
            (Word::Requests, 64),
            (Word::Mismatches, 2),
            (Word::FirstBad, 7),
            (Word::Doorbells, 4),
        ];
        tell(&port, &record(KIND_PHASE, &read));
        let small = [(Word::Offset, second), (Word::What, TROUBLE_SMALL_QUEUE), (Word::Value, 2)];
        tell(&port, &record(KIND_TROUBLE, &small));
        tell(&port, &record(KIND_END, &[(Word::Start, 5000)]));
        let records = port.records();
        assert!(said_hello(&records) && said_end(&records));
        let devices = by_device(&records, 2);
        assert_eq!(devices[0].phases[0].first_bad, Some(7));
        let trouble = devices[0].trouble.as_ref().unwrap();
        assert!(trouble.contains("2 did not hold") && trouble.contains("number 7"), "{trouble}");
        assert!(devices[1].trouble.as_ref().unwrap().contains("queue of 2 entries"));
    }

    #[test]
    fn what_no_guest_of_ours_says_is_harmless() {
        let port = DebugPort::default();
        port.write(0, &[1, 2]);
        for kind in 0..2000u32 {
            tell(&port, &record(kind % 7, &[(Word::Offset, kind * 1000), (Word::What, kind)]));
        }
        tell(&port, &[5]);
        let records = port.records();
        assert_eq!(records.len(), MOST_RECORDS);
        assert_eq!(by_device(&records, 1).len(), 1);
        assert!(by_device(&[], 0).is_empty());
    }
}
