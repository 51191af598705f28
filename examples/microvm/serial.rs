//! COM1: the guest's console on this process's standard input and output.

use std::io::{self, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use serde::{Deserialize, Serialize};
use vm_superio::serial::{SerialEvents, SerialState};
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

/// The guest prints byte by byte, and a system call for each would cost more than the guest itself. So bytes wait for
/// the end of the line, for a full buffer, or for the console's thread, which looks after them when the guest pauses.
struct Lines {
    pending: Vec<u8>,
    out: Box<dyn Write + Send>,
    wake: Arc<EventFd>,
}

const LINE: usize = 256;
const FLUSH_AFTER_MS: libc::c_int = 10;

impl Lines {
    fn write_out(&mut self) -> io::Result<()> {
        let result = self.out.write_all(&self.pending).and_then(|()| self.out.flush());
        self.pending.clear();
        result
    }
}

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.pending.is_empty() {
            self.wake.write(1)?;
        }
        self.pending.extend_from_slice(bytes);
        if self.pending.len() >= LINE || bytes.contains(&b'\n') {
            self.write_out()?;
        }
        Ok(bytes.len())
    }

    /// Called after every byte, and ignored; see [`SerialPort::flush`].
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

type Uart = Serial<Line, Room, Lines>;

/// What a saved machine keeps of the port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SerialPortState {
    registers: [u8; 9],
    input: Vec<u8>,
}

/// A serial port with a 16550 inside.
pub(crate) struct SerialPort {
    uart: Mutex<Uart>,
    line: EventFd,
    /// Wakes the console's thread: there is room for input, or output is pending.
    wake: Arc<EventFd>,
}

