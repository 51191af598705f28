//! A strict reader of Prometheus' text format, version 0.0.4.

use std::collections::{BTreeMap, BTreeSet};

/// Labels, sorted.
pub(crate) type Labels = BTreeMap<String, String>;

/// A family of samples.
#[derive(Debug, Default)]
pub(crate) struct Family {
    pub(crate) kind: String,
    /// The name with its suffix, the labels, and the value.
    pub(crate) samples: Vec<(String, Labels, f64)>,
}

impl Family {
    /// The value of the sample with these labels and maybe others; `None` where there is not exactly one.
    pub(crate) fn value(&self, labels: &[(&str, &str)]) -> Option<f64> {
        let has =
            |found: &Labels| labels.iter().all(|(name, value)| found.get(*name).is_some_and(|v| v == value));
        let mut found = self.samples.iter().filter(|(_, labels, _)| has(labels));
        match (found.next(), found.next()) {
            (Some((.., value)), None) => Some(*value),
            _ => None,
        }
    }
}

/// Reads a page.
pub(crate) fn read(page: &str) -> Result<BTreeMap<String, Family>, String> {
    if !page.ends_with('\n') {
        return Err("the last line does not end".into());
    }
    let mut families: BTreeMap<String, Family> = BTreeMap::new();
    let (mut helped, mut now) = (None, None);
    for line in page.lines() {
        let told = |what: &str| format!("{what}: {line}");
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').ok_or_else(|| told("no help"))?;
            if !is_name(name, true) || help.is_empty() || !escapes_are_right(help, false) {
                return Err(told("a wrong help"));
            }
            helped = Some(name.to_owned());
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').ok_or_else(|| told("no type"))?;
            if helped.as_deref() != Some(name) || !["counter", "gauge", "histogram"].contains(&kind) {
                return Err(told("a type without its help, or an unknown one"));
            }
            let family = Family { kind: kind.into(), samples: Vec::new() };
            if families.insert(name.into(), family).is_some() {
                return Err(told("a family comes twice"));
            }
            now = Some(name.to_owned());
        } else {
            let (name, labels, value) = sample(line).ok_or_else(|| told("no sample"))?;
            let family = now.as_ref().ok_or_else(|| told("a sample without a family"))?;
            let Some(found) = families.get_mut(family) else { return Err(told("a sample without a family")) };
            let suffixes: &[&str] =
                if found.kind == "histogram" { &["_bucket", "_sum", "_count"] } else { &[""] };
            if !suffixes.iter().any(|suffix| name.strip_suffix(suffix) == Some(family)) {
                return Err(told("a sample of another family"));
            }
            found.samples.push((name, labels, value));
        }
    }
    families.iter().try_for_each(|(name, family)| check(name, family))?;
    Ok(families)
}

/// What holds for all samples of a family.
fn check(name: &str, family: &Family) -> Result<(), String> {
    let mut seen = BTreeSet::new();
    for (sample, labels, value) in &family.samples {
        if !seen.insert((sample, labels)) {
            return Err(format!("{sample} {labels:?} comes twice"));
        }
        if family.kind != "gauge" && (value.is_nan() || *value < 0.0) {
            return Err(format!("{sample} {labels:?} is {value}"));
        }
    }
    if (family.kind == "counter") != name.ends_with("_total") {
        return Err(format!("{name} is a {}", family.kind));
    }
    if family.kind == "histogram" { check_histogram(name, family) } else { Ok(()) }
}

fn check_histogram(name: &str, family: &Family) -> Result<(), String> {
    let mut series: BTreeMap<Labels, Vec<(f64, f64)>> = BTreeMap::new();
    for (_, labels, value) in family.samples.iter().filter(|(sample, ..)| sample.ends_with("_bucket")) {
        let mut labels = labels.clone();
        let bound = labels.remove("le").ok_or_else(|| format!("{name}: a bucket without a bound"))?;
        let bound = if bound == "+Inf" { f64::INFINITY } else { bound.parse().map_err(|_| bound)? };
        series.entry(labels).or_default().push((bound, *value));
    }
    for (labels, buckets) in &series {
        let rises = buckets.is_sorted_by(|(a, held), (b, more)| a < b && held <= more);
        let find = |suffix: &str| {
            let sample = format!("{name}{suffix}");
            family.samples.iter().find(|(found, at, _)| *found == sample && at == labels).map(|at| at.2)
        };
        let last = buckets.last().filter(|(bound, _)| bound.is_infinite()).map(|(_, held)| *held);
        if !rises || last.is_none() || last != find("_count") || find("_sum").is_none() {
            return Err(format!("{name} {labels:?} is no histogram: {buckets:?}"));
        }
    }
    if family.samples.len() != series.values().map(|buckets| buckets.len() + 2).sum::<usize>() {
        return Err(format!("{name} has a sum or a count without buckets"));
    }
    Ok(())
}

