//! The bus, seen as a guest sees it.

use super::*;
use iovirt_core::Frontend;
use iovirt_core::doorbell::DoorbellSpec;
use iovirt_core::frontend::{Access, RegionKind, RegionSpec, Ticket};
use iovirt_core::irq::{InterruptLine, MsiMessage, MsiSink};
use iovirt_core::pipeline::Stages;
use iovirt_core::state::StateError;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

#[derive(Debug, Default)]
struct Level(AtomicBool);

impl InterruptLine for Level {
    fn assert(&self) {
        assert!(!self.0.swap(true, Ordering::Relaxed), "asserted twice");
    }
    fn deassert(&self) {
        assert!(self.0.swap(false, Ordering::Relaxed), "let go twice");
    }
}

/// A function with a window of each kind, whose registers answer with the region's number.
#[derive(Debug)]
struct Sample {
    space: Mutex<ConfigSpace>,
    line: Mutex<Option<LineInput>>,
    written: Mutex<Vec<(usize, u64, Vec<u8>)>>,
}

impl Sample {
    fn new() -> Arc<Self> {
        let identity =
            Identity { vendor: 0x1234, device: 0x5678, class: 0x01_08_02, revision: 3, subsystem: (9, 10) };
        let mut space = ConfigSpace::new(&identity);
        space.add_bar(0, Bar::Memory32(0x1000)).unwrap();
        space.add_bar(1, Bar::Prefetchable64(0x10_0000)).unwrap();
        space.add_bar(3, Bar::Io(0x20)).unwrap();
        space.set_interrupt_pin(1);
        let (line, written) = (Mutex::default(), Mutex::default());
        Arc::new(Self { space: Mutex::new(space), line, written })
    }
}

impl Frontend for Sample {
    fn name(&self) -> &str {
        "sample"
    }
    fn regions(&self) -> Vec<RegionSpec> {
        let space = self.space.lock().unwrap();
        space.bars().map(|(_, bar)| RegionSpec { kind: bar.kind(), size: bar.size() }).collect()
    }
    fn read(&self, region: usize, _: u64, data: &mut [u8]) {
        data.fill(region as u8);
    }
    fn write(&self, region: usize, offset: u64, data: &[u8]) -> Access {
        self.written.lock().unwrap().push((region, offset, data.to_vec()));
        Access::Done
    }
    fn doorbells(&self) -> Vec<DoorbellSpec> {
        Vec::new()
    }
    fn drain(&self) -> Ticket {
        Ticket::done()
    }
    fn resume(&self) -> Ticket {
        Ticket::done()
    }
    fn reset(&self) -> Ticket {
        self.space.lock().unwrap().reset();
        Ticket::done()
    }
    fn save(&self) -> Result<Vec<u8>, StateError> {
        Ok(self.space.lock().unwrap().save())
    }
    fn restore(&self, saved: &[u8]) -> Result<(), StateError> {
        self.space.lock().unwrap().restore(saved);
        Ok(())
    }
    fn stages(&self) -> Stages {
        Stages::default()
    }
}

impl PciFunction for Sample {
    fn read_config(&self, offset: u16, data: &mut [u8]) {
        self.space.lock().unwrap().read(offset, data);
    }
    fn write_config(&self, offset: u16, data: &[u8]) -> Access {
        self.space.lock().unwrap().write(offset, data);
        Access::Done
    }
    fn decoded(&self) -> Vec<Option<u64>> {
        let space = self.space.lock().unwrap();
        space.bars().map(|(index, _)| space.decoded(index)).collect()
    }
    fn interrupt_pin(&self) -> Option<IntxPin> {
        Some(IntxPin::A)
    }
    fn connect_line(&self, line: LineInput) {
        *self.line.lock().unwrap() = Some(line);
    }
}