impl SerialPort {
    /// A port that raises `line` and prints to `out`.
    pub(crate) fn new(line: EventFd, out: Box<dyn Write + Send>) -> io::Result<Self> {
        let wake = Arc::new(EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)?);
        let lines = Lines { pending: Vec::with_capacity(LINE), out, wake: Arc::clone(&wake) };
        let uart = Serial::with_events(Line(line.try_clone()?), Room(Arc::clone(&wake)), lines);
        Ok(Self { uart: Mutex::new(uart), line, wake })
    }

    /// What a saved machine keeps of the port: its registers, and what was typed and not read.
    pub(crate) fn save(&self) -> SerialPortState {
        self.flush();
        let state = self.uart().state();
        SerialPortState {
            registers: [
                state.baud_divisor_low,
                state.baud_divisor_high,
                state.interrupt_enable,
                state.interrupt_identification,
                state.line_control,
                state.line_status,
                state.modem_control,
                state.modem_status,
                state.scratch,
            ],
            input: state.in_buffer,
        }
    }

    /// Takes it back. An interrupt that the guest has not seen is raised again.
    pub(crate) fn restore(&self, saved: &SerialPortState) -> Result<(), &'static str> {
        let [low, high, enable, identification, control, status, modem_control, modem_status, scratch] =
            saved.registers;
        let state = SerialState {
            baud_divisor_low: low,
            baud_divisor_high: high,
            interrupt_enable: enable,
            interrupt_identification: identification,
            line_control: control,
            line_status: status,
            modem_control,
            modem_status,
            scratch,
            in_buffer: saved.input.clone(),
        };
        let refused = "the serial port cannot be in that state";
        let line = Line(self.line.try_clone().map_err(|_| refused)?);
        let wake = Arc::clone(&self.wake);
        let mut uart = self.uart();
        let lines =
            Lines { pending: Vec::with_capacity(LINE), out: Box::new(io::sink()), wake: Arc::clone(&wake) };
        let mut restored = Uart::from_state(&state, line, Room(wake), lines).map_err(|_| refused)?;
        std::mem::swap(&mut restored.writer_mut().out, &mut uart.writer_mut().out);
        *uart = restored;
        drop(uart);
        // The thread that feeds it looks again whether there is room.
        let _ = self.wake.write(1);
        Ok(())
    }

    fn uart(&self) -> MutexGuard<'_, Uart> {
        self.uart.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes out what is pending.
    pub(crate) fn flush(&self) {
        // A console that cannot be written to (a closed pipe) must not stop the guest.
        let _ = self.uart().writer_mut().write_out();
    }

    /// Serves the console on a thread of its own, until the machine stops: feeds the guest from `input`, and writes
    /// out what it printed when it pauses.
    ///
    /// With `escapes`, Ctrl-A is a prefix for commands to this process.
    pub(crate) fn serve(
        self: &Arc<Self>,
        input: RawFd,
        escapes: bool,
        control: Arc<Control>,
    ) -> io::Result<thread::JoinHandle<()>> {
        let port = Arc::clone(self);
        thread::Builder::new().name("console".to_owned()).spawn(move || {
            let mut keys = Keys { escapes, pending: false };
            let mut input = Some(input);
            while !control.stopping() {
                input = input.filter(|fd| port.turn(Some(*fd), &mut keys, &control));
                if input.is_none() {
                    port.turn(None, &mut keys, &control);
                }
            }
        })
    }

    /// Waits for something to do and does it; false when the input has ended.
    fn turn(&self, input: Option<RawFd>, keys: &mut Keys, control: &Control) -> bool {
        let (room, pending) = {
            let uart = self.uart();
            (uart.fifo_capacity(), !uart.writer().pending.is_empty())
        };
        // poll ignores descriptor -1. Input waits while the guest has no room for it.
        let input = input.filter(|_| room > 0).unwrap_or(-1);
        let watch = |fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
        let mut fds = [watch(control.as_raw_fd()), watch(self.wake.as_raw_fd()), watch(input)];
        let timeout = if pending { FLUSH_AFTER_MS } else { -1 };
        // SAFETY: the pointer and the count describe an array that lives until poll returns.
        match unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, timeout) } {
            0 => self.flush(),
            ready if ready < 0 => return io::Error::last_os_error().kind() == io::ErrorKind::Interrupted,
            _ => {}
        }
        if fds[1].revents != 0 {
            // Nothing to read means that another turn took it.
            let _ = self.wake.read();
        }
        fds[2].revents == 0 || self.feed(input, room, keys, control)
    }

    /// Hands over what is typed, at most `room` bytes; false at the end of the input.
    fn feed(&self, input: RawFd, room: usize, keys: &mut Keys, control: &Control) -> bool {
        let mut buffer = [0u8; 64];
        let wanted = room.min(buffer.len());
        // SAFETY: the buffer is valid for `wanted` bytes, at most its length.
        let got = unsafe { libc::read(input, buffer.as_mut_ptr().cast(), wanted) };
        let Ok(got) = usize::try_from(got) else {
            let kind = io::Error::last_os_error().kind();
            return matches!(kind, io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock);
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
            // As in `flush`.
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
    use std::io::Read;

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
        assert!(port.turn(Some(reader.as_raw_fd()), &mut keys, &control));
        assert!(line.read().is_ok());
        let mut data = [0; 1];
        port.read(0, &mut data);
        assert_eq!(data, *b"h");
        drop(writer);
        port.wake.read().ok();
        assert!(!port.turn(Some(reader.as_raw_fd()), &mut keys, &control), "the input has ended");
    }

    #[test]
    fn output_leaves_by_lines_and_when_the_guest_pauses() {
        let line = EventFd::new(EFD_NONBLOCK).unwrap();
        let (mut reader, writer) = io::pipe().unwrap();
        let port = SerialPort::new(line, Box::new(writer)).unwrap();
        let (mut keys, control) = (Keys { escapes: false, pending: false }, Control::new().unwrap());
        let mut read = || {
            let mut buffer = [0; 16];
            let got = reader.read(&mut buffer).unwrap();
            String::from_utf8_lossy(&buffer[..got]).into_owned()
        };
        b"one\ntwo".iter().for_each(|byte| port.write(0, &[*byte]));
        assert_eq!(read(), "one\n");
        // One turn takes the wake-up, the next one finds that the guest has paused.
        port.turn(None, &mut keys, &control);
        port.turn(None, &mut keys, &control);
        assert_eq!(read(), "two");
    }
}
