//! Each attempt is made in a process of its own that has shut itself in, as nothing of this can be taken back.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::symlink;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitStatus, Stdio};

use iovirt::core::test_utils::skipped;
use iovirt::core::worker::io_uring::{IoUring, opcode, types};
use iovirt::core::{WorkerConfig, WorkerThread};
use iovirt::registry::Registry;
use vm_memory::MmapRegion;
use vmm_sys_util::eventfd::EventFd;

use super::*;

/// Tells the inner process what to try, and where.
const ATTEMPT: &str = "IOVIRT_TEST_SANDBOX_ATTEMPT";
const FOLDER: &str = "IOVIRT_TEST_SANDBOX_FOLDER";
/// What it says before it tries, once it is shut in.
const SHUT_IN: &str = "shut in: ";

/// What is tried, in a folder with `sockets/own`, `sockets/file`, `images/a.img`, `images/out` (a link out of it) and `other`.
type Attempt = fn(&Path) -> io::Result<()>;

/// What the devices need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Needs {
    Nothing,
    /// `--allow images`.
    Images,
    /// An NBD server on a Unix socket.
    Unix,
}

const ATTEMPTS: [(&str, Needs, Attempt); 15] = [
    ("open", Needs::Nothing, |_| File::open("/etc/passwd").map(drop)),
    ("open-own-folder", Needs::Nothing, |folder| File::create(folder.join("sockets/new")).map(drop)),
    ("open-image-without-allow", Needs::Nothing, |folder| File::open(folder.join("images/a.img")).map(drop)),
    ("open-by-ring", Needs::Nothing, |folder| open_by_ring(&folder.join("other"))),
    ("remove-own-socket", Needs::Nothing, |folder| fs::remove_file(folder.join("sockets/own"))),
    ("remove-other", Needs::Nothing, |folder| fs::remove_file(folder.join("other"))),
    ("connect-unix", Needs::Nothing, |folder| UnixStream::connect(folder.join("sockets/own")).map(drop)),
    ("connect-tcp", Needs::Nothing, |_| TcpStream::connect("127.0.0.1:9").map(drop)),
    ("listen", Needs::Nothing, |_| TcpListener::bind("127.0.0.1:0").map(drop)),
    ("map-code", Needs::Nothing, |_| map(libc::PROT_READ | libc::PROT_EXEC)),
    ("work", Needs::Nothing, |_| work()),
    ("open-image", Needs::Images, |folder| {
        OpenOptions::new().read(true).write(true).open(folder.join("images/a.img")).map(drop)
    }),
    ("follow-a-link-out", Needs::Images, |folder| File::open(folder.join("images/out")).map(drop)),
    ("make-a-file", Needs::Images, |folder| File::create(folder.join("images/b.img")).map(drop)),
    ("connect-to-server", Needs::Unix, |folder| UnixStream::connect(folder.join("sockets/own")).map(drop)),
];

/// What ends the process.
const FATAL: [(&str, Needs, Attempt); 2] = [
    ("execute", Needs::Images, |_| Err(Command::new("/bin/true").exec())),
    ("spawn", Needs::Nothing, |_| Command::new("/bin/true").status().map(drop)),
];

fn map(protection: i32) -> io::Result<()> {
    MmapRegion::<()>::build(None, 4096, protection, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS)
        .map(drop)
        .map_err(|_| io::Error::last_os_error())
}

/// Seccomp does not see this.
fn open_by_ring(path: &Path) -> io::Result<()> {
    let path = std::ffi::CString::new(path.to_str().unwrap()).unwrap();
    let mut ring = IoUring::new(2)?;
    let entry = opcode::OpenAt::new(types::Fd(libc::AT_FDCWD), path.as_ptr()).flags(libc::O_RDONLY).build();
    // SAFETY: the path lives until the entry has completed.
    unsafe { ring.submission().push(&entry).unwrap() };
    ring.submit_and_wait(1)?;
    let result = ring.completion().next().unwrap().result();
    if result < 0 { Err(io::Error::from_raw_os_error(-result)) } else { Ok(()) }
}

/// What devices do all day, and what they do when a stack is exchanged.
fn work() -> io::Result<()> {
    let worker = WorkerThread::spawn("io-worker", WorkerConfig::default())?;
    drop(worker);
    EventFd::new(0)?.write(1)?;
    map(libc::PROT_READ | libc::PROT_WRITE)?;
    IoUring::new(2)?;
    std::thread::spawn(|| std::thread::sleep(std::time::Duration::from_millis(1)))
        .join()
        .map_err(|_| io::Error::other("a thread"))
}

fn policy(needs: Needs, folder: &Path) -> Policy {
    let mut policy = Policy { sockets: vec![folder.join("sockets")], ..Policy::default() };
    match needs {
        Needs::Nothing => {}
        Needs::Images => policy.allowed.push(folder.join("images")),
        Needs::Unix => policy.unix = Connect::Allowed,
    }
    policy
}

