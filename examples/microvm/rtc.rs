//! The clock of a PC: an index port, a data port, and the time of day in UTC.
//!
//! Alarm, periodic and update interrupts are never raised.

use std::sync::Mutex;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::bus::BusDevice;

pub(crate) const RTC_PORT: u16 = 0x70;
/// Where the century is kept; ACPI tells the guest.
pub(crate) const CENTURY: u8 = 0x32;

const REGISTERS: usize = 128;
const STATUS_A: u8 = 0x0a;
const STATUS_B: u8 = 0x0b;
const STATUS_C: u8 = 0x0c;
const STATUS_D: u8 = 0x0d;
/// Oscillator on, 1024 Hz: the state that firmware leaves behind.
const A_RUNNING: u8 = 0x26;
const A_UPDATE_IN_PROGRESS: u8 = 0x80;
const B_HOLD: u8 = 0x80;
const B_BINARY: u8 = 0x04;
const B_24_HOURS: u8 = 0x02;
const D_VALID: u8 = 0x80;
/// The chip announces an update this long before it happens.
const UPDATE_WARNING: Duration = Duration::from_micros(244);

/// Second, minute, hour, weekday, day, month, year: their registers.
const TIME_REGISTERS: [u8; 7] = [0, 2, 4, 6, 7, 8, 9];

/// The clock chip.
#[derive(Debug)]
pub(crate) struct Rtc(Mutex<State>);

#[derive(Debug)]
struct State {
    index: u8,
    ram: [u8; REGISTERS],
    /// What the guest added to the host's time, in seconds.
    offset: i64,
}

/// What a saved machine keeps of the clock; the time itself is the host's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RtcState {
    index: u8,
    ram: Vec<u8>,
    offset: i64,
}

impl Rtc {
    /// The state of the chip.
    pub(crate) fn save(&self) -> RtcState {
        let state = self.state();
        RtcState { index: state.index, ram: state.ram.to_vec(), offset: state.offset }
    }

