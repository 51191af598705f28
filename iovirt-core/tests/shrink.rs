//! Files that are shortened under memory, and bus errors that have another reason.

#![cfg(feature = "test-utils")]

use iovirt_core::dma::{DmaSpace, DmaView, Region, ShrinkWatch};
use iovirt_core::test_utils::skipped;
use std::fs::File;
use std::os::fd::{AsFd, FromRawFd};
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const PAGE: u64 = 4096;

/// A file in memory that anybody may shorten.
fn file(len: u64) -> File {
    memory(len, 0).unwrap()
}

/// The same of huge pages.
fn huge_file(len: u64) -> std::io::Result<File> {
    memory(len, libc::MFD_HUGETLB | libc::MFD_HUGE_2MB)
}

fn memory(len: u64, flags: libc::c_uint) -> std::io::Result<File> {
    // SAFETY: a new descriptor, of a name that is a constant with a zero at its end.
    let fd = unsafe { libc::memfd_create(c"shrink".as_ptr(), libc::MFD_CLOEXEC | flags) };
    if fd < 0 {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: nobody else knows it yet.
    let file = unsafe { File::from_raw_fd(fd) };
    file.set_len(len)?;
    Ok(file)
}

/// Huge pages that the host has or would make.
fn huge_pages() -> u64 {
    let read = |path: &str| std::fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let folder = "/sys/kernel/mm/hugepages/hugepages-2048kB";
    ["free_hugepages", "nr_overcommit_hugepages"]
        .iter()
        .map(|name| read(&format!("{folder}/{name}")).unwrap_or(0))
        .sum()
}

fn view(region: Region) -> DmaView {
    DmaSpace::from_regions(vec![region]).unwrap().view()
}

fn byte(view: &DmaView, at: u64) -> u8 {
    view.read_array::<1>(at).unwrap()[0]
}

#[test]
fn what_is_gone_reads_as_zeroes_and_the_rest_is_still_shared() {
    let (file, watch) = (file(8 * PAGE), ShrinkWatch::new().unwrap());
    // From the middle of a page to the middle of a page.
    let region = watch.region(0x10_0000, 6 * PAGE, file.as_fd(), PAGE + 512).unwrap();
    let view = view(region);
    for page in 0..6 {
        view.write(0x10_0000 + page * PAGE, &[7]).unwrap();
    }
    file.set_len(4 * PAGE + 100).unwrap();
    let seen: Vec<u8> = (0..6).map(|page| byte(&view, 0x10_0000 + page * PAGE)).collect();
    // The kernel clears the rest of the page that is cut.
    assert_eq!(seen, [7, 7, 7, 0, 0, 0]);
    assert!(watch.has_shrunk());

    view.write(0x10_0000 + 5 * PAGE, &[9]).unwrap();
    assert_eq!(byte(&view, 0x10_0000 + 5 * PAGE), 9, "what is written there stays here");
    view.write(0x10_0000, b"shared").unwrap();
    let mut shared = [0; 6];
    file.read_exact_at(&mut shared, PAGE + 512).unwrap();
    assert_eq!(&shared, b"shared");

    file.set_len(0).unwrap();
    assert_eq!(byte(&view, 0x10_0000), 0, "shortened a second time");
}

#[test]
fn each_watch_hears_of_its_own_memory() {
    let (one, other) = (ShrinkWatch::new().unwrap(), ShrinkWatch::new().unwrap());
    let (short, long) = (file(PAGE), file(PAGE));
    let (gone, there) = (
        view(one.region(0, PAGE, short.as_fd(), 0).unwrap()),
        view(other.region(0, PAGE, long.as_fd(), 0).unwrap()),
    );
    short.set_len(0).unwrap();
    assert!(!one.has_shrunk(), "nobody has touched it yet");
    there.write(0, &[1]).unwrap();
    gone.write(0, &[1]).unwrap();
    assert!(one.has_shrunk() && !other.has_shrunk());
    assert_eq!(byte(&there, 0), 1);
}

#[test]
fn many_regions_come_and_go() {
    let watch = ShrinkWatch::new().unwrap();
    for round in 0..3 {
        let files: Vec<File> = (0..100).map(|_| file(2 * PAGE)).collect();
        let views: Vec<DmaView> =
            files.iter().map(|file| view(watch.region(0, 2 * PAGE, file.as_fd(), 0).unwrap())).collect();
        for (index, (file, view)) in files.iter().zip(&views).enumerate() {
            view.write(0, &[index as u8]).unwrap();
            file.set_len(PAGE).unwrap();
            view.write(PAGE, &[1]).unwrap();
        }
        let first: Vec<u8> = views.iter().map(|view| byte(view, 0)).collect();
        assert_eq!(first, (0..100).collect::<Vec<u8>>(), "in round {round}");
    }
}

#[test]
fn a_file_of_huge_pages_is_cut_between_them() {
    const HUGE: u64 = 2 << 20;
    // No page of it is touched, for the host need not have any: all of it is gone before.
    let file = match huge_file(2 * HUGE) {
        Ok(file) => file,
        Err(error) => return skipped(format_args!("no files of huge pages: {error}")),
    };
    let watch = ShrinkWatch::new().unwrap();
    let view = view(watch.region(0, 2 * HUGE, file.as_fd(), 0).unwrap());
    file.set_len(0).unwrap();
    view.write(HUGE + PAGE, &[1]).unwrap();
    assert!(watch.has_shrunk());
    assert_eq!(byte(&view, HUGE + PAGE), 1);
    view.write(PAGE, &[2]).unwrap();
    let seen = [byte(&view, HUGE + PAGE), byte(&view, PAGE)];
    assert_eq!(seen, [0, 2], "replaced once more, from the first page on");
}

/// Accesses that fail because of a length which the file does not have any more when somebody looks.
#[test]
fn a_file_that_is_cut_and_grows_all_the_time_ends_nobody() {
    let ended = AtomicBool::new(false);
    let mut faults = 0;
    std::thread::scope(|scope| {
        let file = file(16 * PAGE);
        let resized = file.try_clone().unwrap();
        let ended = &ended;
        scope.spawn(move || {
            while !ended.load(Ordering::Relaxed) {
                resized.set_len(PAGE).unwrap();
                resized.set_len(16 * PAGE).unwrap();
            }
        });
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_millis(500) {
            let watch = ShrinkWatch::new().unwrap();
            // The file may be short in this moment.
            let Ok(region) = watch.region(0, 16 * PAGE, file.as_fd(), 0) else { continue };
            let view = view(region);
            for round in 0..200 {
                view.write(round % 16 * PAGE, &[1]).unwrap();
            }
            faults += u32::from(watch.has_shrunk());
        }
        ended.store(true, Ordering::Relaxed);
    });
    println!("{faults} regions were cut");
    assert!(faults > 0);
}

// What ends a process runs in one of its own.

const FATE: &str = "IOVIRT_TEST_FATE";
const SURVIVED: i32 = 99;
const HANDLED: i32 = 42;

extern "C" fn handled(_: libc::c_int) {
    // SAFETY: a call that never returns.
    unsafe { libc::_exit(HANDLED) };
}

fn unwatched() {
    let (file, _watch) = (file(PAGE), ShrinkWatch::new().unwrap());
    let view = view(Region::from_file(0, PAGE, file.as_fd(), 0).unwrap());
    file.set_len(0).unwrap();
    view.write(0, &[1]).unwrap();
}

fn let_go_of() {
    let (file, watch) = (file(PAGE), ShrinkWatch::new().unwrap());
    drop(watch.region(0, PAGE, file.as_fd(), 0).unwrap());
    // Most likely where the other one was.
    let view = view(Region::from_file(0, PAGE, file.as_fd(), 0).unwrap());
    file.set_len(0).unwrap();
    view.write(0, &[1]).unwrap();
}

/// A bus error in the middle of a file: the host has no huge page.
fn no_page() {
    let (file, watch) = (huge_file(2 << 20).unwrap(), ShrinkWatch::new().unwrap());
    let view = view(watch.region(0, 2 << 20, file.as_fd(), 0).unwrap());
    view.write(0, &[1]).unwrap();
}

fn sent() {
    let _watch = ShrinkWatch::new().unwrap();
    let _ = Command::new("kill").args(["-BUS", &std::process::id().to_string()]).status();
    std::thread::sleep(Duration::from_secs(10));
}

/// One that has no effect without a watch has none with one.
fn sent_and_ignored() {
    // SAFETY: no handler is called.
    unsafe { libc::signal(libc::SIGBUS, libc::SIG_IGN) };
    let _watch = ShrinkWatch::new().unwrap();
    let _ = Command::new("kill").args(["-BUS", &std::process::id().to_string()]).status();
    std::thread::sleep(Duration::from_millis(100));
}

fn another_handler() {
    // SAFETY: a handler that does nothing but end the process.
    unsafe { libc::signal(libc::SIGBUS, handled as *const () as usize) };
    unwatched();
}

fn default_handler() {
    // SAFETY: no handler, in the place of the one that Rust's runtime installs.
    unsafe { libc::signal(libc::SIGBUS, libc::SIG_DFL) };
}

const NO_PAGE: &str = "no page";
const IGNORED: &str = "sent and ignored";
const FATES: [(&str, fn()); 8] = [
    ("unwatched", unwatched),
    ("unwatched, no handler before", || (default_handler(), unwatched()).1),
    ("let go of", let_go_of),
    (NO_PAGE, no_page),
    ("sent", sent),
    ("sent, no handler before", || (default_handler(), sent()).1),
    ("another handler", another_handler),
    (IGNORED, sent_and_ignored),
];

#[test]
#[ignore = "run by the other test, in a process of its own"]
fn fate() {
    let name = std::env::var(FATE).unwrap();
    let (_, fate) = FATES.iter().find(|(known, _)| *known == name).unwrap();
    fate();
    std::process::exit(SURVIVED);
}

fn fate_of(name: &str) -> ExitStatus {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "fate", "--ignored", "--nocapture", "--test-threads=1"])
        .env(FATE, name)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .unwrap()
}

#[test]
fn each_bus_error_has_the_fate_that_it_should() {
    for (name, _) in FATES {
        if name == NO_PAGE && (huge_file(2 << 20).is_err() || huge_pages() > 0) {
            skipped("the host has huge pages to give away, or no files of them");
            continue;
        }
        let status = fate_of(name);
        if name == IGNORED {
            assert_eq!(status.code(), Some(SURVIVED), "{name}: {status}");
        } else if name == "another handler" {
            assert_eq!(status.code(), Some(HANDLED), "{name}: {status}");
        } else {
            assert_eq!(status.signal(), Some(libc::SIGBUS), "{name}: {status}");
        }
    }
}
