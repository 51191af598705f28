use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::daemon::{Daemon, requests_by_queue, serve};
use super::load::{sum, word_after};
use super::qemu::Machine;
use super::{Case, Network, Place};
use crate::cmd::Cmd;
use crate::error::{Context, Error, Result, write};
use crate::lab::cases::must;
use crate::lab::filesystem::noise;
use crate::lab::kernel::Series;

/// One pair of queues.
pub(super) const CASE: Case = Case {
    name: "vhost-user-net",
    about: "QEMU's guest on a card of our daemon on a tap: ping and TCP both ways",
    kernels: &[Series::V6_1],
    network: Network::Own,
    image: None,
    run: |place| run(place, 1),
};

/// Two pairs.
pub(super) const QUEUES: Case = Case {
    name: "vhost-user-mq",
    about: "the same with two pairs of queues and two processors: two streams each way at once",
    kernels: &[Series::V6_12],
    run: |place| run(place, 2),
    ..CASE
};

/// Mebibytes for each stream.
const SIZE: usize = 4;
const HOST: &str = "10.61.0.1";
const GUEST: &str = "10.61.0.2";

fn run(place: &Place, pairs: u32) -> Result<String> {
    let card =
        format!("virtio-net,mac=52:54:00:12:34:56,queues={pairs} -> stats -> tap,name=tap0,queues={pairs}");
    let mut daemon = Daemon::start(place, "daemon", &[serve("net.sock", card)])?;
    for words in ["link set lo up", &format!("addr add {HOST}/24 dev tap0"), "link set tap0 up"] {
        Cmd::new("ip").args(words.split(' ')).quiet()?;
    }
    let streams = 1..=pairs;
    let taken: Vec<_> =
        streams.clone().map(|stream| take(1000 + stream as u16, place)).collect::<Result<_>>()?;
    // The guests of the network cases with our own monitor, which do not care what serves their card.
    let script = if pairs == 1 { "net-mmio" } else { "net-mq" };
    let mut qemu = Machine::new(place, "qemu", script)
        .options(&["-no-reboot"])
        .words(&format!("lab.size={SIZE}"))
        .card("net.sock", pairs)
        .start()?;
    qemu.process().wait_for("guest: ready for data")?;
    let pings = Cmd::new(&place.busybox).args(["ping", "-q", "-c", "3", "-W", "5", GUEST]).text()?;
    must(pings.contains(" 0% packet loss"), || format!("the guest does not answer all pings:\n{pings}"))?;
    let given: Vec<_> = streams.map(|stream| give(2000 + stream as u16, place)).collect();
    let said = qemu.end()?;
    must(daemon.process().is_alive()?, || "the daemon ended".into())?;
    let requests = requests_by_queue(&daemon.end()?);
    for (way, ends) in [("up", taken), ("down", given)] {
        for (port, end) in ends {
            let bytes = end.join().map_err(|_| Error::new("the host's end panicked"))??;
            must(bytes.len() == SIZE << 20, || format!("port {port}: {} bytes came", bytes.len()))?;
            let file = place.folder.join(format!("{port}.img"));
            write(&file, &bytes)?;
            let (at_host, words) = (sum(&file)?, format!("guest: sum {way} {port} "));
            let at_guest = word_after(&said, &words)?;
            must(at_host == at_guest, || {
                format!("port {port}: {at_host} at the host, {at_guest} in the guest")
            })?;
        }
    }
    let busy = requests.first().is_some_and(|queues| {
        queues.iter().take(2 * pairs as usize).filter(|count| **count > 30).count() == 2 * pairs as usize
    });
    must(busy, || format!("each pair is to be used both ways: {requests:?}"))?;
    Ok(format!("{SIZE} MiB each way in each of {pairs} stream(s); requests by queue {requests:?}"))
}

/// The host's end of a stream: the port, and what will have gone through it.
type End = (u16, JoinHandle<Result<Vec<u8>>>);

/// Takes what the guest sends to a port.
fn take(port: u16, place: &Place) -> Result<End> {
    let listener = TcpListener::bind((HOST, port)).context(port)?;
    listener.set_nonblocking(true)?;
    let deadline = place.deadline;
    let work = move || {
        let mut stream = loop {
            match listener.accept() {
                Ok((stream, _)) => break stream,
                Err(error) if Instant::now() >= deadline => return Err(error).context("no connection came"),
                Err(_) => thread::sleep(Duration::from_millis(20)),
            }
        };
        stream.set_nonblocking(false)?;
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).context(port)?;
        Ok(bytes)
    };
    Ok((port, thread::spawn(work)))
}

/// Sends something to a port of the guest, once it listens.
fn give(port: u16, place: &Place) -> End {
    let deadline = place.deadline;
    let work = move || {
        let bytes = noise(port.into(), SIZE << 20);
        let mut stream = loop {
            match TcpStream::connect((GUEST, port)) {
                Ok(stream) => break stream,
                Err(error) if Instant::now() >= deadline => return Err(error).context(port),
                Err(_) => thread::sleep(Duration::from_millis(20)),
            }
        };
        stream.write_all(&bytes).context(port)?;
        stream.shutdown(Shutdown::Write).context(port)?;
        stream.read_to_end(&mut Vec::new()).context(port)?;
        Ok(bytes)
    };
    (port, thread::spawn(work))
}
