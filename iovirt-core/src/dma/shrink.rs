//! Files behind memory that somebody shortens while it is in use: the bus error of whoever touches what is gone.

use super::{MapError, Region};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::ptr;
use std::sync::atomic::{
    AtomicBool, AtomicI32, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence,
};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// Hears that a file was shortened under memory that this process has mapped.
///
/// An access beyond the new end of such a file is a bus error (`SIGBUS`), which ends a process. For regions that
/// [`ShrinkWatch::region`] made it does not: what is gone is replaced by private zeroes from there to the end of the region, the access
/// goes on, and the watch has something to be read. Whoever waits for that lets go of the memory, for what a device writes
/// there now reaches nobody.
///
/// A bus error for any other reason is not for this watch, nor is one at any other address: it goes to the handler that was there before,
/// which ends the process where there was none. Such reasons are a host without a free huge page, a full tmpfs, a file system that
/// fails (FUSE), and memory that is broken: what a request would read is not known then, and no zeroes may stand for it.
///
/// A file that is shortened and lengthened all the time is told from those on Linux 5.14 and later.
///
/// The first watch of a process installs a handler for `SIGBUS`. A program with a handler of its own installs it before that; its mask and flags
/// are not looked at.
///
/// ```
/// use iovirt_core::dma::{DmaSpace, ShrinkWatch};
/// use std::os::fd::AsFd;
///
/// let file = tempfile::tempfile()?;
/// file.set_len(0x2000)?;
/// let watch = ShrinkWatch::new()?;
/// let region = watch.region(0, 0x2000, file.as_fd(), 0)?;
/// let view = DmaSpace::from_regions(vec![region])?.view();
///
/// view.write(0x1000, b"soon gone")?;
/// file.set_len(0x1000)?;
/// assert!(!watch.has_shrunk());
/// assert_eq!(view.read_array(0x1000)?, [0; 9]);
/// assert!(watch.has_shrunk());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct ShrinkWatch {
    event: Arc<EventFd>,
}

impl ShrinkWatch {
    /// A watch over no memory yet.
    ///
    /// # Errors
    /// Where the host has no descriptor left, or refuses a handler.
    pub fn new() -> io::Result<Self> {
        install()?;
        Ok(Self { event: Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?) })
    }

    /// A region of a file as by [`Region::from_file`], which may be shortened. It holds a descriptor of the file.
    ///
    /// # Errors
    /// As [`Region::from_file`], and where the host has no descriptor left.
    pub fn region(&self, base: u64, len: u64, file: BorrowedFd<'_>, offset: u64) -> Result<Region, MapError> {
        Region::watched(base, len, (file, offset), self)
    }

    /// Whether somebody touched memory of this watch that was gone.
    pub fn has_shrunk(&self) -> bool {
        let mut poll = libc::pollfd { fd: self.event.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: the kernel writes to one element, which lives during the call.
        unsafe { libc::poll(&raw mut poll, 1, 0) > 0 }
    }
}

/// Readable from the moment on that [`ShrinkWatch::has_shrunk`]; nobody reads it.
impl AsFd for ShrinkWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the eventfd stays open for as long as `self` lives.
        unsafe { BorrowedFd::borrow_raw(self.event.as_raw_fd()) }
    }
}

impl AsRawFd for ShrinkWatch {
    fn as_raw_fd(&self) -> RawFd {
        self.event.as_raw_fd()
    }
}

/// Where a file is mapped.
#[derive(Clone, Copy, Debug)]
pub(super) struct Extent {
    /// Address of the first byte.
    pub(super) start: usize,
    /// Length in bytes.
    pub(super) len: usize,
    /// Size of the pages of the mapping in bytes.
    pub(super) page: usize,
    /// Of the first byte in the file.
    pub(super) offset: u64,
}

/// A mapping that the handler knows. It is to be dropped before it is unmapped.
#[derive(Debug)]
pub(super) struct Watched {
    slot: &'static Slot,
    _file: OwnedFd,
    _watch: ShrinkWatch,
}

