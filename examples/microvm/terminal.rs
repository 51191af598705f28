//! Raw mode of the terminal, and its end on every way out: return, panic, and a crash of the process itself.

use std::io::{self, IsTerminal};
use std::mem::MaybeUninit;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

/// The terminal's settings before raw mode.
static BEFORE: OnceLock<libc::termios> = OnceLock::new();
static RAW: AtomicBool = AtomicBool::new(false);

/// Signals of a crash, after which no destructor runs.
const CRASHES: [libc::c_int; 5] = [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGABRT];

/// The terminal is in raw mode while this lives. Signals that merely ask the process to end are the business of
/// whoever waits for them.
#[derive(Debug)]
pub(crate) struct RawTerminal(());

impl RawTerminal {
    /// Switches standard input to raw mode if it is a terminal.
    pub(crate) fn enter() -> io::Result<Option<Self>> {
        if !io::stdin().is_terminal() {
            return Ok(None);
        }
        let mut settings = MaybeUninit::<libc::termios>::zeroed();
        // SAFETY: the pointer is to a termios that tcgetattr fills; all zeroes is a valid one besides.
        if unsafe { libc::tcgetattr(libc::STDIN_FILENO, settings.as_mut_ptr()) } != 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: tcgetattr succeeded and filled it.
        let before = unsafe { settings.assume_init() };
        let before = BEFORE.get_or_init(|| before);
        let mut raw = *before;
        // Keys go to the guest as they are; what the guest writes still goes through output processing.
        raw.c_lflag &= !(libc::ICANON | libc::ECHO | libc::ISIG | libc::IEXTEN);
        raw.c_iflag &= !(libc::IXON | libc::ICRNL | libc::INLCR | libc::IGNCR | libc::BRKINT | libc::ISTRIP);
        raw.c_cc[libc::VMIN] = 1;
        raw.c_cc[libc::VTIME] = 0;
        restore_on_crash()?;
        let previous = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            restore();
            previous(info);
        }));
        RAW.store(true, Ordering::SeqCst);
        // SAFETY: the pointer is to a termios made from a valid one.
        if unsafe { libc::tcsetattr(libc::STDIN_FILENO, libc::TCSANOW, &raw const raw) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Some(Self(())))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        restore();
    }
}

/// Puts the old settings back, once. Only calls that a signal handler may make.
fn restore() {
    if let (true, Some(before)) = (RAW.swap(false, Ordering::SeqCst), BEFORE.get()) {
        // SAFETY: the pointer is to settings that tcgetattr returned.
        unsafe { libc::tcsetattr(libc::STDIN_FILENO, libc::TCSANOW, before) };
    }
}

/// Restores and lets the signal do what it would have done: the default action comes back before the handler
/// returns, and the fault happens again.
extern "C" fn crashed(signal: libc::c_int) {
    restore();
    // SAFETY: setting a signal's default action and raising it are allowed inside a handler.
    unsafe {
        libc::signal(signal, libc::SIG_DFL);
        libc::raise(signal);
    }
}

fn restore_on_crash() -> io::Result<()> {
    for signal in CRASHES {
        let mut action = MaybeUninit::<libc::sigaction>::zeroed();
        // SAFETY: an all-zero sigaction is a valid one: default action, empty mask, no flags.
        let action = unsafe { action.assume_init_mut() };
        action.sa_sigaction = crashed as extern "C" fn(libc::c_int) as libc::sighandler_t;
        // An overflow of the stack is a crash too, and needs the alternate stack that Rust gave the thread.
        action.sa_flags = libc::SA_ONSTACK;
        // SAFETY: the action is initialised, and its handler makes async-signal-safe calls only.
        if unsafe { libc::sigaction(signal, action, std::ptr::null_mut()) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}
