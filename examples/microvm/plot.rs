//! A run as a picture: latencies by percentile, and what a request cost in exits, doorbells and interrupts.

use std::fmt::Write;
use std::time::Duration;

use iovirt::backends::interposers::stats::Latency;

use crate::report::Report;

/// Left, top, width and height of the two diagrams, in pixels.
const LATENCY: [f64; 4] = [80.0, 70.0, 480.0, 340.0];
const COSTS: [f64; 4] = [780.0, 70.0, 250.0, 340.0];
const WIDTH: f64 = 1120.0;
/// Height of a line of the legend.
const LEGEND_LINE: f64 = 18.0;

/// Colours that can be told apart also by people who see fewer of them (Okabe and Ito); later curves are dashed.
const COLOURS: [&str; 7] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000"];
const DASHES: [&str; 3] = ["", "6 3", "2 3"];
/// No more curves and bars than a person can read.
const MOST_CURVES: usize = COLOURS.len() * DASHES.len();
const MOST_BARS: usize = 14;

/// Percentiles on the axis, whose place is by what is above them: 90, 99 and 99.9 are as far apart.
const PERCENTILES: [(f64, &str); 6] =
    [(0.0, "0"), (50.0, "50"), (90.0, "90"), (99.0, "99"), (99.9, "99.9"), (99.99, "99.99")];
const LAST_DECADE: f64 = 4.0;

/// A curve of the left diagram.
struct Curve<'a> {
    name: String,
    latency: &'a Latency,
}

/// A bar of the right one.
struct Bar {
    name: String,
    per_request: f64,
}

/// The report as an SVG document.
pub(crate) fn svg(report: &Report) -> String {
    let curves = curves(report);
    let height = LATENCY[1] + LATENCY[3] + 70.0 + LEGEND_LINE * curves.len() as f64;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" \
         viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    let title = format!("{}, {:.2} s: {}", report.driven_by, report.seconds, report.end);
    text(&mut svg, [20.0, 24.0], "start", &title);
    text(&mut svg, [LATENCY[0], LATENCY[1] - 14.0], "start", "latency by percentile");
    text(&mut svg, [COSTS[0], COSTS[1] - 14.0], "start", "for each request");
    draw_curves(&mut svg, &curves);
    draw_bars(&mut svg, &bars(report));
    svg.push_str("</svg>\n");
    svg
}

fn curves(report: &Report) -> Vec<Curve<'_>> {
    let mut curves = Vec::new();
    for (at, device) in report.devices.iter().enumerate() {
        for stage in &device.stages {
            for kind in stage.stats.kinds.iter().filter(|kind| kind.ops > 0) {
                let name =
                    format!("{at} {}: {} {}, {} requests", device.pipeline, stage.name, kind.name, kind.ops);
                curves.push(Curve { name, latency: &kind.latency });
            }
        }
    }
    curves.truncate(MOST_CURVES);
    curves
}

#[expect(clippy::cast_precision_loss, reason = "for people")]
fn bars(report: &Report) -> Vec<Bar> {
    let mut bars = Vec::new();
    let mut add = |name: String, count: u64, requests: u64| {
        if count > 0 && requests > 0 {
            bars.push(Bar { name, per_request: count as f64 / requests as f64 });
        }
    };
    for (at, device) in report.devices.iter().enumerate() {
        let [requests, doorbells, interrupts] = device.totals();
        add(format!("{at}: doorbells"), doorbells, requests);
        add(format!("{at}: interrupts"), interrupts, requests);
    }
    if let Some(exits) = &report.exits {
        let requests = report.devices.iter().map(|device| device.totals()[0]).sum();
        for (name, _) in exits.vcpus.first().map(|vcpu| vcpu.exits.as_slice()).unwrap_or_default() {
            add(format!("exits: {name}"), exits.total(name), requests);
        }
        let kvm = exits.vcpus.iter().flat_map(|vcpu| &vcpu.kvm).filter(|stat| stat.name == "exits");
        add("all exits, by KVM".to_owned(), kvm.map(|stat| stat.value).sum(), requests);
    }
    bars.truncate(MOST_BARS);
    bars
}

