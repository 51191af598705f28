//! virtio-blk driven by `virtio-drivers` in this process: registers, rings, every request type, life cycle.

mod common;
#[path = "in_process/shown.rs"]
mod shown;

use common::{ALL, NO_EVENT_IDX, Rig};
use iovirt_backends::block::memory::{MemoryBackend, MemoryConfig};
use iovirt_backends::interposers::stats::{Stats, StatsConfig, StatsControl};
use iovirt_core::pipeline::{BoxBackend, Pipeline};
use iovirt_core::request::block::BlockRequest;
use iovirt_core::test_utils::virtio::virtio_drivers::device::blk::VirtIOBlk;
use iovirt_core::test_utils::virtio::{ArenaHal, BlkOp, BlkStatus, Pump, RegisterTransport};
use iovirt_core::{Frontend, WorkerConfig, WorkerThread};
use iovirt_frontends::virtio::blk::BlkConfig;

const SIZE: u64 = 64 << 20;

fn memory() -> BoxBackend<BlockRequest> {
    let memory = MemoryBackend::new(&MemoryConfig { size: SIZE, ..MemoryConfig::default() }).unwrap();
    let stats = Stats::new(&StatsConfig::default()).layer();
    BoxBackend::new(Pipeline::top().stage(stats).backend(memory).unwrap())
}

fn pattern(seed: u64, len: usize) -> Vec<u8> {
    (0..len as u64).map(|at| (at.wrapping_mul(2_654_435_761).wrapping_add(seed) >> 7) as u8).collect()
}

#[test]
fn virtio_drivers_own_disk_driver_works() {
    let worker = WorkerThread::spawn("io", WorkerConfig::default()).unwrap();
    let config = BlkConfig { serial: "serial-17".into(), ..BlkConfig::default() };
    let (device, _) = common::disk(config, memory(), &[worker.handle().clone()]);
    let transport = RegisterTransport::new(device, Pump::threads());
    let mut disk = VirtIOBlk::<ArenaHal, _>::new(transport).unwrap();
    assert_eq!(disk.capacity(), SIZE / 512);
    let data = pattern(1, 4096);
    disk.write_blocks(16, &data).unwrap();
    let mut read = vec![0; 4096];
    disk.read_blocks(16, &mut read).unwrap();
    assert_eq!(read, data);
    disk.flush().unwrap();
    let mut id = [0; 20];
    let len = disk.device_id(&mut id).unwrap();
    assert_eq!(&id[..len], b"serial-17");
}