fn bus() -> (PciBus, [Arc<Level>; 4]) {
    let lines: [Arc<Level>; 4] = Default::default();
    let config = PciBusConfig {
        memory: 0xc000_0000..0xc100_0000,
        memory64: 0x10_0000_0000..0x10_4000_0000,
        ports: 0xc000..0xc100,
        lines: lines.clone().map(|line| line as Arc<dyn InterruptLine>),
    };
    (PciBus::new(config), lines)
}

fn at(device: u8, function: u8) -> PciAddress {
    PciAddress::new(device, function).unwrap()
}

/// By the two ports, as a guest without ECAM.
fn config_read(bus: &PciBus, address: PciAddress, register: u16) -> u32 {
    select(bus, address, register);
    let mut word = [0; 4];
    bus.read_config_port(4, &mut word);
    u32::from_le_bytes(word)
}

fn config_write(bus: &PciBus, address: PciAddress, register: u16, value: u32) {
    select(bus, address, register);
    let _ = bus.write_config_port(4, &value.to_le_bytes());
}

fn select(bus: &PciBus, address: PciAddress, register: u16) {
    let place = u32::from(address.device()) << 11 | u32::from(address.function()) << 8;
    let _ = bus.write_config_port(0, &(1 << 31 | place | u32::from(register)).to_le_bytes());
}

#[test]
fn a_guest_finds_sizes_and_places_windows() {
    let (bus, _) = bus();
    let sample = Sample::new();
    bus.add(at(3, 0), sample.clone()).unwrap();
    let address = at(3, 0);
    assert_eq!(config_read(&bus, address, 0), 0x5678_1234);
    assert_eq!(config_read(&bus, address, 8), 0x0108_0203);
    assert_eq!(config_read(&bus, at(4, 0), 0), u32::MAX, "nobody is there");
    assert_eq!(config_read(&bus, at(3, 1), 0), u32::MAX, "nobody is there");

    // Placed as by firmware, and not switched on.
    let placed: Vec<u32> =
        [0x10, 0x14, 0x18, 0x1c].map(|register| config_read(&bus, address, register)).into();
    assert_eq!(placed, [0xc000_0000, 0x0000_000c, 0x10, 0xc001]);
    assert_eq!(sample.decoded(), [None, None, None]);

    // A guest sizes them again.
    for (register, size) in [(0x10, 0xffff_f000), (0x14, 0xfff0_000c), (0x18, u32::MAX), (0x1c, 0xffff_ffe1)]
    {
        let before = config_read(&bus, address, register);
        config_write(&bus, address, register, u32::MAX);
        assert_eq!(config_read(&bus, address, register), size, "register {register:#x}");
        config_write(&bus, address, register, before);
    }
    assert_eq!(config_read(&bus, address, 0x24), 0);

    config_write(&bus, address, 4, 3);
    assert_eq!(sample.decoded(), [Some(0xc000_0000), Some(0x10_0000_0000), Some(0xc000)]);
    for (kind, from, region) in [
        (RegionKind::Mmio, 0xc000_0000, 0),
        (RegionKind::Mmio, 0x10_0000_0000, 1),
        (RegionKind::Pio, 0xc000, 2),
    ] {
        let mut byte = [0xee];
        bus.read(kind, from, &mut byte);
        assert_eq!(byte[0], region);
    }
}

