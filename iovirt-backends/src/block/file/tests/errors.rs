//! Wrong configurations, and a host that fails.

use super::*;
use crate::block::file::disk::Disk;
use crate::block::file::task::Task;
use iovirt_core::BackendErrorKind;
use iovirt_core::request::block::BlockError;
use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;

const SIZE: u64 = 1 << 20;

fn refusal(config: FileConfig) -> String {
    let error = FileBackend::open(config).expect_err("refused").to_string();
    assert!(!error.ends_with('.') && !error.contains('\n'), "{error}");
    error
}

#[test]
fn a_wrong_configuration_is_told_in_one_sentence() {
    let folder = folder();
    let path = image(&folder, SIZE);
    let with = |threads| FileConfig { threads, ..FileConfig::new(&path) };
    assert_eq!(refusal(with(0)), "threads=0 is not allowed: 1 to 256 are");
    assert_eq!(refusal(with(257)), "threads=257 is not allowed: 1 to 256 are");
    assert!(refusal(FileConfig::new("")).starts_with("path is empty"));
    let missing = refusal(FileConfig::new(folder.path().join("missing.img")));
    assert!(
        missing.contains("missing.img cannot be opened") && missing.contains("No such file"),
        "{missing}"
    );
    let reading = |path: &Path| FileConfig { access: FileAccess::ReadOnly, ..FileConfig::new(path) };
    for config in [FileConfig::new(folder.path()), reading(folder.path()), reading(Path::new("/dev/null"))] {
        let refused = refusal(config);
        assert!(refused.ends_with("is neither a regular file nor a block device"), "{refused}");
    }
    let pipe = folder.path().join("pipe");
    if let Some((true, _)) = tool("mkfifo", &[&pipe.to_string_lossy()]) {
        assert!(refusal(reading(&pipe)).ends_with("is neither a regular file nor a block device"));
    }
    let tiny = image(&folder, 511);
    assert!(refusal(FileConfig::new(&tiny)).ends_with("has 511 bytes: a disk has at least 512"));
}

#[test]
fn a_descriptor_must_fit_the_configuration() {
    let folder = folder();
    let path = image(&folder, SIZE);
    let refusal = |options: &OpenOptions, config: FileConfig| {
        FileBackend::from_file(options.open(&path).expect("a file"), config)
            .err()
            .map(|error| error.to_string())
    };
    let (plain, reading) =
        (FileConfig::new(&path), FileConfig { access: FileAccess::ReadOnly, ..FileConfig::new(&path) });
    let on = FileConfig { direct: Direct::On, ..FileConfig::new(&path) };
    let both = || OpenOptions::new().read(true).write(true).clone();
    assert_eq!(refusal(&both(), plain.clone()), None);
    assert_eq!(refusal(OpenOptions::new().read(true), reading.clone()), None);
    for (options, config, words) in [
        (OpenOptions::new().read(true), plain.clone(), "readonly=on"),
        (OpenOptions::new().write(true), reading, "not opened for reading"),
        (OpenOptions::new().read(true).append(true), plain.clone(), "O_APPEND"),
        (&mut both(), on.clone(), "direct=off"),
        (both().custom_flags(libc::O_DIRECT), plain, "direct=on"),
    ] {
        let refused = refusal(options, config).expect("refused");
        assert!(refused.contains(words), "{refused}");
    }
    assert_eq!(refusal(both().custom_flags(libc::O_DIRECT), on), None);
}

#[test]
fn a_file_that_shrinks_fails_reads_and_goes_on() {
    for (engine, inline, uring) in engines() {
        let folder = folder();
        let path = image(&folder, SIZE);
        let backend =
            FileBackend::open(FileConfig { engine, inline, ..FileConfig::new(&path) }).expect("a back-end");
        let mut rig = Rig::with_policy(&backend, uring).expect("a queue");
        OpenOptions::new()
            .write(true)
            .open(&path)
            .expect("the image")
            .set_len(SIZE / 2 + 700)
            .expect("shrinks");
        assert_eq!(rig.read_skewed(SIZE - 512, 512, 0, 1).0, BlockOutput::Failed(BlockError::Io));
        // Begins within the file and ends behind it, in several pieces.
        assert_eq!(rig.read_skewed(SIZE / 2 - 4096, 16384, 0, 3).0, BlockOutput::Failed(BlockError::Io));
        assert_eq!(rig.read_skewed(SIZE / 2 - 4096, 4096, 0, 3).0, BlockOutput::Done);
        assert_eq!(backend.control().refresh().expect("a size"), SIZE / 2 + 512);
        assert_eq!(rig.read_skewed(SIZE - 512, 512, 0, 1).0, BlockOutput::Failed(BlockError::OutOfRange));
    }
}

/// Runs a test in a folder that has room for 256 KiB.
fn with_little_room(test: impl Fn(&tempfile::TempDir) + std::panic::UnwindSafe + std::panic::RefUnwindSafe) {
    if !is_root() {
        skipped("mounting a small file system takes root");
        return;
    }
    let folder = folder();
    let mount = folder.path().to_string_lossy().into_owned();
    let mounted = tool("mount", &["-t", "tmpfs", "-o", "size=256k", "tmpfs", &mount]);
    let Some((true, _)) = mounted else {
        skipped(format_args!("no mount: {mounted:?}"));
        return;
    };
    let result = std::panic::catch_unwind(|| test(&folder));
    let _ = tool("umount", &[&mount]);
    if let Err(panic) = result {
        std::panic::resume_unwind(panic);
    }
}

