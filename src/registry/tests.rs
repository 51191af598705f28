use super::*;
use iovirt_backends::block::memory::MemoryConfig;
use iovirt_backends::block::nbd::{NbdAccess, NbdAddress, NbdConfig};
use iovirt_backends::block::null::NullConfig;
use iovirt_backends::interposers::delay::DelayConfig;
use iovirt_backends::interposers::fault::{FaultConfig, FaultKind};
use iovirt_backends::interposers::filter::{Drops, FilterConfig};
use iovirt_backends::interposers::stats::{StatsConfig, StatsControl};
use iovirt_backends::net::loopback::LoopbackConfig;
use iovirt_backends::net::tap::TapConfig;
use iovirt_core::Backend;
use iovirt_core::request::net::{MacAddr, Offloads};
use iovirt_core::scheduler::Weight;
use iovirt_frontends::virtio::net::NetConfig;
use iovirt_sched::scheduled::{FlowSnapshot, ScheduledConfig};
use proptest::prelude::*;

fn complaint(text: &str) -> String {
    Registry::standard().parse(text).unwrap_err().to_string()
}

fn build(chain: &str) -> Result<BoxBackend<BlockRequest>, DescribeError> {
    Registry::standard().build_block(&chain.parse().unwrap())
}

#[test]
fn a_checked_chain_builds() {
    let stack = build("stats,name=top -> stats -> memory,size=4M,physical-block=4K").unwrap();
    let stages = stack.list_stages();
    let names: Vec<_> = stages.iter().map(|stage| stage.name.as_str()).collect();
    assert_eq!(names, ["top", "stats", "memory"]);
    assert!(stages.control::<StatsControl>("top").is_some());
    assert_eq!((stack.caps().capacity, stack.caps().physical_block), (4 << 20, 4096));
}

#[test]
fn errors_name_the_stage_the_key_and_what_is_allowed() {
    let cases = [
        (
            "virtio-blk -> nul",
            "column 15: there is no stage `nul`; did you mean `null`? (allowed: mirror, stripe, overlay, null, memory, file, nbd)",
        ),
        (
            "vritio-blk -> null",
            "column 1: there is no stage `vritio-blk`; did you mean `virtio-blk`? (allowed: virtio-blk, virtio-net)",
        ),
        ("virtio-net -> zzz", "column 15: there is no stage `zzz` (allowed: loopback, tap)"),
        ("virtio-net -> null", "column 15: `null` is for block requests in a pipeline for net requests"),
        (
            "virtio-blk -> filter -> null",
            "column 15: `filter` is for net requests in a pipeline for block requests",
        ),
        (
            "virtio-blk -> zzz -> null",
            "column 15: there is no stage `zzz` (allowed: delay, fault, scheduled, stats, swappable)",
        ),
        (
            "virtio-blk -> null,szie=1G",
            "column 20: `null` has no key `szie`; did you mean `size`? (allowed: size, fill)",
        ),
        (
            "virtio-blk -> null,size=1GB",
            "column 25: `size` of `null` cannot be `1GB`: it takes a size like 512, 64K, 10M, 1G or 2T",
        ),
        ("virtio-blk -> null,fill=yes", "column 25: `fill` of `null` cannot be `yes`: it takes on or off"),
        (
            "virtio-blk,queues=65 -> null",
            "column 19: `queues` of `virtio-blk` cannot be `65`: it takes a number from 1 to 64",
        ),
        (
            "virtio-blk -> file,path=x,engine=aio",
            "column 34: `engine` of `file` cannot be `aio`: it takes one of auto, uring, threads",
        ),
        ("virtio-blk -> file", "column 15: `file` needs `path`: the file, or the block device (a path)"),
        ("null -> null", "column 1: `null` is a back-end, and a front-end belongs here"),
        ("virtio-blk -> stats", "column 15: `stats` is an interposer, and a back-end belongs here"),
        ("virtio-blk -> null [null]", "column 15: `null` takes nothing in brackets"),
        ("virtio-blk -> mirror -> null", "column 15: `mirror` is a fan-out, and an interposer belongs here"),
        (
            "virtio-blk -> mirror",
            "column 15: `mirror` takes 1 to 64 pipelines in brackets, and there is none",
        ),
        (
            "virtio-blk -> overlay [null]",
            "column 15: `overlay` takes 2 pipelines in brackets, and 1 is given",
        ),
        (
            "virtio-blk -> overlay [null | null | null]",
            "column 15: `overlay` takes 2 pipelines in brackets, and 3 are given",
        ),
        (
            "virtio-blk -> mirror [null | stats]",
            "column 30: `stats` is an interposer, and a back-end belongs here",
        ),
        (
            "virtio-blk -> mirror [null | nul]",
            "column 30: there is no stage `nul`; did you mean `null`? (allowed: mirror, stripe, overlay, null, memory, file, nbd)",
        ),
    ];
    for (text, expected) in cases {
        assert_eq!(complaint(text), expected, "{text:?}");
    }
}

