//! The results as Markdown, and their place in a page.

use std::fmt::Write;

use super::points::{Access, Bare, Client, Load, Results, Sample, Summary, Target};
use super::queues;
use super::servers::{self, Family, family};
use crate::error::{Error, Result};

/// What the section stands between.
const BEGIN: &str = "<!-- bench-peers -->";
const END: &str = "<!-- /bench-peers -->";

/// The whole section. `facts` say what the figures hold for, `how` how they were taken.
pub(crate) fn section(results: &Results, facts: &str, how: &str) -> String {
    let mut text = String::new();
    let _ = writeln!(text, "{facts}. {how}\n");
    ratios(&mut text, results);
    idle(&mut text, results);
    bare(&mut text, results);
    queues::table(&mut text, &results.queues);
    let _ = writeln!(
        text,
        "In the tables below a cell is: thousands of requests per second, median (least–most); the latency that 50 and that \
         99 of 100 requests do not exceed, in µs; processor time of the server for each request, in µs. In those of 128 KiB \
         the first figure is in MiB/s.\n"
    );
    for target in Target::ALL {
        for access in Access::ALL {
            for client in Client::ALL {
                if results.has(target, client, access) {
                    details(&mut text, results, target, access, client);
                }
            }
        }
    }
    text
}

/// Puts the section in its place in a page.
pub(crate) fn replace(page: &str, section: &str) -> Result<String> {
    let (Some(begin), Some(end)) = (page.find(BEGIN), page.find(END)) else {
        return Err(Error::new(format!("no {BEGIN} … {END} in the page")));
    };
    if end < begin {
        return Err(Error::new(format!("{END} stands before {BEGIN}")));
    }
    let (before, after) = (&page[..begin + BEGIN.len()], &page[end..]);
    Ok(format!("{before}\n\n{}\n\n{after}", section.trim()))
}

fn details(text: &mut String, results: &Results, target: Target, access: Access, client: Client) {
    let depths = results.depths();
    let _ = writeln!(
        text,
        "<details><summary>{}: {access}, {client} client</summary>\n",
        capital(target.title())
    );
    let heads: Vec<String> = depths.iter().map(|depth| format!("{depth} in flight")).collect();
    let _ = writeln!(text, "| | {} |", heads.join(" | "));
    let _ = writeln!(text, "|---|{}", "---|".repeat(depths.len()));
    for server in results.servers.get(&target).into_iter().flatten() {
        let cells: Vec<String> = depths
            .iter()
            .map(|depth| cell(results, target, server, Load { client, access, depth: *depth }))
            .collect();
        let _ = writeln!(text, "| {server} | {} |", cells.join(" | "));
    }
    text.push_str("\n</details>\n\n");
}

fn cell(results: &Results, target: Target, server: &'static str, load: Load) -> String {
    let summary = |figure: fn(&Sample) -> f64| results.summary(target, server, load, figure);
    let (Some(iops), Some(p50), Some(p99), Some(cpu)) = (
        summary(|sample| sample.iops),
        summary(|sample| sample.p50),
        summary(|sample| sample.p99),
        summary(|sample| sample.cpu),
    ) else {
        return String::new();
    };
    let unit = if load.access.is_random() { 1e3 } else { (1 << 20) as f64 / f64::from(load.access.bytes()) };
    format!(
        "**{}** ({}–{}); {}/{}; {}",
        short(iops.median / unit),
        short(iops.least / unit),
        short(iops.most / unit),
        short(p50.median / 1e3),
        short(p99.median / 1e3),
        short(cpu.median / 1e3)
    )
}

/// How ours do beside QEMU's quicker one, and beside the floor, in each cell.
fn ratios(text: &mut String, results: &Results) {
    for ours in servers::OURS {
        let cell = |target, load| {
            let theirs = quickest(results, target, load, Family::Qsd)?;
            let iops = paired(results, (target, load), [ours.label, theirs], |sample| sample.iops)?;
            let cpu = paired(results, (target, load), [ours.label, theirs], |sample| sample.cpu)?;
            let Summary { median, least, most } = iops;
            Some(format!("**{median:.2}** ({least:.2}–{most:.2}); {:.2}", cpu.median))
        };
        let title = format!(
            "{} beside QEMU's quicker one, for each cell: requests per second, median (least–most) of the ratios of each round; \
             processor time for each request, median of the ratios.",
            ours.sentence
        );
        grid(text, results, &title, cell);
    }
    let share = |target, load| {
        let floor = quickest(results, target, load, Family::Floor)?;
        let iops = paired(results, (target, load), [servers::OURS[0].label, floor], |sample| sample.iops)?;
        Some(format!("**{:.2}** ({:.2}–{:.2})", iops.median, iops.least, iops.most))
    };
    let title = format!(
        "{}, as a share of the quicker floor's requests per second, median (least–most) of each round.",
        servers::OURS[0].sentence
    );
    grid(text, results, &title, share);
}

