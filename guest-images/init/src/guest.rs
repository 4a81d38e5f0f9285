//! The life of the guest: connect, be told what to be, become it, attend to it, report its end.
//!
//! ```text
//! Hello ─► all that is the same for every container ─► Start ─► its own ─► the process runs ─────────► Exited
//!                            │ Prepare, Ready              ▲      ▲            │ Freeze, Frozen    ▲
//!                            └─► waits ── connection lost ─┘      │            └─► waits ── Thaw ──┘
//!                                                                 └ Thaw ──────────┘ connection lost
//! ```
//!
//! Where a connection is lost that way, this is a clone: it says Hello on a connection to another host.

use crate::alone::{self, Alone};
use crate::attend::{Container, attend};
use crate::beside;
use crate::control::{Control, HostGone};
use crate::exec::Execs;
use crate::failure::Failure;
use crate::freeze::Freezer;
use crate::helper;
use crate::names::{self, Names, Own};
use crate::network;
use crate::process::{self, Bounds, Defaults};
use crate::root;
use crate::running::Running;
use crate::scarcity;
use crate::settings;
use crate::stage::Stage;
use crate::streams::{Opening, Output, Streams};
use crate::sys::{Clock, PidNamespace, clock_ns, close_all_but_streams, freeze_file_system, reseed, set_wall_clock};
use crate::volumes::Volumes;
use alloc::boxed::Box;
use alloc::vec::Vec;
use guest_protocol::{
    CONTROL_PORT, End, ExitStatus, FailureKind, HostMessage, Layer, MAIN_PROCESS, Network, Phase, Seed, Start, Upper,
};
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::syncfs;
use rustix::io::{self, Errno};

/// How far the guest's clock may be from the host's before it is set, in nanoseconds: a message takes a while, and a
/// paravirtual clock may be better than what it says.
const CLOCK_TOLERANCE_NS: u64 = 500_000_000;
/// The first terminal of a new devpts instance.
const TERMINAL: &str = "/dev/pts/0";
pub(crate) const STREAMS: &str = "making the standard streams";

/// What a guest is made of, as far as that differs between a virtual machine and a test.
pub trait Machine {
    /// Connects to a port of the host.
    ///
    /// # Errors
    /// As socket(2) and connect(2).
    fn connect(&self, port: u32) -> io::Result<OwnedFd>;

    /// Begins to connect to a port of the host, on a socket that does not block. It can be written to when it is connected.
    ///
    /// # Errors
    /// As socket(2) and connect(2).
    fn begin_connect(&self, port: u32) -> io::Result<OwnedFd>;

    /// Mounts layer `index` of `count`, 0 being the lowest, on the directory `target`.
    ///
    /// # Errors
    /// As the system call that failed.
    fn mount_layer(&self, index: usize, count: usize, layer: &Layer, target: &str) -> io::Result<()>;

    /// Mounts the second disk, which has the writable layer of a container that is to keep it, on the directory `target`.
    ///
    /// # Errors
    /// As the system call that failed.
    fn mount_upper(&self, target: &str) -> io::Result<()>;

    /// Mounts the file system that has the host's directories on the directory `target`.
    ///
    /// # Errors
    /// As the system call that failed.
    fn mount_volumes(&self, target: &str) -> io::Result<()>;

    /// A directory of cgroup2 to make the container's cgroup in, which the container does not see.
    ///
    /// # Errors
    /// There is none: as the system call that failed.
    fn cgroups(&self) -> io::Result<OwnedFd>;

    /// What the kernel has said, as far as it is kept; nothing if that cannot be had.
    fn kernel_log(&self) -> Vec<u8>;

    /// Whether the kernel is this guest's own: then its random numbers, its clock and what has been written to its disks are seen to.
    fn has_kernel(&self) -> bool {
        true
    }

    /// Options of overlayfs beside its layers, each with a comma before it.
    fn overlay_options(&self) -> &'static str {
        ""
    }

    /// Whether this process has the privileges of a kernel's root, and not those of one of its users in a namespace of its own, who makes no
    /// devices.
    fn is_root(&self) -> bool {
        true
    }

    /// Whether there is an interface even if the container is to be on no network.
    fn shows_interface(&self) -> bool {
        false
    }

    /// Has an interface be there, which is to be set up.
    ///
    /// # Errors
    /// As the system call that failed.
    fn plug(&self) -> io::Result<()> {
        Ok(())
    }

    /// Which place in a guest that several containers share this is; none of one that a container has for itself.
    fn place(&self) -> Option<u8> {
        None
    }

    /// The machine that a container at a place of this one sees, if several can share it.
    fn member(&self, _place: u8) -> Option<Self>
    where
        Self: Sized,
    {
        None
    }

    /// Makes the working directory of this process, which is in mount namespace of its own, what init finds as a guest's first.
    ///
    /// # Errors
    /// As the system call that failed.
    fn enter(&self) -> io::Result<()> {
        Ok(())
    }

    /// In a copy of init: closes init's descriptors, which are none of this machine's.
    ///
    /// # Errors
    /// As close_range(2).
    fn forget_init(&self) -> io::Result<()> {
        close_all_but_streams()
    }

    /// Whether nothing uses the disks of this place.
    fn is_free(&self) -> bool {
        true
    }
}

