//! The bus: configuration accesses to functions, and memory and port accesses to whoever decodes them.

use super::config_space::HEADER_TYPE;
use super::firmware::Windows;
use super::{CONFIG_LEN, PciAddress, PciError, PciFunction, SharedLine};
use iovirt_core::frontend::{Access, RegionKind, RegionSpec};
use iovirt_core::irq::InterruptLine;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

const DEVICES: u8 = 32;
const MULTI_FUNCTION: u8 = 0x80;
/// The interrupt lines that four pins of many devices share.
const LINES: usize = 4;

/// What the embedder gives a bus: where windows may be, and the lines for interrupts that are not messages.
#[derive(Clone, Debug)]
pub struct PciBusConfig {
    /// Addresses below 4 GiB that the bus forwards.
    pub memory: Range<u64>,
    /// Addresses anywhere that the bus forwards, for windows of 64 bits; may be empty, they then go below 4 GiB.
    pub memory64: Range<u64>,
    /// Ports that the bus forwards; may be empty.
    pub ports: Range<u64>,
    /// Level-triggered lines. Pin p (0 for `INTA#`) of device d is on line (d + p) modulo 4.
    pub lines: [Arc<dyn InterruptLine>; LINES],
}

/// Hears where windows are: an embedder moves ioeventfds with them.
pub trait BarListener: Send + Sync + fmt::Debug {
    /// A window was moved, switched on or off. Called from the thread that wrote the configuration space, under a lock of
    /// the bus: no call back into it.
    fn moved(&self, change: &BarMove);
}

/// A window that is not where it was.
#[derive(Clone)]
pub struct BarMove {
    /// Whose.
    pub address: PciAddress,
    /// The function.
    pub function: Arc<dyn PciFunction>,
    /// Which of its regions.
    pub region: usize,
    /// The region.
    pub spec: RegionSpec,
    /// Where it was.
    pub from: Option<u64>,
    /// Where it is.
    pub to: Option<u64>,
}

impl fmt::Debug for BarMove {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BarMove")
            .field("address", &format_args!("{}", self.address))
            .field("region", &self.region)
            .field("from", &self.from)
            .field("to", &self.to)
            .finish_non_exhaustive()
    }
}

/// A PCI bus, number 0. All methods are callable from any thread.
///
/// Configuration accesses take one lock. Accesses of windows take a shared lock to find the function, and none that a
/// worker takes; doorbells that are registered as ioeventfds do not come here at all.
#[derive(Debug)]
pub struct PciBus {
    state: Mutex<State>,
    decoded: RwLock<Vec<Window>>,
    lines: [SharedLine; LINES],
}

#[derive(Debug)]
struct State {
    slots: BTreeMap<PciAddress, Slot>,
    windows: Windows,
    listener: Option<Arc<dyn BarListener>>,
    /// The address port.
    address: u32,
}

#[derive(Debug)]
struct Slot {
    function: Arc<dyn PciFunction>,
    regions: Vec<RegionSpec>,
    decoded: Vec<Option<u64>>,
}

#[derive(Clone, Debug)]
struct Window {
    kind: RegionKind,
    base: u64,
    size: u64,
    address: PciAddress,
    region: usize,
    function: Arc<dyn PciFunction>,
}

impl Window {
    fn offset_of(&self, kind: RegionKind, address: u64, len: usize) -> Option<u64> {
        let offset = address.checked_sub(self.base)?;
        let end = offset.checked_add(len as u64)?;
        (self.kind == kind && end <= self.size).then_some(offset)
    }
}

impl PciBus {
    /// A bus without devices.
    pub fn new(config: PciBusConfig) -> Self {
        let windows = Windows::new(config.memory, config.memory64, config.ports);
        let state = State { slots: BTreeMap::new(), windows, listener: None, address: 0 };
        Self {
            state: Mutex::new(state),
            decoded: RwLock::default(),
            lines: config.lines.map(SharedLine::new),
        }
    }

    /// Whoever wants to hear where windows go, from now on.
    pub fn set_listener(&self, listener: Arc<dyn BarListener>) {
        self.state().listener = Some(listener);
    }

    /// Puts a function on the bus, connects its interrupt pin, and places its windows as firmware would: without switching
    /// them on.
    ///
    /// # Errors
    /// Where the place is taken, or a window does not fit.
    pub fn add(&self, address: PciAddress, function: Arc<dyn PciFunction>) -> Result<(), PciError> {
        let mut state = self.state();
        if state.slots.contains_key(&address) {
            return Err(PciError::Taken(address));
        }
        let zero = PciAddress::new(address.device(), 0)?;
        if address != zero && !state.slots.contains_key(&zero) {
            return Err(PciError::NoFunctionZero(address));
        }
        state.windows.place(&*function)?;
        if let Some(pin) = function.interrupt_pin() {
            let line = (usize::from(address.device()) + pin as usize - 1) % LINES;
            function.connect_line(self.lines[line].input());
        }
        let regions = function.regions();
        let decoded = vec![None; regions.len()];
        state.slots.insert(address, Slot { function, regions, decoded });
        self.follow(&mut state, address);
        Ok(())
    }

    /// Puts a function on the first free device. Gives its place.
    ///
    /// # Errors
    /// Where the bus is full, or a window does not fit.
    pub fn add_anywhere(&self, function: Arc<dyn PciFunction>) -> Result<PciAddress, PciError> {
        let taken = |device: u8| self.state().slots.keys().any(|address| address.device() == device);
        let device = (0..DEVICES).find(|device| !taken(*device)).ok_or(PciError::Full)?;
        let address = PciAddress::new(device, 0)?;
        self.add(address, function)?;
        Ok(address)
    }