/// The left diagram: both axes logarithmic.
fn draw_curves(svg: &mut String, curves: &[Curve<'_>]) {
    let [left, top, width, height] = LATENCY;
    let bottom = top + height;
    let nanos = |time: Option<Duration>| (time.map_or(1, |time| time.as_nanos()).max(1) as f64).log10();
    let lowest = curves.iter().map(|curve| nanos(curve.latency.percentile(0.0))).fold(f64::MAX, f64::min);
    let highest = curves.iter().map(|curve| nanos(curve.latency.max())).fold(f64::MIN, f64::max);
    let (lowest, highest) = if curves.is_empty() {
        (3.0, 6.0)
    } else {
        (lowest.floor(), highest.ceil().max(lowest.floor() + 1.0))
    };
    let x = |decade: f64| left + width * decade / LAST_DECADE;
    let y = |power: f64| bottom - height * (power - lowest) / (highest - lowest);

    let mut power = lowest;
    while power <= highest {
        line(svg, [left, y(power)], [left + width, y(power)], "#dddddd");
        text(svg, [left - 8.0, y(power) + 4.0], "end", &time_label(power));
        power += 1.0;
    }
    for (percent, label) in PERCENTILES {
        let at = x(decade_of(percent));
        line(svg, [at, top], [at, bottom], "#dddddd");
        text(svg, [at, bottom + 18.0], "middle", label);
    }
    line(svg, [left, top], [left, bottom], "black");
    line(svg, [left, bottom], [left + width, bottom], "black");
    text(svg, [left + width / 2.0, bottom + 36.0], "middle", "percent of requests that took no longer");

    for (number, curve) in curves.iter().enumerate() {
        let (colour, dash) = (COLOURS[number % COLOURS.len()], DASHES[number / COLOURS.len() % DASHES.len()]);
        let mut points = String::new();
        // No further than so many requests can tell; of a single one, a stub.
        let last = (curve.latency.count() as f64).log10().clamp(0.1, LAST_DECADE);
        for step in 0..=80 {
            let decade = last * f64::from(step) / 80.0;
            let percent = 100.0 * (1.0 - 10f64.powf(-decade));
            let _ = write!(points, "{:.1},{:.1} ", x(decade), y(nanos(curve.latency.percentile(percent))));
        }
        let style = format!("stroke=\"{colour}\" stroke-width=\"1.8\" stroke-dasharray=\"{dash}\"");
        let _ = writeln!(svg, "<polyline points=\"{}\" fill=\"none\" {style}/>", points.trim_end());
        let at = bottom + 62.0 + LEGEND_LINE * number as f64;
        let _ = writeln!(
            svg,
            "<line x1=\"{left}\" y1=\"{:.1}\" x2=\"{}\" y2=\"{:.1}\" {style}/>",
            at - 4.0,
            left + 28.0,
            at - 4.0
        );
        text(svg, [left + 36.0, at], "start", &curve.name);
    }
}

/// The right diagram: bars on a logarithmic axis, as a doorbell for a thousand requests and ten exits for one are on it.
fn draw_bars(svg: &mut String, bars: &[Bar]) {
    let [left, top, width, height] = COSTS;
    let (low, high) = (-3.0, 3.0);
    let x = |value: f64| left + width * (value.log10().clamp(low, high) - low) / (high - low);
    for power in [-3, -2, -1, 0, 1, 2, 3] {
        let at = x(10f64.powi(power));
        line(svg, [at, top], [at, top + height], if power == 0 { "#888888" } else { "#dddddd" });
        let label = if power < 0 {
            format!("{:.*}", power.unsigned_abs() as usize, 10f64.powi(power))
        } else {
            format!("{:.0}", 10f64.powi(power))
        };
        text(svg, [at, top + height + 18.0], "middle", &label);
    }
    for (number, bar) in bars.iter().enumerate() {
        let middle = top + 14.0 + (height - 10.0) / MOST_BARS as f64 * number as f64;
        let end = x(bar.per_request).max(left + 1.0);
        let _ = writeln!(
            svg,
            "<rect x=\"{left}\" y=\"{:.1}\" width=\"{:.1}\" height=\"12\" fill=\"{}\"/>",
            middle - 6.0,
            end - left,
            COLOURS[5]
        );
        text(svg, [left - 8.0, middle + 4.0], "end", &bar.name);
        text(svg, [end + 5.0, middle + 4.0], "start", &format!("{:.3}", bar.per_request));
    }
    line(svg, [left, top], [left, top + height], "black");
    line(svg, [left, top + height], [left + width, top + height], "black");
}

/// Where a percentile is on its axis: 90 at 1, 99 at 2.
fn decade_of(percent: f64) -> f64 {
    -(1.0 - percent / 100.0).log10()
}

/// A power of ten in nanoseconds, with its unit.
fn time_label(power: f64) -> String {
    let (less, unit) = match power {
        0.0..3.0 => (0.0, "ns"),
        3.0..6.0 => (3.0, "us"),
        6.0..9.0 => (6.0, "ms"),
        _ => (9.0, "s"),
    };
    format!("{:.0} {unit}", 10f64.powf(power - less))
}

fn line(svg: &mut String, from: [f64; 2], to: [f64; 2], colour: &str) {
    let ([x1, y1], [x2, y2]) = (from, to);
    let _ = writeln!(
        svg,
        "<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" stroke=\"{colour}\"/>"
    );
}

/// Text, of which nothing is taken for markup, nor is what no XML document may hold.
fn text(svg: &mut String, [x, y]: [f64; 2], anchor: &str, content: &str) {
    let mut escaped = String::new();
    for character in content.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            character if character.is_control() || ('\u{fffe}'..='\u{ffff}').contains(&character) => {
                escaped.push('?')
            }
            character => escaped.push(character),
        }
    }
    let _ = writeln!(svg, "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{escaped}</text>");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::common::report::QueueReport;
    use crate::devices::DeviceReport;

    #[test]
    fn a_picture_escapes_its_texts_and_survives_an_empty_run() {
        let queue = QueueReport { requests: 8, doorbells: 2, interrupts: 0 };
        let device = DeviceReport::of_one_queue("virtio-blk -> stats", queue);
        let mut report = Report {
            driven_by: "nobody",
            end: "a <b> & \u{1b}c".to_owned(),
            code: 0,
            seconds: 0.0,
            devices: vec![device],
            exits: None,
        };
        let picture = svg(&report);
        assert!(picture.contains("a &lt;b&gt; &amp; ?c"), "{picture}");
        assert!(picture.contains("0: doorbells") && picture.contains("0.250"), "{picture}");
        assert!(!picture.contains("0: interrupts"), "{picture}");
        report.devices.clear();
        assert!(svg(&report).ends_with("</svg>\n"));
    }

    #[test]
    fn axes_are_labelled() {
        assert!((decade_of(99.0) - 2.0).abs() < 1e-9);
        assert_eq!([0.0, 3.0, 5.0, 8.0, 11.0].map(time_label), ["1 ns", "1 us", "100 us", "100 ms", "100 s"]);
    }
}
