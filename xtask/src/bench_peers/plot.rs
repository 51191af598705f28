//! The results as a picture: requests per second and the 99th percentile by depth, for each target and both clients.

use std::fmt::Write;

use super::points::{Access, Client, Load, Results, Sample, Summary, Target};
use super::servers::{Family, family};

/// Width and height of a diagram, and what is left around it for its labels, in pixels.
const WIDE: f64 = 300.0;
const HIGH: f64 = 200.0;
const LEFT: f64 = 70.0;
const ABOVE: f64 = 34.0;
const BELOW: f64 = 44.0;
const RIGHT: f64 = 20.0;
/// The head of the picture: its title.
const HEAD: f64 = 40.0;
const LEGEND_LINE: f64 = 18.0;

/// Colours that can be told apart also by people who see fewer of them (Okabe and Ito).
const QEMU: [&str; 2] = ["#d55e00", "#e69f00"];
const IOVIRT: [&str; 2] = ["#56b4e9", "#0072b2"];
const FLOOR: [&str; 2] = ["#999999", "#555555"];
/// What is drawn of all loads.
const ACCESS: Access = Access::RandomRead;

/// A row of diagrams.
struct Row {
    client: Client,
    title: &'static str,
    figure: fn(&Sample) -> f64,
    label: fn(f64) -> String,
}

const ROWS: [Row; 4] = [
    Row {
        client: Client::Sleeping,
        title: "requests per second, client sleeps",
        figure: iops,
        label: count_label,
    },
    Row { client: Client::Sleeping, title: "99th percentile, client sleeps", figure: p99, label: time_label },
    Row {
        client: Client::Polling,
        title: "requests per second, client polls",
        figure: iops,
        label: count_label,
    },
    Row { client: Client::Polling, title: "99th percentile, client polls", figure: p99, label: time_label },
];

fn iops(sample: &Sample) -> f64 {
    sample.iops
}

fn p99(sample: &Sample) -> f64 {
    sample.p99
}

/// A server's line.
struct Line {
    colour: &'static str,
    dash: &'static str,
    points: Vec<(u16, Summary)>,
}

/// The results as an SVG document.
pub(crate) fn svg(results: &Results) -> String {
    let targets: Vec<Target> =
        Target::ALL.into_iter().filter(|target| is_measured(results, *target)).collect();
    let (across, down) = (LEFT + WIDE + RIGHT, ABOVE + HIGH + BELOW);
    let most =
        targets.iter().filter_map(|target| results.servers.get(target)).map(Vec::len).max().unwrap_or(0);
    let width = across * targets.len().max(1) as f64;
    let legend = HEAD + down * ROWS.len() as f64;
    let height = legend + LEGEND_LINE * most as f64 + 16.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
         viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    let title = format!("{ACCESS} by requests in flight: medians, with the least and the most of all runs");
    text(&mut svg, [LEFT, 24.0], "start", &title);
    for (column, target) in targets.iter().enumerate() {
        let left = across * column as f64 + LEFT;
        for (number, row) in ROWS.iter().enumerate() {
            let top = HEAD + down * number as f64 + ABOVE;
            diagram(&mut svg, results, *target, row, [left, top]);
        }
        for (number, label) in results.servers.get(target).into_iter().flatten().enumerate() {
            let (colour, dash) = style(results, *target, label);
            let y = legend + 8.0 + LEGEND_LINE * number as f64;
            stroke(&mut svg, [left, y], [left + 30.0, y], colour, dash, 2.0);
            text(&mut svg, [left + 38.0, y + 4.0], "start", label);
        }
    }
    svg.push_str("</svg>\n");
    svg
}

fn is_measured(results: &Results, target: Target) -> bool {
    Client::ALL.into_iter().any(|client| results.has(target, client, ACCESS))
}

/// A colour for each server: one family has one hue, and the second of a family is whole where the first is dashed.
fn style(results: &Results, target: Target, label: &str) -> (&'static str, &'static str) {
    let of = family(label);
    let labels = results.servers.get(&target).into_iter().flatten();
    let number = labels.filter(|other| family(other) == of).position(|other| *other == label).unwrap_or(0);
    let colours = match of {
        Some(Family::Qsd) => QEMU,
        Some(Family::Iovirt) => IOVIRT,
        Some(Family::Floor) | None => FLOOR,
    };
    let dash = if of == Some(Family::Floor) { "2 3" } else { "" };
    (colours[number % colours.len()], dash)
}

fn lines(results: &Results, target: Target, row: &Row) -> Vec<Line> {
    let mut lines = Vec::new();
    for label in results.servers.get(&target).into_iter().flatten() {
        let points: Vec<(u16, Summary)> = results
            .depths()
            .into_iter()
            .filter_map(|depth| {
                let load = Load { client: row.client, access: ACCESS, depth };
                Some((depth, results.summary(target, label, load, row.figure)?))
            })
            .collect();
        let (colour, dash) = style(results, target, label);
        lines.push(Line { colour, dash, points });
    }
    lines
}

