//! The suite that every back-end runs.

use super::*;
use iovirt_core::pipeline::BoxBackend;
use iovirt_core::test_utils::conformance::{self, Profile};
use std::cell::RefCell;
use std::sync::atomic::{AtomicU64, Ordering};

const SIZE: u64 = 1 << 20;

/// Runs the suite on fresh files in a folder.
fn conforms(name: &str, folder: &tempfile::TempDir, configure: impl Fn(FileConfig) -> FileConfig) {
    let count = AtomicU64::new(0);
    let factory = || {
        let path = folder.path().join(format!("{}.img", count.fetch_add(1, Ordering::Relaxed)));
        std::fs::File::create(&path).expect("an image").set_len(SIZE).expect("a size");
        BoxBackend::new(FileBackend::open(configure(FileConfig::new(&path))).expect("a back-end"))
    };
    conformance::run(&factory, &Profile::new(name).rounds(8)).assert_passed();
}

#[test]
fn on_a_disk_through_the_ring() {
    conforms("file-uring", &folder(), |config| FileConfig { cache: Cache::WriteBack, ..config });
}

#[test]
fn on_a_disk_through_threads() {
    conforms("file-threads", &folder(), |config| FileConfig {
        engine: Engine::Threads,
        cache: Cache::WriteBack,
        ..config
    });
}

#[test]
fn on_a_disk_write_through() {
    conforms("file-write-through", &folder(), |config| FileConfig { engine: Engine::Threads, ..config });
}

#[test]
fn on_a_disk_inline() {
    conforms("file-inline", &folder(), |config| FileConfig {
        inline: Inline::On,
        cache: Cache::WriteBack,
        ..config
    });
}

#[test]
fn on_a_disk_past_the_page_cache() {
    conforms("file-direct", &folder(), |config| FileConfig {
        direct: Direct::On,
        cache: Cache::WriteBack,
        ..config
    });
}

#[test]
fn in_memory() {
    let Some(folder) = memory_folder() else {
        skipped("no file system in memory");
        return;
    };
    conforms("file-memory", &folder, |config| config);
    conforms("file-memory-uring", &folder, |config| FileConfig { inline: Inline::Off, ..config });
}

#[test]
fn on_a_device_of_large_blocks() {
    let folder = folder();
    if Loop::new(&image(&folder, SIZE), 4096).is_none() {
        return;
    }
    // Each stack has a device of its own. The suite drops its stacks before the devices go.
    let devices = RefCell::new(Vec::new());
    let factory = || {
        let path = folder.path().join(format!("{}.img", devices.borrow().len()));
        std::fs::File::create(&path).expect("an image").set_len(SIZE).expect("a size");
        let device = Loop::new(&path, 4096).expect("a device, like the first");
        let config =
            FileConfig { direct: Direct::On, cache: Cache::WriteBack, ..FileConfig::new(&device.path) };
        let backend = FileBackend::open(config).expect("a back-end");
        devices.borrow_mut().push(device);
        BoxBackend::new(backend)
    };
    conformance::run(&factory, &Profile::new("file-device-4k").rounds(8)).assert_passed();
}