    /// The functions on the bus.
    pub fn functions(&self) -> Vec<(PciAddress, Arc<dyn PciFunction>)> {
        self.state().slots.iter().map(|(address, slot)| (*address, slot.function.clone())).collect()
    }

    /// Asks every function again where its windows are: after a restore or a reset that did not come by way of the bus.
    pub fn refresh(&self) {
        let mut state = self.state();
        let addresses: Vec<_> = state.slots.keys().copied().collect();
        for address in addresses {
            self.follow(&mut state, address);
        }
    }

    /// A read of the eight ports from [`CONFIG_PORT`](super::CONFIG_PORT).
    pub fn read_config_port(&self, port: u64, data: &mut [u8]) {
        data.fill(0xff);
        let state = self.state();
        match port {
            0 if data.len() == 4 => data.copy_from_slice(&state.address.to_le_bytes()),
            4..8 if port as usize + data.len() <= 8 => {
                if let Some((address, register)) = PciAddress::from_port(state.address) {
                    state.read(address, register | (port as u16 & 3), data);
                }
            }
            _ => {}
        }
    }

    /// A write of these ports. Accesses of the address port that are not 32 bits wide are none (section 3.2.2.3.2).
    pub fn write_config_port(&self, port: u64, data: &[u8]) -> Access {
        let mut state = self.state();
        match port {
            0 => {
                if let Ok(word) = <[u8; 4]>::try_from(data) {
                    state.address = u32::from_le_bytes(word);
                }
                Access::Done
            }
            4..8 if port as usize + data.len() <= 8 => match PciAddress::from_port(state.address) {
                Some((address, register)) => {
                    self.configure(&mut state, address, register | (port as u16 & 3), data)
                }
                None => Access::Done,
            },
            _ => Access::Done,
        }
    }

    /// A read of the memory-mapped configuration space, of [`ECAM_LEN`](super::ECAM_LEN) bytes.
    pub fn read_ecam(&self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        if let Some((address, register)) = PciAddress::from_ecam(offset) {
            self.state().read(address, register, data);
        }
    }

    /// A write of the memory-mapped configuration space.
    pub fn write_ecam(&self, offset: u64, data: &[u8]) -> Access {
        match PciAddress::from_ecam(offset) {
            Some((address, register)) => self.configure(&mut self.state(), address, register, data),
            None => Access::Done,
        }
    }

    /// A read of an address that the bus forwards. Where nobody decodes it, it reads as all ones.
    pub fn read(&self, kind: RegionKind, address: u64, data: &mut [u8]) {
        data.fill(0xff);
        if let Some((function, region, offset)) = self.find(kind, address, data.len()) {
            function.read(region, offset, data);
        }
    }

    /// A write of an address that the bus forwards. Where nobody decodes it, it is lost.
    pub fn write(&self, kind: RegionKind, address: u64, data: &[u8]) -> Access {
        match self.find(kind, address, data.len()) {
            Some((function, region, offset)) => function.write(region, offset, data),
            None => Access::Done,
        }
    }

    /// What the address port holds, for a saved state: everything else is the functions'.
    pub fn config_address(&self) -> u32 {
        self.state().address
    }

    /// Takes it back.
    pub fn set_config_address(&self, address: u32) {
        self.state().address = address;
    }

    fn find(&self, kind: RegionKind, address: u64, len: usize) -> Option<(Arc<dyn PciFunction>, usize, u64)> {
        let decoded = self.decoded.read().unwrap_or_else(PoisonError::into_inner);
        decoded.iter().find_map(|window| {
            let offset = window.offset_of(kind, address, len)?;
            Some((window.function.clone(), window.region, offset))
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn configure(&self, state: &mut State, address: PciAddress, register: u16, data: &[u8]) -> Access {
        let Some(slot) = state.slots.get(&address).filter(|_| usize::from(register) < CONFIG_LEN) else {
            return Access::Done;
        };
        let access = slot.function.write_config(register, data);
        self.follow(state, address);
        access
    }

    /// Takes note of where a function's windows are now.
    fn follow(&self, state: &mut State, address: PciAddress) {
        let Some(slot) = state.slots.get_mut(&address) else { return };
        let decoded = slot.function.decoded();
        if decoded == slot.decoded {
            return;
        }
        let before = std::mem::replace(&mut slot.decoded, decoded);
        let changes: Vec<BarMove> = (slot.regions.iter().enumerate())
            .map(|(region, spec)| {
                let at = |list: &[Option<u64>]| list.get(region).copied().flatten();
                let (function, from, to) = (slot.function.clone(), at(&before), at(&slot.decoded));
                BarMove { address, function, region, spec: *spec, from, to }
            })
            .filter(|change| change.from != change.to)
            .collect();
        let mut windows = self.decoded.write().unwrap_or_else(PoisonError::into_inner);
        for change in &changes {
            windows.retain(|window| (window.address, window.region) != (address, change.region));
            if let Some(base) = change.to {
                let RegionSpec { kind, size } = change.spec;
                let (region, function) = (change.region, change.function.clone());
                windows.push(Window { kind, base, size, address, region, function });
            }
        }
        drop(windows);
        if let Some(listener) = &state.listener {
            for change in &changes {
                listener.moved(change);
            }
        }
    }
}

impl State {
    fn read(&self, address: PciAddress, register: u16, data: &mut [u8]) {
        let Some(slot) = self.slots.get(&address) else { return };
        slot.function.read_config(register, data);
        let header = HEADER_TYPE.checked_sub(usize::from(register));
        if let Some(byte) = header.and_then(|at| data.get_mut(at))
            && address.function() == 0
            && self.has_siblings(address)
        {
            *byte |= MULTI_FUNCTION;
        }
    }

    fn has_siblings(&self, address: PciAddress) -> bool {
        self.slots.keys().any(|other| other.device() == address.device() && other.function() != 0)
    }
}
