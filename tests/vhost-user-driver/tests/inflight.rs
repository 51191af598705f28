//! A server that notes in shared memory what it has begun (`INFLIGHT_SHMFD`) dies, and the driver hands the notes to the next.
//!
//! The servers are scripted, on the other half of the crate `vhost`: they answer messages and leave the rings to the test.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
    VhostUserLog, VhostUserMemoryRegion, VhostUserProtocolFeatures, VhostUserShMemConfig, VhostUserSharedMsg,
    VhostUserSingleMemoryRegion, VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{
    BackendReqHandler, Error as Refusal, GpuBackend, Result as Answer, VhostUserBackendReqHandlerMut,
};
use vhost_user_driver::options::feature;
use vhost_user_driver::{BlkDriver, BlkRequest, Operation, Options};

const AREA: u64 = 4096;
const NOTES: &[u8] = b"what the server has begun";

/// What the servers were told.
#[derive(Debug, Default, PartialEq, Eq)]
struct Told {
    /// The first bytes of the area, at each `SET_INFLIGHT_FD`.
    areas: Vec<Vec<u8>>,
    /// How often a new area was asked for.
    asked: usize,
    bases: Vec<u32>,
    enabled: usize,
    regions: usize,
}

struct Server(Arc<Mutex<Told>>);

impl Server {
    fn told(&self) -> std::sync::MutexGuard<'_, Told> {
        self.0.lock().unwrap()
    }
}

/// What no driver of ours asks for.
fn refuse<T>() -> Answer<T> {
    Err(Refusal::InvalidOperation("not in this test"))
}

impl VhostUserBackendReqHandlerMut for Server {
    fn set_owner(&mut self) -> Answer<()> {
        Ok(())
    }

    fn get_features(&mut self) -> Answer<u64> {
        Ok(feature::VERSION_1 | feature::INDIRECT_DESC | feature::EVENT_IDX | feature::PROTOCOL_FEATURES)
    }

    fn set_features(&mut self, _features: u64) -> Answer<()> {
        Ok(())
    }

    fn get_protocol_features(&mut self) -> Answer<VhostUserProtocolFeatures> {
        Ok(VhostUserProtocolFeatures::INFLIGHT_SHMFD | VhostUserProtocolFeatures::REPLY_ACK)
    }

    fn set_protocol_features(&mut self, _features: u64) -> Answer<()> {
        Ok(())
    }

    fn set_mem_table(
        &mut self,
        regions: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _postcopy: Option<bool>,
    ) -> Answer<Option<Vec<u64>>> {
        assert_eq!(regions.len(), files.len());
        self.told().regions += regions.len();
        Ok(None)
    }

    fn get_inflight_fd(&mut self, shape: &VhostUserInflight) -> Answer<(VhostUserInflight, File)> {
        self.told().asked += 1;
        let mut file = tempfile::tempfile().map_err(Refusal::ReqHandlerError)?;
        file.set_len(AREA).and_then(|()| file.write_all(NOTES)).map_err(Refusal::ReqHandlerError)?;
        let (queues, size) = (shape.num_queues, shape.queue_size);
        assert_eq!((queues, size), (1, 256));
        Ok((VhostUserInflight::new(AREA, 0, queues, size), file))
    }

    fn set_inflight_fd(&mut self, shape: &VhostUserInflight, mut file: File) -> Answer<()> {
        let size = shape.mmap_size;
        assert_eq!(size, AREA);
        let mut notes = vec![0; NOTES.len()];
        file.rewind().and_then(|()| file.read_exact(&mut notes)).map_err(Refusal::ReqHandlerError)?;
        self.told().areas.push(notes);
        Ok(())
    }

    fn set_vring_base(&mut self, _queue: u32, base: u32) -> Answer<()> {
        self.told().bases.push(base);
        Ok(())
    }

    fn set_vring_enable(&mut self, _queue: u32, enable: bool) -> Answer<()> {
        self.told().enabled += usize::from(enable);
        Ok(())
    }

    fn set_vring_num(&mut self, _queue: u32, size: u32) -> Answer<()> {
        assert_eq!(size, 256);
        Ok(())
    }

    fn set_vring_addr(
        &mut self,
        _queue: u32,
        _flags: VhostUserVringAddrFlags,
        _descriptors: u64,
        _used: u64,
        _available: u64,
        _log: u64,
    ) -> Answer<()> {
        Ok(())
    }

    fn set_vring_kick(&mut self, _queue: u8, fd: Option<File>) -> Answer<()> {
        fd.map(|_| ()).ok_or(Refusal::IncorrectFds)
    }

    fn set_vring_call(&mut self, _queue: u8, fd: Option<File>) -> Answer<()> {
        fd.map(|_| ()).ok_or(Refusal::IncorrectFds)
    }

