use super::*;
use crate::dma::{SgLimits, SgPool};

#[test]
fn a_request_is_small() {
    assert_eq!(size_of::<NetRequest>(), 16);
    assert_eq!(size_of::<Option<NetRequest>>(), 16);
    assert!(size_of::<super::super::Completion<NetRequest>>() <= 24);
}

#[test]
fn a_request_keeps_what_it_was_made_of() {
    let mut pool = SgPool::new(1, SgLimits::default());
    let offload = Offload { gso_type: 4, csum_offset: 16, ..Offload::default() };
    let request = NetRequest::transmit(Tag::new(u32::MAX), u16::MAX, pool.take()).with_offload(offload);
    assert_eq!((request.tag(), request.pair()), (Tag::new(u32::MAX), u16::MAX));
    assert_eq!((request.op(), request.offload()), (NetOp::Transmit, offload));
    // The list is used again, and its note is not.
    let mut request = NetRequest::receive(Tag::new(3), 5, request.into_sg());
    assert_eq!((request.tag(), request.pair(), request.op()), (Tag::new(3), 5, NetOp::Receive));
    assert!(request.offload().is_plain());
    assert_eq!(request.accepts(), Offloads::empty());
    let accepted = Offloads::CSUM | Offloads::ECN;
    request = request.accepting(Offloads::all()).accepting(accepted);
    request.set_offload(offload);
    request.renew();
    assert_eq!((request.offload(), request.kind()), (Offload::default(), 1));
    // What the receiver takes goes with the token on every way down.
    assert_eq!((request.accepts(), request.tag(), request.pair()), (accepted, Tag::new(3), 5));
}

#[test]
fn only_mac_addresses_are_mac_addresses() {
    for bad in [
        "",
        "52:54:00:12:34",
        "52:54:00:12:34:56:78",
        "52:54:00:12:34:5",
        "5z:54:00:12:34:56",
        "+1:54:00:12:34:56",
    ] {
        assert!(bad.parse::<MacAddr>().is_err(), "{bad}");
    }
}

#[test]
fn caps_check_each_rule() {
    let mut pool = SgPool::new(1, SgLimits::default());
    let caps = NetCaps::new(1500, 2);
    let mut check = |len: usize, pair, offload| {
        let mut sg = pool.take();
        sg.push_host(len).unwrap();
        caps.check(&NetRequest::transmit(Tag::new(0), pair, sg).with_offload(offload))
    };
    let plain = Offload::default();
    assert_eq!(check(14, 0, plain), Ok(()));
    assert_eq!(check(1518, 1, plain), Ok(()));
    assert_eq!(check(13, 0, plain), Err(NetError::BadLength));
    assert_eq!(check(1519, 0, plain), Err(NetError::BadLength));
    assert_eq!(check(60, 2, plain), Err(NetError::Unsupported));
    assert_eq!(check(60, 0, Offload { gso_type: 1, ..plain }), Err(NetError::Unsupported));
    let cut = Offload { flags: 1, gso_type: 1, gso_size: 1460, csum_start: 34, csum_offset: 16, hdr_len: 0 };
    assert_eq!(check(60, 0, cut), Err(NetError::Unsupported));
    let mut filled = pool.take();
    filled.push_host(5).unwrap();
    let receive = NetRequest::receive(Tag::new(0), 0, filled);
    assert_eq!((receive.sg().len(), caps.check(&receive)), (0, Ok(())));
}

#[test]
fn caps_check_offloads() {
    let mut pool = SgPool::new(1, SgLimits::default());
    let tx_offloads = Offloads::CSUM | Offloads::TSO4;
    let caps = NetCaps { tx_offloads, ..NetCaps::new(1500, 1) };
    let mut check = |len: usize, offload| {
        let mut sg = pool.take();
        sg.push_host(len).unwrap();
        caps.check(&NetRequest::transmit(Tag::new(0), 0, sg).with_offload(offload))
    };
    let cut = Offload { flags: 1, gso_type: 1, gso_size: 1460, csum_start: 34, csum_offset: 16, hdr_len: 0 };
    let sum = Offload { flags: 1, csum_start: 34, csum_offset: 6, ..Offload::default() };
    let longest = MAX_GSO_FRAME as usize;
    assert_eq!((check(longest, cut), check(longest + 1, cut)), (Ok(()), Err(NetError::BadLength)));
    assert_eq!((check(1518, sum), check(1519, sum)), (Ok(()), Err(NetError::BadLength)));
    assert_eq!(check(1519, Offload::default()), Err(NetError::BadLength));
    for refused in [
        Offload { gso_type: 4, csum_start: 54, ..cut },
        Offload { gso_type: 0x81, ..cut },
        Offload { gso_type: 5, ..cut },
        Offload { gso_size: 1461, ..cut },
        Offload { gso_size: 0, ..cut },
        Offload { flags: 0, ..cut },
        Offload { csum_start: 1517, ..sum },
    ] {
        assert_eq!(check(1518, refused), Err(NetError::Unsupported), "{refused:?}");
    }
}

