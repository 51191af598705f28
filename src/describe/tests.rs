use super::*;
use proptest::prelude::*;
use std::time::Duration;

fn parse(text: &str) -> Result<Description, DescribeError> {
    text.parse()
}

fn complaint(text: &str) -> String {
    parse(text).unwrap_err().to_string()
}

#[test]
fn a_line_is_read_from_the_guest_to_the_hardware() {
    let description =
        parse("virtio-blk,queues=2->encrypt , key-file=disk.key -> file,path=disk.img").unwrap();
    assert_eq!(description.frontend, StageSpec::new("virtio-blk").with("queues", "2"));
    assert_eq!(description.below.stages, [StageSpec::new("encrypt").with("key-file", "disk.key")]);
    assert_eq!(description.below.backend.stage.get("path"), Some("disk.img"));
    assert_eq!(
        description.to_string(),
        "virtio-blk,queues=2 -> encrypt,key-file=disk.key -> file,path=disk.img"
    );
}

#[test]
fn brackets_hold_chains() {
    let text = "virtio-blk -> mirror,write-quorum=2 [file,path=a.img | stats -> mirror [null | null]]";
    let description = parse(text).unwrap();
    let branches = &description.below.backend.branches;
    assert_eq!(branches.len(), 2);
    assert_eq!(branches[1].stages[0].name(), "stats");
    assert_eq!(branches[1].backend.branches.len(), 2);
    assert_eq!(description.to_string(), text);
}

#[test]
fn quotes_hold_anything() {
    let text = r#"a -> b,path="my, disk -> \"x\" \\ \n\t\u{1f600}",mac=52:54:00:12:34:56,expression=a=b-c"#;
    let description = parse(text).unwrap();
    let stage = &description.below.backend.stage;
    assert_eq!(stage.get("path"), Some("my, disk -> \"x\" \\ \n\t\u{1f600}"));
    assert_eq!(stage.get("mac"), Some("52:54:00:12:34:56"));
    assert_eq!(stage.get("expression"), Some("a=b-c"));
    assert_eq!(parse(&description.to_string()).unwrap(), description);
}

#[test]
fn errors_say_where_and_what() {
    let cases = [
        ("", "column 1: the end where the name of a stage is expected"),
        ("a", "column 2: the end where `,` and an option, or `->` and what is below the device is expected"),
        ("a -> ", "column 6: the end where the name of a stage is expected"),
        ("a -> b c", "column 8: `c` where `->`, or `,` and an option, or the end is expected"),
        ("a -> b,", "column 8: the end where an option: a key, `=` and a value is expected"),
        ("a -> b,key", "column 11: the end where `=` and the option's value is expected"),
        ("a -> b,key=", "column 12: the end where the option's value (`\"\"` for an empty one) is expected"),
        ("a -> b,k=1,k=2", "column 12: `k` of `b` is given twice"),
        ("a -> ö,k=\"x", "column 10: a string in double quotes does not end"),
        (
            "a -> b,k=\"\\x\"",
            "column 12: an unknown escape where one of \\\" \\\\ \\n \\r \\t \\u{…} is expected",
        ),
        ("a -> b [c", "column 10: the end where `->`, `,` and an option, `|` or `]` is expected"),
        ("a -> b [c] -> d", "column 12: `->` where `->`, or `,` and an option, or the end is expected"),
        ("a [b]", "column 3: `[` where `,` and an option, or `->` and what is below the device is expected"),
        ("a -> b\u{7}", "column 7: `\\u{7}` where `->`, or `,` and an option, or the end is expected"),
    ];
    for (text, expected) in cases {
        assert_eq!(complaint(text), expected, "{text:?}");
    }
}

