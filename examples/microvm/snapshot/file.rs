//! The file: what the machine is, and its memory.
//!
//! | part | bytes |
//! |---|---|
//! | magic | `IOVIRTVM` |
//! | version of the file | 4 |
//! | length of the head | 4 |
//! | the head | an envelope of its own, with its checksum |
//! | blocks of memory | address (8), length (4), CRC-32 of these and the bytes (4), the bytes |
//! | end | all ones (8), 0 (4), CRC-32 of this and the number (4), the number of blocks (8) |
//!
//! Numbers are little-endian. Blocks are whole pages, at most 1 MiB, in ascending order of addresses. Pages of zeroes are left
//! out.

use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

use super::SnapshotError;

const MAGIC: [u8; 8] = *b"IOVIRTVM";
const VERSION: u32 = 1;
/// The longest head: many times what the largest machine has.
const LONGEST_HEAD: u32 = 64 << 20;
const PAGE: usize = 4096;
const BLOCK: usize = 1 << 20;
const END: u64 = u64::MAX;
/// Address, length, checksum.
const BLOCK_HEAD: usize = 16;

/// Writes a file that is there as a whole, or not at all.
pub(crate) fn write(
    path: &Path,
    memory: &GuestMemoryMmap,
    head: &[u8],
    still_true: impl FnOnce() -> Result<(), SnapshotError>,
) -> Result<u64, SnapshotError> {
    let unfinished = Unfinished::create(path)?;
    let bytes = write_to(&unfinished.file, memory, head).map_err(unfinished.error())?;
    still_true()?;
    unfinished.finish(path)?;
    Ok(bytes)
}

/// A file under another name, which is removed if it does not get its own.
struct Unfinished {
    file: File,
    path: PathBuf,
    finished: bool,
}

impl Unfinished {
    fn create(target: &Path) -> Result<Self, SnapshotError> {
        let mut name = target.file_name().unwrap_or_default().to_os_string();
        name.push(format!(".{}.part", std::process::id()));
        let path = target.with_file_name(name);
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
        let file = file.map_err(|source| SnapshotError::File { path: path.clone(), source })?;
        Ok(Self { file, path, finished: false })
    }

