//! A server that says what it may not say.

use super::*;
use iovirt_core::request::block::{BlockError, BlockOutput};
use iovirt_core::test_utils::{BlockIo, Driver, Rng, rounds_or, seed_or};
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread::JoinHandle;

const REPLY: u64 = 0x0003_e889_0455_65a9;

fn listen(
    script: impl FnOnce(UnixStream) -> std::io::Result<()> + Send + 'static,
) -> (tempfile::TempDir, NbdConfig, JoinHandle<()>) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("s");
    let listener = UnixListener::bind(&path).expect("a socket");
    let thread = std::thread::spawn(move || {
        let (stream, _) = listener.accept().expect("a client");
        // The client may hang up whenever it has heard enough.
        let _ = script(stream);
    });
    (folder, NbdConfig::new(NbdAddress::Unix(path)), thread)
}

fn greet(stream: &mut UnixStream) -> std::io::Result<()> {
    stream.write_all(b"NBDMAGICIHAVEOPT\0\x03")?;
    let mut flags = [0; 4];
    stream.read_exact(&mut flags)?;
    assert_eq!(flags, [0, 0, 0, 3]);
    let mut option = [0; 16];
    stream.read_exact(&mut option)?;
    let len = u32::from_be_bytes(option[12..].try_into().expect("four bytes"));
    stream.read_exact(&mut vec![0; len as usize])
}

fn reply(kind: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = REPLY.to_be_bytes().to_vec();
    for word in [7, kind, data.len() as u32] {
        bytes.extend_from_slice(&word.to_be_bytes());
    }
    bytes.extend_from_slice(data);
    bytes
}

fn export(size: u64, flags: u16) -> Vec<u8> {
    let mut data = vec![0, 0];
    data.extend_from_slice(&size.to_be_bytes());
    data.extend_from_slice(&flags.to_be_bytes());
    reply(3, &data)
}

/// Shakes hands as a server of a writable disk of 1 MiB should.
fn honest(stream: &mut UnixStream) -> std::io::Result<()> {
    greet(stream)?;
    stream.write_all(&export(1 << 20, 0x6d))?;
    stream.write_all(&reply(1, &[]))
}

fn answer(error: u32, cookie: &[u8]) -> Vec<u8> {
    [&0x6744_6698u32.to_be_bytes()[..], &error.to_be_bytes(), cookie].concat()
}

/// A connection that somebody else has made: the only one, where the address leads nowhere.
#[test]
fn a_connection_can_be_handed_over() {
    let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
    let thread = std::thread::spawn(move || {
        let mut stream = theirs;
        let _ = honest(&mut stream);
        let _ = stream.read_to_end(&mut Vec::new());
    });
    let config = NbdConfig::new(NbdAddress::Unix("/nowhere/at/all".into()));
    let backend = BoxBackend::new(NbdBackend::over(ours.into(), config).expect("an honest handshake"));
    let mut driver = Driver::new(5).expect("a driver");
    driver.open(&backend, 4).expect("the first queue has the connection");
    assert!(Driver::new(6).expect("a driver").open(&backend, 4).is_err(), "there is no second one");
    drop(driver);
    thread.join().expect("the script's end");
}

#[test]
fn lies_in_the_handshake_are_refused_in_one_sentence() {
    type Script = Box<dyn FnOnce(UnixStream) -> std::io::Result<()> + Send>;
    let after = |bytes: Vec<u8>| -> Script {
        Box::new(move |mut stream| {
            greet(&mut stream)?;
            stream.write_all(&bytes)?;
            // Until the client hangs up.
            stream.read_to_end(&mut Vec::new()).map(|_| ())
        })
    };
    let raw = |bytes: &'static [u8]| -> Script { Box::new(move |mut stream| stream.write_all(bytes)) };
    let mut endless = Vec::new();
    (0..100).for_each(|_| endless.extend(export(1 << 20, 1)));
    let mut huge = reply(3, &[]);
    huge[16..].copy_from_slice(&u32::MAX.to_be_bytes());
    let mut sizes = vec![0, 3];
    sizes.extend_from_slice(&3u32.to_be_bytes().repeat(3));
    let cases: [(Script, &str); 11] = [
        (raw(b"HTTP/1.1 400 Bad Request\r\n\r\n"), "does not speak NBD"),
        (raw(b"NBDMAGIC\x00\x00\x42\x02\x81\x86\x12\x53\0\0"), "negotiates in an old style"),
        (raw(b"NBD"), "it closed the connection"),
        (after(reply(1, &[])), "does not say how large the export is"),
        (after([export(0, 1), reply(1, &[])].concat()), "has an export of 0 bytes"),
        (after([export(u64::MAX, 1), reply(1, &[])].concat()), "has an export of 18446744073709551615 bytes"),
        (
            after([export(1 << 20, 1), reply(3, &sizes), reply(1, &[])].concat()),
            "block sizes that are not allowed",
        ),
        (after(reply(3, &[0, 0, 1])), "3 bytes about the export"),
        (after(huge), "answers with 4294967295 bytes"),
        (after(endless), "says more than 64 things"),
        (after(reply(0x8000_0006, b"go\naway")), "has no export named \"\" (go away)"),
    ];
    for (script, words) in cases {
        let (_folder, config, thread) = listen(script);
        let error = NbdBackend::connect(config).expect_err(words);
        assert!(error.to_string().contains(words), "{error}");
        thread.join().expect("the script's end");
    }
}

