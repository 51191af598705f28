//! The ways a guest ends: the exit port, the keyboard controller's reset line, ACPI power-off and reset.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering::Relaxed};

use crate::bus::BusDevice;
use crate::control::{Control, Stop};

/// The guest writes its exit code here.
pub(crate) const EXIT_PORT: u16 = 0xf4;
/// The keyboard controller's command port.
pub(crate) const I8042_PORT: u16 = 0x64;
/// ACPI's fixed registers: event block (4 bytes), control block (2 bytes), reset register (1 byte).
pub(crate) const PM_BASE: u16 = 0x600;
pub(crate) const PM_LEN: u64 = 8;
pub(crate) const PM1_EVENT: u16 = PM_BASE;
pub(crate) const PM1_CONTROL: u16 = PM_BASE + 4;
pub(crate) const PM_RESET: u16 = PM_BASE + 6;
/// Written to `PM_RESET`, it resets.
pub(crate) const PM_RESET_VALUE: u8 = 1;
/// The sleep type that `\_S5` announces for power-off.
pub(crate) const SLEEP_TYPE_S5: u8 = 5;

const SCI_ENABLE: u8 = 1;
const I8042_PULSE_RESET: u8 = 0xfe;

/// One byte ends the machine with that exit code.
pub(crate) struct ExitPort(pub(crate) Arc<Control>);

impl BusDevice for ExitPort {
    fn read(&self, _offset: u64, _data: &mut [u8]) {}

    fn write(&self, _offset: u64, data: &[u8]) {
        if let [code] = data {
            self.0.stop(Stop::ExitPort(*code));
        }
    }
}

/// A keyboard controller without a keyboard: it only knows how to reset.
pub(crate) struct I8042(pub(crate) Arc<Control>);

impl BusDevice for I8042 {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        // Input and output buffer empty: ready for a command.
        data.fill(0);
    }

    fn write(&self, _offset: u64, data: &[u8]) {
        if data == [I8042_PULSE_RESET] {
            self.0.stop(Stop::Reset);
        }
    }
}

/// ACPI's fixed registers. No event is ever pending, so the system control interrupt never fires.
pub(crate) struct PowerManagement {
    control: Arc<Control>,
    /// What the guest wrote into the enable half of the event block; it checks that this sticks.
    enabled: AtomicU16,
}

impl PowerManagement {
    pub(crate) fn new(control: Arc<Control>) -> Self {
        Self { control, enabled: AtomicU16::new(0) }
    }
}

impl PowerManagement {
    /// What a saved machine keeps of it.
    pub(crate) fn save(&self) -> u16 {
        self.enabled.load(Relaxed)
    }

    /// Takes it back.
    pub(crate) fn restore(&self, saved: u16) {
        self.enabled.store(saved, Relaxed);
    }
}

impl BusDevice for PowerManagement {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let [low, high] = self.enabled.load(Relaxed).to_le_bytes();
        let registers = [0, 0, low, high, SCI_ENABLE, 0, 0, 0];
        for (byte, register) in data.iter_mut().zip(&registers[offset as usize..]) {
            *byte = *register;
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let (2, &[low, high]) = (offset, data) {
            self.enabled.store(u16::from_le_bytes([low, high]), Relaxed);
        }
        for (at, byte) in (offset..).zip(data) {
            // The high byte of PM1 control: sleep type in bits 2 to 4, sleep enable in bit 5.
            let sleeps = byte >> 5 & 1 == 1 && byte >> 2 & 7 == SLEEP_TYPE_S5;
            if at == u64::from(PM1_CONTROL - PM_BASE) + 1 && sleeps {
                self.control.stop(Stop::PowerOff);
            }
            if at == u64::from(PM_RESET - PM_BASE) && *byte == PM_RESET_VALUE {
                self.control.stop(Stop::Reset);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(
        device: impl FnOnce(Arc<Control>) -> Box<dyn BusDevice>,
        offset: u64,
        data: &[u8],
    ) -> Option<Stop> {
        let control = Arc::new(Control::new().unwrap());
        device(Arc::clone(&control)).write(offset, data);
        control.cause()
    }

    #[test]
    fn only_the_right_writes_stop_the_machine() {
        let pm = |offset, data: &[u8]| after(|c| Box::new(PowerManagement::new(c)), offset, data);
        assert_eq!(pm(4, &0x3400u16.to_le_bytes()), Some(Stop::PowerOff));
        assert_eq!(pm(4, &0x1400u16.to_le_bytes()), None, "sleep type without sleep enable");
        assert_eq!(pm(4, &0x2400u16.to_le_bytes()), None, "another sleep type");
        assert_eq!(pm(6, &[1]), Some(Stop::Reset));
        assert_eq!(pm(0, &0xffffu16.to_le_bytes()), None);
        assert_eq!(after(|c| Box::new(ExitPort(c)), 0, &[7]), Some(Stop::ExitPort(7)));
        assert_eq!(after(|c| Box::new(I8042(c)), 0, &[0xfe]), Some(Stop::Reset));
        assert_eq!(after(|c| Box::new(I8042(c)), 0, &[0xd1]), None);
    }

    #[test]
    fn acpi_mode_is_on_and_no_event_pending() {
        let device = PowerManagement::new(Arc::new(Control::new().unwrap()));
        device.write(2, &0x0420u16.to_le_bytes());
        device.write(0, &0xffffu16.to_le_bytes());
        let mut data = [0xff; 6];
        device.read(0, &mut data);
        assert_eq!(data, [0, 0, 0x20, 0x04, SCI_ENABLE, 0]);
    }
}
