//! Prometheus' text exposition format, version 0.0.4.

use std::fmt::Write;
use std::time::Duration;

/// What is said of the format in HTTP.
pub(super) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What a family of samples is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Counter,
    Gauge,
    Histogram,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// Names and values of the labels of a sample.
pub(super) type Labels<'a> = [(&'a str, &'a str)];

/// A page that is being written.
#[derive(Debug, Default)]
pub(super) struct Page {
    text: String,
}

/// A family of samples on it, all of one name.
#[derive(Debug)]
pub(super) struct Family<'a> {
    page: &'a mut Page,
    name: &'a str,
}

impl Page {
    /// Begins a family; the one before it is complete.
    pub(super) fn family<'a>(&'a mut self, name: &'a str, kind: Kind, help: &str) -> Family<'a> {
        let _ = writeln!(self.text, "# HELP {name} {}", escape(help, false));
        let _ = writeln!(self.text, "# TYPE {name} {}", kind.name());
        Family { page: self, name }
    }

    /// What was written.
    pub(super) fn into_text(self) -> String {
        self.text
    }

    fn sample(&mut self, name: &str, suffix: &str, labels: &Labels<'_>, last: Option<&str>, value: &str) {
        self.text.push_str(name);
        self.text.push_str(suffix);
        let bound = last.map(|bound| ("le", bound));
        let mut open = '{';
        for (label, value) in labels.iter().copied().chain(bound) {
            let _ = write!(self.text, "{open}{label}=\"{}\"", escape(value, true));
            open = ',';
        }
        let close = if open == ',' { "}" } else { "" };
        let _ = writeln!(self.text, "{close} {value}");
    }
}

impl Family<'_> {
    /// A sample that is a whole number.
    pub(super) fn number(&mut self, labels: &Labels<'_>, value: u64) {
        self.page.sample(self.name, "", labels, None, &value.to_string());
    }

    /// A sample in seconds.
    pub(super) fn seconds(&mut self, labels: &Labels<'_>, value: Duration) {
        self.page.sample(self.name, "", labels, None, &seconds(value));
    }

    /// The samples of a histogram of times: how many there are up to each bound, how many in all, and their sum.
    pub(super) fn histogram(
        &mut self,
        labels: &Labels<'_>,
        buckets: impl Iterator<Item = (Duration, u64)>,
        count: u64,
        sum: Duration,
    ) {
        for (bound, held) in buckets {
            self.page.sample(self.name, "_bucket", labels, Some(&seconds(bound)), &held.to_string());
        }
        self.page.sample(self.name, "_bucket", labels, Some("+Inf"), &count.to_string());
        self.page.sample(self.name, "_sum", labels, None, &seconds(sum));
        self.page.sample(self.name, "_count", labels, None, &count.to_string());
    }
}

/// A time in seconds, to the nanosecond, without zeroes at its end.
fn seconds(time: Duration) -> String {
    let text = format!("{}.{:09}", time.as_secs(), time.subsec_nanos());
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// What would end a line, a value or an escape is escaped.
fn escape(text: &str, quotes: bool) -> String {
    let mut escaped = String::with_capacity(text.len());
    for char in text.chars() {
        match char {
            '\\' => escaped.push_str("\\\\"),
            '\n' => escaped.push_str("\\n"),
            '"' if quotes => escaped.push_str("\\\""),
            _ => escaped.push(char),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_written_as_the_format_says() {
        let mut page = Page::default();
        page.family("a_total", Kind::Counter, "Back\\slash, \"quote\" and\nline.").number(&[], 7);
        let mut info = page.family("b_info", Kind::Gauge, "B.");
        info.number(&[("path", "c:\\d \"e\"\nf"), ("g", "")], 1);
        let mut times = page.family("h_seconds", Kind::Histogram, "H.");
        let buckets = [(Duration::from_nanos(1023), 1), (Duration::from_secs(2), 3)].into_iter();
        times.histogram(&[("k", "v")], buckets, 4, Duration::from_millis(2500));
        page.family("s_seconds_total", Kind::Counter, "S.").seconds(&[], Duration::from_secs(10));
        let expected = r#"# HELP a_total Back\\slash, "quote" and\nline.
# TYPE a_total counter
a_total 7
# HELP b_info B.
# TYPE b_info gauge
b_info{path="c:\\d \"e\"\nf",g=""} 1
# HELP h_seconds H.
# TYPE h_seconds histogram
h_seconds_bucket{k="v",le="0.000001023"} 1
h_seconds_bucket{k="v",le="2"} 3
h_seconds_bucket{k="v",le="+Inf"} 4
h_seconds_sum{k="v"} 2.5
h_seconds_count{k="v"} 4
# HELP s_seconds_total S.
# TYPE s_seconds_total counter
s_seconds_total 10
"#;
        assert_eq!(page.into_text(), expected);
    }
}
