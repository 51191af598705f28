//! nbdkit and qemu-nbd.

use super::*;
use iovirt_core::Backend;
use iovirt_core::request::block::{BlockError, BlockFlags, BlockOutput, Durability};
use iovirt_core::test_utils::conformance::{self, Profile};
use iovirt_core::test_utils::{BlockIo, Driver};
use iovirt_core::{BackendErrorKind, Mode};
use std::cell::RefCell;

fn driver(backend: &BoxBackend<BlockRequest>) -> Driver {
    let mut driver = Driver::new(3).expect("a driver");
    driver.open(backend, 16).expect("a queue");
    driver
}

fn outcome(driver: &mut Driver, io: BlockIo) -> Result<Vec<u8>, BlockError> {
    driver.submit(io).expect("room");
    driver.wait_all().expect("an answer").remove(0).into_result()
}

#[test]
fn conforms_over_nbdkit() {
    if Server::nbdkit(&["memory", "1M"]).is_none() {
        return;
    }
    let servers = RefCell::new(Vec::new());
    let factory = || {
        let server = Server::nbdkit(&["memory", "1M"]).expect("installed, as above");
        let backend = server.connect();
        servers.borrow_mut().push(server);
        backend
    };
    // A server that dies has broken no rule of ours; the rules of dropping run over qemu-nbd below.
    let reason =
        "nbdkit 1.32 aborts (connections.c, `sock >= 0`) where a client leaves with replies outstanding";
    let profile = Profile::new("nbd, nbdkit").rounds(8);
    let profile = profile.skip("dropping/in-flight", reason).skip("dropping/memory", reason);
    conformance::run(&factory, &profile).assert_passed();
}

#[test]
fn conforms_over_qemu_nbd() {
    let server = || {
        Server::start("qemu-nbd", |socket, folder| {
            let image = folder.join("disk.img");
            std::fs::File::create(&image).expect("an image").set_len(1 << 20).expect("a size");
            let (socket, image) = (socket.to_string_lossy(), image.to_string_lossy());
            ["-f", "raw", "-t", "--discard=unmap", "--shared=16", "-k", &socket, &image]
                .map(str::to_owned)
                .into()
        })
    };
    if server().is_none() {
        return;
    }
    let servers = RefCell::new(Vec::new());
    let factory = || {
        let server = server().expect("installed, as above");
        let backend = server.connect();
        servers.borrow_mut().push(server);
        backend
    };
    conformance::run(&factory, &Profile::new("nbd, qemu-nbd").rounds(8)).assert_passed();
}

#[test]
fn what_we_write_qemu_has_in_its_file() {
    let mut image = PathBuf::new();
    let server = Server::start("qemu-nbd", |socket, folder| {
        image = folder.join("disk.img");
        std::fs::File::create(&image).expect("an image").set_len(4 << 20).expect("a size");
        [
            "-f",
            "raw",
            "-t",
            "-x",
            "disk",
            "--discard=unmap",
            "--shared=4",
            "-k",
            &socket.to_string_lossy(),
            &image.to_string_lossy(),
        ]
        .map(str::to_owned)
        .into()
    });
    let Some(mut server) = server else { return };
    let named = |name: &str| NbdConfig { export: name.into(), ..server.config() };
    let refused = NbdBackend::connect(named("nobody")).expect_err("there is no such export");
    assert_eq!(refused.kind(), BackendErrorKind::Unsupported);
    assert!(refused.to_string().contains("has no export named \"nobody\""), "{refused}");

    let backend = BoxBackend::new(NbdBackend::connect(named("disk")).expect("a connection"));
    let caps = backend.caps();
    assert_eq!((caps.capacity, caps.durability, caps.fua), (4 << 20, Durability::WriteBack, true));
    let (mut first, mut second) = (driver(&backend), driver(&backend));
    let fua = BlockIo::write(0, vec![1; 4096]).with_flags(BlockFlags::FUA);
    outcome(&mut first, fua).expect("a durable write");
    outcome(&mut second, BlockIo::write(4096, vec![2; 1 << 16])).expect("a write");
    assert_eq!(outcome(&mut first, BlockIo::read(4096, 512)).expect("what the other wrote"), [2; 512]);
    outcome(&mut first, BlockIo::write_zeroes(4096, 4096)).expect("zeroes");
    outcome(&mut first, BlockIo::write_zeroes(8192, 4096).with_flags(BlockFlags::UNMAP)).expect("zeroes");
    outcome(&mut second, BlockIo::discard(12288, 4096)).expect("a discard");
    outcome(&mut second, BlockIo::flush()).expect("a flush");
    drop((first, second));
    let content = std::fs::read(&image).expect("the image");
    assert_eq!(content[..4096], [1; 4096]);
    assert_eq!(content[4096..12288], [0; 8192]);
    assert!(content[16384..65536 + 4096].iter().all(|&byte| byte == 2));
    server.kill();
}