#[test]
fn every_request_type_is_answered() {
    for wanted in [ALL, NO_EVENT_IDX] {
        let rig = Rig::new(BlkConfig::default(), memory());
        let mut driver = rig.driver(wanted, 64 << 10);
        assert_eq!(driver.capacity(), SIZE / 512);
        let data = pattern(2, 8192);
        assert_eq!(driver.run(BlkOp::Out, 8, &mut data.clone()), Ok(BlkStatus::Ok));
        let mut read = vec![0; 8192];
        assert_eq!(driver.run(BlkOp::In, 8, &mut read), Ok(BlkStatus::Ok));
        assert_eq!(read, data);
        assert_eq!(driver.run(BlkOp::Flush, 0, &mut []), Ok(BlkStatus::Ok));
        let mut id = [0xff; 20];
        assert_eq!(driver.run(BlkOp::GetId, 0, &mut id), Ok(BlkStatus::Ok));
        assert_eq!(&id[..7], b"iovirt\0");

        let range = |sector: u64, sectors: u32, flags: u32| {
            let mut bytes = [0; 16];
            bytes[..8].copy_from_slice(&sector.to_le_bytes());
            bytes[8..12].copy_from_slice(&sectors.to_le_bytes());
            bytes[12..].copy_from_slice(&flags.to_le_bytes());
            bytes
        };
        assert_eq!(driver.run(BlkOp::WriteZeroes, 0, &mut range(8, 8, 0)), Ok(BlkStatus::Ok));
        assert_eq!(driver.run(BlkOp::In, 8, &mut read), Ok(BlkStatus::Ok));
        assert_eq!(read[..4096], [0; 4096]);
        assert_eq!(read[4096..], data[4096..]);
        assert_eq!(driver.run(BlkOp::WriteZeroes, 0, &mut range(16, 8, 1)), Ok(BlkStatus::Ok));
        assert_eq!(driver.run(BlkOp::Discard, 0, &mut range(8, 16, 0)), Ok(BlkStatus::Ok));
        assert_eq!(driver.run(BlkOp::Discard, 0, &mut range(8, 16, 1)), Ok(BlkStatus::Unsupported));
        assert_eq!(driver.run(BlkOp::WriteZeroes, 0, &mut range(8, 16, 2)), Ok(BlkStatus::Unsupported));
        assert_eq!(driver.run(BlkOp::Discard, 0, &mut range(u64::MAX, 16, 0)), Ok(BlkStatus::IoError));
        assert_eq!(driver.run(BlkOp::Discard, 0, &mut range(SIZE / 512, 1, 0)), Ok(BlkStatus::IoError));

        assert_eq!(driver.run(BlkOp::Other(77), 0, &mut []), Ok(BlkStatus::Unsupported));
        assert_eq!(driver.run(BlkOp::In, SIZE / 512, &mut read), Ok(BlkStatus::IoError));
        assert_eq!(driver.run(BlkOp::In, u64::MAX, &mut read), Ok(BlkStatus::IoError));
        assert_eq!(driver.run(BlkOp::In, 0, &mut [0; 100]), Ok(BlkStatus::IoError));
        assert_eq!(driver.run(BlkOp::In, 0, &mut []), Ok(BlkStatus::IoError));
        assert_eq!(driver.run(BlkOp::GetId, 0, &mut [0; 19]), Ok(BlkStatus::IoError));
    }
}

#[test]
fn batches_of_32_need_few_doorbells_and_interrupts() {
    let rig = Rig::new(BlkConfig::default(), memory());
    let mut driver = rig.driver(ALL, 4096);
    let (batches, depth) = (3000u64, 32u64);
    let data = pattern(3, 4096);
    let mut failed = 0;
    for batch in 0..batches {
        for request in 0..depth {
            let op = if batch % 2 == 0 { BlkOp::Out } else { BlkOp::In };
            driver.submit(op, (batch / 2 * depth + request) % 16000 * 8, &data).unwrap();
        }
        driver.ring();
        let mut home = 0;
        while home < depth {
            rig.worker.borrow_mut().run().unwrap();
            let check = |_: usize, status: BlkStatus, body: &[u8]| {
                failed += u32::from(status != BlkStatus::Ok || body != data);
            };
            home += driver.poll(check).unwrap() as u64;
        }
    }
    assert_eq!(failed, 0);
    let requests = batches * depth;
    let doorbells = driver.transport().doorbells();
    let interrupts = rig.interrupts.raised();
    println!(
        "{requests} requests: {:.4} doorbells and {:.4} interrupts per request",
        doorbells as f64 / requests as f64,
        interrupts as f64 / requests as f64
    );
    assert!(doorbells * 5 <= requests, "{doorbells} doorbells");
    assert!(interrupts * 5 <= requests, "{interrupts} interrupts");
    let counters = rig.device.counters();
    assert_eq!((counters[0].chains, counters[0].doorbells), (requests, doorbells));
    assert_eq!(counters[0].interrupts, interrupts);
    let stats = rig.device.stages().control::<StatsControl>("stats").expect("the stage's handle");
    let ops: u64 = stats.snapshot().kinds.iter().map(|kind| kind.ops).sum();
    assert_eq!(ops, requests);
}