impl Watched {
    pub(super) fn new(extent: Extent, file: BorrowedFd<'_>, watch: &ShrinkWatch) -> io::Result<Self> {
        let file = file.try_clone_to_owned()?;
        let slot = take_slot(Entry { extent, file: file.as_raw_fd(), event: watch.as_raw_fd() });
        Ok(Self { slot, _file: file, _watch: watch.clone() })
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        let _registering = registering();
        self.slot.write(Entry::NONE);
    }
}

/// What the handler has to know of a mapping.
#[derive(Clone, Copy, Debug)]
struct Entry {
    extent: Extent,
    file: RawFd,
    event: RawFd,
}

impl Entry {
    const NONE: Self = Self { extent: Extent { start: 0, len: 0, page: 1, offset: 0 }, file: -1, event: -1 };

    /// Makes an access to that address possible that was none, if the file was shortened; says whether it can be tried again.
    ///
    /// Whoever shortens the file may lengthen it again at any moment, so that neither its length nor an access that works now tells what it
    /// was that failed; that both fail again and again tells that it was not the length.
    fn recover(&self, address: usize) -> bool {
        const ATTEMPTS: u32 = 64;
        let within = self.page_of(address);
        (0..ATTEMPTS)
            .any(|_| if self.is_gone(within) { self.replace_from(within) } else { self.populate(within) })
    }

    /// Offset of the page that holds an address.
    fn page_of(&self, address: usize) -> usize {
        (address - self.extent.start) & !(self.extent.page - 1)
    }

    fn is_gone(&self, within: usize) -> bool {
        file_len(self.file).is_some_and(|len| len <= self.extent.offset + within as u64)
    }

    /// Puts zeroes in the place of everything from there on. A file has an end, so nothing behind it is left either. A host with strict
    /// overcommit counts what is mapped, and may have room for no more than a page.
    fn replace_from(&self, within: usize) -> bool {
        let Extent { len, page, .. } = self.extent;
        self.replace(within, len - within) || self.replace(within, page)
    }

    fn replace(&self, within: usize, len: usize) -> bool {
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED;
        let at = (self.extent.start + within) as *mut libc::c_void;
        // SAFETY: the range is a part of a mapping that is in this table, thus mapped by its owner and not unmapped yet, for this thread is
        // in the middle of an access to it, or holds a list of it. It stays mapped, readable and writable; its bytes change, as they
        // may at any time.
        let mapped = unsafe { libc::mmap(at, len, prot, flags, -1, 0) } != libc::MAP_FAILED;
        if mapped {
            let one = 1_u64;
            // SAFETY: eight bytes that live during the call. The watch holds the descriptor for as long as the entry is in the table. The
            // counter cannot overflow by ones.
            unsafe { libc::write(self.event, (&raw const one).cast(), size_of::<u64>()) };
        }
        mapped
    }

    /// Whether the page can be accessed now (Linux 5.14; before it never says so).
    fn populate(&self, within: usize) -> bool {
        let at = (self.extent.start + within) as *mut libc::c_void;
        // SAFETY: a page of a mapping of this process, as above; nothing in it changes.
        unsafe { libc::madvise(at, self.extent.page, libc::MADV_POPULATE_WRITE) == 0 }
    }
}

/// The length of a file. The call is safe in a handler (signal-safety(7)).
fn file_len(file: RawFd) -> Option<u64> {
    let mut stat = std::mem::MaybeUninit::<libc::stat>::uninit();
    // SAFETY: the kernel writes a whole structure where it says that it succeeded.
    let stat = unsafe {
        if libc::fstat(file, stat.as_mut_ptr()) != 0 {
            return None;
        }
        stat.assume_init()
    };
    u64::try_from(stat.st_size).ok()
}

/// An entry that a handler reads while another thread may write it: whoever reads looks at the version before and after.
#[derive(Debug)]
struct Slot {
    /// Odd while it is written.
    version: AtomicU32,
    start: AtomicUsize,
    len: AtomicUsize,
    page: AtomicUsize,
    offset: AtomicU64,
    file: AtomicI32,
    event: AtomicI32,
}

