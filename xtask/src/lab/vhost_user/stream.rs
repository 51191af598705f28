//! The host's ends of TCP streams over a tap.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::Place;
use super::load::{sum, word_after};
use crate::cmd::Cmd;
use crate::error::{Context, Error, Result, write};
use crate::lab::cases::must;
use crate::lab::filesystem::noise;

pub(crate) const HOST: &str = "10.61.0.1";
pub(crate) const GUEST: &str = "10.61.0.2";
/// Bytes that are sent at once.
const PIECE: usize = 64 << 10;

/// The host's end of a stream.
#[derive(Debug)]
pub(crate) struct End {
    port: u16,
    passed: Arc<AtomicUsize>,
    work: JoinHandle<Result<Vec<u8>>>,
}

impl End {
    fn new(port: u16, work: impl FnOnce(&AtomicUsize) -> Result<Vec<u8>> + Send + 'static) -> Self {
        let passed = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&passed);
        Self { port, passed, work: thread::spawn(move || work(&counted)) }
    }

    /// How many bytes came or were sent so far.
    pub(crate) fn passed(&self) -> usize {
        self.passed.load(Ordering::Relaxed)
    }
}

/// Gives the host's end of the tap its address.
pub(crate) fn host_up() -> Result<()> {
    for words in ["link set lo up", &format!("addr add {HOST}/24 dev tap0"), "link set tap0 up"] {
        Cmd::new("ip").args(words.split(' ')).quiet()?;
    }
    Ok(())
}

/// Takes what the guest sends to a port.
pub(crate) fn take(port: u16, place: &Place) -> Result<End> {
    let listener = TcpListener::bind((HOST, port)).context(port)?;
    listener.set_nonblocking(true)?;
    let deadline = place.deadline;
    Ok(End::new(port, move |passed| {
        let mut stream = loop {
            match listener.accept() {
                Ok((stream, _)) => break stream,
                Err(error) if Instant::now() >= deadline => return Err(error).context("no connection came"),
                Err(_) => thread::sleep(Duration::from_millis(20)),
            }
        };
        stream.set_nonblocking(false)?;
        let (mut bytes, mut piece) = (Vec::new(), vec![0; PIECE]);
        loop {
            match stream.read(&mut piece).context(port)? {
                0 => return Ok(bytes),
                len => bytes.extend_from_slice(&piece[..len]),
            }
            passed.store(bytes.len(), Ordering::Relaxed);
        }
    }))
}

/// Sends something to a port of the guest, once it listens, for as long as `more` says so of what was sent.
pub(crate) fn give(port: u16, place: &Place, more: impl Fn(usize) -> bool + Send + 'static) -> End {
    let deadline = place.deadline;
    End::new(port, move |passed| {
        let mut stream = loop {
            match TcpStream::connect((GUEST, port)) {
                Ok(stream) => break stream,
                Err(error) if Instant::now() >= deadline => return Err(error).context(port),
                Err(_) => thread::sleep(Duration::from_millis(20)),
            }
        };
        let mut bytes = Vec::new();
        while more(bytes.len()) {
            let piece = noise(u64::from(port) << 32 | bytes.len() as u64, PIECE);
            stream.write_all(&piece).context(port)?;
            bytes.extend(piece);
            passed.store(bytes.len(), Ordering::Relaxed);
        }
        stream.shutdown(Shutdown::Write).context(port)?;
        stream.read_to_end(&mut Vec::new()).context(port)?;
        Ok(bytes)
    })
}

/// Waits for the ends of streams; each must have had the bytes whose sum the guest said. Gives back how many those were.
pub(crate) fn compare(place: &Place, said: &str, way: &str, ends: Vec<End>) -> Result<Vec<usize>> {
    let mut lens = Vec::new();
    for End { port, work, .. } in ends {
        let bytes = work.join().map_err(|_| Error::new("the host's end panicked"))??;
        let file = place.folder.join(format!("{port}.img"));
        write(&file, &bytes)?;
        let (at_host, words) = (sum(&file)?, format!("guest: sum {way} {port} "));
        let at_guest = word_after(said, &words)?;
        must(at_host == at_guest, || format!("port {port}: {at_host} at the host, {at_guest} in the guest"))?;
        lens.push(bytes.len());
    }
    Ok(lens)
}
