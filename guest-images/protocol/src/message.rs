//! The messages. Plain data: the meaning is the two sides' business.
//!
//! Times called `*_ns` of the guest are its CLOCK_MONOTONIC, which starts near zero while its kernel starts. Each message
//! that tells times also tells `now_ns`, the moment it was sent, so that the host can place them on its own clock.

use crate::files::Helper;
use crate::process::{Exec, ExitStatus, FailureKind, Process, ProcessId, WindowSize};
use crate::settings::Settings;
use alloc::string::String;
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

/// Host to guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum HostMessage {
    /// The first message, in every version.
    Hello {
        /// The host's [`crate::VERSION`].
        version: u32,
    },
    /// Assemble the root and start the main process. Once.
    Start(alloc::boxed::Box<Start>),
    /// Send a signal to a process.
    Signal {
        /// To which process.
        process: ProcessId,
        /// Linux x86 signal number, 1…31.
        signal: u8,
    },
    /// The terminal of a process has a new size.
    Resize {
        /// Whose terminal.
        process: ProcessId,
        /// Its size from now on.
        size: WindowSize,
    },
    /// Say `Ready` once all is done that needs no `Start`. From then on the guest's memory may be saved, and go on in other
    /// machines; see [`Phase::Prepared`].
    ///
    /// With an interface: what it will be in most of them. It is set up to be that, so that only its MAC address is left to be told; and
    /// for those that are to be on no network, a place without it is made.
    Prepare(Option<Network>),
    /// Stop every process of the container where it is. Answered once, by `Frozen` or `NotFrozen`, unless the guest says
    /// `Exited` meanwhile. After `Frozen` the guest's memory may be saved, and go on in other machines; see [`Phase::Frozen`].
    Freeze,
    /// Let them go on: `None` to the guest that was told to freeze, also before it has answered; to a clone of it, which has to
    /// become itself first, who it is.
    Thaw(Option<alloc::boxed::Box<Identity>>),
    /// Start another process in the container, whose main process runs. Answered by `Started`, and later `Exited`, or by `StartFailed`.
    /// It ends with the main process at the latest.
    Exec(alloc::boxed::Box<Exec>),
}

/// Guest to host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum GuestMessage {
    /// The first message, in every version.
    Hello {
        /// The guest's [`crate::VERSION`].
        version: u32,
        /// Where the guest is.
        phase: Phase,
        /// When init began; in a clone, when it found that it is one.
        init_ns: u64,
        /// When this was sent.
        now_ns: u64,
    },
    /// The process runs: its `execve` has succeeded.
    Started {
        /// Which process.
        process: ProcessId,
        /// When the root file system was complete; of a process that joins others, when the guest began with it.
        root_ns: u64,
        /// When this was sent.
        now_ns: u64,
    },
    /// The process does not run and never did. Its streams, as far as they were opened, are closed.
    StartFailed {
        /// Which process.
        process: ProcessId,
        /// Of which kind the failure is.
        kind: FailureKind,
        /// One line for the user: what failed, on what, why.
        detail: String,
    },
    /// The kernel has killed a process because there was no memory left. Comes before the `Exited` of the main one, unless that has
    /// ended well.
    OutOfMemory {
        /// The last one that it has killed, in its words: number, name, what it had.
        detail: String,
    },
    /// The process has ended and its streams are complete.
    Exited {
        /// Which process.
        process: ProcessId,
        /// How it ended.
        status: ExitStatus,
        /// When it ended.
        exit_ns: u64,
        /// When this was sent.
        now_ns: u64,
    },
    /// The answer to `Prepare`.
    Ready {
        /// When this was sent.
        now_ns: u64,
    },
    /// The answer to `Freeze`: no process of the container runs, and what they had written is on its way to the host, as far
    /// as the host takes it. What it does not take stays where it is.
    Frozen {
        /// When this was sent.
        now_ns: u64,
    },
    /// The answer to a `Freeze` that cannot be, or was taken back. The processes go on.
    NotFrozen {
        /// One line for the user: why.
        detail: String,
    },
}

/// Where a guest is when it says `Hello`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// Its kernel has just started. It expects `Prepare` or `Start`.
    Booted,
    /// It is a clone of a guest that had said `Ready`: its connections broke when its memory came to another machine, and
    /// this is a new one. It expects `Start`.
    Prepared,
    /// It is a clone of a guest that had said `Frozen`. It expects `Thaw` with its identity, opens all streams of the process
    /// anew, and says `Started` when the process goes on.
    Frozen {
        /// The process has a terminal instead of three streams.
        terminal: bool,
    },
}

