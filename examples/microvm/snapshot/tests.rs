use iovirt::core::test_utils::{Rng, rounds_or, seed_or};
use vm_memory::{Bytes, GuestAddress};

use super::*;

const MEMORY: u64 = 4 << 20;

fn memory() -> GuestMemoryMmap {
    let ranges = [(GuestAddress(0), MEMORY as usize), (GuestAddress(1 << 32), MEMORY as usize)];
    GuestMemoryMmap::from_ranges(&ranges).unwrap()
}

/// Memory with something in some of its pages.
fn filled(rng: &mut Rng) -> GuestMemoryMmap {
    let memory = memory();
    for _ in 0..rng.between(1, 40) {
        let at = rng.below(2 * MEMORY - 64);
        let at = if at >= MEMORY - 64 { (1 << 32) + at % (MEMORY - 64) } else { at };
        let bytes: Vec<u8> = (0..64).map(|_| rng.next_u64() as u8).collect();
        memory.write_slice(&bytes, GuestAddress(at)).unwrap();
    }
    memory
}

fn content(memory: &GuestMemoryMmap) -> Vec<u8> {
    let mut bytes = vec![0; 2 * MEMORY as usize];
    let (low, high) = bytes.split_at_mut(MEMORY as usize);
    memory.read_slice(low, GuestAddress(0)).unwrap();
    memory.read_slice(high, GuestAddress(1 << 32)).unwrap();
    bytes
}

fn write(path: &Path, memory: &GuestMemoryMmap) -> u64 {
    file::write(path, memory, b"a head", || Ok(())).unwrap()
}

#[test]
fn memory_comes_back_and_zeroes_are_left_out() {
    let mut rng = Rng::new(seed_or(0x5a7e));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("saved");
    for _ in 0..20 {
        let before = filled(&mut rng);
        let bytes = write(&path, &before);
        assert!(bytes <= 80 * 4096 && bytes.is_multiple_of(4096), "{bytes}");
        assert!(path.metadata().unwrap().len() <= bytes + 80 * 16 + 64);
        let saved = file::Saved::open(&path).unwrap();
        assert_eq!(saved.head, b"a head");
        let after = memory();
        saved.load(&after).unwrap();
        assert!(content(&before) == content(&after));
    }
    assert_eq!(folder.path().read_dir().unwrap().count(), 1);
}

/// A file with bits flipped, cut, or with bytes put in or taken out, is refused in one sentence.
#[test]
fn damage_is_noticed() {
    let mut rng = Rng::new(seed_or(0xdead));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("saved");
    write(&path, &filled(&mut rng));
    let good = std::fs::read(&path).unwrap();
    for round in 0..rounds_or(400) {
        let mut bad = good.clone();
        // Half of it near the start, where lengths are, but not in the head, which has a checksum of its own.
        let reach = if rng.one_in(2) { 64 } else { good.len() as u64 };
        let mut at = rng.below(reach) as usize;
        if (16..22).contains(&at) {
            at = 22;
        }
        match rng.below(4) {
            0 => bad.truncate(at),
            1 => drop(bad.drain(at..(at + 1 + rng.below(40) as usize).min(good.len()))),
            2 => bad.push(0),
            _ => bad[at] ^= 1 << rng.below(8),
        }
        std::fs::write(&path, &bad).unwrap();
        let error = file::Saved::open(&path).err().unwrap_or_else(|| panic!("round {round}: damage at {at}"));
        assert!(!error.to_string().contains('\n'), "{error}");
    }
}

#[test]
fn any_bytes_are_survived() {
    let mut rng = Rng::new(seed_or(0xf11e));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("saved");
    for _ in 0..rounds_or(400) {
        let mut bytes: Vec<u8> = (0..rng.below(200)).map(|_| rng.next_u64() as u8).collect();
        if rng.one_in(2) {
            // As far as the lengths.
            let start = [&b"IOVIRTVM\x01\0\0\0"[..], &(rng.below(300) as u32).to_le_bytes()].concat();
            bytes.splice(..0, start);
        }
        std::fs::write(&path, &bytes).unwrap();
        assert!(Snapshot::open(&path).is_err());
    }
    for wrong in [folder.path().to_owned(), folder.path().join("missing"), "/dev/zero".into()] {
        assert!(Snapshot::open(&wrong).is_err(), "{}", wrong.display());
    }
}

#[test]
fn a_file_is_there_as_a_whole_or_not_at_all() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("saved");
    let fails = || Err(SnapshotError::Restless(3));
    assert!(file::write(&path, &memory(), b"", fails).is_err());
    assert_eq!(folder.path().read_dir().unwrap().count(), 0);
    std::fs::write(&path, "precious").unwrap();
    assert!(file::write(&path, &memory(), b"", fails).is_err());
    assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    assert!(file::write(&folder.path().join("no/such/folder"), &memory(), b"", || Ok(())).is_err());
}

#[test]
fn memory_outside_of_the_machine_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("saved");
    let large = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 8 << 20)]).unwrap();
    large.write_slice(&[1], GuestAddress(MEMORY + 5)).unwrap();
    write(&path, &large);
    let saved = file::Saved::open(&path).unwrap();
    assert!(matches!(saved.load(&memory()), Err(SnapshotError::Content(_))));
}
