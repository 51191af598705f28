//! `cargo xtask blocks`: what proves each block, written to `docs/blocks.md`.
//!
//! The table is code: a proof is a file and words that stand in it. A file that is gone, a test that was renamed, or a stage
//! that the table does not know is an error.

use std::fmt::Write;
use std::fs;
use std::process::ExitCode;

use clap::Args;

use crate::cmd;
use crate::error::{Context, Error, Result, read, write};

/// Options of `cargo xtask blocks`.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Write nothing; fail where docs/blocks.md is not what would be written.
    #[arg(long)]
    check: bool,
}

/// The proofs, in the order of [`Block::proofs`]: name and meaning. The first six gate a block.
const COLUMNS: [(&str, &str); 10] = [
    ("conformance", "a test runs the kit's conformance suite on it"),
    ("lifecycle", "seeded drain, swap, reset, save and restore, and stall in the middle of load"),
    ("hostile", "a test in which the other side breaks every rule it can"),
    ("fuzz", "a fuzz target for what it parses"),
    ("page", "its documentation, with an example that a test builds"),
    ("real peer", "a run against software that we did not write"),
    ("bench", "what it costs is measured"),
    ("metrics", "it counts what it does"),
    ("model", "random operations, compared with a simple model or another implementation"),
    ("save/restore", "what it must keep survives a save and a restore"),
];

/// Whether there is a proof.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Proof {
    /// It is in that file, where these words stand.
    In(&'static str, &'static str),
    /// There is nothing to prove.
    Needless,
    /// There is none yet.
    Open,
}

use Proof::{In, Needless, Open};

/// A block and its proofs.
#[derive(Debug)]
struct Block {
    name: &'static str,
    /// What it is, in a word or two.
    kind: &'static str,
    /// Where it lives.
    source: &'static str,
    /// In the order of [`COLUMNS`].
    proofs: [Proof; COLUMNS.len()],
}

const MATRIX: &str = "tests/common/stacks.rs";
const LIFECYCLE: &str = "tests/lifecycle.rs";
const DEVICES: &str = "tests/device_lifecycle.rs";
const IN_PROCESS: &str = "tests/in_process.rs";
const NET: &str = "tests/net_in_process.rs";
const TAP: &str = "tests/net_tap.rs";
const NET_BENCH: &str = "benches/net_path.rs";
const STAGES_BENCH: &str = "benches/stages.rs";
const PATH_BENCH: &str = "benches/request_path.rs";
const COUNTED: &str = "xtask/src/instructions.rs";
const ROOTFS: &str = "xtask/src/lab/cases/rootfs.rs";
const ALIGN: &str = "iovirt-backends/src/block/align/tests.rs";
const NBD_PEERS: &str = "iovirt-backends/src/block/nbd/tests/peers.rs";
const DIRECT: &str = "iovirt-backends/src/block/file/tests/direct.rs";