#[test]
fn windows_move_and_are_announced() {
    #[derive(Debug, Default)]
    struct Moves(Mutex<Vec<Move>>);
    type Move = (usize, Option<u64>, Option<u64>);
    impl BarListener for Moves {
        fn moved(&self, change: &BarMove) {
            self.0.lock().unwrap().push((change.region, change.from, change.to));
        }
    }
    let ((bus, _), moves) = (bus(), Arc::new(Moves::default()));
    bus.set_listener(moves.clone());
    let (sample, address) = (Sample::new(), at(0, 0));
    bus.add(address, sample.clone()).unwrap();
    config_write(&bus, address, 4, 2);
    config_write(&bus, address, 0x10, 0xc080_0000);
    // To the end of the space below 4 GiB, and beyond the end of all: there it is not decoded.
    config_write(&bus, address, 0x14, 0xffff_ffff);
    config_write(&bus, address, 0x18, 0xffff_ffff);
    config_write(&bus, address, 4, 0);
    let (low, high) = (Some(0xc000_0000), Some(0x10_0000_0000));
    let moved = [
        (0, None, low),
        (1, None, high),
        (0, low, Some(0xc080_0000)),
        (1, high, Some(0x10_fff0_0000)),
        (1, Some(0x10_fff0_0000), None),
        (0, Some(0xc080_0000), None),
    ];
    assert_eq!(*moves.0.lock().unwrap(), moved);

    let mut byte = [0];
    bus.read(RegionKind::Mmio, 0xc080_0000, &mut byte);
    assert_eq!(byte[0], 0xff, "switched off");
    let saved = sample.save().unwrap();
    sample.reset();
    sample.restore(&saved).unwrap();
    config_write(&bus, address, 4, 2);
    let _ = bus.write(RegionKind::Mmio, 0xc080_0ffc, &[1, 2, 3, 4]);
    let _ = bus.write(RegionKind::Mmio, 0xc080_0ffe, &[1, 2, 3, 4]);
    assert_eq!(*sample.written.lock().unwrap(), [(0, 0xffc, vec![1, 2, 3, 4])], "half an access is none");
}

#[test]
fn both_ways_to_the_configuration_space_agree() {
    let (bus, _) = bus();
    bus.add(at(0, 0), Arc::new(HostBridge::default())).unwrap();
    bus.add(at(5, 0), Sample::new()).unwrap();
    bus.add(at(5, 3), Sample::new()).unwrap();
    for register in (0..256).step_by(4) {
        for address in [at(0, 0), at(5, 0), at(5, 3), at(6, 0)] {
            let mut word = [0; 4];
            let function = u64::from(address.device()) << 15 | u64::from(address.function()) << 12;
            bus.read_ecam(function | u64::from(register), &mut word);
            assert_eq!(
                u32::from_le_bytes(word),
                config_read(&bus, address, register),
                "{address} {register:#x}"
            );
            // Bytes and words of it too.
            for byte in 0..4 {
                let mut single = [0];
                select(&bus, address, register);
                bus.read_config_port(4 + byte, &mut single);
                assert_eq!(single[0], word[byte as usize]);
            }
        }
    }
    // Devices with several functions say so in function 0; one with a single function does not.
    assert_eq!(config_read(&bus, at(5, 0), 0xc) >> 16 & 0x80, 0x80);
    assert_eq!(config_read(&bus, at(0, 0), 0xc) >> 16 & 0x80, 0);
    // The extended space exists in ECAM and is empty.
    let mut word = [0xee; 4];
    bus.read_ecam(5 << 15 | 0x100, &mut word);
    assert_eq!(word, [0; 4]);
    let _ = bus.write_ecam(5 << 15 | 0xffe, &[0xff; 4]);
    bus.read_ecam(ECAM_LEN, &mut word);
    assert_eq!(word, [0xff; 4]);
}

#[test]
fn nothing_but_what_is_writable_can_be_written() {
    let (bus, _) = bus();
    bus.add(at(1, 0), Sample::new()).unwrap();
    let space = || -> Vec<u32> {
        (0..256).step_by(4).map(|register| config_read(&bus, at(1, 0), register)).collect()
    };
    let before = space();
    for register in (0..256).step_by(4) {
        config_write(&bus, at(1, 0), register, u32::MAX);
    }
    let changed: Vec<_> = before
        .iter()
        .zip(space())
        .zip(0..)
        .filter(|((old, new), _)| *old != new)
        .map(|(_, index)| index * 4)
        .collect();
    assert_eq!(changed, [0x04, 0x0c, 0x10, 0x14, 0x18, 0x1c, 0x3c]);
    assert_eq!(config_read(&bus, at(1, 0), 4), 0x0000_0547);
}