#[test]
fn a_read_only_export_refuses_writes() {
    let Some(server) = Server::nbdkit(&["-r", "memory", "1M"]) else { return };
    let backend = server.connect();
    assert!(backend.caps().read_only);
    let mut driver = driver(&backend);
    assert_eq!(outcome(&mut driver, BlockIo::write(0, vec![0; 512])), Err(BlockError::ReadOnly));
    assert_eq!(outcome(&mut driver, BlockIo::read(0, 512)).expect("zeroes"), [0; 512]);
}

#[test]
fn a_server_without_flush_promises_nothing_unless_we_are_told() {
    let Some(server) = Server::nbdkit(&[
        "eval",
        "get_size=echo 1M",
        "pread=dd if=/dev/zero bs=$3 count=1",
        "pwrite=cat >/dev/null",
        "can_write=exit 0",
    ]) else {
        return;
    };
    assert_eq!(server.connect().caps().durability, Durability::Unsafe);
    let told = NbdConfig { without_flush: WithoutFlush::AssumeWriteThrough, ..server.config() };
    let backend = NbdBackend::connect(told).expect("a connection");
    assert_eq!(backend.caps().durability, Durability::WriteThrough);
    // This server is for one connection at a time.
    let backend = BoxBackend::new(backend);
    let first = driver(&backend);
    let mut second = Driver::new(3).expect("a driver");
    let refused = second.open(&backend, 1).expect_err("a second connection");
    assert!(refused.to_string().contains("one queue is the most"), "{refused}");
    drop(first);
    second.open(&backend, 1).expect("the place is free again");
}

#[test]
fn errors_of_the_server_are_told_and_survived() {
    let Some(server) =
        Server::nbdkit(&["--filter=error", "memory", "1M", "error-pwrite=ENOSPC", "error-pwrite-rate=50%"])
    else {
        return;
    };
    let mut driver = driver(&server.connect());
    let mut failed = 0;
    for round in 0..200u64 {
        match outcome(&mut driver, BlockIo::write(round * 512, vec![round as u8; 512])) {
            Ok(_) => assert_eq!(
                outcome(&mut driver, BlockIo::read(round * 512, 512)).expect("a read"),
                [round as u8; 512]
            ),
            Err(error) => {
                assert_eq!(error, BlockError::NoSpace);
                failed += 1;
            }
        }
    }
    assert!((1..200).contains(&failed), "{failed} of 200 writes failed");
}

#[test]
fn a_slow_server_answers_in_any_order_and_a_drain_waits() {
    let Some(server) = Server::nbdkit(&["--filter=delay", "memory", "1M", "rdelay=20ms"]) else { return };
    let mut driver = driver(&server.connect());
    for round in 0..8 {
        driver.submit(BlockIo::read(round * 512, 512)).expect("room");
        driver.submit(BlockIo::write(round * 512, vec![round as u8; 512])).expect("room");
    }
    let mut done = driver.turn().len();
    driver.drain();
    assert_eq!(driver.mode(), Mode::Draining);
    driver
        .turn_until(|driver, more| {
            done += more.len();
            driver.mode() == Mode::Quiesced
        })
        .expect("rest");
    assert_eq!(done, 16);
}

#[test]
fn a_server_that_dies_under_load_fails_what_is_in_flight_and_what_comes() {
    for killed in [true, false] {
        let Some(mut server) = Server::nbdkit(&["--filter=delay", "memory", "1M", "rdelay=3600"]) else {
            return;
        };
        let backend = server.connect();
        let mut driver = driver(&backend);
        for round in 0..16 {
            driver.submit(BlockIo::read(round * 512, 512)).expect("room");
        }
        driver.turn();
        if killed {
            server.kill();
            let done = driver.wait_all().expect("an answer to each");
            assert_eq!(done.len(), 16);
            assert!(done.iter().all(|done| done.output == BlockOutput::Failed(BlockError::Io)));
            assert_eq!(outcome(&mut driver, BlockIo::flush()), Err(BlockError::Io));
            assert_eq!(outcome(&mut driver, BlockIo::read(0, 512)), Err(BlockError::Io));
            assert!(driver.open(&backend, 4).is_err(), "nobody listens any more");
        }
        // With requests in flight their memory goes with the queue.
        let owner = std::sync::Arc::downgrade(driver.space().map().regions()[0].owner());
        drop(driver);
        assert_eq!(owner.strong_count(), 0);
    }
}