/// Lives the whole life on a connected control connection; `init_ns` is when it began. Returns how the guest is to end.
pub fn run<M: Machine>(machine: &M, connection: OwnedFd, init_ns: u64) -> End {
    let mut end = End::Reset;
    // When the host is gone there is nobody to tell, and nothing left to do.
    let _: Result<(), HostGone> = live(machine, &mut Control::new(connection), init_ns, &mut end);
    end
}

/// The port that [`run`]'s connection goes to.
pub const PORT: u32 = CONTROL_PORT;

fn live<M: Machine>(machine: &M, control: &mut Control, init_ns: u64, end: &mut End) -> Result<(), HostGone> {
    control.hello(Phase::Booted, init_ns)?;
    // While the host answers.
    let started = match Stage::new(machine) {
        Err(failure) => Err(failure),
        Ok(stage) => {
            let (start, prepared) = wait_for_start(machine, control)?;
            *end = start.end;
            begin(machine, stage, *start, prepared)
        }
    };
    match started {
        Err(failure) => control.failed(MAIN_PROCESS, failure)?,
        Ok((mut container, root_ns)) => {
            control.started(MAIN_PROCESS, root_ns)?;
            let (status, exit_ns) = attend(machine, control, &mut container)?;
            let main = container.running.number();
            // A log of an emulated kernel takes its time: only where there is something to explain.
            let detail = match (status, machine.place(), &container.freezer) {
                (ExitStatus::Code(0), ..) => None,
                (_, None, _) => scarcity::killed(&machine.kernel_log(), main),
                (_, Some(_), Some(group)) if group.lacked_memory() => {
                    scarcity::killed_in(&machine.kernel_log(), group.name())
                }
                (_, Some(_), _) => None,
            };
            // All processes have ended. If it cannot be written, there is nothing to be done about it here.
            let _ = container.into_disk().map(|disk| match machine.place() {
                // It is the host's, and others' as well.
                _ if !machine.has_kernel() => Ok(()),
                None => freeze_file_system(disk),
                // It is unmounted with this process, and must not be kept from that.
                Some(_) => syncfs(disk),
            });
            if let Some(detail) = detail {
                control.out_of_memory(detail)?;
            }
            control.exited(MAIN_PROCESS, status, exit_ns)?;
        }
    }
    control.wait_for_close();
    Ok(())
}

/// What has been done for networks before it is known which one it will be.
#[derive(Debug, Default)]
struct Prepared {
    /// What the interface is.
    network: Option<Network>,
    /// Where one is that is to be on none.
    alone: Option<Alone>,
}

/// Waits for the host's `Start`, and says `Ready` if it asks. From then on a lost connection means that this is a clone,
/// whose host is another one: it introduces itself there. Also tells what has been prepared.
fn wait_for_start<M: Machine>(machine: &M, control: &mut Control) -> Result<(Box<Start>, Prepared), HostGone> {
    let mut ready = false;
    let mut prepared = Prepared::default();
    loop {
        match control.order() {
            Ok(HostMessage::Start(start)) => return Ok((start, prepared)),
            Ok(HostMessage::Prepare(network)) => {
                ready = true;
                prepared.network = network.filter(network::prepare);
                if machine.shows_interface() {
                    // One that cannot be had now is tried again when it is needed.
                    prepared.alone = Alone::make().ok();
                }
                // If the connection is lost already, the next turn finds that out.
                let _ = control.ready();
            }
            Err(HostGone::Lost) if ready => {
                let noticed_ns = clock_ns(Clock::Monotonic);
                *control = Control::new(machine.connect(PORT).map_err(|_| HostGone::Lost)?);
                control.hello(Phase::Prepared, noticed_ns)?;
            }
            Ok(_) => return Err(HostGone::Nonsense),
            Err(gone) => return Err(gone),
        }
    }
}

