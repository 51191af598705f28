//! Without a guest: the same pipelines, driven by the `virtio-drivers` crate in this process through the same registers.

use std::sync::Arc;
use std::time::{Duration, Instant};

use iovirt::core::irq::CountingInterrupt;
use iovirt::core::test_utils::virtio::{Arena, BlkDriver, BlkOp, BlkStatus, DriverError, Pump};
use iovirt::describe::Description;
use iovirt::registry::Registry;

use crate::devices::{Device, DeviceError, DeviceReport};
use crate::images::{self, Images};

/// How much of a disk is written and read back, in bytes.
const SPAN: u64 = 16 << 20;
/// Bytes of one request.
const BLOCK: usize = 4096;
/// Requests of one batch.
const DEPTH: u64 = 32;
/// How long a batch is waited for.
const LIMIT: Duration = Duration::from_secs(60);
/// Block features of the driver's side, event index, version 1.
const FEATURES: u64 = 0xffff | 1 << 29 | 1 << 32;

/// What is run where no pipeline was asked for.
pub(crate) const DEFAULT_PIPELINE: &str = "virtio-blk -> stats -> file,path=disk.img";

/// Why a pipeline did not pass.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RunError {
    #[error(transparent)]
    Device(#[from] DeviceError),
    #[error("the driver: {0}")]
    Driver(#[from] DriverError),
    #[error("a temporary image: {0}")]
    Image(#[from] std::io::Error),
    #[error("{0}")]
    Data(String),
}

/// What a pipeline was put through, and how it did.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) report: DeviceReport,
    /// What was checked, for people.
    pub(crate) checked: String,
    pub(crate) ran: Duration,
}

/// Writes, reads back and verifies through a pipeline. Files in it are replaced by temporary images, so that nobody's
/// data are written over.
pub(crate) fn run(registry: &Registry, description: &Description) -> Result<Run, RunError> {
    let mut description = description.clone();
    let images = Images::in_place_of_files(&mut description)?;
    let image = images.of_whole_disk(&description);
    let interrupt = Arc::new(CountingInterrupt::new());
    let device = Device::new(registry, description.clone(), Arena::get().space(), interrupt)?;
    let started = Instant::now();
    let mut driver = BlkDriver::connect(device.frontend(), Pump::threads(), FEATURES, BLOCK)?;
    let blocks = (driver.capacity() * 512).min(SPAN) / BLOCK as u64;
    let read_only = driver.features() & 1 << 5 != 0;
    let keeps_data = !read_only && device.keeps_data();
    if !read_only {
        transfer(&mut driver, BlkOp::Out, blocks, Compare::Off)?;
        if driver.run(BlkOp::Flush, 0, &mut [])? != BlkStatus::Ok {
            return Err(RunError::Data("the flush failed".into()));
        }
    }
    transfer(&mut driver, BlkOp::In, blocks, if keeps_data { Compare::On } else { Compare::Off })?;
    let ran = started.elapsed();
    let report = device.report();
    drop(driver);
    device.finish();
    drop(device);
    let done = match (read_only, keeps_data) {
        (true, _) => "read; the disk is read-only, so there is nothing to compare with",
        (false, false) => "written, flushed and read; the pipeline keeps no data to compare with",
        (false, true) => "written, flushed, read back and compared",
    };
    let mut checked = format!("{} MiB {done}", (blocks * BLOCK as u64) >> 20);
    if let Some(image) = image.filter(|_| keeps_data) {
        if let Some(block) = images::first_wrong(image, blocks, content)? {
            return Err(RunError::Data(format!("block {block} of the image is not what was written")));
        }
        checked.push_str("; the image on the host holds the same bytes");
    }
    Ok(Run { report, checked, ran })
}

/// Whether data must come back as they were written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Compare {
    On,
    Off,
}

/// One pass over the disk in batches.
fn transfer(driver: &mut BlkDriver, op: BlkOp, blocks: u64, compare: Compare) -> Result<(), RunError> {
    let mut next = 0;
    let mut of_slot = [0; 128];
    while next < blocks {
        let end = (next + DEPTH).min(blocks);
        for block in next..end {
            let slot = driver.submit(op, block * (BLOCK as u64 / 512), &content(block))?;
            of_slot[slot] = block;
        }
        driver.ring();
        let (started, mut wrong) = (Instant::now(), None);
        while !driver.batch_is_home() {
            if started.elapsed() > LIMIT {
                return Err(DriverError::TimedOut.into());
            }
            driver.transport().pump().step();
        }
        driver.poll(|slot, status, data| {
            if status != BlkStatus::Ok || compare == Compare::On && data != content(of_slot[slot]) {
                wrong = Some((of_slot[slot], status));
            }
        })?;
        if let Some((block, status)) = wrong {
            return Err(RunError::Data(format!(
                "block {block} did not come back as it was written ({status:?})"
            )));
        }
        next = end;
    }
    Ok(())
}

/// What stands in a block: its number, over and over, scrambled.
fn content(block: u64) -> [u8; BLOCK] {
    let mut bytes = [0; BLOCK];
    for (at, word) in (0u64..).zip(bytes.chunks_exact_mut(8)) {
        word.copy_from_slice(&((block << 9 | at).wrapping_mul(0x9e37_79b9_7f4a_7c15)).to_le_bytes());
    }
    bytes
}