#[test]
fn fewer_offloads_may_not_replace_more() {
    let told = NetCaps { tx_offloads: Offloads::all(), rx_offloads: Offloads::CSUM, ..NetCaps::new(1500, 1) };
    assert_eq!(NetCaps::may_replace(&told, &told), Ok(()));
    let refusal = |new: NetCaps| NetCaps::may_replace(&told, &new).unwrap_err();
    let fewer = refusal(NetCaps { tx_offloads: Offloads::CSUM | Offloads::ECN, ..told.clone() });
    assert!(fewer.ends_with("it lacks offloads of frames that are sent: TSO4, TSO6"), "{fewer}");
    let fewer = refusal(NetCaps { rx_offloads: Offloads::empty(), ..told.clone() });
    assert!(fewer.ends_with("it lacks offloads of frames that are received: CSUM"), "{fewer}");
}

/// The sum over the pseudo header and the segment: all ones where the checksum is right (RFC 9293, RFC 8200).
fn transport_sum(frame: &[u8], addresses: std::ops::Range<usize>, transport: usize, protocol: u8) -> u16 {
    let len = (frame.len() - transport) as u32;
    let pseudo = [&frame[addresses], &len.to_be_bytes(), &[0, 0, 0, protocol]].concat();
    let mut bytes = [pseudo, frame[transport..].to_vec()].concat();
    bytes.resize(bytes.len().next_multiple_of(2), 0);
    let sum: u32 = bytes.chunks(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]]))).sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}

/// A frame of TCP with a pseudo sum in place of its checksum, as a sender that cuts nothing makes it, and where what is.
struct Big {
    frame: Vec<u8>,
    offload: Offload,
    network: usize,
    addresses: std::ops::Range<usize>,
    payload: usize,
}

fn big(version: u8, tags: usize, options: usize, flags: u8, (payload, gso_size): (usize, u16)) -> Big {
    let mut frame = vec![2; 12];
    frame.extend([0x81, 0, 0, 7].repeat(tags));
    let tcp = 20 + options;
    let (network, addresses, transport) = if version == 4 {
        frame.extend([8, 0]);
        let network = frame.len();
        let total = ((20 + tcp + payload) as u16).to_be_bytes();
        frame.extend([0x45, 0, total[0], total[1], 0xff, 0xfe, 0x40, 0, 64, 6, 0x11, 0x11]);
        frame.extend([10, 61, 0, 2, 10, 61, 0, 1]);
        (network, network + 12..network + 20, network + 20)
    } else {
        frame.extend([0x86, 0xdd]);
        let network = frame.len();
        frame.extend([0x60, 0, 0, 0, 0, 0, 6, 64]);
        frame.extend((0..32).map(|at| at * 7));
        (network, network + 8..network + 40, network + 40)
    };
    frame.extend([0x1f, 0x90, 0, 80, 0xff, 0xff, 0xff, 0x00, 0, 0, 0, 1, (tcp as u8 / 4) << 4, flags]);
    frame.extend([0xff, 0xff, 0, 0, 0, 0]);
    frame.extend(vec![1; options]);
    frame.extend((0..payload).map(|at| (at ^ at >> 8) as u8));
    // With the checksum's place empty, what is summed up is the pseudo header and the header itself.
    let pseudo = transport_sum(&frame, addresses.clone(), frame.len(), 6);
    let len = frame.len() - transport;
    let mut pseudo = u32::from(pseudo) + (len as u32 >> 16) + (len as u32 & 0xffff);
    while pseudo > 0xffff {
        pseudo = (pseudo & 0xffff) + (pseudo >> 16);
    }
    frame[transport + 16..transport + 18].copy_from_slice(&(pseudo as u16).to_be_bytes());
    let gso_type = if version == 4 { 1 } else { 4 } | if flags & 0x80 == 0 { 0 } else { 0x80 };
    let csum_start = transport as u16;
    let offload = Offload { flags: 1, gso_type, hdr_len: 0, gso_size, csum_start, csum_offset: 16 };
    Big { frame, offload, network, addresses, payload: transport + tcp }
}

