//! Every pipeline in the documentation is what it says: a line in a block marked `pipeline` builds, a line in one marked
//! `syntax` parses. And every link leads somewhere.
//!
//! Lines with a tap are built in a network namespace of their own, and not at all without root.
//!
//! `PATH` in a line stands for a file of 1 MiB, `SOCKET` for the socket of an NBD server.

mod common;

use iovirt::core::pipeline::BoxBackend;
use iovirt::core::test_utils::skipped;
use iovirt::core::{Backend, Depth, Request, Worker, WorkerConfig};
use iovirt::describe::Description;
use iovirt::registry::{Family, Registry, StageKind};
use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

/// The pages in a folder of the repository and those below it.
fn pages(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(pages(&path));
        } else if path.extension().is_some_and(|extension| extension == "md") {
            found.push(path);
        }
    }
    found.sort();
    found
}

fn docs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("docs")
}

/// The lines of all fenced blocks with that mark.
fn lines(page: &Path, mark: &str) -> Vec<String> {
    let text = fs::read_to_string(page).unwrap();
    let mut block = None;
    let mut found = Vec::new();
    for line in text.lines() {
        match (block, line.strip_prefix("```")) {
            (None, Some(info)) => block = Some(info),
            (Some(_), Some(_)) => block = None,
            (Some(info), None) if info == mark && !line.trim().is_empty() => found.push(line.to_owned()),
            _ => {}
        }
    }
    assert_eq!(block, None, "{}: a block does not end", page.display());
    found
}

/// Builds what a line describes and opens a queue of it.
fn build(registry: &Registry, line: &str) -> Result<(), Box<dyn std::error::Error>> {
    let file = tempfile::NamedTempFile::new()?;
    file.as_file().set_len(1 << 20)?;
    let path = file.path().to_str().ok_or("a path that is no text")?;
    let folder = tempfile::tempdir()?;
    let socket = folder.path().join("s");
    let socket = socket.to_str().ok_or("a path that is no text")?;
    let mut server = None;
    if line.contains("SOCKET") {
        let Some(started) = serve(socket)? else {
            skipped(format_args!("nbdkit is not installed: `{line}`"));
            return Ok(());
        };
        server = Some(started);
    }
    let built = open_line(registry, &line.replace("PATH", path).replace("SOCKET", socket));
    if let Some(mut server) = server {
        server.kill()?;
        server.wait()?;
    }
    built
}

/// Serves a disk of any export name.
fn serve(socket: &str) -> Result<Option<Child>, Box<dyn std::error::Error>> {
    let server = Command::new("nbdkit").args(["-f", "-U", socket, "memory", "1M"]).spawn();
    let Ok(mut server) = server else { return Ok(None) };
    for _ in 0..1000 {
        if UnixStream::connect(socket).is_ok() {
            return Ok(Some(server));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    server.kill()?;
    Err("nbdkit does not listen".into())
}

fn open_line(registry: &Registry, line: &str) -> Result<(), Box<dyn std::error::Error>> {
    let description = registry.parse(line)?;
    registry.frontend_options(&description.frontend)?;
    match registry.family(&description.frontend)? {
        Family::Net => open(&registry.build_net(&description.below)?),
        _ => open(&registry.build_block(&description.below)?),
    }
}

fn open<R: Request>(backend: &BoxBackend<R>) -> Result<(), Box<dyn std::error::Error>> {
    let mut worker = Worker::new(WorkerConfig::default())?;
    let depth = Depth::new(8).ok_or("no depth")?;
    worker.with_context(|cx| backend.open(cx, depth).map(drop))?;
    Ok(())
}

/// Whether a pipeline makes devices of the host, which takes a namespace of the test's own.
fn needs_namespace(line: &str) -> bool {
    line.contains("-> tap,")
}

/// Builds every pipeline that `wanted` says yes to, and says how many those are.
fn build_all(wanted: impl Fn(&str) -> bool) -> usize {
    let registry = Registry::standard();
    let mut count = 0;
    for page in pages(&docs()) {
        for line in lines(&page, "pipeline").into_iter().filter(|line| wanted(line)) {
            if let Err(error) = build(&registry, &line) {
                panic!("{}: `{line}`: {error}", page.display());
            }
            count += 1;
        }
    }
    count
}

#[test]
fn every_pipeline_builds() {
    let count = build_all(|line| !needs_namespace(line));
    assert!(count >= 8, "only {count} pipelines were found");
}

#[test]
fn every_pipeline_with_a_device_of_the_host_builds() {
    if common::netns::enter("every_pipeline_with_a_device_of_the_host_builds") {
        assert!(build_all(needs_namespace) >= 2);
    }
}

#[test]
fn every_link_leads_to_a_file() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let of_root =
        ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md"].map(|name| root.join(name));
    let mut count = 0;
    for page in pages(&docs()).iter().chain(&of_root) {
        let text = fs::read_to_string(page).unwrap();
        for (_, rest) in text.match_indices("](").map(|(at, mark)| text.split_at(at + mark.len())) {
            let target = rest.split([')', '#']).next().unwrap_or_default();
            if target.is_empty() || target.starts_with("https://") {
                continue;
            }
            let file = page.parent().unwrap().join(target);
            assert!(file.exists(), "{}: the link to {target} leads nowhere", page.display());
            count += 1;
        }
    }
    assert!(count >= 50, "only {count} links were found");
}

#[test]
fn every_piece_of_syntax_parses() {
    for page in pages(&docs()) {
        for line in lines(&page, "syntax") {
            if let Err(error) = line.parse::<Description>() {
                panic!("{}: `{line}`: {error}", page.display());
            }
        }
    }
}

#[test]
fn every_stage_has_a_page_with_an_example_and_all_its_keys() {
    for row in Registry::standard().rows() {
        if row.kind() == StageKind::FrontEnd || !row.is_available() {
            continue;
        }
        let (name, keys) = (row.info().name, row.info().keys);
        let page = docs().join("blocks").join(format!("{name}.md"));
        let text = fs::read_to_string(&page).unwrap_or_else(|error| panic!("{}: {error}", page.display()));
        assert!(lines(&page, "pipeline").iter().any(|line| line.contains(name)), "{name} has no example");
        for key in keys {
            assert!(text.contains(&format!("| `{}` |", key.name)), "{name}: `{}` is not explained", key.name);
        }
    }
}
