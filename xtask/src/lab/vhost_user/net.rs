use super::daemon::{Daemon, requests_by_queue, serve};
use super::qemu::Machine;
use super::stream::{GUEST, compare, give, host_up, take};
use super::{Case, Network, Place};
use crate::cmd::Cmd;
use crate::error::Result;
use crate::lab::cases::must;
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

fn run(place: &Place, pairs: u32) -> Result<String> {
    let card =
        format!("virtio-net,mac=52:54:00:12:34:56,queues={pairs} -> stats -> tap,name=tap0,queues={pairs}");
    let mut daemon = Daemon::start(place, "daemon", &[serve("net.sock", card)])?;
    host_up()?;
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
    let given: Vec<_> =
        streams.map(|stream| give(2000 + stream as u16, place, |sent| sent < SIZE << 20)).collect();
    let said = qemu.end()?;
    must(daemon.process().is_alive()?, || "the daemon ended".into())?;
    let requests = requests_by_queue(&daemon.end()?);
    for came in compare(place, &said, "up", taken)?.into_iter().chain(compare(place, &said, "down", given)?) {
        must(came == SIZE << 20, || format!("{came} bytes came"))?;
    }
    let busy = requests.first().is_some_and(|queues| {
        queues.iter().take(2 * pairs as usize).filter(|count| **count > 30).count() == 2 * pairs as usize
    });
    must(busy, || format!("each pair is to be used both ways: {requests:?}"))?;
    Ok(format!("{SIZE} MiB each way in each of {pairs} stream(s); requests by queue {requests:?}"))
}
