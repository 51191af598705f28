//! The floor: a device in a thread of ours that does nothing but turn the ring around, or nothing but `pread` and `pwrite`.
//!
//! It knows only what the client of this benchmark does: one table of three descriptors for each request. No server can be
//! quicker than the first, and none that serves a file by plain system calls quicker than the second.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use vhost_user_driver::layout::{Layout, QueuePlaces};
use vhost_user_driver::memory::SharedMemory;
use vhost_user_driver::options::feature;
use vhost_user_driver::ring::is_passed;
use vhost_user_driver::{BlkQueue, Options, Queue, sys};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

use crate::error::{Context, Error, Result};

/// How long the device sleeps before it looks whether it is to end.
const NAP_MILLIS: i32 = 50;
/// How far ahead the event index is put so that it is not met.
const FAR_AHEAD: u16 = 0x8000;

/// How the device learns of requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wakes {
    /// By the doorbell.
    Sleeping,
    /// By looking.
    Polling,
}

/// A device at work.
#[derive(Debug)]
pub(crate) struct Floor {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<()>>,
    /// The thread's number, for its clock.
    number: i32,
}

impl Floor {
    /// Starts a device on that processor, over `file` if there is one, and gives the client's end.
    pub(crate) fn start(
        wakes: Wakes,
        file: Option<File>,
        options: &Options,
        processor: usize,
    ) -> Result<(Self, BlkQueue)> {
        let features = feature::VERSION_1 | feature::EVENT_IDX | feature::INDIRECT_DESC;
        let layout = Arc::new(Layout::new(options));
        let memory = Arc::new(SharedMemory::new(layout.len()).context("memory for the guest")?);
        let queue = Queue::new(&memory, &layout, 0, options, features, 3).context("the client's queue")?;
        let stop = Arc::new(AtomicBool::new(false));
        let device = Device {
            places: *queue.ring().places(),
            size: options.queue_size,
            memory,
            layout,
            file,
            kick: queue.kick_fd().try_clone().context("eventfd")?,
            call: queue.call_fd().try_clone().context("eventfd")?,
            stop: Arc::clone(&stop),
            taken: 0,
            returned: 0,
            told: 0,
        };
        let (say, hear) = mpsc::channel();
        let thread = thread::spawn(move || {
            sys::pin_this_thread(processor).context(format_args!("processor {processor}"))?;
            // Whoever waits for the number gives up first only if it has gone with an error of its own.
            let _ = say.send(sys::this_thread());
            device.run(wakes)
        });
        let number = hear.recv().map_err(|_| Error::new("the floor's thread did not start"));
        match number {
            Ok(number) => Ok((Self { stop, thread, number }, BlkQueue::new(queue))),
            Err(error) => Err(thread.join().ok().and_then(Result::err).unwrap_or(error)),
        }
    }

    /// Processor time that it has used so far.
    pub(crate) fn cpu(&self) -> Result<Duration> {
        sys::time_of_thread(self.number).context("the floor's clock")
    }

    /// Ends it.
    pub(crate) fn stop(self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| Error::new("the floor panicked"))?
    }
}

struct Device {
    memory: Arc<SharedMemory>,
    layout: Arc<Layout>,
    places: QueuePlaces,
    size: u16,
    file: Option<File>,
    kick: EventFd,
    call: EventFd,
    stop: Arc<AtomicBool>,
    taken: u16,
    returned: u16,
    /// The used index when the driver's wish was looked at last.
    told: u16,
}

impl Device {
    fn run(mut self, wakes: Wakes) -> Result<()> {
        let sleep = Epoll::new().context("epoll_create")?;
        let event = EpollEvent::new(EventSet::IN | EventSet::EDGE_TRIGGERED, 0);
        sleep.ctl(ControlOperation::Add, self.kick.as_raw_fd(), event).context("epoll_ctl")?;
        let mut events = [EpollEvent::default()];
        while !self.stop.load(Ordering::Relaxed) {
            if self.serve()? {
                continue;
            }
            match wakes {
                Wakes::Polling => {
                    self.want_doorbell(self.taken.wrapping_add(FAR_AHEAD));
                    std::hint::spin_loop();
                }
                Wakes::Sleeping => {
                    self.want_doorbell(self.taken);
                    fence(Ordering::SeqCst);
                    if self.available() == self.taken {
                        sleep.wait(NAP_MILLIS, &mut events).context("waiting for a doorbell")?;
                    }
                }
            }
        }
        Ok(())
    }

