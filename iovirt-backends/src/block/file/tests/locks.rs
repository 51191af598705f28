//! One writer or many readers, among ourselves and with QEMU's tools.

use super::*;

fn with(path: &Path, access: FileAccess, lock: Lock) -> Result<FileBackend, BackendError> {
    FileBackend::open(FileConfig { access, lock, ..FileConfig::new(path) })
}

#[test]
fn one_writer_or_many_readers() {
    let folder = folder();
    let path = image(&folder, 1 << 20);
    let (read, write) = (FileAccess::ReadOnly, FileAccess::ReadWrite);
    let writer = with(&path, write, Lock::On).expect("the first");
    assert!(with(&path, write, Lock::On).is_err());
    assert!(with(&path, read, Lock::On).is_err());
    assert!(with(&path, write, Lock::Off).is_ok());
    drop(writer);
    let first = with(&path, read, Lock::On).expect("a reader");
    let second = with(&path, read, Lock::On).expect("another");
    assert!(with(&path, write, Lock::On).is_err());
    drop(first);
    assert!(with(&path, write, Lock::On).is_err());
    drop(second);
    // A queue keeps the file for as long as it is there.
    let backend = with(&path, write, Lock::On).expect("nobody is left");
    let rig = Rig::new(&backend);
    drop(backend);
    assert!(with(&path, write, Lock::On).is_err());
    drop(rig);
    assert!(with(&path, write, Lock::On).is_ok());
}

#[test]
fn a_duplicate_of_the_descriptor_does_not_keep_the_lock() {
    let folder = folder();
    let path = image(&folder, 1 << 20);
    let file = std::fs::OpenOptions::new().read(true).write(true).open(&path).expect("the image");
    let kept = file.try_clone().expect("a duplicate");
    let backend = FileBackend::from_file(file, FileConfig::new(&path)).expect("a back-end");
    assert!(with(&path, FileAccess::ReadWrite, Lock::On).is_err());
    drop(backend);
    assert!(with(&path, FileAccess::ReadWrite, Lock::On).is_ok());
    drop(kept);
}

#[test]
fn qemu_and_we_refuse_each_other() {
    let folder = folder();
    let path = image(&folder, 1 << 20);
    let name = path.to_string_lossy().into_owned();
    let Some((true, _)) = tool("qemu-img", &["info", "-f", "raw", &name]) else {
        skipped("no qemu-img");
        return;
    };
    let write = ["-f", "raw", "-c", "write 0 512", &name];
    for access in [FileAccess::ReadWrite, FileAccess::ReadOnly] {
        let _ours = with(&path, access, Lock::On).expect("ours");
        let (fine, text) = tool("qemu-io", &write).expect("runs");
        assert!(!fine && text.contains("Failed to get \"write\" lock"), "{access:?}: {text}");
        let (fine, text) = tool("qemu-img", &["resize", "-f", "raw", &name, "2M"]).expect("runs");
        assert!(!fine && text.contains("lock"), "{access:?}: {text}");
        // Who only reads a raw image lets others write, among QEMU's tools too.
        let (fine, text) = tool("qemu-img", &["info", "-f", "raw", &name]).expect("runs");
        assert!(fine, "{text}");
    }
    let (fine, text) = tool("qemu-io", &write).expect("runs");
    assert!(fine, "nobody is left: {text}");
    for (options, access, allowed) in [
        (vec!["-f", "raw"], FileAccess::ReadWrite, false),
        (vec!["-f", "raw"], FileAccess::ReadOnly, false),
        (vec!["-r", "-f", "raw"], FileAccess::ReadWrite, true),
        (vec!["-r", "-f", "raw"], FileAccess::ReadOnly, true),
    ] {
        let mut qemu = std::process::Command::new("qemu-io")
            .args(&options)
            .arg(&name)
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .expect("runs");
        // It prints its prompt once it has the image.
        let mut prompt = [0; 5];
        std::io::Read::read_exact(qemu.stdout.as_mut().expect("piped"), &mut prompt).expect("a prompt");
        let opened = with(&path, access, Lock::On);
        assert_eq!(opened.is_ok(), allowed, "we as {access:?} against qemu-io {options:?}");
        if let Err(error) = opened {
            let error = error.to_string();
            assert!(error.contains("another process (qemu-io, pid "), "{error}");
        }
        drop(qemu.stdin.take());
        qemu.wait().expect("ends");
    }
}

#[test]
fn what_we_write_qemu_reads() {
    let folder = folder();
    let (path, copy) = (image(&folder, 4 << 20), folder.path().join("copy.img"));
    {
        let backend = open(&path);
        let mut rig = Rig::new(&backend);
        assert_eq!(rig.write(1 << 20, &pattern(1, 1 << 20)), BlockOutput::Done);
        assert_eq!(
            rig.ranged(BlockOp::WriteZeroes, (1 << 20) + 4096, 8192, BlockFlags::UNMAP),
            BlockOutput::Done
        );
        rig.drain();
    }
    std::fs::write(&copy, std::fs::read(&path).expect("the image")).expect("a copy");
    let compared = tool(
        "qemu-img",
        &["compare", "-f", "raw", "-F", "raw", &path.to_string_lossy(), &copy.to_string_lossy()],
    );
    match compared {
        Some((fine, text)) => assert!(fine && text.contains("identical"), "{text}"),
        None => skipped("no qemu-img"),
    }
}