#[test]
fn the_address_port_takes_32_bits_only_and_data_may_not_cross() {
    let (bus, _) = bus();
    bus.add(at(0, 0), Sample::new()).unwrap();
    select(&bus, at(0, 0), 0);
    let _ = bus.write_config_port(0, &[0x12]);
    let _ = bus.write_config_port(1, &[0x12]);
    let _ = bus.write_config_port(0, &[0x12, 0x34]);
    assert_eq!(bus.config_address(), 1 << 31);
    let mut data = [0; 4];
    bus.read_config_port(6, &mut data);
    assert_eq!(data, [0xff; 4]);
    let _ = bus.write_config_port(7, &[0; 2]);
    // Not enabled, and another bus.
    for address in [0_u32, 1 << 31 | 1 << 16] {
        bus.set_config_address(address);
        bus.read_config_port(4, &mut data);
        assert_eq!(data, [0xff; 4]);
    }
}

#[test]
fn pins_share_lines() {
    let (bus, lines) = bus();
    let samples = [Sample::new(), Sample::new(), Sample::new()];
    for (device, sample) in [1, 5, 2].into_iter().zip(&samples) {
        bus.add(at(device, 0), sample.clone()).unwrap();
    }
    let levels = || lines.each_ref().map(|line| line.0.load(Ordering::Relaxed));
    let with = |sample: &Arc<Sample>, act: fn(&LineInput)| act(sample.line.lock().unwrap().as_ref().unwrap());
    with(&samples[0], LineInput::assert);
    with(&samples[0], LineInput::assert);
    with(&samples[1], LineInput::assert);
    assert_eq!(levels(), [false, true, false, false]);
    with(&samples[0], LineInput::deassert);
    assert_eq!(levels(), [false, true, false, false], "another one still asks");
    with(&samples[2], LineInput::assert);
    // Unplugged while it asks.
    *samples[1].line.lock().unwrap() = None;
    assert_eq!(levels(), [false, false, true, false]);
}

#[test]
fn places_and_windows_are_refused_where_they_do_not_fit() {
    assert_eq!(PciAddress::new(32, 0), Err(PciError::Address { device: 32, function: 0 }));
    let (bus, _) = bus();
    assert_eq!(bus.add(at(2, 1), Sample::new()), Err(PciError::NoFunctionZero(at(2, 1))));
    bus.add(at(2, 0), Sample::new()).unwrap();
    assert_eq!(bus.add(at(2, 0), Sample::new()), Err(PciError::Taken(at(2, 0))));
    let mut last = Ok(at(0, 0));
    for _ in 0..8 {
        last = bus.add_anywhere(Sample::new());
    }
    assert_eq!(last, Err(PciError::Window { size: 0x20, window: "port" }));

    let mut space =
        ConfigSpace::new(&Identity { vendor: 0, device: 0, class: 0, revision: 0, subsystem: (0, 0) });
    space.add_bar(0, Bar::Memory64(0x1000)).unwrap();
    for (index, bar) in [
        (0, Bar::Io(4)),
        (1, Bar::Io(4)),
        (2, Bar::Io(3)),
        (2, Bar::Io(512)),
        (2, Bar::Memory32(8)),
        (5, Bar::Memory64(0x1000)),
        (6, Bar::Memory32(0x1000)),
    ] {
        assert!(matches!(space.add_bar(index, bar), Err(PciError::Bar { .. })), "{index} {bar:?}");
    }
    assert_eq!(space.add_capability(9, &[0; 300], &[]), Err(PciError::Capability { len: 302 }));
}

#[derive(Debug, Default)]
struct Sent(Mutex<Vec<MsiMessage>>);

impl MsiSink for Sent {
    fn signal(&self, message: MsiMessage) {
        self.0.lock().unwrap().push(message);
    }
}

