//! COM1: the guest's console on this process's standard input and output.

use std::io::{self, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use vm_superio::serial::SerialEvents;
use vm_superio::{Serial, Trigger};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::bus::BusDevice;
use crate::control::{Control, Stop};

pub(crate) const COM1_PORT: u16 = 0x3f8;
pub(crate) const COM1_LEN: u64 = 8;

/// Ctrl-A, then x: leave the guest. Ctrl-A twice: one Ctrl-A for the guest.
const ESCAPE: u8 = 1;
const ESCAPE_QUIT: u8 = b'x';

/// The interrupt line, as an event that KVM listens to.
pub(crate) struct Line(pub(crate) EventFd);

impl Trigger for Line {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

/// Tells the input thread that the guest has read everything.
struct Room(Arc<EventFd>);

impl SerialEvents for Room {
    fn buffer_read(&self) {}
    fn out_byte(&self) {}
    fn tx_lost_byte(&self) {}
    fn in_buffer_empty(&self) {
        // It can only fail when the counter is full, and then the reader wakes anyway.
        let _ = self.0.write(1);
    }
}

/// A serial port with a 16550 inside.
pub(crate) struct SerialPort {
    uart: Mutex<Serial<Line, Room, Box<dyn Write + Send>>>,
    room: Arc<EventFd>,
}

impl SerialPort {
    /// A port that raises `line` and prints to `out`.
    pub(crate) fn new(line: EventFd, out: Box<dyn Write + Send>) -> io::Result<Self> {
        let room = Arc::new(EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)?);
        let uart = Serial::with_events(Line(line), Room(Arc::clone(&room)), out);
        Ok(Self { uart: Mutex::new(uart), room })
    }

    fn uart(&self) -> MutexGuard<'_, Serial<Line, Room, Box<dyn Write + Send>>> {
        self.uart.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Feeds the guest from `input` on a thread of its own, until the input ends or the machine stops.
    ///
    /// With `escapes`, Ctrl-A is a prefix for commands to this process.
    pub(crate) fn read_from(
        self: &Arc<Self>,
        input: RawFd,
        escapes: bool,
        control: Arc<Control>,
    ) -> io::Result<thread::JoinHandle<()>> {
        let port = Arc::clone(self);
        thread::Builder::new().name("console".to_owned()).spawn(move || {
            let mut keys = Keys { escapes, pending: false };
            while !control.stopping() && port.feed(input, &mut keys, &control) {}
        })
    }

    /// Waits for input and hands over as much as the guest has room for; false at the end of the input.
    fn feed(&self, input: RawFd, keys: &mut Keys, control: &Control) -> bool {
        let room = self.uart().fifo_capacity();
        let watch =
            |fd, wanted| libc::pollfd { fd, events: if wanted { libc::POLLIN } else { 0 }, revents: 0 };
        let mut fds = [
            watch(control.as_raw_fd(), true),
            watch(self.room.as_raw_fd(), room == 0),
            watch(input, room > 0),
        ];
        if room == 0 {
            // Without an event asked for, poll still reports a closed pipe, at once and for ever.
            fds[2].fd = -1;
        }
        // SAFETY: the pointer and the count describe an array that lives until poll returns.
        if unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, -1) } < 0 {
            return io::Error::last_os_error().kind() == io::ErrorKind::Interrupted;
        }
        if fds[1].revents != 0 {
            // Nothing to read means another wake-up took it.
            let _ = self.room.read();
        }
        if fds[2].revents == 0 {
            return true;
        }
        let mut buffer = [0u8; 64];
        let wanted = room.min(buffer.len());
        // SAFETY: the buffer is valid for `wanted` bytes, at most its length.
        let got = unsafe { libc::read(input, buffer.as_mut_ptr().cast(), wanted) };
        let Ok(got) = usize::try_from(got) else {
            return io::Error::last_os_error().kind() == io::ErrorKind::Interrupted;
        };
        let mut typed = Vec::with_capacity(got);
        for key in &buffer[..got] {
            match keys.press(*key) {
                Key::Guest(byte) => typed.push(byte),
                Key::Quit => control.stop(Stop::Quit),
                Key::Nothing => {}
            }
        }
        // There is room, unless the guest has the port in loop mode and filled it itself: then input is lost, as on
        // a wire.
        let _ = self.uart().enqueue_raw_bytes(&typed);
        got > 0
    }
}

impl BusDevice for SerialPort {
    fn read(&self, offset: u64, data: &mut [u8]) {
        if let [value] = data {
            *value = self.uart().read(offset as u8);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let [value] = data {
            // A console that cannot be written to (a closed pipe) must not stop the guest.
            let _ = self.uart().write(offset as u8, *value);
        }
    }
}

/// Picks this process's commands out of what is typed.
struct Keys {
    escapes: bool,
    pending: bool,
}

#[derive(Debug, PartialEq, Eq)]
enum Key {
    Guest(u8),
    Quit,
    Nothing,
}

impl Keys {
    fn press(&mut self, key: u8) -> Key {
        if !self.escapes {
            return Key::Guest(key);
        }
        match (std::mem::take(&mut self.pending), key) {
            (true, ESCAPE_QUIT) => Key::Quit,
            (false, ESCAPE) => {
                self.pending = true;
                Key::Nothing
            }
            (_, key) => Key::Guest(key),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escape_keys() {
        let mut keys = Keys { escapes: true, pending: false };
        let pressed: Vec<Key> =
            [b'a', 1, 1, 1, b'y', 1, b'x'].into_iter().map(|key| keys.press(key)).collect();
        let guest = Key::Guest;
        assert_eq!(
            pressed,
            [guest(b'a'), Key::Nothing, guest(1), Key::Nothing, guest(b'y'), Key::Nothing, Key::Quit]
        );
        let mut plain = Keys { escapes: false, pending: false };
        assert_eq!(plain.press(1), guest(1));
    }

    #[test]
    fn input_reaches_the_guest_and_raises_the_line() {
        let line = EventFd::new(EFD_NONBLOCK).unwrap();
        let port = SerialPort::new(line.try_clone().unwrap(), Box::new(io::sink())).unwrap();
        let (reader, mut writer) = io::pipe().unwrap();
        let (mut keys, control) = (Keys { escapes: false, pending: false }, Control::new().unwrap());
        port.write(1, &[1]);
        writer.write_all(b"hi").unwrap();
        assert!(port.feed(reader.as_raw_fd(), &mut keys, &control));
        assert!(line.read().is_ok());
        let mut data = [0; 1];
        port.read(0, &mut data);
        assert_eq!(data, *b"h");
        drop(writer);
        assert!(!port.feed(reader.as_raw_fd(), &mut keys, &control), "the input has ended");
    }
}