/// The driver does not ask again by itself: where the disk has another size than it was told, it hears so.
#[test]
fn a_disk_that_was_resized_between_save_and_restore_is_announced() {
    let of_size = |size| {
        BoxBackend::new(MemoryBackend::new(&MemoryConfig { size, ..MemoryConfig::default() }).unwrap())
    };
    let mut rig = Rig::new(BlkConfig::default(), of_size(SIZE));
    let mut driver = rig.driver(ALL, 4096);
    // The interrupt's cause, and the generation of the configuration space.
    let told = |rig: &Rig| {
        [0x060, 0x0fc].map(|offset| {
            let mut value = [0; 4];
            rig.device.read(0, offset, &mut value);
            u32::from_le_bytes(value)
        })
    };
    for (size, news) in [(SIZE, false), (2 * SIZE, true), (2 * SIZE, false), (SIZE / 2, true)] {
        let ticket = rig.device.drain();
        while !ticket.is_done() {
            rig.worker.borrow_mut().run().unwrap();
        }
        let [_, before] = told(&rig);
        let next = Rig::new(BlkConfig::default(), of_size(size));
        next.device.restore(&rig.device.save().unwrap()).unwrap();
        rig = next;
        let [cause, generation] = told(&rig);
        assert_eq!((cause & 2 != 0, generation != before), (news, news), "{size}");
        assert!(!news || rig.interrupts.raised() > 0, "{size}");
        driver.transport().replace_frontend(rig.device.clone(), rig.pump());
        assert_eq!(driver.capacity(), size / 512);
        rig.device.resume();
        assert_eq!(driver.run(BlkOp::In, 0, &mut [0; 512]), Ok(BlkStatus::Ok));
        // Acknowledged, as a driver does.
        let _ = rig.device.write(0, 0x064, &3_u32.to_le_bytes());
    }
    // Nobody is there to be told.
    let unused = Rig::new(BlkConfig::default(), of_size(SIZE)).device.save().unwrap();
    let next = Rig::new(BlkConfig::default(), of_size(2 * SIZE));
    next.device.restore(&unused).unwrap();
    assert_eq!((told(&next)[0], next.interrupts.raised()), (0, 0));
}

#[test]
fn saved_in_one_device_and_restored_in_another() {
    let stack = memory();
    let first = Rig::new(BlkConfig::default(), stack.clone());
    let mut driver = first.driver(ALL, 4096);
    let data = pattern(4, 4096);
    assert_eq!(driver.run(BlkOp::Out, 0, &mut data.clone()), Ok(BlkStatus::Ok));
    assert!(first.device.save().is_err(), "a running device must not be saved");
    let ticket = first.device.drain();
    while !ticket.is_done() {
        first.worker.borrow_mut().run().unwrap();
    }
    let saved = first.device.save().unwrap();

    let second = Rig::new(BlkConfig::default(), stack);
    second.device.restore(&saved).unwrap();
    // The driver stays: it only finds another device behind its registers.
    driver.transport().replace_frontend(second.device.clone(), second.pump());
    second.device.resume();
    let mut read = vec![0; 4096];
    assert_eq!(driver.run(BlkOp::In, 0, &mut read), Ok(BlkStatus::Ok));
    assert_eq!(read, data);
    for cut in 0..saved.len() {
        let third = Rig::new(BlkConfig::default(), memory());
        assert!(third.device.restore(&saved[..cut]).is_err());
        if cut > 64 {
            break;
        }
    }
}

#[test]
fn a_reset_waits_for_requests_and_the_device_works_again() {
    let rig = Rig::new(BlkConfig::default(), memory());
    for round in 0..20 {
        let mut driver = rig.driver(if round % 2 == 0 { ALL } else { NO_EVENT_IDX }, 4096);
        for sector in 0..40 {
            driver.submit(BlkOp::Out, sector * 8, &pattern(round, 4096)).unwrap();
        }
        driver.ring();
        // Dropping the driver resets the device under these requests.
    }
    assert_eq!(rig.device.counters().len(), 1);
}