    /// Takes it back.
    pub(crate) fn restore(&self, saved: &RtcState) -> Result<(), &'static str> {
        let ram = saved.ram[..].try_into().map_err(|_| "the clock has another number of registers")?;
        // A guest can set the clock to any year of four digits, and to no other.
        let fits = saved.index < 0x80 && saved.offset.unsigned_abs() < 1 << 40;
        let state = State { index: saved.index, ram, offset: saved.offset };
        if fits {
            *self.state() = state
        } else {
            return Err("the clock is set to no time");
        }
        Ok(())
    }

    pub(crate) fn new() -> Self {
        let mut ram = [0; REGISTERS];
        ram[usize::from(STATUS_A)] = A_RUNNING;
        ram[usize::from(STATUS_B)] = B_24_HOURS;
        Self(Mutex::new(State { index: 0, ram, offset: 0 }))
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl BusDevice for Rtc {
    fn read(&self, offset: u64, data: &mut [u8]) {
        if let (1, [value]) = (offset, data) {
            *value = self.state().read(now());
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        match (offset, data) {
            // Bit 7 masks the NMI, of which there is none.
            (0, [index]) => self.state().index = index & 0x7f,
            (1, [value]) => self.state().write(*value, now()),
            _ => {}
        }
    }
}

fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

impl State {
    fn status_b(&self) -> u8 {
        self.ram[usize::from(STATUS_B)]
    }

    fn read(&mut self, now: Duration) -> u8 {
        let index = self.index;
        match index {
            STATUS_A => {
                let near = now.subsec_nanos() >= 1_000_000_000 - UPDATE_WARNING.as_nanos() as u32;
                let updating = near && self.status_b() & B_HOLD == 0;
                self.ram[usize::from(index)] | if updating { A_UPDATE_IN_PROGRESS } else { 0 }
            }
            STATUS_C => 0,
            STATUS_D => D_VALID,
            _ => {
                if is_time(index) && self.status_b() & B_HOLD == 0 {
                    self.load_time(now);
                }
                self.ram[usize::from(index)]
            }
        }
    }

    fn write(&mut self, value: u8, now: Duration) {
        let index = self.index;
        match index {
            STATUS_A => self.ram[usize::from(index)] = value & !A_UPDATE_IN_PROGRESS,
            STATUS_B => {
                let held = self.status_b() & B_HOLD != 0;
                let holds = value & B_HOLD != 0;
                if holds && !held {
                    self.load_time(now);
                }
                if held && !holds {
                    self.take_time(now);
                }
                self.ram[usize::from(index)] = value;
            }
            STATUS_C | STATUS_D => {}
            _ if is_time(index) && self.status_b() & B_HOLD == 0 => {
                self.load_time(now);
                self.ram[usize::from(index)] = value;
                self.take_time(now);
            }
            _ => self.ram[usize::from(index)] = value,
        }
    }

    /// Writes the time into the registers.
    fn load_time(&mut self, now: Duration) {
        let seconds = now.as_secs() as i64 + self.offset;
        let (days, rest) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
        let (year, month, day) = date_of(days);
        // The first day of the epoch was a Thursday, and Sunday is 1.
        let weekday = (days + 4).rem_euclid(7) + 1;
        let fields = [
            rest % 60,
            rest / 60 % 60,
            rest / 3600,
            weekday,
            i64::from(day),
            i64::from(month),
            year.rem_euclid(100),
        ];
        for (register, field) in TIME_REGISTERS.into_iter().zip(fields) {
            let mut value = field as u8;
            let twelve = register == 4 && self.status_b() & B_24_HOURS == 0;
            let afternoon = twelve && value >= 12;
            if twelve {
                value = (value + 11) % 12 + 1;
            }
            self.ram[usize::from(register)] = self.encode(value) | if afternoon { 0x80 } else { 0 };
        }
        self.ram[usize::from(CENTURY)] = self.encode(year.div_euclid(100) as u8);
    }

    /// Takes the time that the guest wrote into the registers.
    fn take_time(&mut self, now: Duration) {
        let field = |register: u8| i64::from(self.decode(self.ram[usize::from(register)] & 0x7f));
        let raw_hour = self.ram[4];
        let hour = if self.status_b() & B_24_HOURS == 0 {
            i64::from(self.decode(raw_hour & 0x7f)) % 12 + if raw_hour & 0x80 == 0 { 0 } else { 12 }
        } else {
            i64::from(self.decode(raw_hour))
        };
        let year = i64::from(self.decode(self.ram[usize::from(CENTURY)])) * 100
            + i64::from(self.decode(self.ram[9]));
        let days = days_of(year, field(8), field(7));
        let seconds = days * 86_400 + hour * 3600 + field(2) * 60 + field(0);
        self.offset = seconds - now.as_secs() as i64;
    }

    fn encode(&self, value: u8) -> u8 {
        if self.status_b() & B_BINARY == 0 { ((value / 10 % 10) << 4) | (value % 10) } else { value }
    }

    fn decode(&self, value: u8) -> u8 {
        if self.status_b() & B_BINARY == 0 { (value >> 4).saturating_mul(10) + (value & 0xf) } else { value }
    }
}

fn is_time(index: u8) -> bool {
    index == CENTURY || TIME_REGISTERS.contains(&index)
}

/// The days of the year before each month, in a year that begins in March so that the leap day comes last.
fn days_before(month_from_march: i64) -> i64 {
    (153 * month_from_march + 2) / 5
}

/// Year, month (1 to 12) and day (1 to 31) of a day counted from the first of January 1970.
fn date_of(days: i64) -> (i64, u8, u8) {
    // Count from the first of March of year 0, in cycles of 400 years.
    let days = days + 719_468;
    let (cycle, day_of_cycle) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year_of_cycle =
        (day_of_cycle - day_of_cycle / 1460 + day_of_cycle / 36_524 - day_of_cycle / 146_096) / 365;
    let day_of_year = day_of_cycle - (365 * year_of_cycle + year_of_cycle / 4 - year_of_cycle / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - days_before(month_from_march) + 1;
    let month = (month_from_march + 2) % 12 + 1;
    (cycle * 400 + year_of_cycle + i64::from(month <= 2), month as u8, day as u8)
}

/// The inverse of [`date_of`]; a guest may write any month, so it is brought into range first.
fn days_of(year: i64, month: i64, day: i64) -> i64 {
    let month = month.clamp(1, 12);
    let year = year - i64::from(month <= 2);
    let (cycle, year_of_cycle) = (year.div_euclid(400), year.rem_euclid(400));
    let day_of_year = days_before((month + 9) % 12) + day - 1;
    cycle * 146_097 + year_of_cycle * 365 + year_of_cycle / 4 - year_of_cycle / 100 + day_of_year - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registers(rtc: &Rtc, now: Duration, indexes: &[u8]) -> Vec<u8> {
        let mut state = rtc.state();
        indexes
            .iter()
            .map(|index| {
                state.index = *index;
                state.read(now)
            })
            .collect()
    }

    #[test]
    fn a_known_moment_in_bcd() {
        // 2024-02-29 23:58:59 UTC, a Thursday.
        let now = Duration::from_secs(1_709_251_139);
        let read = registers(&Rtc::new(), now, &[CENTURY, 9, 8, 7, 6, 4, 2, 0, STATUS_A, STATUS_D]);
        assert_eq!(read, [0x20, 0x24, 0x02, 0x29, 5, 0x23, 0x58, 0x59, A_RUNNING, D_VALID]);
    }

    #[test]
    fn dates_and_days_agree_over_eight_centuries() {
        for days in -146_097..146_097 {
            let (year, month, day) = date_of(days);
            assert_eq!(days_of(year, month.into(), day.into()), days);
        }
        assert_eq!(date_of(0), (1970, 1, 1));
    }

    #[test]
    fn the_guest_sets_the_time() {
        let rtc = Rtc::new();
        let now = Duration::from_secs(1_700_000_000);
        let mut state = rtc.state();
        let sequence =
            [(STATUS_B, B_HOLD | B_24_HOURS), (0, 0x01), (2, 0x02), (4, 0x03), (7, 0x04), (8, 0x05)];
        for (index, value) in sequence.into_iter().chain([(9, 0x31), (CENTURY, 0x20), (STATUS_B, B_24_HOURS)])
        {
            state.index = index;
            state.write(value, now);
        }
        drop(state);
        let later = now + Duration::from_secs(60);
        assert_eq!(registers(&rtc, later, &[9, 8, 7, 4, 2, 0]), [0x31, 0x05, 0x04, 0x03, 0x03, 0x01]);
    }

    #[test]
    fn an_update_is_announced() {
        let rtc = Rtc::new();
        assert_eq!(registers(&rtc, Duration::new(1, 999_900_000), &[STATUS_A]), [0xa6]);
        assert_eq!(registers(&rtc, Duration::new(1, 500_000_000), &[STATUS_A]), [0x26]);
    }

    #[test]
    fn any_written_value_is_survived() {
        let rtc = Rtc::new();
        for index in 0..128 {
            for value in [0, 0x7f, 0x80, 0xff] {
                rtc.write(0, &[index]);
                rtc.write(1, &[value]);
                registers(&rtc, now(), &[index, 9, STATUS_A]);
            }
        }
    }
}