    fn error(&self) -> impl Fn(io::Error) -> SnapshotError + use<'_> {
        |source| SnapshotError::File { path: self.path.clone(), source }
    }

    fn finish(mut self, target: &Path) -> Result<(), SnapshotError> {
        self.file.sync_all().map_err(self.error())?;
        std::fs::rename(&self.path, target).map_err(self.error())?;
        self.finished = true;
        let folder = target.parent().filter(|folder| !folder.as_os_str().is_empty());
        let folder = File::open(folder.unwrap_or(Path::new("."))).and_then(|folder| folder.sync_all());
        folder.map_err(self.error())
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if !self.finished {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn write_to(file: &File, memory: &GuestMemoryMmap, head: &[u8]) -> io::Result<u64> {
    let mut out = BufWriter::with_capacity(BLOCK, file);
    let len = u32::try_from(head.len()).ok().filter(|len| *len <= LONGEST_HEAD);
    let len = len.ok_or_else(|| io::Error::other("the machine's state is too large"))?;
    out.write_all(&MAGIC)?;
    out.write_all(&VERSION.to_le_bytes())?;
    out.write_all(&len.to_le_bytes())?;
    out.write_all(head)?;
    let mut buffer = vec![0; BLOCK];
    let mut blocks = 0_u64;
    let mut bytes = 0;
    for region in memory.iter() {
        let (start, size) = (region.start_addr().0, region.len());
        let mut at = 0;
        while at < size {
            let part = &mut buffer[..(size - at).min(BLOCK as u64) as usize];
            memory.read_slice(part, GuestAddress(start + at)).map_err(io::Error::other)?;
            for (from, to) in runs(part) {
                write_block(&mut out, start + at + from as u64, &part[from..to])?;
                blocks += 1;
                bytes += (to - from) as u64;
            }
            at += part.len() as u64;
        }
    }
    let number = blocks.to_le_bytes();
    out.write_all(&block_head(END, &[], &number))?;
    out.write_all(&number)?;
    out.flush()?;
    Ok(bytes)
}

fn write_block(out: &mut impl Write, address: u64, bytes: &[u8]) -> io::Result<()> {
    out.write_all(&block_head(address, bytes, bytes))?;
    out.write_all(bytes)
}

/// The head of a block of these bytes, with the checksum of itself and what follows it.
fn block_head(address: u64, block: &[u8], summed: &[u8]) -> [u8; BLOCK_HEAD] {
    let mut head = [0; BLOCK_HEAD];
    head[..8].copy_from_slice(&address.to_le_bytes());
    head[8..12].copy_from_slice(&(block.len() as u32).to_le_bytes());
    let sum = checksum(&head, summed);
    head[12..].copy_from_slice(&sum.to_le_bytes());
    head
}

fn words(head: &[u8; BLOCK_HEAD]) -> [u32; 4] {
    let (words, _) = head.as_chunks();
    std::array::from_fn(|at| u32::from_le_bytes(words[at]))
}

fn checksum(head: &[u8; BLOCK_HEAD], bytes: &[u8]) -> u32 {
    let mut sum = crc32fast::Hasher::new();
    sum.update(&head[..12]);
    sum.update(bytes);
    sum.finalize()
}

/// Runs of pages that are not all zeroes, `from..to` in bytes.
fn runs(bytes: &[u8]) -> Vec<(usize, usize)> {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for (page, content) in bytes.chunks(PAGE).enumerate() {
        if is_zero(content) {
            continue;
        }
        let (from, to) = (page * PAGE, page * PAGE + content.len());
        match runs.last_mut() {
            Some(last) if last.1 == from => last.1 = to,
            _ => runs.push((from, to)),
        }
    }
    runs
}

fn is_zero(bytes: &[u8]) -> bool {
    let (words, rest) = bytes.as_chunks::<16>();
    words.iter().all(|word| u128::from_le_bytes(*word) == 0) && rest.iter().all(|byte| *byte == 0)
}

/// A file that was read to its end and is whole.
#[derive(Debug)]
pub(crate) struct Saved {
    path: PathBuf,
    file: File,
    /// What the machine is.
    pub(crate) head: Vec<u8>,
    blocks_at: u64,
}

impl Saved {
    /// Opens a file and reads all of it once.
    pub(crate) fn open(path: &Path) -> Result<Self, SnapshotError> {
        let error = |source| SnapshotError::File { path: path.to_owned(), source };
        let file = File::open(path).map_err(error)?;
        if !file.metadata().map_err(error)?.is_file() {
            return Err(SnapshotError::Damaged { path: path.to_owned(), what: "it is no file" });
        }
        let mut saved = Self { path: path.to_owned(), file, head: Vec::new(), blocks_at: 0 };
        saved.read_head()?;
        saved.blocks(|_, _| Ok(()))?;
        Ok(saved)
    }

    /// Reads the memory.
    pub(crate) fn load(&self, memory: &GuestMemoryMmap) -> Result<(), SnapshotError> {
        self.blocks(|address, bytes| {
            let does_not_fit =
                |_| SnapshotError::Content("a block of memory is outside of the machine's memory");
            memory.write_slice(bytes, GuestAddress(address)).map_err(does_not_fit)
        })
    }

    fn damaged(&self, what: &'static str) -> SnapshotError {
        SnapshotError::Damaged { path: self.path.clone(), what }
    }

    /// Fills the buffer; a file that ends before is damaged.
    fn fill(&self, from: &mut impl Read, buffer: &mut [u8]) -> Result<(), SnapshotError> {
        from.read_exact(buffer).map_err(|source| match source.kind() {
            io::ErrorKind::UnexpectedEof => self.damaged("it is cut short"),
            _ => SnapshotError::File { path: self.path.clone(), source },
        })
    }

    fn read_head(&mut self) -> Result<(), SnapshotError> {
        let mut start = [0; BLOCK_HEAD];
        let mut reader = &self.file;
        self.fill(&mut reader, &mut start)?;
        let [_, _, version, len] = words(&start);
        if start[..8] != MAGIC {
            return Err(self.damaged("it is no saved machine"));
        }
        if version != VERSION {
            return Err(SnapshotError::Version { found: version, known: VERSION });
        }
        if len > LONGEST_HEAD {
            return Err(self.damaged("its head is too long"));
        }
        // As much as is there, so that a wrong length allocates nothing.
        let mut head = Vec::new();
        let got = reader.take(u64::from(len)).read_to_end(&mut head);
        let got = got.map_err(|source| SnapshotError::File { path: self.path.clone(), source })?;
        if got < len as usize {
            return Err(self.damaged("it is cut short"));
        }
        self.head = head;
        self.blocks_at = 16 + u64::from(len);
        Ok(())
    }

    /// Hands over every block of memory, and checks that nothing is missing.
    fn blocks(
        &self,
        mut each: impl FnMut(u64, &[u8]) -> Result<(), SnapshotError>,
    ) -> Result<(), SnapshotError> {
        let mut file = &self.file;
        let seek = file.seek(SeekFrom::Start(self.blocks_at));
        seek.map_err(|source| SnapshotError::File { path: self.path.clone(), source })?;
        let mut reader = BufReader::with_capacity(BLOCK, file);
        let mut buffer = vec![0; BLOCK];
        let (mut blocks, mut next) = (0_u64, 0_u64);
        loop {
            let mut head = [0; BLOCK_HEAD];
            self.fill(&mut reader, &mut head)?;
            let [low, high, len, sum] = words(&head);
            let address = u64::from(high) << 32 | u64::from(low);
            let len = len as usize;
            let ends = address == END && len == 0;
            let Some(bytes) = buffer.get_mut(..if ends { 8 } else { len }) else {
                return Err(self.damaged("a block of memory is too long"));
            };
            self.fill(&mut reader, bytes)?;
            if checksum(&head, bytes) != sum {
                return Err(self.damaged("a checksum does not match"));
            }
            if ends {
                let whole =
                    bytes == blocks.to_le_bytes() && reader.read(&mut [0]).is_ok_and(|more| more == 0);
                return if whole { Ok(()) } else { Err(self.damaged("its end is not where it should be")) };
            }
            let end = address.checked_add(len as u64);
            let Some(end) = end.filter(|_| address >= next && len != 0) else {
                return Err(self.damaged("a block of memory is out of order"));
            };
            each(address, bytes)?;
            (blocks, next) = (blocks + 1, end);
        }
    }
}
