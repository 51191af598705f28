//! Checks of a disk's server, whoever wrote it. Each panics where the server does what it must not.

use std::path::PathBuf;
use std::time::Duration;

use crate::blk::{BlkDriver, BlkQueue, BlkRequest, Operation};
use crate::queue::Client;
use crate::{Error, Result};

/// How long a completion may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// Bytes and sectors of a block.
const BLOCK: usize = 4096;
const BLOCK_SECTORS: u64 = 8;
/// The status of a request that failed, and of one of an unknown type.
const FAILED: u8 = 1;
const UNSUPPORTED: u8 = 2;
/// Blocks that [`blocks`] writes for each queue.
const BLOCKS: u64 = 1000;
/// The sectors that the checks need.
pub const SECTORS: u64 = 64 << 11;

/// Data that tells its place and its round.
pub fn pattern(sector: u64, round: u8, len: usize) -> Vec<u8> {
    (0..len).map(|at| (sector as usize * 7 + at / 3 + usize::from(round) * 101) as u8).collect()
}

/// Each kind of request, one after the other; and what a disk of so many sectors must refuse.
///
/// # Panics
/// Where the server does what it must not.
pub fn requests(queue: &mut BlkQueue, sectors: u64, round: u8) {
    for (sector, len) in [(0, 512), (9, BLOCK), (1000, 128 << 10)] {
        let data = pattern(sector, round, len);
        queue.write(sector, &data).expect("a write");
        queue.flush().expect("a flush");
        let mut back = vec![0; len];
        queue.read(sector, &mut back).expect("a read");
        assert!(back == data, "{len} bytes at sector {sector} are not those that were written");
    }
    assert!(!queue.id().expect("a name").is_empty());
    for operation in [Operation::Read, Operation::Write] {
        let beyond = queue.request(BlkRequest { operation, sector: sectors, len: 512 });
        assert!(matches!(beyond, Err(Error::Status(FAILED))), "{operation:?} beyond the end: {beyond:?}");
    }
    let unknown = queue.request(BlkRequest { operation: Operation::Other(77), sector: 0, len: 512 });
    assert!(matches!(unknown, Err(Error::Status(UNSUPPORTED))), "{unknown:?}");
}

/// Writes zeroes and discards, where both are offered.
///
/// # Panics
/// Where the server does what it must not.
pub fn ranges(queue: &mut BlkQueue) {
    queue.write(8, &[0xaa; BLOCK]).expect("a write");
    queue.range(Operation::WriteZeroes, 8, 4).expect("zeroes");
    let mut back = [1; BLOCK];
    queue.read(8, &mut back).expect("a read");
    assert!(back[..2048].iter().all(|byte| *byte == 0), "zeroes were not written");
    assert!(back[2048..].iter().all(|byte| *byte == 0xaa), "too many zeroes were written");
    queue.range(Operation::Discard, 8, 8).expect("a discard");
}

/// Writes a queue's own part of the disk with all slots in flight, and reads it back.
///
/// # Panics
/// Where the server does what it must not.
pub fn blocks(queue: &mut BlkQueue, number: u64, client: Client) {
    for operation in [Operation::Write, Operation::Read] {
        let mut at = vec![0; usize::from(queue.slots())];
        let mut free: Vec<u16> = (0..queue.slots()).collect();
        let (mut next, mut done) = (0, 0);
        while done < BLOCKS {
            while next < BLOCKS
                && let Some(slot) = free.pop()
            {
                let sector = (number * BLOCKS + next) * BLOCK_SECTORS;
                at[usize::from(slot)] = sector;
                let data = if operation == Operation::Write {
                    pattern(sector, number as u8, BLOCK)
                } else {
                    vec![0; BLOCK]
                };
                queue.fill(slot, &data);
                queue.submit(slot, BlkRequest { operation, sector, len: BLOCK as u32 });
                next += 1;
            }
            queue.publish().expect("a doorbell");
            let Some(completion) = completion(queue, client).expect("a completion") else { continue };
            assert_eq!(completion.status, 0, "{operation:?}");
            if operation == Operation::Read {
                let mut back = [0; BLOCK];
                queue.copy_out(completion.slot, &mut back);
                let sector = at[usize::from(completion.slot)];
                assert!(back.as_slice() == pattern(sector, number as u8, BLOCK), "sector {sector}");
            }
            free.push(completion.slot);
            done += 1;
        }
    }
}

fn completion(queue: &mut BlkQueue, client: Client) -> Result<Option<crate::blk::BlkCompletion>> {
    match client {
        Client::Sleeping => queue.next(PATIENCE).map(Some),
        Client::Polling => {
            queue.queue_mut().ring_mut().refuse_interrupts();
            std::hint::spin_loop();
            queue.complete()
        }
    }
}

/// All queues at once, each in a thread, every other one polling.
///
/// # Panics
/// Where the server does what it must not.
pub fn queues_at_once(driver: &mut BlkDriver) {
    std::thread::scope(|scope| {
        for (number, queue) in (0u64..).zip(&mut driver.queues) {
            let client = Client::ALL[number as usize % Client::ALL.len()];
            scope.spawn(move || blocks(queue, number, client));
        }
    });
    for queue in &driver.queues {
        let [kicks, _] = queue.queue().notifications();
        assert!(kicks > 0, "a doorbell was never asked for");
    }
}

/// Fills all slots of all queues with writes, has the server killed behind the first completion, connects to the one that comes
/// back, and expects each write to complete, exactly once, and to be on the disk. `kill` ends the server at once, `start` gives
/// the socket of the next.
///
/// # Panics
/// Where the server does what it must not.
pub fn killed_in_flight(
    driver: &mut BlkDriver,
    round: u8,
    kill: impl FnOnce(),
    start: impl FnOnce() -> PathBuf,
) {
    let mut places = Vec::new();
    let mut done = Vec::new();
    for (number, queue) in (0u64..).zip(&mut driver.queues) {
        for slot in 0..queue.slots() {
            let sector = (number * 1024 + u64::from(slot)) * BLOCK_SECTORS;
            places.push(sector);
            queue.fill(slot, &pattern(sector, round, BLOCK));
            queue.submit(slot, BlkRequest { operation: Operation::Write, sector, len: BLOCK as u32 });
        }
        queue.publish().expect("a doorbell");
        done.push(0u16);
    }
    assert_eq!(driver.queues[0].next(PATIENCE).expect("a completion").status, 0);
    done[0] += 1;
    kill();
    for (queue, done) in driver.queues.iter_mut().zip(&mut done) {
        while *done < queue.slots() {
            match queue.next(PATIENCE) {
                Ok(completion) => assert_eq!(completion.status, 0, "a write"),
                Err(Error::Gone) => break,
                Err(error) => panic!("a killed server: {error}"),
            }
            *done += 1;
        }
    }
    driver.reconnect(&start()).expect("the server came back");
    for (queue, done) in driver.queues.iter_mut().zip(done) {
        for _ in done..queue.slots() {
            assert_eq!(queue.next(PATIENCE).expect("what was in flight completes").status, 0, "a write");
        }
        assert_eq!(queue.queue().ring().in_flight(), 0);
    }
    let mut back = [0; BLOCK];
    for sector in places {
        driver.queues[0].read(sector, &mut back).expect("a read");
        assert!(back.as_slice() == pattern(sector, round, BLOCK), "sector {sector} in round {round}");
    }
}