#[test]
fn segments_are_the_frame_cut() {
    let sizes = [(0, 1460), (1, 8), (1460, 1460), (1461, 1460), (40_001, 1448), (65_480, 9), (9, 65_000)];
    let mut segment = Vec::new();
    let mut count = 0;
    for version in [4, 6] {
        for (tags, options, flags) in [(0, 0, 0x10), (1, 12, 0x19), (2, 40, 0x99)] {
            for size in sizes {
                let Big { frame, offload, network, addresses, payload } =
                    big(version, tags, options, flags, size);
                let transport = usize::from(offload.csum_start);
                let segments = Segments::of(&frame, offload).unwrap();
                let mut data: Vec<u8> = Vec::new();
                for index in 0..segments.count() {
                    segments.write(index, &mut segment);
                    assert!(segment.len() <= segments.longest());
                    let sum = transport_sum(&segment, addresses.clone(), transport, 6);
                    assert_eq!(sum, 0xffff, "the checksum of segment {index} of {size:?}");
                    let word = |at: usize| u16::from_be_bytes([segment[at], segment[at + 1]]);
                    if version == 4 {
                        let sum = transport_sum(&segment[..transport], 0..0, network, 0);
                        assert_eq!(
                            sum, 20,
                            "the IPv4 header sums up to nothing, but for the length of this sum"
                        );
                        assert_eq!(usize::from(word(network + 2)), segment.len() - network);
                        assert_eq!(word(network + 4), 0xfffe_u16.wrapping_add(index as u16));
                    } else {
                        assert_eq!(usize::from(word(network + 4)), segment.len() - network - 40);
                    }
                    let at = 0xffff_ff00_u32.wrapping_add(data.len() as u32);
                    assert_eq!(segment[transport + 4..transport + 8], at.to_be_bytes());
                    let last = index + 1 == segments.count();
                    let ends = if last { flags & 0x09 } else { 0 };
                    let cwr = if index == 0 { flags & 0x80 } else { 0 };
                    assert_eq!(segment[transport + 13], flags & !0x89 | ends | cwr);
                    assert_eq!(segment[..network], frame[..network]);
                    data.extend(&segment[payload..]);
                    count += 1;
                }
                assert!(data == frame[payload..], "{size:?}: the payload is another");
            }
        }
    }
    assert!(count > 40_000, "{count} segments");
}

#[test]
fn a_checksum_is_added() {
    for payload in [0, 1, 999] {
        let Big { mut frame, offload, addresses, .. } = big(6, 0, 0, 0x10, (payload, 1000));
        let offload = Offload { gso_type: 0, ..offload };
        add_checksum(&mut frame, offload).unwrap();
        assert_eq!(transport_sum(&frame, addresses, 54, 6), 0xffff);
    }
    // UDP knows "no checksum", which a sum of zero would be.
    let mut frame = vec![0; 60];
    frame[40..42].copy_from_slice(&[0xff, 0xff]);
    let udp = Offload { flags: 1, csum_start: 34, csum_offset: 6, ..Offload::default() };
    add_checksum(&mut frame, udp).unwrap();
    assert_eq!(frame[40..42], [0xff, 0xff]);
    let before = frame.clone();
    assert!(add_checksum(&mut frame, Offload { csum_start: 59, ..udp }).is_err());
    add_checksum(&mut frame, Offload::default()).unwrap();
    assert_eq!(frame, before);
}

/// Whatever the bytes are, a frame is cut or refused.
#[test]
#[cfg(feature = "test-utils")]
fn no_frame_and_no_header_breaks_the_cutter() {
    let mut rng = crate::test_utils::Rng::new(5);
    let (mut cut, mut segment) = (0, Vec::new());
    for _ in 0..200_000 {
        let version = if rng.one_in(2) { 4 } else { 6 };
        let (tags, options) = (rng.index(3), rng.index(11) * 4);
        let Big { mut frame, offload, .. } = big(version, tags, options, 0x18, (rng.index(300), 8));
        let mut header = offload.to_bytes();
        for _ in 0..rng.below(3) {
            header[rng.index(10)] = rng.next_u64() as u8;
        }
        for _ in 0..rng.below(4) {
            let at = rng.index(frame.len());
            frame[at] = rng.next_u64() as u8;
        }
        frame.truncate(frame.len() - rng.index(2) * rng.index(frame.len()));
        let offload = Offload::from_bytes(header);
        if let Ok(segments) = Segments::of(&frame, offload) {
            cut += 1;
            for index in 0..segments.count() {
                segments.write(index, &mut segment);
                assert!(segment.len() <= segments.longest() && segment.len() <= frame.len());
            }
        }
        let (len, before) = (frame.len(), frame.clone());
        if add_checksum(&mut frame, offload).is_err() {
            assert_eq!(frame, before);
        }
        assert_eq!(frame.len(), len);
    }
    assert!(cut > 20_000, "{cut} were cut");
}