/// The outputs of four reads from a server that answers the first request with what `lie` makes of its cookie.
fn told(lie: impl FnOnce(&[u8]) -> Vec<u8> + Send + 'static) -> Vec<BlockOutput> {
    let (_folder, config, thread) = listen(move |mut stream| {
        honest(&mut stream)?;
        let mut request = [0; 28];
        stream.read_exact(&mut request)?;
        stream.write_all(&lie(&request[8..16]))?;
        stream.shutdown(std::net::Shutdown::Write)?;
        stream.read_to_end(&mut Vec::new()).map(|_| ())
    });
    let backend = BoxBackend::new(NbdBackend::connect(config).expect("a connection"));
    let mut driver = Driver::new(5).expect("a driver");
    driver.open(&backend, 4).expect("a queue");
    for at in 0..4 {
        driver.submit(BlockIo::read(at * 512, 512)).expect("room");
    }
    let mut done = driver.wait_all().expect("an answer to each");
    done.sort_by_key(|done| done.id);
    assert!(driver.read(0, 512).is_err(), "the queue stays lost");
    drop(driver);
    thread.join().expect("the script's end");
    done.into_iter().map(|done| done.output).collect()
}

const IO: BlockOutput = BlockOutput::Failed(BlockError::Io);

#[test]
fn lies_in_replies_lose_the_connection() {
    assert_eq!(told(|_| vec![0xff; 16]), [IO; 4], "no reply at all");
    assert_eq!(told(|_| answer(0, &[0xff; 8])), [IO; 4], "a cookie of nobody");
    assert_eq!(told(|cookie| answer(0, cookie)), [IO; 4], "a read without its data");
    assert_eq!(told(|cookie| [answer(0, cookie), vec![7; 100]].concat()), [IO; 4], "a part of the data");
    assert_eq!(told(|_| answer(0, &[0; 8])[..9].to_vec()), [IO; 4], "a part of a reply");
    assert_eq!(told(|_| Vec::new()), [IO; 4], "nothing");
    let twice = |cookie: &[u8]| [answer(0, cookie), vec![7; 512], answer(0, cookie)].concat();
    assert_eq!(told(twice), [BlockOutput::Done, IO, IO, IO], "the same reply twice");
    let error = |cookie: &[u8]| answer(28, cookie);
    assert_eq!(
        told(error),
        [BlockOutput::Failed(BlockError::NoSpace), IO, IO, IO],
        "an honest error, and the end"
    );
}

#[test]
fn whatever_bytes_come_every_request_ends() {
    let seed = seed_or(0x6e62_6401);
    let mut rng = Rng::new(seed);
    for round in 0..rounds_or(40) {
        let len = rng.index(600);
        let noise: Vec<u8> = (0..len).map(|_| rng.next_u64() as u8).collect();
        let valid = rng.one_in(2);
        let outputs = told(move |cookie| if valid { [answer(0, cookie), noise].concat() } else { noise });
        assert_eq!(outputs.len(), 4, "seed {seed:#x}, round {round}");
    }
}

/// Answers in small pieces and with pauses, the last first: parts of headers and of data are put together.
#[test]
fn short_pieces_are_put_together() {
    let (_folder, config, thread) = listen(|mut stream| {
        honest(&mut stream)?;
        let mut requests = [[0; 28]; 4];
        for request in &mut requests {
            stream.read_exact(request)?;
        }
        for request in requests.iter().rev() {
            let sector = request[22];
            let bytes = [answer(0, &request[8..16]), vec![sector; 512]].concat();
            for piece in bytes.chunks(37) {
                stream.write_all(piece)?;
                std::thread::yield_now();
            }
        }
        stream.read_to_end(&mut Vec::new()).map(|_| ())
    });
    let backend = BoxBackend::new(NbdBackend::connect(config).expect("a connection"));
    let mut driver = Driver::new(5).expect("a driver");
    driver.open(&backend, 4).expect("a queue");
    for at in 0..4 {
        driver.submit(BlockIo::read(at * 512, 512)).expect("room");
    }
    for done in driver.wait_all().expect("an answer to each") {
        let sector = (done.io.offset >> 8) as u8;
        assert_eq!(done.into_result().expect("data"), [sector; 512]);
    }
    drop(driver);
    thread.join().expect("the script's end");
}