/// The table. A new block is an entry, a new proof a changed word.
const BLOCKS: &[Block] = &[
    Block {
        name: "virtio-blk",
        kind: "front-end",
        source: "iovirt-frontends/src/virtio/blk/mod.rs",
        proofs: [
            Needless,
            In(DEVICES, "fn a_disk_above_every_stage_and_back_end"),
            In("tests/hostile.rs", "hostile::run"),
            In("fuzz/src/blk_request.rs", "pub fn run"),
            In("docs/blocks/virtio-blk.md", "```pipeline"),
            In(ROOTFS, "virtio-blk ->"),
            In(PATH_BENCH, "Disk::new"),
            In("iovirt-frontends/src/virtio/lane.rs", "pub struct QueueCounters"),
            In("tests/durability.rs", "Oracle"),
            In(IN_PROCESS, "fn saved_in_one_device_and_restored_in_another"),
        ],
    },
    Block {
        name: "virtio-mmio",
        kind: "transport",
        source: "iovirt-frontends/src/virtio/transport/mmio/mod.rs",
        proofs: [
            Needless,
            In(DEVICES, "fn mmio"),
            In("tests/hostile.rs", "hostile::run"),
            In("fuzz/src/mmio_registers.rs", "pub fn run"),
            In("docs/virtio-mmio.md", "```rust"),
            In(ROOTFS, "virtio-blk ->"),
            In("benches/fixture/blk.rs", "MmioDevice::new"),
            In("iovirt-frontends/src/virtio/transport/mmio/device.rs", "pub fn counters"),
            Open,
            In(IN_PROCESS, "fn saved_in_one_device_and_restored_in_another"),
        ],
    },
    Block {
        name: "vhost-user",
        kind: "transport",
        source: "iovirt-frontends/src/virtio/transport/vhost_user/mod.rs",
        proofs: [
            Needless,
            In("tests/device_lifecycle/vhost_user.rs", "fn a_disk_over_vhost_user"),
            In("tests/vhost_user/rings.rs", "hostile::run"),
            In("fuzz/src/vhost_user.rs", "pub fn run"),
            In("docs/vhost-user.md", "```rust"),
            In("xtask/src/lab/vhost_user/blk.rs", "virtio-blk"),
            In("xtask/src/bench_peers/servers.rs", "vhost-user"),
            In("iovirt-frontends/src/virtio/transport/vhost_user/device.rs", "pub fn counters"),
            In("iovirt-frontends/src/virtio/inflight.rs", "proptest!"),
            In("tests/vhost_user/inflight.rs", "fn a_front_end_that_comes_back_finds_each_request_done_once"),
        ],
    },
    Block {
        name: "split virtqueue",
        kind: "ring",
        source: "iovirt-frontends/src/virtio/queue/mod.rs",
        proofs: [
            Needless,
            Needless,
            In("iovirt-frontends/src/virtio/queue/tests/hostile.rs", "fn configurations_are_checked"),
            In("fuzz/src/ring_walker.rs", "pub fn run"),
            Open,
            In("xtask/src/lab/cases/smp.rs", "virtio-blk"),
            In("benches/ring.rs", "Engine::new"),
            Needless,
            In("iovirt-frontends/src/virtio/queue/tests/oracle.rs", "proptest!"),
            In("iovirt-frontends/src/virtio/queue/tests/good.rs", "fn a_saved_chain_is_read_again"),
        ],
    },
    Block {
        name: "delay",
        kind: "interposer",
        source: "iovirt-backends/src/interposers/delay/mod.rs",
        proofs: [
            In("iovirt-backends/src/interposers/delay/tests.rs", "conformance::run"),
            In(LIFECYCLE, "fn interposers()"),
            Needless,
            Needless,
            In("docs/blocks/delay.md", "```pipeline"),
            Open,
            In(COUNTED, "delay,time"),
            Needless,
            In("iovirt-backends/src/interposers/delay/tests.rs", "proptest!"),
            Needless,
        ],
    },
    Block {
        name: "fault",
        kind: "interposer",
        source: "iovirt-backends/src/interposers/fault/mod.rs",
        proofs: [
            In("iovirt-backends/src/interposers/fault/tests.rs", "conformance::run"),
            In(LIFECYCLE, "fn interposers()"),
            Needless,
            Needless,
            In("docs/blocks/fault.md", "```pipeline"),
            In("xtask/src/lab/cases/stuck.rs", "-> fault ->"),
            In(COUNTED, "fault ->"),
            In("iovirt-backends/src/interposers/fault/control.rs", "pub struct FaultSnapshot"),
            In("iovirt-backends/src/interposers/fault/tests.rs", "proptest!"),
            Needless,
        ],
    },
    Block {
        name: "scheduled",
        kind: "interposer",
        source: "iovirt-sched/src/scheduled/mod.rs",
        proofs: [
            In("iovirt-sched/src/scheduled/tests.rs", "conformance::run"),
            In(LIFECYCLE, "fn interposers()"),
            Needless,
            Needless,
            In("docs/blocks/scheduled.md", "```pipeline"),
            Open,
            In(STAGES_BENCH, "scheduled,group"),
            In("iovirt-sched/src/scheduled/group.rs", "pub struct FlowSnapshot"),
            In("iovirt-sched/src/sfq/tests.rs", "proptest!"),
            Needless,
        ],
    },
    Block {
        name: "stats",
        kind: "interposer",
        source: "iovirt-backends/src/interposers/stats/mod.rs",
        proofs: [
            In(MATRIX, "\"stats\""),
            In(LIFECYCLE, "fn interposers()"),
            Needless,
            Needless,
            In("docs/blocks/stats.md", "```pipeline"),
            In(ROOTFS, "-> stats ->"),
            In(PATH_BENCH, "Stats::new"),
            In("iovirt-backends/src/interposers/stats/control.rs", "pub struct StatsSnapshot"),
            In("iovirt-backends/src/interposers/stats/tests.rs", "proptest!"),
            Needless,
        ],
    },
    Block {
        name: "swappable",
        kind: "interposer",
        source: "iovirt-core/src/pipeline/swap/mod.rs",
        proofs: [
            In(MATRIX, "\"swappable\""),
            In(LIFECYCLE, "fn interposers()"),
            Needless,
            Needless,
            In("docs/blocks/swappable.md", "```pipeline"),
            In(TAP, "fn a_tap_is_exchanged_for_another_under_the_card"),
            In(COUNTED, "swappable ->"),
            Needless,
            In("tests/swap.rs", "fn exchanged_again_and_again_under_load"),
            Needless,
        ],
    },
    Block {
        name: "null",
        kind: "back-end",
        source: "iovirt-backends/src/block/null/mod.rs",
        proofs: [
            In(MATRIX, "\"null,size=1M\""),
            In(LIFECYCLE, "null,size=1M"),
            Needless,
            Needless,
            In("docs/blocks/null.md", "```pipeline"),
            Needless,
            In(PATH_BENCH, "NullBackend::new"),
            Needless,
            Needless,
            Needless,
        ],
    },
    Block {
        name: "memory",
        kind: "back-end",
        source: "iovirt-backends/src/block/memory/mod.rs",
        proofs: [
            In(MATRIX, "\"memory,size=1M\""),
            In(LIFECYCLE, "memory,size=1M"),
            Needless,
            Needless,
            In("docs/blocks/memory.md", "```pipeline"),
            Open,
            In(COUNTED, "memory,size=64M"),
            Needless,
            In("iovirt-backends/src/block/memory/tests.rs", "proptest!"),
            Needless,
        ],
    },
    Block {
        name: "file",
        kind: "back-end",
        source: "iovirt-backends/src/block/file/mod.rs",
        proofs: [
            In("iovirt-backends/src/block/file/tests/conformance.rs", "conformance::run"),
            In(LIFECYCLE, "\"file, write-back\""),
            Needless,
            Needless,
            In("docs/blocks/file.md", "```pipeline"),
            In(ROOTFS, "file,path=root.img"),
            In("xtask/src/bench_peers/servers.rs", "-> file,path"),
            Needless,
            In(DIRECT, "proptest!"),
            Needless,
        ],
    },
    Block {
        name: "nbd",
        kind: "back-end",
        source: "iovirt-backends/src/block/nbd/mod.rs",
        proofs: [
            In(NBD_PEERS, "conformance::run"),
            In("tests/lifecycle_nbd.rs", "fn over_real_servers"),
            In("iovirt-backends/src/block/nbd/tests/lies.rs", "fn lies_in_replies_lose_the_connection"),
            Open,
            In("docs/blocks/nbd.md", "```pipeline"),
            In(NBD_PEERS, "fn what_we_write_qemu_has_in_its_file"),
            In(STAGES_BENCH, "nbd,socket"),
            Open,
            In("iovirt-backends/src/block/nbd/proto.rs", "proptest!"),
            Needless,
        ],
    },
    Block {
        name: "align",
        kind: "part of `file`",
        source: "iovirt-backends/src/block/align/mod.rs",
        proofs: [
            In(ALIGN, "conformance::run"),
            Open,
            Needless,
            Needless,
            Open,
            In(DIRECT, "fn random_operations_on_devices_of_both"),
            Open,
            Open,
            In(ALIGN, "proptest!"),
            Needless,
        ],
    },
    Block {
        name: "virtio-net",
        kind: "front-end",
        source: "iovirt-frontends/src/virtio/net/mod.rs",
        proofs: [
            Needless,
            In(DEVICES, "fn a_card_above_every_stage"),
            In("tests/net_hostile.rs", "hostile::run"),
            Open,
            In("docs/blocks/virtio-net.md", "```pipeline"),
            In(NET, "virtio_drivers::device::net"),
            In(NET_BENCH, "Card::new"),
            In("iovirt-frontends/src/virtio/net/counters.rs", "pub struct NetSnapshot"),
            Open,
            In(NET, "fn saved_in_one_card_and_restored_in_another"),
        ],
    },
    Block {
        name: "filter",
        kind: "interposer",
        source: "iovirt-backends/src/interposers/filter/mod.rs",
        proofs: [
            In("iovirt-backends/src/interposers/filter/tests.rs", "net::judge"),
            In(DEVICES, "fn stacks"),
            Needless,
            Needless,
            In("docs/blocks/filter.md", "```pipeline"),
            In(TAP, "fn a_frame_that_the_filter_drops_never_reaches_the_guest"),
            In(COUNTED, "filter ->"),
            In("iovirt-backends/src/interposers/filter/control.rs", "pub struct FilterSnapshot"),
            Open,
            Needless,
        ],
    },
    Block {
        name: "loopback",
        kind: "back-end",
        source: "iovirt-backends/src/net/loopback/mod.rs",
        proofs: [
            In("iovirt-backends/src/net/loopback/tests.rs", "net::run"),
            In(DEVICES, "fn a_card_above_every_stage"),
            Needless,
            Needless,
            In("docs/blocks/loopback.md", "```pipeline"),
            Needless,
            In(NET_BENCH, "loopback()"),
            In("iovirt-backends/src/net/loopback/control.rs", "pub struct LoopbackSnapshot"),
            Open,
            Needless,
        ],
    },
    Block {
        name: "tap",
        kind: "back-end",
        source: "iovirt-backends/src/net/tap/mod.rs",
        proofs: [
            Open,
            Open,
            Needless,
            Needless,
            In("docs/blocks/tap.md", "```pipeline"),
            In(TAP, "fn frames_go_both_ways_in_order"),
            In(NET_BENCH, "TapBackend::open"),
            In("iovirt-backends/src/net/tap/backend.rs", "pub struct TapSnapshot"),
            Open,
            Needless,
        ],
    },
    Block {
        name: "mirror",
        kind: "fan-out",
        source: "iovirt-backends/src/interposers/mirror/mod.rs",
        proofs: [
            In("iovirt-backends/src/interposers/mirror/tests.rs", "conformance::run"),
            In("tests/lifecycle.rs", "\"mirror\""),
            Needless,
            Needless,
            In("docs/blocks/mirror.md", "```pipeline"),
            Open,
            In(COUNTED, "mirror ["),
            In("iovirt-backends/src/interposers/mirror/control.rs", "pub struct ReplicaSnapshot"),
            In(
                "iovirt-backends/src/interposers/mirror/tests.rs",
                "fn random_operations_with_a_failing_replica",
            ),
            In("iovirt-backends/src/interposers/mirror/tests.rs", "fn a_failed_replica_is_told_of_and_saved"),
        ],
    },
    Block {
        name: "stripe",
        kind: "fan-out",
        source: "iovirt-backends/src/interposers/stripe/mod.rs",
        proofs: [
            In("iovirt-backends/src/interposers/stripe/tests.rs", "conformance::run"),
            In("tests/lifecycle.rs", "\"stripe\""),
            Needless,
            Needless,
            In("docs/blocks/stripe.md", "```pipeline"),
            Open,
            In(COUNTED, "stripe ["),
            Needless,
            In("iovirt-backends/src/interposers/stripe/tests.rs", "proptest!"),
            Needless,
        ],
    },
    Block {
        name: "overlay",
        kind: "fan-out",
        source: "iovirt-backends/src/interposers/overlay/mod.rs",
        proofs: [
            In("iovirt-backends/src/interposers/overlay/tests.rs", "conformance::run"),
            In("tests/lifecycle.rs", "\"overlay\""),
            Needless,
            Needless,
            In("docs/blocks/overlay.md", "```pipeline"),
            Open,
            In(COUNTED, "overlay ["),
            In("iovirt-backends/src/interposers/overlay/control.rs", "pub fn allocated"),
            In("iovirt-backends/src/interposers/overlay/tests.rs", "proptest!"),
            In("iovirt-backends/src/interposers/overlay/tests.rs", "fn the_bitmap_is_saved_and_restored"),
        ],
    },
];

