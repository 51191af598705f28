//! Typed values as text and back. What is formatted parses to the same value.

use std::time::Duration;

const SIZES: [(&str, u64); 4] = [("T", 1 << 40), ("G", 1 << 30), ("M", 1 << 20), ("K", 1 << 10)];

/// A size in bytes: a decimal number, with `K`, `M`, `G` or `T` for powers of 1024. `None` where it is none, or beyond 64
/// bits.
pub fn parse_size(text: &str) -> Option<u64> {
    let unit = SIZES.iter().find_map(|(unit, bytes)| Some((text.strip_suffix(unit)?, *bytes)));
    let (number, bytes) = unit.unwrap_or((text, 1));
    parse_number(number)?.checked_mul(bytes)
}

/// A size in the largest unit that divides it.
pub fn format_size(bytes: u64) -> String {
    let unit = SIZES.iter().find(|(_, unit)| bytes != 0 && bytes.is_multiple_of(*unit));
    unit.map_or_else(|| bytes.to_string(), |(name, unit)| format!("{}{name}", bytes / unit))
}

/// A duration: a decimal number with `ns`, `us`, `ms` or `s`. `None` where it is none.
pub fn parse_time(text: &str) -> Option<Duration> {
    let unit = text.trim_start_matches(|char: char| char.is_ascii_digit());
    let number = parse_number(&text[..text.len() - unit.len()])?;
    match unit {
        "ns" => Some(Duration::from_nanos(number)),
        "us" => Some(Duration::from_micros(number)),
        "ms" => Some(Duration::from_millis(number)),
        "s" => Some(Duration::from_secs(number)),
        _ => None,
    }
}

/// A duration in the largest unit that divides it. Beyond 584 years it is rounded down to whole seconds.
pub fn format_time(time: Duration) -> String {
    let Ok(nanos) = u64::try_from(time.as_nanos()) else { return format!("{}s", time.as_secs()) };
    let units = [("s", 1_000_000_000), ("ms", 1_000_000), ("us", 1_000)];
    let unit = units.iter().find(|(_, unit)| nanos.is_multiple_of(*unit));
    unit.map_or_else(|| format!("{nanos}ns"), |(name, unit)| format!("{}{name}", nanos / unit))
}

/// `on` or `off`.
pub fn parse_switch(text: &str) -> Option<bool> {
    match text {
        "on" => Some(true),
        "off" => Some(false),
        _ => None,
    }
}

/// `on` or `off`.
pub fn format_switch(on: bool) -> &'static str {
    if on { "on" } else { "off" }
}

/// A decimal number, without the sign that the standard library allows.
pub(crate) fn parse_number(text: &str) -> Option<u64> {
    if text.bytes().all(|byte| byte.is_ascii_digit()) { text.parse().ok() } else { None }
}