#[test]
fn a_card_is_built_or_refused_with_its_place() {
    let registry = Registry::standard();
    let card =
        |text: &str| registry.build_virtio(&registry.parse(text).unwrap()).map_err(|error| error.to_string());
    let good = card("virtio-net,mac=52:54:00:12:34:56,queues=2 -> filter -> stats -> loopback").unwrap();
    assert_eq!((good.name(), good.queue_max_sizes().len()), ("virtio-net", 5));
    let names: Vec<_> = good.stages().iter().map(|stage| stage.name.clone()).collect();
    assert_eq!(names, ["filter", "stats", "loopback"]);
    for (text, expected) in [
        (
            "virtio-net,mac=52:54:00 -> loopback",
            "column 16: `mac` of `virtio-net` cannot be `52:54:00`: it takes six bytes, as in 52:54:00:12:34:56",
        ),
        (
            "virtio-net,mac=01:00:5e:00:00:01 -> loopback",
            "column 1: `virtio-net`: mac=01:00:5e:00:00:01 is not possible: an address of one station is allowed, not all zeroes",
        ),
        (
            "virtio-net,queues=3 -> loopback,queues=2",
            "column 1: `virtio-net`: queues=3 is not possible: the network below has 2",
        ),
        (
            "virtio-net -> tap,name=a/b",
            "column 15: `tap`: a tap cannot be called \"a/b\": 1 to 15 printable characters other than `/`, `%`, `:` are allowed",
        ),
    ] {
        assert_eq!(card(text).unwrap_err(), expected, "{text}");
    }
}

#[test]
fn brackets_build_what_is_in_them() {
    let stack = build(
        "stats -> mirror,write-quorum=1 [stripe,chunk=4K [memory,size=1M | memory,size=2M] | stats,name=b -> null,size=3M]",
    )
    .unwrap();
    let stages = stack.list_stages();
    let names: Vec<_> = stages.iter().map(|stage| stage.name.as_str()).collect();
    assert_eq!(names, ["stats", "mirror", "stripe", "memory", "memory", "b", "null"]);
    assert_eq!(stack.caps().capacity, 2 << 20);
    assert_eq!(
        build("mirror,write-quorum=3 [null | null]").unwrap_err().to_string(),
        "column 1: `mirror`: write-quorum=3 is not allowed with 2 replicas: 1 to 2 is",
    );
    // What was not read from text is bounded too.
    let mut chain: Chain = "null".parse().unwrap();
    for _ in 0..=crate::describe::MAX_DEPTH {
        let mut outer: Chain = "mirror".parse().unwrap();
        outer.backend.branches = vec![chain];
        chain = outer;
    }
    let error = Registry::standard().build_block(&chain).unwrap_err();
    assert_eq!(error.to_string(), "column 1: more than 8 levels of brackets");
}

#[test]
fn fan_outs_are_described_and_come_back() {
    use iovirt_backends::interposers::mirror::{MirrorConfig, ReadPolicy};
    use iovirt_backends::interposers::overlay::OverlayConfig;
    use iovirt_backends::interposers::stripe::StripeConfig;
    fn back<T: TypedStage + PartialEq + std::fmt::Debug>(config: &T, text: &str) {
        let spec = config.to_spec();
        assert_eq!(spec.to_string(), text);
        assert_eq!(T::from_options(&Options::check(&T::INFO, &spec).unwrap()).as_ref(), Ok(config));
    }
    back(&MirrorConfig::default(), "mirror");
    let mirror = MirrorConfig { name: "m".into(), write_quorum: Some(2), read: ReadPolicy::RoundRobin };
    back(&mirror, "mirror,name=m,write-quorum=2,read=round-robin");
    back(&StripeConfig { chunk: 1 << 20, ..StripeConfig::default() }, "stripe,chunk=1M");
    back(&OverlayConfig { cluster: 4096, ..OverlayConfig::default() }, "overlay,cluster=4K");
}