#[test]
#[ignore = "run by the other tests, in a process of its own"]
fn to_be_shut_in() {
    let attempt = std::env::var(ATTEMPT).unwrap();
    let folder = PathBuf::from(std::env::var(FOLDER).unwrap());
    let mut attempts = ATTEMPTS.iter().chain(&FATAL);
    let (_, needs, attempt) = attempts.find(|(name, ..)| *name == attempt).unwrap();
    let policy = policy(*needs, &folder);
    let extent = close_files(&policy).unwrap();
    close_calls(&policy).unwrap();
    let mut output = io::stdout();
    writeln!(output, "\n{SHUT_IN}{extent:?}").unwrap();
    let said = match attempt(&folder) {
        Ok(()) => "done".to_owned(),
        Err(error) => format!("refused {}", error.raw_os_error().unwrap_or(0)),
    };
    writeln!(output, "{said}").unwrap();
    std::process::exit(0);
}

/// Has an attempt made: how the process ended, how far the sandbox reached, and what came of it.
fn attempt(name: &str) -> (ExitStatus, String, String) {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::create_dir(at("sockets")).unwrap();
    fs::create_dir(at("images")).unwrap();
    for file in ["sockets/file", "images/a.img", "other"] {
        fs::write(at(file), "content").unwrap();
    }
    symlink(at("other"), at("images/out")).unwrap();
    let _listener = UnixListener::bind(at("sockets/own")).unwrap();
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "sandbox::tests::to_be_shut_in", "--ignored", "--nocapture", "--test-threads=1"])
        .env(ATTEMPT, name)
        .env(FOLDER, folder.path())
        .stderr(Stdio::inherit())
        .output()
        .unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    let mut lines = said.lines().skip_while(|line| !line.starts_with(SHUT_IN));
    let extent = lines.next().unwrap_or_else(|| panic!("{name}: it is not shut in: {said}"));
    (output.status, extent[SHUT_IN.len()..].to_owned(), lines.next().unwrap_or_default().to_owned())
}

fn has_landlock(extent: &str) -> bool {
    let has = extent == "Full";
    if !has {
        skipped(format_args!("of a whole sandbox: {extent}"));
    }
    has
}

#[test]
fn what_is_not_needed_is_refused() {
    for name in [
        "open",
        "open-own-folder",
        "open-image-without-allow",
        "connect-unix",
        "connect-tcp",
        "listen",
        "map-code",
    ] {
        let (status, _, said) = attempt(name);
        assert!(status.success() && said == format!("refused {}", libc::EPERM), "{name}: {said}");
    }
    for name in ["open-by-ring", "remove-other", "follow-a-link-out", "make-a-file"] {
        let (status, extent, said) = attempt(name);
        if has_landlock(&extent) {
            assert!(status.success() && said == format!("refused {}", libc::EACCES), "{name}: {said}");
        }
    }
}

#[test]
fn what_is_needed_still_works() {
    for name in ["work", "remove-own-socket", "open-image", "connect-to-server"] {
        let (status, _, said) = attempt(name);
        assert!(status.success() && said == "done", "{name}: {said}");
    }
}

#[test]
fn another_program_is_the_end() {
    for (name, ..) in FATAL {
        let (status, ..) = attempt(name);
        assert_eq!(status.signal(), Some(libc::SIGSYS), "{name}: {status}");
    }
}

#[test]
fn the_pipelines_say_what_is_needed() {
    let registry = Registry::standard();
    let place = |(socket, text): (&str, &str)| Place {
        socket: socket.into(),
        description: registry.parse(text).unwrap(),
    };
    let of = |places: &[(&str, &str)]| {
        let places: Vec<_> = places.iter().map(|at| place(*at)).collect();
        Policy::of(&places, [Path::new("/run/own/control")].into_iter(), &[])
    };
    let disk = of(&[("disk.sock", "virtio-blk -> file,path=a"), ("/run/b", "virtio-net -> loopback")]);
    let sockets = [".", "/run", "/run/own"].map(PathBuf::from).to_vec();
    assert_eq!(disk, Policy { sockets: sockets.clone(), ..Policy::default() });
    let line =
        "virtio-blk -> mirror [nbd,socket=s | stats -> nbd,host=::1,port=7 | nbd,host=storage.example]";
    let servers = of(&[("disk.sock", line), ("/run/b", "virtio-net -> loopback")]);
    let expected = Policy {
        sockets,
        ports: vec![7, NBD_PORT],
        unix: Connect::Allowed,
        names: Names::LookedUp,
        ..Policy::default()
    };
    assert_eq!(servers, expected);
}

#[test]
fn an_allowed_directory_must_be_one() {
    let policy = Policy { allowed: vec!["/etc/passwd".into()], ..Policy::default() };
    let error = close_files(&policy).unwrap_err().to_string();
    assert_eq!(error, "--allow /etc/passwd: there is no such directory");
}