/// Where the table is written.
const PAGE: &str = "docs/blocks.md";
/// The stages that a description can name: each has a file here, but for [`NO_STAGE`].
const STAGES: &str = "src/registry/builtin";
const NO_STAGE: &str = "mod";

/// Runs `cargo xtask blocks`.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    if options.check {
        check()?;
    } else {
        write(&cmd::root().join(PAGE), page()?)?;
        println!("{PAGE} is written");
    }
    Ok(ExitCode::SUCCESS)
}

/// Fails where the page is not what the table says.
pub(crate) fn check() -> Result<()> {
    if read(&cmd::root().join(PAGE))? == page()?.as_bytes() {
        return Ok(());
    }
    Err(Error::new(format!("{PAGE} is stale: run `cargo xtask blocks` and commit it")))
}

/// The page, once every proof was found.
fn page() -> Result<String> {
    every_stage_is_known()?;
    for block in BLOCKS {
        must_exist(block.source, "")?;
        for proof in block.proofs {
            if let In(file, words) = proof {
                must_exist(file, words).context(format_args!("block {}", block.name))?;
            }
        }
    }
    Ok(render())
}

fn must_exist(file: &str, words: &str) -> Result<()> {
    let text = read(&cmd::root().join(file))?;
    if String::from_utf8_lossy(&text).contains(words) {
        return Ok(());
    }
    Err(Error::new(format!("{file} does not say `{words}`: correct xtask/src/blocks.rs")))
}