/// Everything the guest needs to become the container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Start {
    /// What makes its random numbers its own, before anything else is done: all clones of a guest had the same generator.
    pub seed: Seed,
    /// Goes to /etc/machine-id of an image that leaves it to be filled in (machine-id(5): empty, or `uninitialized`).
    pub machine_id: [u8; 16],
    /// Host name of the guest, at most 64 bytes.
    pub hostname: String,
    /// The host's CLOCK_REALTIME when this was sent, in nanoseconds.
    pub wall_clock_ns: u64,
    /// The root file system.
    pub root: Root,
    /// Its interface, if it has one besides the loopback interface.
    pub network: Option<Network>,
    /// Directories and files of the host in it, in the order in which they are to be mounted.
    pub volumes: Vec<Volume>,
    /// Name resolution.
    pub names: Names,
    /// What it has besides.
    pub settings: Settings,
    /// How the guest is to end.
    pub end: End,
    /// The main process.
    pub process: Process,
    /// Not a process, but something that init does itself, as [`crate::Exec::helper`] has it: then only `stdin` of `process` says
    /// something. What the last process has left on a disk stays as it is: none of `names` is written there.
    pub helper: Option<Helper>,
    /// Once that has ended with code 0, say what it has changed in the root: a [`crate::files::Helper::Changes`] does, with content, as
    /// [`crate::CHANGES_PROCESS`] and with input. The host ends that input when it has all; then comes `Exited`, of both.
    pub changes: bool,
}

/// What makes a clone of a frozen guest one of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// As in [`Start::seed`].
    pub seed: Seed,
    /// Replaces the one of [`Start::machine_id`], if that was needed and is still there.
    pub machine_id: [u8; 16],
    /// Host name of the guest, at most 64 bytes.
    pub hostname: String,
    /// The host's CLOCK_REALTIME when this was sent, in nanoseconds.
    pub wall_clock_ns: u64,
    /// As in [`Start::network`]: what the interface is from now on. It is down since the clone found that it is one, and
    /// stays so without this.
    pub network: Option<Network>,
    /// Replaces that of [`Names::resolv_conf`], if the container still has that; `None` leaves what there is.
    pub resolv_conf: Option<String>,
    /// Size of the terminal, for a process that has one.
    pub size: WindowSize,
    /// The host sends input. If not, a process with a pipe to read from finds its end.
    pub stdin: bool,
}

/// Random bytes, which are nobody else's to know.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seed(pub [u8; 32]);

impl core::fmt::Debug for Seed {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("Seed(..)")
    }
}

/// The root file system: read-only layers with a writable one on top.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Root {
    /// The layers on the first disk, lowest first. None: an empty root.
    pub layers: Vec<Layer>,
    /// Where the writable layer is.
    pub upper: Upper,
    /// The container sees its root read-only.
    pub read_only: bool,
}

/// Where the writable layer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Upper {
    /// In guest memory, and gone with it.
    Memory {
        /// Most bytes that it may hold; `None` for the kernel's own limit (half of the memory).
        bytes: Option<u64>,
    },
    /// On the second disk, which is an ext4 file system. Before the guest says `Exited` it is complete there.
    Disk,
}

/// One layer: a range of the first disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layer {
    /// First sector, of 512 bytes.
    pub start_sector: u64,
    /// Length in sectors of 512 bytes.
    pub sectors: u64,
    /// What is in it.
    pub fs: LayerFs,
}

/// File systems a layer can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum LayerFs {
    /// EROFS.
    Erofs,
    /// SquashFS.
    Squashfs,
}

/// The guest's network interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// Its MAC address: all clones of a guest had the same.
    pub mac: [u8; 6],
    /// Its largest packet in bytes; `None` leaves the kernel's 1500.
    pub mtu: Option<u16>,
    /// `None`: it is brought up, and the rest is left to the container.
    pub address: Option<Address>,
}

/// Where a guest is on its network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Address {
    /// IPv4.
    pub ip: [u8; 4],
    /// Bits of its network's prefix.
    pub prefix_len: u8,
    /// Where to send what is not for that network.
    pub gateway: Option<[u8; 4]>,
}

/// What the container has at a place of its root that is no part of what it changes of its image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// What it is.
    pub source: VolumeSource,
    /// Where it goes, absolute; made if missing.
    pub target: String,
    /// The host refuses changes, and the guest is to know.
    pub read_only: bool,
}

/// What a [`Volume`] is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum VolumeSource {
    /// A directory of the host: an entry of this name of the file system behind the tag [`crate::VOLUMES`].
    Directory(String),
    /// A file of the host: `file` in an entry of this name.
    File(String),
    /// What the container has there anyway: where its other files are, and beginning with what its image has. It can be written to where
    /// the root is read-only, and [`crate::files::Helper::Changes`] does not tell what is in it.
    Own,
}

/// What becomes of /etc/hosts and /etc/resolv.conf.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Names {
    /// Lines added to /etc/hosts below those for localhost and the host name, without line ends.
    pub hosts: Vec<String>,
    /// Content of /etc/resolv.conf; `None` leaves the image's own.
    pub resolv_conf: Option<String>,
}

/// How the guest ends itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum End {
    /// Power off: for kernels that know the exit port. Others would only halt.
    PowerOff,
    /// Reset: every kernel can (with `reboot=k`), and the monitor ends at it.
    Reset,
}