#[test]
fn a_full_file_system_is_told() {
    with_little_room(|folder| {
        for (engine, inline, uring) in engines() {
            let path = image(folder, SIZE);
            let config = FileConfig { engine, inline, ..FileConfig::new(&path) };
            let backend = FileBackend::open(config).expect("a back-end");
            let mut rig = Rig::with_policy(&backend, uring).expect("a queue");
            assert_eq!(rig.write(0, &pattern(0, 128 << 10)), BlockOutput::Done);
            assert_eq!(
                rig.write(128 << 10, &pattern(0, 512 << 10)),
                BlockOutput::Failed(BlockError::NoSpace)
            );
            assert_eq!(
                rig.ranged(BlockOp::WriteZeroes, 0, SIZE, BlockFlags::empty()),
                BlockOutput::Failed(BlockError::NoSpace)
            );
            // Room again, and all is well.
            assert_eq!(rig.ranged(BlockOp::Discard, 0, SIZE, BlockFlags::empty()), BlockOutput::Done);
            assert_eq!(rig.write(0, &pattern(0, 128 << 10)), BlockOutput::Done);
        }
    });
}

#[test]
fn after_a_sync_that_failed_no_flush_succeeds() {
    with_little_room(|folder| {
        for (engine, inline, uring) in engines() {
            let path = image(folder, SIZE);
            // The page cache takes what the device behind it has no room for.
            let Some(device) = Loop::new(&path, 512) else { return };
            let config =
                FileConfig { cache: Cache::WriteBack, engine, inline, ..FileConfig::new(&device.path) };
            let backend = FileBackend::open(config.clone()).expect("a back-end");
            let mut rigs = [0, 1].map(|_| Rig::with_policy(&backend, uring).expect("a queue"));
            // Exactly full first: of a write that has room in part, a loop device reports success.
            assert_eq!(rigs[0].write(0, &pattern(0, 256 << 10)), BlockOutput::Done);
            assert_eq!(rigs[0].flush(), BlockOutput::Done);
            assert_eq!(rigs[0].write(512 << 10, &pattern(0, 64 << 10)), BlockOutput::Done);
            assert!(matches!(rigs[0].flush(), BlockOutput::Failed(_)));
            for rig in &mut rigs {
                assert_eq!(rig.flush(), BlockOutput::Failed(BlockError::Io));
                let Rig { worker, queue, done, .. } = rig;
                worker.with_context(|cx| {
                    queue.drain(cx);
                    queue.poll(cx, done);
                });
                assert_eq!(rig.queue.mode(), Mode::Draining, "does not claim to be durable");
            }
            let name = backend.control().path().to_owned();
            drop((rigs, backend));
            assert_eq!(name, device.path);
            let backend = FileBackend::open(config).expect("opened again");
            assert_eq!(Rig::with_policy(&backend, uring).expect("a queue").flush(), BlockOutput::Done);
        }
    });
}

#[test]
fn a_device_that_fails_fails_requests() {
    let folder = folder();
    let path = image(&folder, SIZE);
    let Some(device) = Loop::new(&path, 512) else { return };
    for direct in [Direct::On, Direct::Off] {
        OpenOptions::new().write(true).open(&path).expect("the image").set_len(SIZE).expect("grows");
        let config = FileConfig { direct, cache: Cache::WriteBack, ..FileConfig::new(&device.path) };
        let backend = FileBackend::open(config).expect("a back-end");
        let mut rig = Rig::new(&backend);
        assert_eq!(rig.write(0, &pattern(0, 4096)), BlockOutput::Done);
        // The device under the disk loses its end.
        OpenOptions::new().write(true).open(&path).expect("the image").set_len(4096).expect("shrinks");
        let read = rig.read_skewed(SIZE / 2, 4096, 0, 1);
        // Loop devices give an error or zeroes there, by the host's version.
        assert!(read.0 == BlockOutput::Failed(BlockError::Io) || read.1.iter().all(|&byte| byte == 0));
        assert_eq!(rig.read_skewed(0, 4096, 0, 1).1, pattern(0, 4096));
    }
}

#[test]
fn a_busy_file_has_its_own_kind_of_error() {
    let folder = folder();
    let path = image(&folder, SIZE);
    let _first = open(&path);
    let error = FileBackend::open(FileConfig::new(&path)).expect_err("locked");
    assert_eq!(error.kind(), BackendErrorKind::Busy);
    assert!(
        error.to_string().ends_with("is in use by this process; lock=off opens it all the same"),
        "{error}"
    );
}

#[test]
fn a_sync_beside_one_that_failed_does_not_count() {
    let folder = folder();
    let path = image(&folder, SIZE);
    let config = FileConfig { cache: Cache::WriteBack, ..FileConfig::new(&path) };
    let file = OpenOptions::new().read(true).write(true).open(&path).expect("the image");
    let disk = Disk::open(file, config).expect("a disk");
    let mut syncs = [Task::settle(), Task::settle()];
    for sync in &mut syncs {
        sync.call(&disk, usize::MAX);
    }
    // The host reports a failure once, to whichever comes first.
    let failed = Some(BlockOutput::Failed(BlockError::Io));
    let [first, second] = &mut syncs;
    assert_eq!(first.advance(&disk, Err(libc::EIO)), failed);
    assert_eq!(second.advance(&disk, Ok(0)), failed);
}