#[test]
fn what_a_stage_refuses_is_told_with_its_place() {
    assert_eq!(
        build("stats -> fault,fail=reed -> null").unwrap_err().to_string(),
        "column 10: `fault`: fail=reed: there is no block request called `reed` (allowed: all, or some of read, write, \
         flush, discard, write-zeroes, with + between them)",
    );
    assert_eq!(
        build("stats -> null,size=100").unwrap_err().to_string(),
        "column 10: `null`: a disk cannot have 100 bytes: the size is a multiple of 512, above zero and below 2^63",
    );
    assert_eq!(
        build("memory,physical-block=8G").unwrap_err().to_string(),
        "column 23: `physical-block` of `memory` cannot be `8G`: that is beyond what the stage can hold",
    );
}

const FAKE: StageInfo = StageInfo {
    name: "fake",
    family: Family::Block,
    maturity: Maturity::Stable,
    help: "For a test",
    keys: &[
        KeyInfo::default("wait", ValueKind::Time, "5ms", "how long"),
        KeyInfo::default("mode", ValueKind::Choice(&["slow", "fast"]), "slow", "how"),
        KeyInfo::optional("path", ValueKind::Path, "where"),
        KeyInfo::default("count", ValueKind::Integer { min: 1, max: u64::MAX }, "70000", "how many"),
    ],
};

#[test]
fn pipelines_of_a_registry_share_groups() {
    let registry = Registry::standard();
    let build = |chain: &str| registry.build_block(&chain.parse().unwrap());
    let one = build("scheduled,group=g,weight=300,depth=8 -> null").unwrap();
    let two = build("scheduled,group=g -> memory,size=1M").unwrap();
    let weights = |flows: Vec<FlowSnapshot>| flows.iter().map(|flow| flow.weight).collect::<Vec<_>>();
    assert_eq!(weights(registry.groups().get("g").unwrap().snapshot()), [300, 100]);
    assert_eq!(
        build("stats -> scheduled,group=g,depth=9 -> null").unwrap_err().to_string(),
        "column 10: `scheduled`: depth=9 is not allowed: the group `g` has a depth of 8",
    );
    assert!(Registry::standard().groups().get("g").is_none(), "another registry's groups are its own");
    drop((one, two));
    assert!(registry.groups().get("g").is_none());
}

#[test]
fn an_embedder_adds_stages_and_takes_their_options() {
    let mut registry = Registry::empty();
    registry.add(StageRow::absent(FAKE, StageKind::BackEnd)).unwrap();
    assert_eq!(registry.add(StageRow::front_end(FAKE)), Err(NameTaken("fake")));

    let chain: Chain = "fake,mode=fast,path=\"a b\"".parse().unwrap();
    let options = Options::check(&FAKE, &chain.backend.stage).unwrap();
    assert_eq!(options.required::<std::time::Duration>("wait").unwrap().as_millis(), 5);
    assert_eq!(options.choice("mode", &[("slow", 1), ("fast", 2)]), Ok(2));
    assert_eq!(options.optional::<std::path::PathBuf>("path").unwrap().unwrap().to_str(), Some("a b"));
    assert_eq!(options.required::<usize>("count"), Ok(70_000));
    assert!(matches!(
        options.required::<u16>("count").unwrap_err().kind(),
        DescribeErrorKind::BadValue { .. }
    ));
    for result in [options.required::<u64>("none"), options.choice("mode", &[("slow", 1)])] {
        assert!(matches!(result.unwrap_err().kind(), DescribeErrorKind::Table { .. }));
    }

    let error = registry.build_block(&chain).unwrap_err();
    assert_eq!(error.to_string(), "column 1: `fake` is known but not part of this build");
    assert!(!FAKE.keys[2].value.accepts(""));
}

#[test]
fn every_row_is_sound() {
    for row in Registry::standard().rows() {
        let info = row.info();
        assert!(!info.help.ends_with('.') && !info.help.contains('\n'), "{}", info.name);
        for (index, key) in info.keys.iter().enumerate() {
            assert!(info.keys[..index].iter().all(|other| other.name != key.name), "{} twice", key.name);
            if let Need::Default(text) = key.need {
                assert!(key.value.accepts(text), "{}: default of {}", info.name, key.name);
            }
        }
    }
}

#[test]
fn typed_defaults_are_those_of_the_table() {
    fn check<T: TypedStage + std::default::Default + PartialEq + std::fmt::Debug>() {
        let spec = StageSpec::new(T::INFO.name);
        let options = Options::check(&T::INFO, &spec).unwrap();
        assert_eq!(T::from_options(&options).unwrap(), T::default());
        assert_eq!(T::default().to_spec(), spec);
    }
    check::<NullConfig>();
    check::<MemoryConfig>();
    check::<StatsConfig>();
    check::<DelayConfig>();
    check::<FaultConfig>();
}