    fn set_vring_err(&mut self, _queue: u8, fd: Option<File>) -> Answer<()> {
        fd.map(|_| ()).ok_or(Refusal::IncorrectFds)
    }

    fn reset_owner(&mut self) -> Answer<()> {
        refuse()
    }

    fn reset_device(&mut self) -> Answer<()> {
        refuse()
    }

    fn get_vring_base(&mut self, _queue: u32) -> Answer<VhostUserVringState> {
        refuse()
    }

    fn get_queue_num(&mut self) -> Answer<u64> {
        refuse()
    }

    fn get_config(&mut self, _offset: u32, _size: u32, _flags: VhostUserConfigFlags) -> Answer<Vec<u8>> {
        refuse()
    }

    fn set_config(&mut self, _offset: u32, _bytes: &[u8], _flags: VhostUserConfigFlags) -> Answer<()> {
        refuse()
    }

    fn set_gpu_socket(&mut self, _gpu: GpuBackend) -> Answer<()> {
        refuse()
    }

    fn get_shared_object(&mut self, _object: VhostUserSharedMsg) -> Answer<File> {
        refuse()
    }

    fn get_max_mem_slots(&mut self) -> Answer<u64> {
        refuse()
    }

    fn add_mem_region(
        &mut self,
        _region: &VhostUserSingleMemoryRegion,
        _file: File,
        _postcopy: Option<bool>,
    ) -> Answer<Option<u64>> {
        refuse()
    }

    fn remove_mem_region(&mut self, _region: &VhostUserSingleMemoryRegion) -> Answer<()> {
        refuse()
    }

    fn set_device_state_fd(
        &mut self,
        _direction: VhostTransferStateDirection,
        _phase: VhostTransferStatePhase,
        _file: File,
    ) -> Answer<Option<File>> {
        refuse()
    }

    fn check_device_state(&mut self) -> Answer<()> {
        refuse()
    }

    fn get_shmem_config(&mut self) -> Answer<VhostUserShMemConfig> {
        refuse()
    }

    fn set_log_base(&mut self, _log: &VhostUserLog, _file: File) -> Answer<()> {
        refuse()
    }
}

/// Serves one connection until every ring is enabled, and then dies.
fn serve(path: &Path, told: &Arc<Mutex<Told>>, rings: usize) -> JoinHandle<()> {
    let listener = UnixListener::bind(path).unwrap();
    let told = Arc::clone(told);
    thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        let server = Arc::new(Mutex::new(Server(Arc::clone(&told))));
        let mut handler = BackendReqHandler::from_stream(stream, server);
        while told.lock().unwrap().enabled < rings {
            handler.handle_request().unwrap();
        }
    })
}

#[test]
fn the_next_server_is_given_the_notes_of_the_last() {
    let folder = tempfile::tempdir().unwrap();
    let told = Arc::new(Mutex::new(Told::default()));
    let first = serve(&folder.path().join("first"), &told, 1);
    let mut driver = BlkDriver::connect(&folder.path().join("first"), &Options::blk()).unwrap();
    first.join().unwrap();
    assert!(driver.session.tracks_inflight());

    let queue = &mut driver.queues[0];
    for slot in 0..3 {
        queue.submit(slot, BlkRequest { operation: Operation::Write, sector: u64::from(slot), len: 512 });
    }
    queue.publish().unwrap();
    // The first server returns the second request and dies.
    let used = queue.queue().ring().places().used;
    let memory = Arc::clone(queue.queue().memory());
    memory.store_u32(used + 4, 1);
    memory.store_u16(used + 2, 1, Ordering::Release);

    let second = serve(&folder.path().join("second"), &told, 2);
    driver.reconnect(&folder.path().join("second")).unwrap();
    second.join().unwrap();
    let expected = Told {
        areas: vec![NOTES.to_vec(), NOTES.to_vec()],
        asked: 1,
        bases: vec![0, 1],
        enabled: 2,
        regions: 2,
    };
    assert_eq!(*told.lock().unwrap(), expected);

    // What was returned before the end is there, and nothing was made available a second time.
    let queue = &mut driver.queues[0];
    assert_eq!(queue.complete().unwrap().unwrap().slot, 1);
    let available = queue.queue().ring().places().available;
    assert_eq!(memory.load_u16(available + 2, Ordering::Relaxed), 3);
    // By its notes the second server returns the others.
    for (entry, slot) in [(1, 2u16), (2, 0)] {
        memory.store_u32(used + 4 + 8 * entry, u32::from(slot));
        memory.store_u16(used + 2, entry as u16 + 1, Ordering::Release);
        assert_eq!(queue.next(Duration::from_secs(10)).unwrap().slot, slot);
    }
    assert_eq!(queue.queue().ring().in_flight(), 0);
}
