//! A front-end that sends any bytes with any descriptors.

use iovirt_core::socket::{receive, send};
use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;
use vhost_user_driver::BlkDriver;

/// Numbers of requests ("Front-end message types").
pub(crate) mod code {
    pub(crate) const GET_FEATURES: u32 = 1;
    pub(crate) const SET_FEATURES: u32 = 2;
    pub(crate) const SET_OWNER: u32 = 3;
    pub(crate) const RESET_OWNER: u32 = 4;
    pub(crate) const SET_MEM_TABLE: u32 = 5;
    pub(crate) const SET_LOG_BASE: u32 = 6;
    pub(crate) const SET_LOG_FD: u32 = 7;
    pub(crate) const SET_VRING_NUM: u32 = 8;
    pub(crate) const SET_VRING_ADDR: u32 = 9;
    pub(crate) const SET_VRING_BASE: u32 = 10;
    pub(crate) const GET_VRING_BASE: u32 = 11;
    pub(crate) const SET_VRING_KICK: u32 = 12;
    pub(crate) const SET_VRING_CALL: u32 = 13;
    pub(crate) const SET_VRING_ERR: u32 = 14;
    pub(crate) const GET_PROTOCOL_FEATURES: u32 = 15;
    pub(crate) const SET_PROTOCOL_FEATURES: u32 = 16;
    pub(crate) const GET_QUEUE_NUM: u32 = 17;
    pub(crate) const SET_VRING_ENABLE: u32 = 18;
    pub(crate) const SET_BACKEND_REQ_FD: u32 = 21;
    pub(crate) const GET_CONFIG: u32 = 24;
    pub(crate) const SET_CONFIG: u32 = 25;
    pub(crate) const GET_INFLIGHT_FD: u32 = 31;
    pub(crate) const SET_INFLIGHT_FD: u32 = 32;
    pub(crate) const RESET_DEVICE: u32 = 34;
    pub(crate) const GET_MAX_MEM_SLOTS: u32 = 36;
    pub(crate) const ADD_MEM_REG: u32 = 37;
    pub(crate) const REM_MEM_REG: u32 = 38;
    pub(crate) const SET_STATUS: u32 = 39;
    pub(crate) const GET_STATUS: u32 = 40;
}

/// All protocol features that the device offers.
pub(crate) const ALL_PROTOCOL: u64 =
    1 | 1 << 1 | 1 << 3 | 1 << 5 | 1 << 9 | 1 << 12 | 1 << 13 | 1 << 15 | 1 << 16;
/// Of those, the one that a card does not have: a record of chains in flight.
pub(crate) const INFLIGHT: u64 = 1 << 12;
/// The device logs what it writes.
pub(crate) const LOG_ALL: u64 = 1 << 26;
/// Version 1, and a wish for an answer.
pub(crate) const NEED_REPLY: u32 = 1 | 1 << 3;

/// One end of a connection.
pub(crate) struct Raw {
    pub(crate) stream: UnixStream,
}

impl Raw {
    pub(crate) fn connect(path: &Path) -> Self {
        Self::on(UnixStream::connect(path).unwrap())
    }

    pub(crate) fn on(stream: UnixStream) -> Self {
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        stream.set_write_timeout(Some(Duration::from_secs(30))).unwrap();
        Self { stream }
    }

    /// The connection of a driver, for messages that the driver does not know.
    pub(crate) fn of(driver: &mut BlkDriver) -> Self {
        Self::on(duplicate(driver.session.frontend()).into())
    }

    /// Sends whatever it is.
    pub(crate) fn send_as(
        &self,
        (code, flags, size): (u32, u32, u32),
        payload: &[u8],
        fds: &[BorrowedFd<'_>],
    ) -> io::Result<()> {
        let mut bytes: Vec<u8> = [code, flags, size].iter().flat_map(|word| word.to_le_bytes()).collect();
        bytes.extend(payload);
        let (mut done, mut fds) = (0, fds);
        while done < bytes.len() {
            done += send(&self.stream, &bytes[done..], fds)?;
            fds = &[];
        }
        Ok(())
    }

    /// The next answer: its payload and its descriptors.
    pub(crate) fn answer(&self) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
        let (mut header, mut fds) = ([0; 12], Vec::new());
        self.fill(&mut header, &mut fds)?;
        let size = u32::from_le_bytes(header[8..].try_into().unwrap());
        let mut payload = vec![0; size as usize];
        self.fill(&mut payload, &mut fds)?;
        Ok((payload, fds))
    }