/// A table of three vectors, in a space with the capability.
fn table() -> (Msix, ConfigSpace, usize, Arc<Sent>) {
    let sent = Arc::new(Sent::default());
    let msix = Msix::new(3, sent.clone()).unwrap();
    let mut space =
        ConfigSpace::new(&Identity { vendor: 0, device: 0, class: 0, revision: 0, subsystem: (0, 0) });
    let at = msix.add_capability(&mut space, 2).unwrap();
    for vector in 0..3_u64 {
        msix.write(vector * 16, &0xfee0_0000_u64.to_le_bytes());
        msix.write(vector * 16 + 8, &(vector as u32 + 0x40).to_le_bytes());
    }
    (msix, space, at, sent)
}

#[test]
fn a_message_leaves_when_the_last_mask_goes() {
    let (msix, mut space, at, sent) = table();
    let taken = || std::mem::take(&mut *sent.0.lock().unwrap()).iter().map(|m| m.data).collect::<Vec<_>>();
    let mut set = |control: u16, command: u16| {
        space.write(at as u16 + 2, &control.to_le_bytes());
        space.write(4, &command.to_le_bytes());
        msix.follow(&space, at);
    };
    let pending = || {
        let mut byte = [0];
        msix.read(0x1000, &mut byte);
        byte[0]
    };
    set(0, 4);
    assert!(!msix.is_enabled());
    set(1 << 15, 4);
    msix.trigger(1);
    assert_eq!((taken(), pending()), (vec![], 0b010), "every vector begins masked");
    msix.write(16 + 12, &[0; 4]);
    assert_eq!((taken(), pending()), (vec![0x41], 0));
    msix.write(12, &[0; 4]);
    // All at once, and the bus.
    set(1 << 15 | 1 << 14, 4);
    msix.trigger(0);
    msix.trigger(1);
    msix.trigger(1);
    msix.trigger(2);
    msix.trigger(3);
    assert_eq!((taken(), pending()), (vec![], 0b111));
    set(1 << 15, 0);
    assert_eq!((taken(), pending()), (vec![], 0b111), "no bus master, no message");
    set(1 << 15, 4);
    assert_eq!((taken(), pending()), (vec![0x40, 0x41], 0b100), "vector 2 is masked itself");

    let saved = msix.save();
    assert!(saved.fits(3) && !saved.fits(2));
    msix.reset();
    assert_eq!(pending(), 0);
    msix.restore(&saved);
    msix.write(32 + 12, &[0; 4]);
    assert_eq!((taken(), pending()), (vec![0x42], 0));
}

#[test]
fn the_table_is_written_in_words_and_read_in_any_width() {
    let (msix, ..) = table();
    assert_eq!(msix.bar(), Bar::Memory64(0x2000));
    assert_eq!(Msix::new(300, Arc::new(Sent::default())).unwrap().bar(), Bar::Memory64(0x4000));
    for wrong in [0, 2049] {
        assert_eq!(Msix::new(wrong, Arc::new(Sent::default())).unwrap_err(), PciError::Vectors(wrong));
    }
    let entry = |at: u64| {
        let mut bytes = [0xee; 16];
        msix.read(at, &mut bytes);
        bytes
    };
    let before = entry(16);
    assert_eq!(before, [0, 0, 0xe0, 0xfe, 0, 0, 0, 0, 0x41, 0, 0, 0, 1, 0, 0, 0]);
    for (offset, data) in [
        (16, &[1_u8][..]),
        (16, &[1; 2]),
        (18, &[1; 4]),
        (20, &[1; 8]),
        (16, &[1; 3]),
        (48, &[1; 4]),
        (0x1000, &[1; 8]),
    ] {
        msix.write(offset, data);
    }
    assert_eq!((entry(16), entry(48), entry(0x1000)), (before, [0; 16], [0; 16]));
    msix.write(u64::MAX - 7, &[1; 8]);
    assert_eq!(entry(u64::MAX - 15), [0; 16]);
}