fn every_stage_is_known() -> Result<()> {
    for entry in fs::read_dir(cmd::root().join(STAGES)).context(STAGES)? {
        let path = entry?.path();
        let name = path.file_stem().unwrap_or_default().to_string_lossy().replace('_', "-");
        if name != NO_STAGE && !BLOCKS.iter().any(|block| block.name == name) {
            return Err(Error::new(format!("the stage {name} is missing in xtask/src/blocks.rs")));
        }
    }
    Ok(())
}

/// The table as Markdown. Writing to a string does not fail.
fn render() -> String {
    let mut out = String::from(
        "# What proves each block\n\n<!-- Written by `cargo xtask blocks` from the table in xtask/src/blocks.rs. -->\n\n\
         Each \"yes\" leads to the file that has the proof. \"–\" means that there is nothing to prove, **no** that the proof is\n\
         missing. `cargo xtask test` fails where a proof is gone or this page is stale. A test that lacks something of the host (a loop\n\
         device takes root) says `SKIPPED` when cargo runs it, and fails in `cargo xtask test`.\n\n| block | is |",
    );
    for (name, _) in COLUMNS {
        let _ = write!(out, " {name} |");
    }
    out.push_str("\n|---|---|");
    out.push_str(&"---|".repeat(COLUMNS.len()));
    for Block { name, kind, source, proofs } in BLOCKS {
        let _ = write!(out, "\n| [{name}]({}) | {kind} |", link(source));
        for proof in proofs {
            let _ = match proof {
                In(file, _) => write!(out, " [yes]({}) |", link(file)),
                Needless => write!(out, " – |"),
                Open => write!(out, " **no** |"),
            };
        }
    }
    out.push_str("\n\n| proof | what it means |\n|---|---|\n");
    for (name, meaning) in COLUMNS {
        let _ = writeln!(out, "| {name} | {meaning} |");
    }
    out
}

/// The way from the page to a file of the repository.
fn link(file: &str) -> String {
    file.strip_prefix("docs/").map_or_else(|| format!("../{file}"), str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_start_at_the_page() {
        assert_eq!(link("docs/blocks/file.md"), "blocks/file.md");
        assert_eq!(link("tests/docs.rs"), "../tests/docs.rs");
    }

    #[test]
    fn a_proof_that_is_gone_is_noticed() {
        assert!(must_exist("xtask/src/blocks.rs", "fn must_exist").is_ok());
        assert!(must_exist("xtask/src/blocks.rs", &"no such words ".repeat(2)).is_err());
        assert!(must_exist("xtask/src/no-such-file.rs", "").is_err());
    }

    #[test]
    fn every_row_of_the_page_has_every_column() {
        let page = page().unwrap();
        let rows: Vec<&str> = page.lines().filter(|line| line.starts_with("| [")).collect();
        assert_eq!(rows.len(), BLOCKS.len());
        assert!(rows.iter().all(|row| row.matches('|').count() == COLUMNS.len() + 3), "{page}");
    }
}
