//! The split virtqueue over any memory.
//!
//! The input is the queue's registers and features, and then what memory holds from the descriptor table on. The ring is
//! walked to its end: every chain that is taken is returned.

use crate::input::Input;
use iovirt_core::dma::DmaSpace;
use iovirt_frontends::virtio::queue::{Chain, QueueConfig, RingFeatures, SplitQueue};
use std::cell::OnceCell;

const LEN: u64 = 0x8000;
/// Taken at most: a ring that is offered anew by the device's own writes into it never ends.
const CHAINS: usize = 1 << 12;

thread_local! {
    static SPACE: OnceCell<DmaSpace> = const { OnceCell::new() };
}

/// Walks the ring that an input describes.
pub fn run(data: &[u8]) {
    SPACE.with(|space| {
        let space =
            space.get_or_init(|| DmaSpace::anonymous(&[(0, LEN), (2 * LEN, 0x1000)]).expect("memory"));
        walk(space, data);
    });
}

fn walk(space: &DmaSpace, data: &[u8]) {
    let mut input = Input::new(data);
    let flags = input.u8();
    let size = if flags & 0x80 == 0 { 1 << (flags & 7) } else { input.u16() };
    let place = |input: &mut Input<'_>| u64::from(input.u16());
    let (desc, avail, used) = (place(&mut input), place(&mut input), place(&mut input));
    let config = QueueConfig { size, max_size: 256, desc, avail, used, ready: true };
    let features = RingFeatures { event_idx: flags & 8 != 0, indirect: flags & 16 != 0 };
    let mut memory = input.all().to_vec();
    memory.resize(LEN as usize, 0);
    let view = space.view();
    view.write(0, &memory).expect("it is mapped");
    let Ok(mut queue) = SplitQueue::new(config, features, &view) else { return };
    let mut chain = Chain::new();
    for _ in 0..CHAINS {
        queue.disable_notifications();
        match queue.pop(&view, &mut chain) {
            Ok(Some(head)) => {
                assert!(head.index() < size);
                let len = chain.readable().len() + chain.writable().len();
                assert!(u32::try_from(len).is_ok());
                queue.push_used(head, chain.writable().len() as u32);
            }
            Ok(None) => {
                queue.publish();
                let _ = queue.needs_interrupt();
                if !queue.enable_notifications() {
                    break;
                }
            }
            Err(error) => {
                assert_eq!(queue.pop(&view, &mut chain), Err(error), "a failed queue stays failed");
                assert_eq!(queue.error(), Some(error));
                break;
            }
        }
    }
    let state = queue.state();
    assert!(SplitQueue::restore(&state, features, &view).is_ok());
}

/// Good rings, plain and indirect.
pub fn seeds() -> Vec<Vec<u8>> {
    let desc = |addr: u64, len: u32, flags: u16, next: u16| {
        [&addr.to_le_bytes()[..], &len.to_le_bytes(), &flags.to_le_bytes(), &next.to_le_bytes()].concat()
    };
    let ring = |flags: u8, descriptors: &[Vec<u8>], heads: &[u16]| {
        let mut seed = vec![flags];
        for place in [0_u16, 0x100, 0x180] {
            seed.extend(place.to_le_bytes());
        }
        let mut memory = descriptors.concat();
        memory.resize(0x102, 0);
        memory.extend((heads.len() as u16).to_le_bytes());
        heads.iter().for_each(|head| memory.extend(head.to_le_bytes()));
        seed.extend(memory);
        seed
    };
    let chain = [desc(0x400, 16, 1, 1), desc(0x600, 512, 3, 2), desc(0x500, 1, 2, 0)];
    let table = [desc(0x20, 32, 4, 0), Vec::new(), desc(0x400, 16, 1, 1), desc(0x500, 1, 2, 0)];
    vec![
        ring(3, &chain, &[0]),
        ring(3 | 8, &chain, &[0, 2, 1]),
        ring(3 | 16, &[table[0].clone(), desc(0, 0, 0, 0), table[2].clone(), table[3].clone()], &[0, 0]),
        ring(3, &[desc(0x400, 16, 1, 0)], &[0]),
        ring(0x80, &chain, &[0]),
    ]
}
