//! QEMU as the front-end: a guest with a stock kernel whose devices our daemon serves.

use super::Place;
use super::process::Process;
use super::qmp::Qmp;
use crate::cmd::Cmd;
use crate::error::{Error, Result};

/// A machine to be started.
#[derive(Debug)]
pub(crate) struct Machine<'a> {
    place: &'a Place,
    name: &'static str,
    script: &'static str,
    words: String,
    memory: &'static str,
    arguments: Vec<String>,
    devices: usize,
    start: Start,
}

/// What a machine starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Start {
    /// The case's kernel, which QEMU itself puts in place.
    Kernel,
    /// What its firmware finds on the first disk.
    Firmware,
}

/// How many bytes of memory a guest begins with.
const MEMORY: &str = "256M";

impl<'a> Machine<'a> {
    /// A machine with two processors whose guest runs that script. The name tells machines of a case apart.
    pub(crate) fn new(place: &'a Place, name: &'static str, script: &'static str) -> Self {
        Self {
            place,
            name,
            script,
            words: String::new(),
            memory: MEMORY,
            arguments: Vec::new(),
            devices: 0,
            start: Start::Kernel,
        }
    }

    /// Starts from its first disk, like any PC.
    pub(crate) fn with_firmware(mut self) -> Self {
        self.start = Start::Firmware;
        self
    }

    /// Further words for the guest kernel's command line.
    pub(crate) fn words(mut self, words: &str) -> Self {
        self.words.push(' ');
        self.words.push_str(words);
        self
    }

    /// Room for more memory.
    pub(crate) fn with_room_for_memory(mut self) -> Self {
        self.memory = "256M,slots=2,maxmem=1G";
        self
    }

    /// Further options of QEMU.
    pub(crate) fn options(mut self, options: &[&str]) -> Self {
        self.arguments.extend(options.iter().map(|option| (*option).to_owned()));
        self
    }

    /// A disk with two queues.
    pub(crate) fn disk(mut self, socket: &str) -> Self {
        let id = self.chardev(socket);
        self.arguments
            .extend(["-device".to_owned(), format!("vhost-user-blk-pci,chardev={id},num-queues=2")]);
        self
    }

    /// A network card with so many pairs of queues.
    pub(crate) fn card(mut self, socket: &str, pairs: u32) -> Self {
        let id = self.chardev(socket);
        let queues = if pairs > 1 { format!(",mq=on,vectors={}", 2 * pairs + 2) } else { String::new() };
        self.arguments.extend([
            "-netdev".to_owned(),
            format!("vhost-user,id=n{id},chardev={id},queues={pairs}"),
            "-device".to_owned(),
            format!("virtio-net-pci,netdev=n{id},mac=52:54:00:12:34:56{queues}"),
        ]);
        self
    }

    /// A socket; QEMU connects again to a daemon that was gone.
    fn chardev(&mut self, socket: &str) -> String {
        let id = format!("c{}", self.devices);
        self.devices += 1;
        self.arguments
            .extend(["-chardev".to_owned(), format!("socket,id={id},path={socket},reconnect-ms=100")]);
        id
    }

    /// Starts it.
    pub(crate) fn start(self) -> Result<Qemu<'a>> {
        let Self { place, name, script, .. } = self;
        let mut command = Cmd::new("qemu-system-x86_64")
            .args(["-machine", "q35,memory-backend=m", "-accel", "tcg,thread=multi", "-cpu", "max"])
            .args(["-smp", "2", "-m", self.memory])
            .arg("-object")
            .arg(format!("memory-backend-memfd,id=m,size={MEMORY},share=on"))
            .args(["-nodefaults", "-display", "none", "-serial", "stdio"])
            .args(["-qmp", &format!("unix:{name}.qmp,server=on,wait=off")])
            .args(["-device", "isa-debug-exit,iobase=0xf4,iosize=0x04"])
            .args(self.arguments);
        if self.start == Start::Kernel {
            let words = format!("console=ttyS0 quiet panic=-1 lab.case={script}{}", self.words);
            command = command
                .arg("-kernel")
                .arg(&place.kernel)
                .arg("-initrd")
                .arg(&place.ramdisk)
                .args(["-append", &words]);
        }
        let process = Process::start(command.into_inner(), &place.folder, name, place.deadline)?;
        Ok(Qemu { place, name, script, process })
    }
}

/// A machine at work. It is killed with this value.
#[derive(Debug)]
pub(crate) struct Qemu<'a> {
    place: &'a Place,
    name: &'static str,
    script: &'static str,
    process: Process,
}

impl Qemu<'_> {
    /// The process, whose lines are the guest's console.
    pub(crate) fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Its monitor.
    pub(crate) fn monitor(&self) -> Result<Qmp> {
        Qmp::connect(&self.place.folder.join(format!("{}.qmp", self.name)), self.place.deadline)
    }

    /// The guest must end content; gives back what it said.
    pub(crate) fn end(mut self) -> Result<String> {
        let end = format!("{} ends with ", self.script);
        let line = self.process.wait_for(&end)?;
        let status = self.process.wait()?;
        let said = self.process.said().join("\n");
        // The device makes (code << 1) | 1 of the guest's code, and a QEMU that failed ends with 1 too.
        if line.contains(&format!("{end}0 ")) && status.code() == Some(1) {
            Ok(said)
        } else {
            Err(Error::new(format!("QEMU ended with {status} after '{line}'")))
        }
    }
}