#[test]
fn input_is_bounded() {
    let nested = |levels: usize| format!("a -> {}b{}", "m [".repeat(levels), "]".repeat(levels));
    assert!(parse(&nested(MAX_DEPTH)).is_ok());
    let too_much = |text: &str, what: &str| {
        let complaint = complaint(text);
        assert!(complaint.contains("more than") && complaint.contains(what), "{complaint}");
    };
    too_much(&nested(MAX_DEPTH + 1), "brackets");
    too_much(&nested(10_000), "brackets");
    too_much(&format!("a{}", " -> b".repeat(MAX_STAGES)), "stages");
    let keys =
        (0..=MAX_OPTIONS).fold(StageSpec::new("b"), |stage, index| stage.with(format!("k{index}"), "1"));
    too_much(&format!("a -> {keys}"), "options");
    too_much(&"a".repeat(MAX_LEN + 1), "bytes");
    let long = complaint(&format!("a -> b {}", "x".repeat(1000)));
    assert!(long.len() < 300, "{long}");
}

#[test]
fn values_are_typed() {
    assert_eq!(parse_size("0"), Some(0));
    assert_eq!(parse_size("3K"), Some(3072));
    assert_eq!(parse_size("16777215T"), Some(16_777_215 << 40));
    for text in ["", "K", "1k", "1KB", "-1", "+1", "1.5G", "16777216T", "18446744073709551616", "1 K"] {
        assert_eq!(parse_size(text), None, "{text:?}");
    }
    assert_eq!(parse_time("20us"), Some(Duration::from_micros(20)));
    for text in ["", "5", "s", "+1s", "1m", "1 s", "ns5", "1.5s"] {
        assert_eq!(parse_time(text), None, "{text:?}");
    }
    assert_eq!(
        (parse_switch("on"), parse_switch("off"), parse_switch("true")),
        (Some(true), Some(false), None)
    );
}

fn word() -> impl Strategy<Value = String> {
    prop_oneof![
        "[a-z][a-z0-9.-]{0,8}",
        prop::collection::vec(
            prop::sample::select(vec![
                '-', '>', '"', '\\', ',', '=', ' ', '[', '|', '\n', '\0', 'ö', 'u', '{'
            ]),
            0..6
        )
        .prop_map(|chars| chars.into_iter().collect()),
        any::<String>(),
    ]
}

fn stage() -> impl Strategy<Value = StageSpec> {
    (word(), prop::collection::vec((word(), word()), 0..4)).prop_map(|(name, options)| {
        options.into_iter().fold(StageSpec::new(name), |stage, (key, value)| stage.with(key, value))
    })
}

fn chain() -> impl Strategy<Value = Chain> {
    let leaf = (prop::collection::vec(stage(), 0..3), stage())
        .prop_map(|(stages, backend)| Chain::new(stages, backend));
    leaf.prop_recursive(3, 16, 3, |inner| {
        let branches = prop::collection::vec(inner, 0..3);
        (prop::collection::vec(stage(), 0..3), stage(), branches)
            .prop_map(|(stages, stage, branches)| Chain { stages, backend: Node { stage, branches } })
    })
}

proptest! {
    #[test]
    fn what_is_printed_parses_to_the_same(frontend in stage(), below in chain()) {
        let description = Description { frontend, below };
        let text = description.to_string();
        prop_assert!(!text.chars().any(char::is_control), "one line: {text:?}");
        prop_assert_eq!(parse(&text), Ok(description));
    }

    #[test]
    fn no_text_panics(text in any::<String>()) {
        let _ = parse(&text);
    }

    #[test]
    fn no_soup_of_tokens_panics(
        tokens in prop::collection::vec(
            prop::sample::select(vec!["->", "-", ",", "=", "[", "]", "|", "\"", "\\", " ", "a", "ö", "null", "\\u{", "}"]),
            0..40,
        ),
    ) {
        if let Ok(description) = parse(&tokens.concat()) {
            prop_assert_eq!(parse(&description.to_string()), Ok(description));
        }
    }

    #[test]
    fn formatted_values_parse_to_the_same(number in any::<u64>(), shift in 0..64_u32) {
        let size = number >> shift << (shift / 2);
        prop_assert_eq!(parse_size(&format_size(size)), Some(size));
        let time = Duration::from_nanos(size);
        prop_assert_eq!(parse_time(&format_time(time)), Some(time));
    }
}