fn sample(line: &str) -> Option<(String, Labels, f64)> {
    let end = line.find(['{', ' '])?;
    let (name, mut rest) = line.split_at(end);
    let mut labels = Labels::new();
    if let Some(list) = rest.strip_prefix('{') {
        rest = list;
        loop {
            let (label, value) = rest.split_once("=\"")?;
            let quote = closing_quote(value)?;
            let raw = &value[..quote];
            if !is_name(label, false) || !escapes_are_right(raw, true) {
                return None;
            }
            if labels.insert(label.into(), raw.into()).is_some() {
                return None;
            }
            rest = &value[quote + 1..];
            match rest.strip_prefix(',') {
                Some(more) => rest = more,
                None => break rest = rest.strip_prefix('}')?,
            }
        }
    }
    let value = rest.strip_prefix(' ')?;
    let plain = value.bytes().all(|byte| byte.is_ascii_digit() || b".-+e".contains(&byte));
    let value = if plain { value.parse().ok()? } else { return None };
    is_name(name, true).then(|| (name.to_owned(), labels, value))
}

fn closing_quote(text: &str) -> Option<usize> {
    let mut escaped = false;
    text.bytes().position(|byte| {
        let closes = byte == b'"' && !escaped;
        escaped = byte == b'\\' && !escaped;
        closes
    })
}

fn is_name(name: &str, colons: bool) -> bool {
    let first = name.bytes().next().is_some_and(|byte| !byte.is_ascii_digit());
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || (colons && byte == b':');
    first && name.bytes().all(allowed)
}

fn escapes_are_right(text: &str, quotes: bool) -> bool {
    let mut chars = text.chars();
    while let Some(char) = chars.next() {
        match char {
            '\\' => match chars.next() {
                Some('\\' | 'n') => {}
                Some('"') if quotes => {}
                _ => return false,
            },
            '"' if quotes => return false,
            _ => {}
        }
    }
    true
}

#[test]
fn the_reader_refuses_what_is_wrong() {
    let head = "# HELP a_total A.\n# TYPE a_total counter\n";
    let histogram = "# HELP h H.\n# TYPE h histogram\n";
    let right = format!(
        "{head}a_total{{x=\"\\\"\\\\\"}} 1\n{histogram}h_bucket{{le=\"+Inf\"}} 2\nh_sum 0.5\nh_count 2\n"
    );
    read(&right).unwrap();
    for wrong in [
        format!("{head}a_total 1"),
        format!("{head}a_total 1\na_total 1\n"),
        format!("{head}a_total{{x=\"1\",x=\"2\"}} 1\n"),
        format!("{head}a_total{{x=\"\\t\"}} 1\n"),
        format!("{head}a_total{{x=\"1\"}}  1\n"),
        format!("{head}a_total NaN\n"),
        format!("{head}a_total -1\n"),
        format!("{head}b_total 1\n"),
        format!("{head}{head}"),
        "# TYPE a_total counter\na_total 1\n".to_owned(),
        "# HELP a A.\n# TYPE a counter\na 1\n".to_owned(),
        "# HELP a_total A.\n# TYPE a_total gauge\na_total 1\n".to_owned(),
        "a 1\n".to_owned(),
        "\n".to_owned(),
        format!("{histogram}h_bucket{{le=\"1\"}} 1\nh_sum 1\nh_count 1\n"),
        format!("{histogram}h_bucket{{le=\"1\"}} 3\nh_bucket{{le=\"+Inf\"}} 2\nh_sum 1\nh_count 2\n"),
        format!("{histogram}h_bucket{{le=\"+Inf\"}} 2\nh_sum 1\nh_count 1\n"),
        format!("{histogram}h_bucket{{le=\"+Inf\"}} 2\nh_count 2\n"),
        format!("{histogram}h_sum 1\nh_count 2\n"),
    ] {
        assert!(read(&wrong).is_err(), "{wrong}");
    }
}
