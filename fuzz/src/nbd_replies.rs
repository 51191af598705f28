//! A hostile NBD server: what it says while hands are shaken, and what it answers to requests.
//!
//! Where the first byte is odd, the rest is all that the server says, to its hanging up. Else the handshake is honest, about an
//! export of any size, flags and block sizes, and then come steps: replies to requests, right ones or not, or any bytes. Nothing
//! is waited for and there is no thread: what the server says lies in a socket before it is asked for. In the end it hangs up, and
//! every request must have come home.

use crate::input::Input;
use iovirt_backends::block::nbd::{NbdAddress, NbdBackend, NbdConfig};
use iovirt_core::pipeline::BoxBackend;
use iovirt_core::request::block::{BlockOutput, BlockRequest};
use iovirt_core::test_utils::{BlockIo, Driver};
use iovirt_core::worker::UringPolicy;
use iovirt_core::{Backend, WorkerConfig};
use std::cell::RefCell;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// Requests that are in flight at once.
const DEPTH: u32 = 4;
const GREETING: &[u8] = b"NBDMAGICIHAVEOPT\0\x03";
/// "Simple reply message".
const REPLY: u32 = 0x6744_6698;
/// What every good reply to an option begins with.
const OPTION_REPLY: u64 = 0x0003_e889_0455_65a9;
/// "Request message".
const REQUEST_MAGIC: [u8; 4] = [0x25, 0x60, 0x95, 0x13];
/// Length of a request without its data.
const REQUEST: usize = 28;

thread_local! {
    static DRIVER: RefCell<Option<Driver>> = const { RefCell::new(None) };
}

/// Plays an input.
///
/// # Panics
/// Where the client does, or a request does not come home.
pub fn run(data: &[u8]) {
    DRIVER.with_borrow_mut(|driver| {
        let driver = driver.get_or_insert_with(|| {
            let config = WorkerConfig { uring: UringPolicy::Off, ..WorkerConfig::default() };
            let mut driver = Driver::with_config(1, config).expect("a driver");
            driver.set_patience(Duration::from_secs(5));
            driver
        });
        driver.reseed(1);
        let mut input = Input::new(data);
        let raw = input.u8() & 1 != 0;
        let (ours, mut theirs) = UnixStream::pair().expect("a pair of sockets");
        theirs.set_nonblocking(true).expect("a socket");
        let said = if raw { [GREETING, input.all()].concat() } else { handshake(&mut input) };
        // Longer ones than a socket takes are cut off.
        let _ = theirs.write(&said);
        if raw {
            let _ = theirs.shutdown(Shutdown::Write);
        }
        let config = NbdConfig::new(NbdAddress::Unix("/nowhere/at/all".into()));
        if let Ok(backend) = NbdBackend::over(ours.into(), config) {
            requests(driver, &BoxBackend::new(backend), &mut theirs, &mut input);
        }
    });
}

/// An honest handshake about an export that need not make sense.
fn handshake(input: &mut Input<'_>) -> Vec<u8> {
    let option = |kind: u32, data: &[u8]| {
        let head = [7, kind, data.len() as u32].map(u32::to_be_bytes).concat();
        [&OPTION_REPLY.to_be_bytes()[..], &head, data].concat()
    };
    let (flags, size) = (input.u16(), u64::from(input.u16()) << (input.u8() % 56));
    let mut said = GREETING.to_vec();
    said.extend(option(3, &[&[0, 0][..], &size.to_be_bytes(), &flags.to_be_bytes()].concat()));
    if input.u8() & 1 != 0 {
        let sizes = [0; 3].map(|_| (1u32 << (input.u8() % 32)).to_be_bytes()).concat();
        said.extend(option(3, &[&[0, 3], &sizes[..]].concat()));
    }
    said.extend(option(1, &[]));
    said
}

fn requests(
    driver: &mut Driver,
    backend: &BoxBackend<BlockRequest>,
    server: &mut UnixStream,
    input: &mut Input<'_>,
) {
    let caps = backend.caps();
    if driver.open(backend, DEPTH).is_err() {
        return;
    }
    let len = u64::from(caps.logical_block).min(caps.capacity).min(65536);
    for step in 0..8 {
        let ios = [BlockIo::read(0, len), BlockIo::write(0, vec![step; len as usize]), BlockIo::flush()];
        let _ = driver.submit(ios[usize::from(input.u8()) % 3].clone());
    }
    let mut done = driver.turn();
    let mut heard = Vec::new();
    for _ in 0..16 {
        hear(server, &mut heard);
        if input.is_empty() {
            break;
        }
        let said = say(input, &mut heard, len);
        let _ = server.write(&said);
        done.extend(driver.turn());
    }
    let _ = server.shutdown(Shutdown::Both);
    done.extend(driver.wait_all().expect("every request comes home when the server is gone"));
    driver.close();
    for done in done {
        assert!(!done.lost, "the client lost a request");
        assert!(matches!(done.output, BlockOutput::Done | BlockOutput::Failed(_)));
    }
}