impl Slot {
    const fn new() -> Self {
        Self {
            version: AtomicU32::new(0),
            start: AtomicUsize::new(0),
            len: AtomicUsize::new(0),
            page: AtomicUsize::new(1),
            offset: AtomicU64::new(0),
            file: AtomicI32::new(-1),
            event: AtomicI32::new(-1),
        }
    }

    /// By whoever holds [`registering`].
    fn write(&self, entry: Entry) {
        let version = self.version.load(Ordering::Relaxed);
        self.version.store(version.wrapping_add(1), Ordering::Relaxed);
        fence(Ordering::Release);
        self.start.store(entry.extent.start, Ordering::Relaxed);
        self.len.store(entry.extent.len, Ordering::Relaxed);
        self.page.store(entry.extent.page, Ordering::Relaxed);
        self.offset.store(entry.extent.offset, Ordering::Relaxed);
        self.file.store(entry.file, Ordering::Relaxed);
        self.event.store(entry.event, Ordering::Relaxed);
        self.version.store(version.wrapping_add(2), Ordering::Release);
    }

    /// `None` where it is being written: it is the entry of no mapping then that anybody uses.
    fn read(&self) -> Option<Entry> {
        let version = self.version.load(Ordering::Acquire);
        let extent = Extent {
            start: self.start.load(Ordering::Relaxed),
            len: self.len.load(Ordering::Relaxed),
            page: self.page.load(Ordering::Relaxed),
            offset: self.offset.load(Ordering::Relaxed),
        };
        let (file, event) = (self.file.load(Ordering::Relaxed), self.event.load(Ordering::Relaxed));
        fence(Ordering::Acquire);
        let same = version.is_multiple_of(2) && self.version.load(Ordering::Relaxed) == version;
        same.then_some(Entry { extent, file, event })
    }

    fn is_free(&self) -> bool {
        self.len.load(Ordering::Relaxed) == 0
    }
}

/// Slots that are never freed, so that a handler can walk them at any moment. There are as many as mappings were watched at once.
#[derive(Debug)]
struct Block {
    slots: [Slot; 32],
    next: AtomicPtr<Block>,
}

impl Block {
    const fn new() -> Self {
        Self { slots: [const { Slot::new() }; 32], next: AtomicPtr::new(ptr::null_mut()) }
    }

    fn next(&self) -> Option<&'static Self> {
        // SAFETY: what is there was leaked by `take_slot`, whole.
        unsafe { self.next.load(Ordering::Acquire).as_ref() }
    }
}

static FIRST: Block = Block::new();

fn blocks() -> impl Iterator<Item = &'static Block> {
    std::iter::successors(Some(&FIRST), |block| block.next())
}

/// One thread at a time changes the table.
fn registering() -> MutexGuard<'static, ()> {
    static REGISTERING: Mutex<()> = Mutex::new(());
    REGISTERING.lock().unwrap_or_else(PoisonError::into_inner)
}

fn take_slot(entry: Entry) -> &'static Slot {
    let _registering = registering();
    let free = blocks().flat_map(|block| &block.slots).find(|slot| slot.is_free());
    let slot = free.unwrap_or_else(|| {
        let new: &'static Block = Box::leak(Box::new(Block::new()));
        let last = blocks().last().unwrap_or(&FIRST);
        last.next.store(ptr::from_ref(new).cast_mut(), Ordering::Release);
        &new.slots[0]
    });
    slot.write(entry);
    slot
}

/// What was there before [`handle`]; leaked.
static PREVIOUS: AtomicPtr<libc::sigaction> = AtomicPtr::new(ptr::null_mut());

