//! Things to do while the guest runs: `--at '6s resize 0 128M'`.

use std::str::FromStr;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use iovirt::describe::{parse_size, parse_time};

use crate::common::pipeline;
use crate::control::Control;
use crate::devices::Device;

/// One thing to do at a time after the start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Appointment {
    at: Duration,
    device: usize,
    size: u64,
}

impl FromStr for Appointment {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let words: Vec<&str> = text.split_whitespace().collect();
        let wrong = || format!("'{text}' is not TIME resize DEVICE SIZE, such as '6s resize 0 128M'");
        let [at, "resize", device, size] = words[..] else { return Err(wrong()) };
        Ok(Self {
            at: parse_time(at).ok_or_else(wrong)?,
            device: device.parse().map_err(|_| wrong())?,
            size: parse_size(size).ok_or_else(wrong)?,
        })
    }
}

/// Keeps the appointments, until the last one or the end of the machine.
pub(crate) fn keep(mut appointments: Vec<Appointment>, devices: Arc<Vec<Device>>, control: Arc<Control>) {
    appointments.sort_by_key(|appointment| appointment.at);
    let started = Instant::now();
    thread::spawn(move || {
        for Appointment { at, device, size } in appointments {
            while started.elapsed() < at {
                if control.stopping() {
                    return;
                }
                thread::sleep(at.saturating_sub(started.elapsed()).min(Duration::from_millis(50)));
            }
            let done = devices.get(device).ok_or_else(|| "there is no such device".into());
            if let Err(reason) = done.and_then(|device| pipeline::resize(device, size)) {
                eprintln!("microvm: resizing device {device} failed: {reason}");
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use iovirt::core::dma::DmaSpace;
    use iovirt::core::irq::EventFdInterrupt;
    use iovirt::registry::Registry;
    use vm_memory::{GuestAddress, GuestMemoryMmap};

    use super::*;

    #[test]
    fn appointments_are_kept_in_their_order() {
        let image = tempfile::NamedTempFile::new().unwrap();
        image.as_file().set_len(1 << 20).unwrap();
        let registry = Registry::standard();
        let line = format!("virtio-blk -> file,path={}", image.path().display());
        let memory: GuestMemoryMmap = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        let space = DmaSpace::from_guest_memory(&memory).unwrap();
        let interrupt = Arc::new(EventFdInterrupt::new().unwrap());
        let disk = Device::new(&registry, registry.parse(&line).unwrap(), &space, interrupt).unwrap();
        // The one in the middle has no device, which is said and does not hold up the next.
        let appointments = ["2ms resize 0 4M", "1ms resize 1 8M", "0ms resize 0 2M"];
        let appointments = appointments.map(|text| text.parse().unwrap()).to_vec();
        keep(appointments, Arc::new(vec![disk]), Arc::new(Control::new().unwrap()));
        while image.as_file().metadata().unwrap().len() != 4 << 20 {
            thread::yield_now();
        }
    }

    #[test]
    fn appointments_are_read() {
        let wanted = Appointment { at: Duration::from_secs(6), device: 0, size: 128 << 20 };
        assert_eq!("6s resize 0 128M".parse(), Ok(wanted));
        for wrong in [
            "",
            "6s",
            "6 resize 0 1M",
            "6s grow 0 1M",
            "6s resize x 1M",
            "6s resize 0 big",
            "6s resize 0 1M 2",
        ] {
            assert!(wrong.parse::<Appointment>().is_err(), "{wrong}");
        }
    }
}