/// One diagram; both axes are logarithmic.
fn diagram(svg: &mut String, results: &Results, target: Target, row: &Row, [left, top]: [f64; 2]) {
    let lines = lines(results, target, row);
    let depths: Vec<f64> = results.depths().iter().map(|depth| f64::from(*depth).log2()).collect();
    let [low, high] = powers(&lines);
    let (first, last) = (depths.first().copied().unwrap_or(0.0), depths.last().copied().unwrap_or(1.0));
    let bottom = top + HIGH;
    let x = |depth: f64| left + 14.0 + (WIDE - 28.0) * (depth - first) / (last - first).max(1.0);
    let y = |value: f64| bottom - HIGH * (value.max(1.0).log10() - low) / (high - low);

    text(svg, [left, top - 10.0], "start", &format!("{target}: {}", row.title));
    for power in low as i32..=high as i32 {
        for part in [1.0, 2.0, 5.0] {
            let value = part * 10f64.powi(power);
            if value.log10() > high + 1e-9 {
                break;
            }
            // Of a wide range only the powers of ten have labels.
            let strong = part < 1.5;
            stroke(
                svg,
                [left, y(value)],
                [left + WIDE, y(value)],
                if strong { "#cccccc" } else { "#eeeeee" },
                "",
                1.0,
            );
            if strong || high - low < 2.5 {
                text(svg, [left - 8.0, y(value) + 4.0], "end", &(row.label)(value));
            }
        }
    }
    for depth in results.depths() {
        let at = x(f64::from(depth).log2());
        stroke(svg, [at, top], [at, bottom], "#eeeeee", "", 1.0);
        text(svg, [at, bottom + 16.0], "middle", &depth.to_string());
    }
    stroke(svg, [left, top], [left, bottom], "black", "", 1.0);
    stroke(svg, [left, bottom], [left + WIDE, bottom], "black", "", 1.0);
    for line in &lines {
        let mut points = String::new();
        for (depth, summary) in &line.points {
            let at = x(f64::from(*depth).log2());
            let _ = write!(points, "{at:.1},{:.1} ", y(summary.median));
            stroke(svg, [at, y(summary.least)], [at, y(summary.most)], line.colour, "", 1.0);
            let _ = writeln!(
                svg,
                "<circle cx=\"{at:.1}\" cy=\"{:.1}\" r=\"2.5\" fill=\"{}\"/>",
                y(summary.median),
                line.colour
            );
        }
        let _ = writeln!(
            svg,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{}\" stroke-width=\"1.8\" stroke-dasharray=\"{}\"/>",
            points.trim_end(),
            line.colour,
            line.dash
        );
    }
}

/// The powers of ten below and above all values.
fn powers(lines: &[Line]) -> [f64; 2] {
    let summaries = || lines.iter().flat_map(|line| &line.points).map(|(_, summary)| summary);
    let low = summaries().map(|summary| summary.least.max(1.0).log10()).fold(f64::MAX, f64::min).floor();
    let high = summaries().map(|summary| summary.most.max(1.0).log10()).fold(f64::MIN, f64::max).ceil();
    if low > high { [0.0, 1.0] } else { [low, high.max(low + 1.0)] }
}

/// A number of requests: 5000 is 5k.
fn count_label(value: f64) -> String {
    match value {
        1e6.. => format!("{:.0}M", value / 1e6),
        1e3.. => format!("{:.0}k", value / 1e3),
        _ => format!("{value:.0}"),
    }
}

/// A time in nanoseconds, with its unit.
fn time_label(value: f64) -> String {
    match value {
        1e9.. => format!("{:.0} s", value / 1e9),
        1e6.. => format!("{:.0} ms", value / 1e6),
        1e3.. => format!("{:.0} µs", value / 1e3),
        _ => format!("{value:.0} ns"),
    }
}

fn stroke(svg: &mut String, from: [f64; 2], to: [f64; 2], colour: &str, dash: &str, width: f64) {
    let ([x1, y1], [x2, y2]) = (from, to);
    let _ = writeln!(
        svg,
        "<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" stroke=\"{colour}\" stroke-width=\"{width}\" \
         stroke-dasharray=\"{dash}\"/>"
    );
}

/// Text, all of it ours: without markup.
fn text(svg: &mut String, [x, y]: [f64; 2], anchor: &str, content: &str) {
    let _ = writeln!(svg, "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{content}</text>");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench_peers::table::tests::results;

    #[test]
    fn a_picture_has_a_line_for_each_server_and_survives_no_results() {
        let picture = svg(&results());
        assert_eq!(picture.matches("<polyline").count(), 3 * 4 * 6);
        assert!(picture.contains(">tmpfs: 99th percentile, client polls<"), "{picture}");
        assert!(picture.contains(">QEMU, native<") && picture.contains(">floor: ring only, polls<"));
        assert!(!picture.contains("NaN") && !picture.contains("inf"), "{picture}");
        assert!(svg(&Results::default()).ends_with("</svg>\n"));
    }

    #[test]
    fn axes_are_labelled() {
        assert_eq!([5.0, 5e3, 2e5, 1e6].map(count_label), ["5", "5k", "200k", "1M"]);
        assert_eq!([5.0, 5e3, 2e6, 1e9].map(time_label), ["5 ns", "5 µs", "2 ms", "1 s"]);
    }
}