/// Installs the handler, once.
fn install() -> io::Result<()> {
    static INSTALLED: AtomicBool = AtomicBool::new(false);
    let _registering = registering();
    if INSTALLED.load(Ordering::Relaxed) {
        return Ok(());
    }
    let previous = Box::leak(Box::new(default_action()));
    // SAFETY: the kernel writes one structure, which lives for ever.
    if unsafe { libc::sigaction(libc::SIGBUS, ptr::null(), previous) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let mut own = default_action();
    own.sa_sigaction = handle as *const () as usize;
    // Without the other stack an overflow of this one, which the handler before may know how to report, could not be handled.
    own.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    PREVIOUS.store(previous, Ordering::Release);
    // SAFETY: a handler with the signature that `SA_SIGINFO` asks for, which does only what a handler may (signal-safety(7)).
    if unsafe { libc::sigaction(libc::SIGBUS, &raw const own, ptr::null_mut()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    INSTALLED.store(true, Ordering::Relaxed);
    Ok(())
}

fn default_action() -> libc::sigaction {
    // SAFETY: all zeroes are the default action with no flags and an empty set of signals.
    unsafe { std::mem::zeroed() }
}

/// The handler. It takes no lock, allocates nothing and touches no memory but the table.
extern "C" fn handle(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: errno is this thread's own; the kernel hands over a valid structure, whose address is that of the access where the kernel sent
    // the signal for one (a code above zero).
    let (errno, address) = unsafe {
        let sent_by_kernel = (*info).si_code > 0;
        (*libc::__errno_location(), sent_by_kernel.then(|| (*info).si_addr() as usize))
    };
    match address {
        Some(address) if recover(address) => {}
        Some(_) => pass_on(signal, info, context),
        None => pass_on_sent(signal, info, context),
    }
    // SAFETY: as above.
    unsafe { *libc::__errno_location() = errno };
}

fn recover(address: usize) -> bool {
    entries_at(address).any(|entry| entry.recover(address))
}

fn entries_at(address: usize) -> impl Iterator<Item = Entry> {
    let entries = blocks().flat_map(|block| &block.slots).filter_map(Slot::read);
    entries.filter(move |Entry { extent, .. }| address.wrapping_sub(extent.start) < extent.len)
}

/// What an access to that address would find out, if a file was shortened, without an access: for whoever was told by the kernel that it
/// cannot be accessed, and holds it mapped.
pub(super) fn notice(address: usize) {
    entries_at(address).for_each(|entry| {
        let within = entry.page_of(address);
        if entry.is_gone(within) {
            entry.replace_from(within);
        }
    });
}

/// One that another process has sent. Where the handler before leaves no more than the default behind, as Rust's own does, the default is
/// what is meant: without this handler, files could end the process from now on.
fn pass_on_sent(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: as in `pass_on`.
    let ignored = unsafe { PREVIOUS.load(Ordering::Acquire).as_ref() }
        .is_some_and(|previous| previous.sa_sigaction == libc::SIG_IGN);
    if ignored {
        return;
    }
    pass_on(signal, info, context);
    let mut now = default_action();
    // SAFETY: the kernel writes one structure, which lives during the call; both calls are safe in a handler.
    unsafe {
        if libc::sigaction(signal, ptr::null(), &raw mut now) == 0 && now.sa_sigaction == libc::SIG_DFL {
            libc::raise(signal);
        }
    }
}

/// Has the handler before have its say. The default is the end of the process.
fn pass_on(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    type Plain = extern "C" fn(libc::c_int);
    type Informed = extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void);
    // SAFETY: it was stored before this handler was installed, and is never freed.
    let Some(previous) = (unsafe { PREVIOUS.load(Ordering::Acquire).as_ref() }) else { return };
    match previous.sa_sigaction {
        libc::SIG_DFL | libc::SIG_IGN => {
            let default = default_action();
            // SAFETY: both calls are safe in a handler. The signal comes again as soon as this handler returns.
            unsafe {
                libc::sigaction(signal, &raw const default, ptr::null_mut());
                libc::raise(signal);
            }
        }
        handler if previous.sa_flags & libc::SA_SIGINFO != 0 => {
            // SAFETY: a handler that was installed with this flag has this signature.
            let handler = unsafe { std::mem::transmute::<usize, Informed>(handler) };
            handler(signal, info, context);
        }
        handler => {
            // SAFETY: and without it this one.
            let handler = unsafe { std::mem::transmute::<usize, Plain>(handler) };
            handler(signal);
        }
    }
}