/// A table with a row for each kind of load, and a column for each depth.
fn grid(text: &mut String, results: &Results, title: &str, cell: impl Fn(Target, Load) -> Option<String>) {
    let depths = results.depths();
    let mut rows = Vec::new();
    for target in Target::ALL {
        for access in Access::ALL {
            for client in Client::ALL {
                let load = |depth: &u16| Load { client, access, depth: *depth };
                let cells: Vec<String> =
                    depths.iter().filter_map(|depth| cell(target, load(depth))).collect();
                if !cells.is_empty() {
                    rows.push(format!("| {target}: {access}, {client} client | {} |", cells.join(" | ")));
                }
            }
        }
    }
    if rows.is_empty() {
        return;
    }
    let heads: Vec<String> = depths.iter().map(|depth| format!("{depth} in flight")).collect();
    let _ = writeln!(
        text,
        "{title}\n\n| | {} |\n|---|{}\n{}\n",
        heads.join(" | "),
        "---|".repeat(depths.len()),
        rows.join("\n")
    );
}

/// Of a family's servers the one with the most requests per second, by medians.
fn quickest(results: &Results, target: Target, load: Load, wanted: Family) -> Option<&'static str> {
    let labels = results.servers.get(&target).into_iter().flatten().copied();
    labels
        .filter(|label| family(label) == Some(wanted))
        .filter_map(|label| Some((label, results.summary(target, label, load, |sample| sample.iops)?.median)))
        .max_by(|one, other| one.1.total_cmp(&other.1))
        .map(|(label, _)| label)
}

