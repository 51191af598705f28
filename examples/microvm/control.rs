//! Who stops the machine, why, and with which exit code.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::gate::Gate;

/// Why a machine stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// The guest switched itself off.
    PowerOff,
    /// The guest wrote this byte to the exit port.
    ExitPort(u8),
    /// The guest asked for a reset: `reboot`, or a panic with `panic=-1`.
    Reset,
    /// The guest crashed hard: a triple fault.
    TripleFault,
    /// A vCPU could not go on.
    Failed(String),
    /// The user left with Ctrl-A x.
    Quit,
    /// A client of the control socket asked for the end.
    Told,
    /// The machine is in a file.
    Saved,
    /// A signal told the process to end.
    Signal(i32),
}

impl Stop {
    /// The exit code of the process. 1 and 2 are left to the process's own errors.
    ///
    /// 0 power-off, Ctrl-A x or the control socket; the byte itself for the exit port; 64 reset; 65 triple fault; 66 a vCPU that failed;
    /// 128 + n for signal n.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::PowerOff | Self::Quit | Self::Told | Self::Saved => 0,
            Self::ExitPort(code) => *code,
            Self::Reset => 64,
            Self::TripleFault => 65,
            Self::Failed(_) => 66,
            Self::Signal(number) => 128u8.wrapping_add(*number as u8),
        }
    }

    /// What happened, in a few words.
    pub(crate) fn describe(&self) -> String {
        match self {
            Self::PowerOff => "the guest switched off".to_owned(),
            Self::ExitPort(code) => format!("the guest ended with code {code}"),
            Self::Reset => "the guest asked for a reset".to_owned(),
            Self::TripleFault => "the guest crashed with a triple fault".to_owned(),
            Self::Failed(reason) => reason.clone(),
            Self::Quit => "left by Ctrl-A x".to_owned(),
            Self::Told => "ended over the control socket".to_owned(),
            Self::Saved => "saved".to_owned(),
            Self::Signal(number) => format!("ended by signal {number}"),
        }
    }
}

/// Lets any thread stop the machine. The first cause counts.
#[derive(Debug)]
pub(crate) struct Control {
    stopping: AtomicBool,
    cause: Mutex<Option<Stop>>,
    event: EventFd,
    /// Where vCPUs wait while the machine is paused.
    pub(crate) gate: Gate,
}

impl Control {
    pub(crate) fn new() -> io::Result<Self> {
        let event = EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)?;
        let (stopping, cause) = (AtomicBool::new(false), Mutex::new(None));
        Ok(Self { stopping, cause, event, gate: Gate::default() })
    }

    /// Asks for the end. Returns at once; vCPU threads leave after their current exit.
    pub(crate) fn stop(&self, cause: Stop) {
        {
            // A thread that panicked while it held the lock left a whole value behind.
            let mut first = self.cause.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            first.get_or_insert(cause);
        }
        self.stopping.store(true, Ordering::Release);
        // It can only fail when the counter is full, and then the reader wakes anyway.
        let _ = self.event.write(1);
    }

    /// Has anybody asked for the end?
    pub(crate) fn stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    /// The cause, once there is one.
    pub(crate) fn cause(&self) -> Option<Stop> {
        self.cause.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }
}

impl AsRawFd for Control {
    /// Becomes readable when the machine is to stop; never read, so every waiter sees it.
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.event.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_cause_counts() {
        let control = Control::new().unwrap();
        assert!(!control.stopping());
        control.stop(Stop::ExitPort(42));
        control.stop(Stop::Reset);
        assert!(control.stopping());
        assert_eq!(control.cause().unwrap().exit_code(), 42);
    }
}