#[test]
fn the_list_names_every_stage_and_key() {
    let registry = Registry::standard();
    let (plain, markdown) = (crate::list_stages(), registry.list_stages_markdown());
    for row in registry.rows() {
        for text in [&plain, &markdown] {
            assert!(text.contains(row.info().name) && text.contains(row.info().help), "{text}");
            assert!(row.info().keys.iter().all(|key| text.contains(key.name)), "{text}");
        }
    }
    assert!(plain.contains("      size=1G: size of the disk"), "{plain}");
}

fn round_trip<T: TypedStage>(config: &T) -> T {
    let chain: Chain = config.to_spec().to_string().parse().unwrap();
    T::from_options(&Options::check(&T::INFO, &chain.backend.stage).unwrap()).unwrap()
}

proptest! {
    #[test]
    fn typed_configurations_are_described_and_back(
        size in any::<u64>(), physical_block in any::<u32>(), switch in any::<bool>(), name in any::<String>(),
    ) {
        let null = NullConfig { size, fill: switch };
        prop_assert_eq!(round_trip(&null), null);
        let memory = MemoryConfig { size, physical_block, read_only: switch };
        prop_assert_eq!(round_trip(&memory), memory);
        let nbd = NbdConfig {
            export: name.clone(),
            connections: 1 + usize::from(physical_block as u8),
            access: if switch { NbdAccess::ReadOnly } else { NbdAccess::ReadWrite },
            ..NbdConfig::new(NbdAddress::Tcp { host: "example".into(), port: (size as u16).max(1) })
        };
        prop_assert_eq!(round_trip(&nbd), nbd);
        let stats = StatsConfig { name: name.clone() };
        prop_assert_eq!(round_trip(&stats), stats);
        let filter = FilterConfig { name: name.clone(), drops: if switch { Drops::All } else { Drops::Receive } };
        prop_assert_eq!(round_trip(&filter), filter);
        let tap = TapConfig { name, pairs: 1 + size as u16 % 32 };
        prop_assert_eq!(round_trip(&tap), tap);
        let loopback = LoopbackConfig { mtu: (size as u16).max(68), pairs: 1 + physical_block as u16 % 32 };
        prop_assert_eq!(round_trip(&loopback), loopback);
        let mac = MacAddr([2, size as u8, physical_block as u8, 0xab, 0, 255]);
        let card = NetConfig { mac: switch.then_some(mac), pairs: 7, queue_size: 64, offloads: if switch { Offloads::all() } else { Offloads::empty() } };
        prop_assert_eq!(round_trip(&card), card);
    }

    #[test]
    fn stages_for_tests_are_described_and_back(
        seed in any::<u64>(), every in any::<u64>(), permille in 0..=1000_u32, millis in 0..1_000_000_u64,
        kinds in prop::sample::select(vec!["all", "read", "read+flush", "write-zeroes"]),
        kind in prop::sample::select(vec![FaultKind::Error, FaultKind::Stall, FaultKind::Hang, FaultKind::Drop]),
    ) {
        let fault = FaultConfig { fail: kinds.parse().unwrap(), kind, every, permille, seed };
        prop_assert_eq!(round_trip(&fault), fault);
        let (time, jitter) = (std::time::Duration::from_millis(millis), std::time::Duration::from_nanos(millis));
        let delay = DelayConfig { time, jitter, kinds: kinds.parse().unwrap(), seed };
        prop_assert_eq!(round_trip(&delay), delay);
        let (weight, depth) = (Weight::new(permille + 1).unwrap(), std::num::NonZeroUsize::new(millis as usize % 99));
        let scheduled = ScheduledConfig { group: kinds.into(), weight, depth };
        prop_assert_eq!(round_trip(&scheduled), scheduled);
    }

    #[test]
    fn no_description_panics(
        tokens in prop::collection::vec(
            prop::sample::select(vec![
                "virtio-blk", "virtio-net,mac=", " -> ", "null", "loopback", "filter,drop=", "stats", ",size=", "1G", "memory", ",", "=", "512", "file,path=x", "[", "]", "|",
            ]),
            0..12,
        ),
    ) {
        let registry = Registry::standard();
        let text = tokens.concat();
        let _ = registry.parse(&text);
        if let Ok(chain) = text.parse::<Chain>() {
            let _ = (registry.build_block(&chain), registry.build_net(&chain));
        }
    }
}