/// One server's figure over another's, round by round: both were measured within seconds.
fn paired(
    results: &Results,
    (target, load): (Target, Load),
    servers: [&'static str; 2],
    figure: fn(&Sample) -> f64,
) -> Option<Summary> {
    let [ours, theirs] = servers.map(|server| results.points.get(&(target, server, load)));
    Summary::of(ours?.iter().zip(theirs?).map(|(ours, theirs)| figure(ours) / figure(theirs)))
}

fn idle(text: &mut String, results: &Results) {
    let mut rows = Vec::new();
    for target in Target::ALL {
        for server in results.servers.get(&target).into_iter().flatten() {
            let Some(idle) = results.idle.get(&(target, *server)) else { continue };
            if let Some(summary) = Summary::of(idle.iter().map(|share| share * 100.0)) {
                let Summary { median, least, most } = summary;
                rows.push(format!("| {target} | {server} | {median:.2} % ({least:.2}–{most:.2}) |"));
            }
        }
    }
    if !rows.is_empty() {
        let _ = writeln!(
            text,
            "What a server costs while its client is connected and asks for nothing, in processors.\n\n\
             | target | server | idle, median (least–most) |\n|---|---|---|\n{}\n",
            rows.join("\n")
        );
    }
}

fn bare(text: &mut String, results: &Results) {
    let mut rows = Vec::new();
    for ((target, access), samples) in &results.bare {
        let wall = Summary::of(samples.iter().map(|sample| sample.wall / 1e3));
        let cpu = Summary::of(samples.iter().map(|sample| sample.cpu / 1e3));
        if let (Some(wall), Some(cpu)) = (wall, cpu) {
            let spread = format!("({}–{})", short(wall.least), short(wall.most));
            rows.push(format!(
                "| {target} | {access} | {} {spread} | {} | {} |",
                short(wall.median),
                short(cpu.median),
                share_of_bare(results, (*target, *access), samples)
            ));
        }
    }
    if !rows.is_empty() {
        let _ = writeln!(
            text,
            "The bare `pread` or `pwrite` of the same file, one behind the other on the server's processor; and our daemon's requests per \
             second, as it comes, for a polling client with 32 in flight, as a share of the calls', median (least–most) of each round.\n\n\
             | file | call | µs, median (least–most) | of them processor | our share |\n|---|---|---|---|---|\n{}\n",
            rows.join("\n")
        );
    }
}

/// Requests over calls, both of the same seconds.
fn share_of_bare(results: &Results, (target, access): (Target, Access), bare: &[Bare]) -> String {
    let load = Load { client: Client::Polling, access, depth: 32 };
    let ours = results.points.get(&(target, servers::OURS[0].label, load));
    let shares = ours.into_iter().flatten().zip(bare).map(|(ours, bare)| ours.iops * bare.wall / 1e9);
    Summary::of(shares).map_or_else(String::new, |Summary { median, least, most }| {
        format!("**{median:.2}** ({least:.2}–{most:.2})")
    })
}

/// Three digits that mean something.
pub(crate) fn short(value: f64) -> String {
    match value {
        100.0.. => format!("{value:.0}"),
        10.0.. => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

fn capital(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Results of all servers at two depths, where ours are twice as quick as QEMU's.
    pub(crate) fn results() -> Results {
        let mut results = Results::default();
        let all = [Family::Qsd, Family::Iovirt, Family::Floor];
        for target in Target::ALL {
            for server in servers::of(target, &all) {
                results.add_server(target, server.label);
                let speed = if family(server.label) == Some(Family::Iovirt) { 2.0 } else { 1.0 };
                for client in Client::ALL {
                    for access in Access::ALL {
                        for depth in [1, 32] {
                            let iops = 10_000.0 * f64::from(depth) * speed;
                            let sample = Sample {
                                iops,
                                p50: 70_000.0,
                                p99: 150_000.0 * f64::from(depth).sqrt(),
                                cpu: 5000.0 / speed,
                                kicks: 0.5,
                                calls: 0.25,
                            };
                            let samples = vec![sample, Sample { iops: iops * 1.5, ..sample }, sample];
                            results
                                .points
                                .insert((target, server.label, Load { client, access, depth }), samples);
                        }
                    }
                }
                results.idle.insert((target, server.label), vec![0.001, 0.0, 0.5]);
            }
        }
        results.bare.insert((Target::Tmpfs, Access::RandomRead), vec![Bare { wall: 1234.0, cpu: 1200.0 }]);
        results
    }

    #[test]
    fn cells_have_medians_and_spread() {
        let text = section(&results(), "A machine", "In turns.");
        assert!(text.starts_with("A machine. In turns.\n"), "{text}");
        assert!(text.contains("| QEMU, native | **10.0** (10.0–15.0); 70.0/150; 5.00 |"), "{text}");
        // 20000 requests of 128 KiB are 2500 MiB.
        assert!(text.contains("| iovirt | **2500** (2500–3750); 70.0/150; 2.50 |"), "{text}");
        assert!(
            text.contains(
                "| null: 4 KiB random read, sleeping client | **2.00** (2.00–2.00); 0.50 | **2.00** (2.00–2.00); 0.50 |"
            ),
            "{text}"
        );
        assert!(
            text.contains(
                "| null: 4 KiB random read, sleeping client | **2.00** (2.00–2.00) | **2.00** (2.00–2.00) |"
            ),
            "{text}"
        );
        assert!(text.contains("| tmpfs | QEMU, threads | 0.10 % (0.00–50.00) |"), "{text}");
        assert!(
            text.contains("| tmpfs | 4 KiB random read | 1.23 (1.23–1.23) | 1.20 | **0.79** (0.79–0.79) |"),
            "{text}"
        );
        assert_eq!(text.matches("<details>").count(), 24);
    }

    /// A machine that is twice as quick in one round says nothing of the servers.
    #[test]
    fn ratios_are_those_of_rounds() {
        let mut results = results();
        let load = Load { client: Client::Polling, access: Access::RandomRead, depth: 1 };
        let sample = results.points[&(Target::Null, "iovirt", load)][0];
        let of = |iops: [f64; 3]| iops.map(|iops| Sample { iops, ..sample }).to_vec();
        results.points.insert((Target::Null, "iovirt", load), of([100.0, 200.0, 100.0]));
        for theirs in ["QEMU, polls", "QEMU, sleeps"] {
            results.points.insert((Target::Null, theirs, load), of([50.0, 100.0, 80.0]));
        }
        let pair = paired(&results, (Target::Null, load), ["iovirt", "QEMU, polls"], |sample| sample.iops);
        assert_eq!(pair, Some(Summary { median: 2.0, least: 1.25, most: 2.0 }));
    }

    #[test]
    fn what_was_not_measured_is_not_there() {
        let mut some = results();
        some.points.retain(|(target, server, load), _| {
            *target == Target::Null && load.depth == 1 && family(server) != Some(Family::Iovirt)
        });
        some.idle.clear();
        some.bare.clear();
        let text = section(&some, "A machine", "In turns.");
        assert!(!text.contains("beside QEMU") && !text.contains("idle") && !text.contains("pread` or"));
        assert!(text.contains("| iovirt |  |"), "{text}");
        assert_eq!(text.matches("<details>").count(), 8);
    }

    #[test]
    fn only_the_section_is_replaced() {
        let page = format!("# Page\n\n{BEGIN}\nold\n{END}\n\nrest\n");
        let new = replace(&page, "new\n").unwrap();
        assert_eq!(new, format!("# Page\n\n{BEGIN}\n\nnew\n\n{END}\n\nrest\n"));
        assert_eq!(replace(&new, "new").unwrap(), new);
        assert!(replace("# Page", "new").is_err());
        assert!(replace(&format!("{END}{BEGIN}"), "new").is_err());
    }
}
