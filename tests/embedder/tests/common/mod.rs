//! What the tests share: images on the host, and content that can be told apart.

#![allow(dead_code, reason = "each test uses what it needs")]

use iovirt_embedder::guest::disk::{DEPTH, Disk, Op};
use iovirt_embedder::machine::{Memory, Window};
use iovirt_embedder::{Error, PATIENCE};
use std::collections::HashMap;
use std::path::Path;
use std::thread;
use std::time::Instant;
use tempfile::NamedTempFile;

/// Size of every image in bytes.
pub const IMAGE: u64 = 4 << 20;
/// Bytes of a block of the load.
pub const BLOCK: usize = 4096;
/// Sectors of 512 bytes in a block.
pub const SECTORS: u64 = BLOCK as u64 / 512;
/// Where the disk's driver has its memory.
pub const DISK_MEMORY: u64 = 0x10_0000;

/// An empty image.
pub fn image() -> NamedTempFile {
    let file = NamedTempFile::new().expect("a temporary file");
    file.as_file().set_len(IMAGE).expect("a size");
    file
}

/// Waits for something that another thread brings about.
pub fn until(what: &str, mut holds: impl FnMut() -> bool) -> Result<(), Error> {
    let started = Instant::now();
    while !holds() {
        if started.elapsed() > PATIENCE {
            return Err(format!("{what}: not after {PATIENCE:?}").into());
        }
        thread::yield_now();
    }
    Ok(())
}

/// A small generator: the tests are the same every time, and the seed can be changed here.
pub struct Rng(u64);

impl Rng {
    pub fn new() -> Self {
        Self(0x9e37_79b9_7f4a_7c15)
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

/// Bytes that say which write of which block put them there.
pub fn content(block: u64, version: u64, len: usize) -> Vec<u8> {
    let words = (0..).map(|at: u64| (block << 40 | version << 16 | at).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    words.flat_map(u64::to_le_bytes).take(len).collect()
}

/// A load of writes to random blocks, never two of one block at a time, that knows what the disk holds.
pub struct Load {
    rng: Rng,
    version: u64,
    /// What was written last to each block.
    pub holds: HashMap<u64, u64>,
    busy: HashMap<usize, u64>,
}

impl Load {
    pub fn new() -> Self {
        Self { rng: Rng::new(), version: 0, holds: HashMap::new(), busy: HashMap::new() }
    }

    /// Fills the disk's depth with writes.
    pub fn submit(&mut self, disk: &mut Disk, window: &Window, memory: &Memory) -> Result<(), Error> {
        while disk.idle() > 0 {
            let block = self.rng.below(IMAGE / BLOCK as u64);
            if self.busy.values().any(|busy| *busy == block) {
                continue;
            }
            self.version += 1;
            let data = content(block, self.version, BLOCK);
            let slot = disk.submit(memory, Op::Write, block * SECTORS, &data)?;
            self.busy.insert(slot, block);
            self.holds.insert(block, self.version);
        }
        disk.ring(window)
    }

    /// Waits for some of them.
    pub fn reap(&mut self, disk: &mut Disk, window: &Window, memory: &Memory) -> Result<(), Error> {
        for finished in disk.wait(window, memory)? {
            assert_eq!(finished.status, 0, "a write failed");
            self.busy.remove(&finished.slot);
        }
        Ok(())
    }

    /// Waits for all of them.
    pub fn finish(&mut self, disk: &mut Disk, window: &Window, memory: &Memory) -> Result<(), Error> {
        while disk.idle() < DEPTH {
            self.reap(disk, window, memory)?;
        }
        Ok(())
    }

    /// Reads every block that was written through the device, and again from the image; `stored` makes of what the guest
    /// wrote what the image holds.
    pub fn verify(
        &self,
        disk: &mut Disk,
        (window, memory): (&Window, &Memory),
        image: &Path,
        stored: impl Fn(Vec<u8>) -> Vec<u8>,
    ) -> Result<(), Error> {
        disk.run(window, memory, (Op::Flush, 0), &[])?;
        let host = std::fs::read(image)?;
        for (&block, &version) in &self.holds {
            let wanted = content(block, version, BLOCK);
            let found = disk.run(window, memory, (Op::Read, block * SECTORS), &[0; BLOCK])?;
            assert!(found == wanted, "block {block} is not what the guest wrote");
            let at = block as usize * BLOCK;
            assert!(
                host[at..at + BLOCK] == stored(wanted),
                "block {block} of the image is not what was written"
            );
        }
        Ok(())
    }
}