/// Everything from the order to the running process. Also tells when the root was complete.
fn begin<M: Machine>(
    machine: &M,
    mut stage: Stage,
    mut start: Start,
    prepared: Prepared,
) -> Result<(Container, u64), Failure> {
    let guest = |what| move |error| Failure::errno(FailureKind::Guest, what, error);
    // Before anything else: whatever is random from here on must not be what other clones get.
    if machine.has_kernel() {
        identify(&stage.random, &start.seed, start.wall_clock_ns)?;
    }
    rename(&start.hostname)?;
    let own = Own::new(&start);
    let terminal = start.process.terminal;
    // While the root is made, the host answers.
    let opening = Opening::begin(machine, MAIN_PROCESS, terminal.is_some(), start.process.stdin, Output::Later)
        .map_err(guest(STREAMS))?;
    let mut alone = None;
    if let Some(network) = &start.network {
        prepared.alone.into_iter().for_each(Alone::leave);
        machine.plug().map_err(guest("making the network interface"))?;
        network::set_up(network, prepared.network.as_ref())?;
    } else if machine.shows_interface() {
        alone = alone::be_alone(prepared.alone, &mut stage.mounts);
    }
    root::mount_layers(machine, &start.root)?;
    let on_disk = start.root.upper == Upper::Disk;
    let upper = if on_disk { root::upper_on_disk(machine)? } else { stage.upper };
    let stays = on_disk && start.helper.is_some();
    // On a disk that has an /etc already, only the whole root tells what that has become.
    let names = match start.root.upper {
        Upper::Disk if stays => None,
        Upper::Disk => Names::new().ok(),
        Upper::Memory { .. } => Some(stage.names),
    };
    let has_names = stays || names.map_or(Ok(false), |names| names.write(&start))?;
    let kept_apart = start.settings.beside.is_some_and(|beside| !beside.privileged);
    root::mount_overlay(&start.root, kept_apart, machine.overlay_options())?;
    let (before, after) = settings::split(&start.settings.tmpfs, &start.volumes);
    let volumes = Volumes::find(machine, core::mem::take(&mut start.volumes))?;
    root::switch()?;
    if !has_names {
        names::write_through(&start)?;
    }
    stage.mounts.attach()?;
    if kept_apart {
        beside::forbid_devices()?;
    }
    if let Some(beside) = start.settings.beside.as_ref().filter(|beside| beside.is_limited()) {
        stage.freezer.as_ref().ok_or(Errno::NODEV).map_err(guest("making a cgroup"))?.limit(beside)?;
    }
    settings::mount_tmpfs(&before)?;
    volumes.attach()?;
    settings::mount_tmpfs(&after)?;
    settings::apply(&start.settings, alone.as_ref())?;
    process::bound(start.settings.capabilities).map_err(guest("setting capabilities"))?;
    let root_ns = clock_ns(Clock::Monotonic);
    let (streams, ends) = match terminal {
        Some(size) => {
            let streams = Streams::terminal(machine, opening, size, start.process.stdin)?;
            root::bind_console(TERMINAL)?;
            streams
        }
        None => Streams::pipes(machine, opening).map_err(guest(STREAMS))?,
    };
    let stdio = match &ends[..] {
        [all] => [all.as_fd(); 3],
        [stdin, stdout, stderr] => [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()],
        _ => return Err(guest(STREAMS)(Errno::BADF)),
    };
    let freezer = stage.freezer;
    let cgroup = freezer.as_ref().map(Freezer::cgroup);
    let (running, defaults) = match &start.helper {
        Some(helper) => {
            if start.root.read_only {
                root::set_read_only(true)?;
            }
            let child = helper::start(helper, stdio, upper.as_fd(), PidNamespace::New, cgroup)?;
            (Running::new(child), Defaults::default())
        }
        None => {
            let bounds = Bounds::of(start.settings);
            process::start(start.process, bounds, &start.hostname, stdio, start.root.read_only, cgroup)?
        }
    };
    let streams = Streams { terminal_end: terminal.and_then(|_| ends.into_iter().next()), ..streams };
    let networked = start.network.is_some();
    let (execs, changes, random) = (Execs::default(), start.changes, stage.random);
    Ok((
        Container { upper, on_disk, running, streams, execs, defaults, freezer, own, networked, changes, random },
        root_ns,
    ))
}

/// Makes the kernel this guest's own: its random numbers and its clock.
pub(crate) fn identify(random: &OwnedFd, seed: &Seed, wall_clock_ns: u64) -> Result<(), Failure> {
    let guest = |what| move |error| Failure::errno(FailureKind::Guest, what, error);
    reseed(random, &seed.0).map_err(guest("seeding the random number generator"))?;
    if clock_ns(Clock::Real).abs_diff(wall_clock_ns) > CLOCK_TOLERANCE_NS {
        set_wall_clock(wall_clock_ns).map_err(guest("setting the clock"))?;
    }
    Ok(())
}

/// Gives it its name.
pub(crate) fn rename(hostname: &str) -> Result<(), Failure> {
    rustix::system::sethostname(hostname.as_bytes())
        .map_err(|error| Failure::errno(FailureKind::BadRequest, &alloc::format!("host name {hostname:?}"), error))
}