/// What the client has sent, as far as it fits.
fn hear(server: &mut UnixStream, heard: &mut Vec<u8>) {
    let mut bytes = [0; 4096];
    while let Ok(count @ 1..) = server.read(&mut bytes) {
        heard.extend(&bytes[..count]);
    }
}

/// Something that looks like a reply to what was heard, or any bytes.
fn say(input: &mut Input<'_>, heard: &mut Vec<u8>, len: u64) -> Vec<u8> {
    let kind = input.u8();
    if kind & 3 == 3 {
        let count = usize::from(input.u8());
        return input.bytes(count).to_vec();
    }
    // Which request it is for: that bytes in the middle of data may be taken for one does no harm.
    let at = heard.windows(4).position(|window| window == REQUEST_MAGIC).unwrap_or(heard.len());
    heard.drain(..at);
    let cookie: [u8; 8] = heard.get(8..16).map_or([0; 8], |cookie| cookie.try_into().expect("eight bytes"));
    let reads = heard.get(6..8) == Some(&[0, 0]);
    if kind & 4 == 0 {
        heard.drain(..REQUEST.min(heard.len()));
    }
    let error = if kind & 8 == 0 { 0 } else { u32::from(input.u8()) };
    let mut said = [&REPLY.to_be_bytes()[..], &error.to_be_bytes(), &cookie].concat();
    if reads && error == 0 {
        let room = if kind & 16 == 0 { len as usize } else { usize::from(input.u16()) };
        said.resize(said.len() + room, 7);
    }
    if kind & 32 != 0 {
        let end = usize::from(input.u8()).min(said.len());
        said.truncate(end);
    }
    said
}

/// Handshakes and conversations, honest ones and not.
pub fn seeds() -> Vec<Vec<u8>> {
    let honest = |flags: u16| [&[0][..], &flags.to_le_bytes(), &1024_u16.to_le_bytes(), &[10, 0]].concat();
    let sized = [&[0][..], &0x16d_u16.to_le_bytes(), &1024_u16.to_le_bytes(), &[10, 1, 9, 12, 25]].concat();
    let kinds = [0, 1, 2, 0, 1, 2, 0, 0];
    let talk = |steps: &[u8]| [&honest(0x16d)[..], &kinds, steps].concat();
    let option = |kind: u32, data: &[u8]| {
        let head = [7, kind, data.len() as u32].map(u32::to_be_bytes).concat();
        [&OPTION_REPLY.to_be_bytes()[..], &head, data].concat()
    };
    let export =
        |size: u64, flags: u16| option(3, &[&[0, 0][..], &size.to_be_bytes(), &flags.to_be_bytes()].concat());
    let raw = |parts: &[Vec<u8>]| [&[1][..], &parts.concat()].concat();
    let mut huge = option(3, &[]);
    huge[16..].copy_from_slice(&u32::MAX.to_be_bytes());
    vec![
        talk(&[0; 10]),
        talk(&[0, 8, 28, 0, 8, 1, 0, 0]),
        talk(&[4, 0, 0, 0]),
        talk(&[16, 100, 0, 0, 0]),
        talk(&[32, 9, 3, 7, 0, 0, 0, 0, 0, 0, 0, 0]),
        talk(&[3, 16, 0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 9]),
        [&sized[..], &kinds, &[0; 8]].concat(),
        [&honest(1)[..], &kinds, &[0; 8]].concat(),
        [&honest(3)[..], &[0; 8], &[0; 8]].concat(),
        raw(&[export(1 << 20, 0x6d), option(1, &[])]),
        raw(&[
            export(1 << 20, 0x6d),
            option(3, &[0, 3, 0, 0, 2, 0, 0, 0, 16, 0, 2, 0, 0, 0]),
            option(1, &[]),
        ]),
        raw(&[export(0, 1), option(1, &[])]),
        raw(&[option(0x8000_0006, b"go\naway")]),
        raw(&[option(3, &[0, 0, 1])]),
        raw(&[huge]),
        raw(&vec![export(1 << 20, 1); 70]),
        vec![1, 0xff],
    ]
}