    fn fill(&self, bytes: &mut [u8], fds: &mut Vec<OwnedFd>) -> io::Result<()> {
        let mut done = 0;
        while done < bytes.len() {
            match receive(&self.stream, &mut bytes[done..], fds)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                count => done += count,
            }
        }
        Ok(())
    }

    /// Asks for something, with an answer of its own.
    pub(crate) fn ask_with(&self, code: u32, payload: &[u8], fds: &[BorrowedFd<'_>]) -> Vec<u8> {
        self.send_as((code, 1, payload.len() as u32), payload, fds).unwrap();
        self.answer().unwrap().0
    }

    pub(crate) fn ask(&self, code: u32, payload: &[u8]) -> Vec<u8> {
        self.ask_with(code, payload, &[])
    }

    /// Tells something, and gives what became of it: zero for success.
    pub(crate) fn tell_with(&self, code: u32, payload: &[u8], fds: &[BorrowedFd<'_>]) -> u64 {
        self.send_as((code, NEED_REPLY, payload.len() as u32), payload, fds).unwrap();
        u64::from_le_bytes(self.answer().unwrap().0.try_into().unwrap())
    }

    pub(crate) fn tell(&self, code: u32, payload: &[u8]) -> u64 {
        self.tell_with(code, payload, &[])
    }

    /// The same for a number.
    pub(crate) fn tell_number(&self, code: u32, number: u64) -> u64 {
        self.tell(code, &number.to_le_bytes())
    }

    /// Leaves, also where a driver has the connection too.
    pub(crate) fn hang_up(&self) {
        // It may have ended from the other side.
        let _ = self.stream.shutdown(Shutdown::Both);
    }

    /// Negotiates everything.
    pub(crate) fn negotiate(&self, features: u64) {
        let offered = number(&self.ask(code::GET_FEATURES, &[]));
        assert_eq!(
            number(&self.ask(code::GET_PROTOCOL_FEATURES, &[])) & ALL_PROTOCOL & !INFLIGHT,
            ALL_PROTOCOL & !INFLIGHT
        );
        self.take_protocol(ALL_PROTOCOL);
        assert_eq!(self.tell_number(code::SET_FEATURES, offered & features), 0);
    }

    /// Takes these protocol features where they are on offer.
    pub(crate) fn take_protocol(&self, wanted: u64) {
        let offered = number(&self.ask(code::GET_PROTOCOL_FEATURES, &[]));
        let bytes = (offered & wanted).to_le_bytes();
        self.send_as((code::SET_PROTOCOL_FEATURES, 1, 8), &bytes, &[]).unwrap();
    }
}

/// A duplicate, for types that give no more than a number.
pub(crate) fn duplicate(fd: &impl AsRawFd) -> OwnedFd {
    // SAFETY: the descriptor is open for as long as its owner is borrowed.
    unsafe { BorrowedFd::borrow_raw(fd.as_raw_fd()) }.try_clone_to_owned().expect("a descriptor")
}

/// A number of 64 bits.
pub(crate) fn number(bytes: &[u8]) -> u64 {
    u64::from_le_bytes(bytes.try_into().expect("eight bytes"))
}

/// Words of 32 bits.
pub(crate) fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// Numbers of 64 bits.
pub(crate) fn longs(longs: &[u64]) -> Vec<u8> {
    longs.iter().flat_map(|long| long.to_le_bytes()).collect()
}

/// A range of the configuration space with these bytes.
pub(crate) fn config(offset: u32, bytes: &[u8]) -> Vec<u8> {
    [words(&[offset, bytes.len() as u32, 0]), bytes.to_vec()].concat()
}

/// Shared memory of that many zeroes.
pub(crate) fn memory(len: u64) -> OwnedFd {
    iovirt_core::dma::shared_memory(len).unwrap().into()
}

/// The bytes of shared memory.
pub(crate) fn content(memory: &impl AsFd, len: usize) -> Vec<u8> {
    use std::os::unix::fs::FileExt;
    let file = std::fs::File::from(memory.as_fd().try_clone_to_owned().unwrap());
    let mut bytes = vec![0; len];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}