    fn available(&self) -> u16 {
        self.memory.load_u16(self.places.available + 2, Ordering::Acquire)
    }

    /// Sets the index whose passing rings the doorbell, where it is not that already.
    fn want_doorbell(&self, index: u16) {
        let place = self.places.used + 4 + 8 * usize::from(self.size);
        if self.memory.load_u16(place, Ordering::Relaxed) != index {
            self.memory.store_u16(place, index, Ordering::Relaxed);
        }
    }

    /// Serves all that is there; tells whether there was anything.
    fn serve(&mut self) -> Result<bool> {
        let available = self.available();
        if available == self.taken {
            return Ok(false);
        }
        while self.taken != available {
            let entry = usize::from(self.taken & (self.size - 1));
            let head = self.memory.load_u16(self.places.available + 4 + 2 * entry, Ordering::Relaxed);
            let written = self.answer(head)?;
            let entry = usize::from(self.returned & (self.size - 1));
            let place = self.places.used + 4 + 8 * entry;
            self.memory.store_u32(place, u32::from(head));
            self.memory.store_u32(place + 4, written);
            self.taken = self.taken.wrapping_add(1);
            self.returned = self.returned.wrapping_add(1);
            if self.file.is_some() {
                self.publish();
            }
        }
        self.publish();
        fence(Ordering::SeqCst);
        let place = self.places.available + 4 + 2 * usize::from(self.size);
        if is_passed(self.memory.load_u16(place, Ordering::Relaxed), self.returned, self.told) {
            self.call.write(1).context("an interrupt")?;
        }
        self.told = self.returned;
        Ok(true)
    }

    fn publish(&self) {
        self.memory.store_u16(self.places.used + 2, self.returned, Ordering::Release);
    }

    /// Does what the request of this descriptor asks for; gives the bytes that it wrote for the driver.
    fn answer(&self, head: u16) -> Result<u32> {
        let memory = &self.memory;
        let table = self.layout.offset(memory.load_u64(self.places.descriptors + 16 * usize::from(head)));
        let address = |number: usize| self.layout.offset(memory.load_u64(table + 16 * number));
        let (header, data, status) = (address(0), address(1), address(2));
        let len = memory.load_u64(table + 24) as u32;
        let mut written = 1;
        if let Some(file) = &self.file {
            let (operation, at) = (memory.load_u32(header), memory.load_u64(header + 8) * 512);
            let moved = if operation == 0 {
                written += len;
                memory.pread(file, at, data, len as usize).context("pread")?
            } else {
                memory.pwrite(file, at, data, len as usize).context("pwrite")?
            };
            if moved != len as usize {
                return Err(Error::new(format!("{moved} of {len} bytes at {at}")));
            }
        }
        memory.write(status, &[0]);
        Ok(written)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_devices_serve_sleeping_and_polling() {
        for wakes in [Wakes::Sleeping, Wakes::Polling] {
            let options = Options { slots: 4, buffer: 4096, ..Options::blk() };
            let (floor, mut queue) = Floor::start(wakes, None, &options, 0).unwrap();
            for sector in 0..100 {
                queue.read(sector, &mut [0; 4096]).unwrap();
            }
            floor.stop().unwrap();

            let disk = SharedMemory::new(1 << 20).unwrap();
            let file = disk.file().try_clone().unwrap();
            let (floor, mut queue) = Floor::start(wakes, Some(file), &options, 0).unwrap();
            queue.write(7, &[5; 1024]).unwrap();
            let mut back = [0; 1536];
            queue.read(7, &mut back).unwrap();
            assert!(back[..1024].iter().all(|byte| *byte == 5) && back[1024..].iter().all(|byte| *byte == 0));
            assert!(floor.cpu().unwrap() > Duration::ZERO);
            floor.stop().unwrap();
        }
    }

    #[test]
    fn a_processor_that_is_not_there_is_an_error() {
        let outcome = Floor::start(Wakes::Polling, None, &Options::blk(), 1 << 20);
        assert!(outcome.err().unwrap().to_string().contains("processor 1048576"));
    }
}
