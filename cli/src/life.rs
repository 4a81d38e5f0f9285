//! One life of a container: from its record to its end, whoever looks after it.
//!
//! ```text
//! record, layers ─► run directory, initramfs, sockets ─► per-VM process ─► session ─► end the VM, say so in the record
//!     └── a signal in here ends it all (signals::Guard) ──────────────────┘└ signals go to the process ┘
//! ```

pub mod contained;
mod member;

use std::cell::RefCell;
use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use anyhow::Context;
use guest_images::kernel;
use guest_images::{Layer, LayerKey};
use guest_protocol::files::Helper;
use guest_protocol::{End, Layer as DiskLayer, LayerFs, Root, Seed, Start, Upper};
use serde_json::Value;
use vmm::config::{BootProtocol, BootSource, MachineConfig, SerialConfig, VmConfig};
use vmm::host::{self, KvmKind};

use crate::args::{Isolation, Run, Talk};
use crate::cgroup;
use crate::container::{Done, Place, breakdown, console_lines, console_tail, devices, end, machine_id};
use crate::containers::record::{Cause, FORBIDDEN, KILLED};
use crate::containers::{Held, Record};
use crate::failure::{Failure, Outcome, one_line};
use crate::launch::Launch;
use crate::monitor::{self, MonitorError};
use crate::net;
use crate::oci;
use crate::owner::{Attached, Facts, History, Owner, Shared, Tracked};
use crate::paths;
use crate::pods::{self, member::Told};
use crate::rundir::RunDir;
use crate::session::{self, Io, Session};
use crate::signals::{Guard, Holding};
use crate::snapshots::What;
use crate::supervisor::Report;
use crate::templates::Templates;
use crate::upper;
use crate::volumes::{self, Volumes};

/// Sectors of virtio disks and of layer ranges, in bytes.
const SECTOR: u64 = 512;
/// The kernels built here end the machine through this port (docs/interfaces.md).
pub const EXIT_PORT: &str = "bulkhead.exit=0x600";
/// For kernels that bring no command line of their own.
pub const USUAL_CMDLINE: &str = "quiet reboot=k panic=-1";

/// What a signal takes away before there is a process that could have it.
pub type Kept = (RunDir, Held);

/// A container that is to run.
pub struct Life {
    /// What it is called.
    pub name: String,
    /// Its record.
    pub record: Record,
    /// What its disk is made of, held in the store by the caller.
    pub layers: Vec<Layer>,
    /// The names of those.
    pub keys: Vec<LayerKey>,
    /// Where its streams lead to.
    pub io: Io,
    /// Who is at those of its process.
    pub attached: Attached,
    /// Who is to hear that the process has started.
    pub report: Option<Report>,
    /// Who is to hear what the process has changed, if it succeeds ([`crate::helping::Helping::expect`]).
    pub changes: Option<UnixStream>,
    /// How much to say.
    pub talk: Talk,
    /// When this program began, and when the image was ready (CLOCK_MONOTONIC, ns).
    pub times: [u64; 2],
}

/// What nothing works without, looked at before anything is made.
pub fn check(flags: &Run) -> anyhow::Result<()> {
    if flags.isolation == Isolation::Container {
        oci::check(flags)?;
        oci::program(flags.runtime.as_deref())?;
    } else {
        drop(host::open()?);
    }
    let network = net::check(flags.network.as_ref(), &flags.publish, &flags.egress, &flags.place)?;
    if network && flags.isolation == Isolation::Container {
        oci::check_interfaces()?;
    }
    flags.rates.check(network)?;
    Volumes::check(&flags.volume)?;
    if flags.isolation == Isolation::Container { Ok(()) } else { check_size(flags) }
}

/// That this host has a machine of this size.
pub fn check_size(flags: &Run) -> anyhow::Result<()> {
    machine(flags)?.validate(host::memory_mib())?;
    cgroup::check(flags.machine.limits().quota)?;
    Ok(())
}

impl Life {
    /// Runs it to its end. The outcome is the process's, or says why there is none.
    pub fn live(self, guard: &Guard<Kept>, holding: Holding<'_, Kept>, held: Held) -> Outcome {
        let Life { name, record, layers, keys, mut io, attached, report, changes, talk, times } = self;
        io.recorder = Some(attached.recorder());
        let tracked = Tracked { record: record.clone(), dir: held.dir(), report, attached };
        let tracked: Shared = Rc::new(RefCell::new(tracked));
        let (mut held, kept) = (Some(held), RefCell::new(None));
        let this = Running { name, record, layers, keys, io, changes, talk };
        let [began, image_ready] = times;
        let result = this.run(guard, holding, &mut held, &kept, &tracked);
        let kept: Option<Kept> = guard.pass().or_else(|| kept.take());
        let held = kept.map(|(_, held)| held).or(held);
        let (code, cause, error) = match &result {
            Ok(done) => (done.outcome.exit_code, Cause::Process, String::new()),
            Err(failure) => {
                let (code, cause) = judge(failure);
                (code, cause, failure.error.as_ref().map(one_line).unwrap_or_default())
            }
        };
        // One that goes takes its record with it.
        tracked.borrow_mut().ended(code, cause, error);
        drop(held);
        volumes::sweep();
        tracked.borrow_mut().attached.end(result.as_ref().map(|done| done.outcome.exit_code));
        let report = tracked.borrow_mut().report.take();
        let done = result.inspect_err(|failure| report.into_iter().for_each(|report| report.failed(failure)))?;
        if talk.verbose {
            eprint!("{}", breakdown(began, image_ready, done.run_at, &done.outcome.times, done.warm).table());
        }
        Ok(done.outcome.exit_code)
    }
}

/// A container on its way, when it is known who has to do with it.
struct Running {
    name: String,
    record: Record,
    layers: Vec<Layer>,
    keys: Vec<LayerKey>,
    io: Io,
    changes: Option<UnixStream>,
    talk: Talk,
}

impl Running {
    /// What it is connected to, if anything.
    fn connection(&self) -> anyhow::Result<Option<net::Connection>> {
        let (flags, short) = (&self.record.flags, self.record.id.short());
        let who = net::Who { id: self.record.id.as_str(), names: &[&self.name, short], place: &flags.place };
        net::connection(flags.network.as_ref(), &flags.publish, &flags.egress, who)
    }

    fn run(
        self,
        guard: &Guard<Kept>,
        holding: Holding<'_, Kept>,
        held: &mut Option<Held>,
        kept: &RefCell<Option<Kept>>,
        tracked: &Shared,
    ) -> Result<Done, Failure> {
        if let Some(pod) = self.record.flags.pod.clone() {
            return self.run_in_pod(&pod, guard, holding, held, kept, tracked);
        }
        let flags = &self.record.flags;
        if flags.isolation == Isolation::Container {
            return self.run_contained(guard, holding, held, kept, tracked);
        }
        if flags.require_jail {
            monitor::require_jail();
        }
        let network = self.connection()?;
        let (volumes, limits) = (Volumes::find(&flags.volume)?, flags.machine.limits());
        let mut config = machine(flags)?;
        config.validate(host::memory_mib())?;
        let directory = RunDir::create(&paths::run(), Some(self.record.id.short()))?;
        let log = directory.file("console.log");
        let (initrd, uds, control) = (directory.file("initrd"), directory.file("vsock"), directory.file("api"));
        let mut start = start(&self.record, &self.layers, network.as_ref())?;
        let session = Session::listen(&uds)?;
        let mut devices = devices(self.layers.iter(), &uds)?;
        let upper = upper_of(&self.record, &tracked.borrow().dir);
        if let Some(places) = flags.places {
            Told::of(&start, volumes.for_guest()).leave(&directory.path())?;
            start.helper = Some(Helper::Wait);
            devices.insert("drives".into(), pods::drives(places));
        } else {
            start.volumes = volumes.for_guest();
            if let Some(drives) = devices.get_mut("drives").and_then(Value::as_array_mut) {
                drives.push(upper::drive(upper.as_deref())?);
            }
        }
        if let Some(network) = &network {
            devices.insert(net::SECTION.into(), network.section.clone());
        }
        devices.extend(volumes.section()?.map(|section| (volumes::SECTION.into(), section)));
        flags.rates.limit(&mut devices);
        let place = Place {
            session: &session,
            control: control.clone(),
            log: log.clone(),
            devices: devices.clone(),
            hostname: start.hostname.clone(),
            network,
            upper,
            limits,
            verbose: self.talk.verbose,
        };
        let facts = facts(&self.name, &self.record, self.keys);
        let mut owner = Owner::listen(&directory, facts, History::new()?, place.succession(&directory))?;
        owner.has_places(flags.places).context("cannot wait for the pod's containers")?;
        owner.track(tracked.clone()).context("cannot listen to whoever it is started for")?;
        self.changes.map_or(Ok(()), |client| owner.tell_changes_to(client)).context("the way to the changes")?;
        if let Some(held) = held.take() {
            holding.keep((directory, held));
        }
        if let Some(source) = &mut config.boot_source {
            tracing::info!("kernel {}: {}", source.kernel_image_path.display(), source.boot_args);
            source.initrd_path = Some(initrd.clone());
        }
        config.serial = SerialConfig::Log { path: log.clone() };
        config.devices = devices;
        let templates = if flags.cold { None } else { Templates::of(&paths::store()).ok() };
        let launch = Launch {
            config,
            templates: templates.as_ref(),
            control,
            session: &session,
            limits,
            verbose: self.talk.verbose,
        };
        let booting = || write_initrd(&initrd);
        // Kept here from the moment on in which a signal is for the session.
        let started = || {
            if let Some(passed) = guard.pass() {
                kept.replace(Some(passed));
            }
        };
        let result = launch.run(start, self.io, &booting, &started, &mut owner)?;
        let result = place.follow(result, &mut owner)?;
        let console = if self.talk.verbose && result.is_err() { console_tail(&log) } else { String::new() };
        let result = end(result);
        if let Err(failure) = &result
            && judge(failure).1 == Cause::Guest
        {
            tracked.borrow_mut().record.state.console = console_lines(&log).unwrap_or_default();
        }
        eprint!("{console}");
        result
    }
}

/// Makes what a container's guest boots from beside its kernel.
pub fn write_initrd(path: &Path) -> anyhow::Result<()> {
    fs::write(path, guest_images::initramfs::cpio(guest_images::INIT))
        .with_context(|| format!("write {}", path.display()))
}

/// What a container's record says of an end without an outcome: its code, and of which kind it was.
fn judge(failure: &Failure) -> (u8, Cause) {
    let Some(error) = &failure.error else { return (failure.code, Cause::Ordered) };
    if error.is::<oci::Lost>() {
        return (KILLED, Cause::MonitorKilled);
    }
    match error.downcast_ref() {
        Some(MonitorError::Lost(_)) => (KILLED, Cause::MonitorKilled),
        Some(MonitorError::OutOfMemory) => (KILLED, Cause::HostOutOfMemory),
        Some(MonitorError::Forbidden) => (FORBIDDEN, Cause::Forbidden),
        Some(MonitorError::Guest(_)) => (failure.code, Cause::Guest),
        _ => (failure.code, Cause::Failed),
    }
}

/// The end of one that has no microVM of its own.
fn done(outcome: session::Outcome) -> Done {
    Done { outcome, warm: true, run_at: None }
}

/// The disk of a container that has one. Most that go with their end have no use for it.
pub fn upper_of(record: &Record, dir: &Path) -> Option<PathBuf> {
    record.flags.on_disk().then(|| dir.join(upper::FILE))
}

/// What others may know of it.
fn facts(name: &str, record: &Record, layers: Vec<LayerKey>) -> Facts {
    let flags = &record.flags;
    Facts {
        name: name.to_owned(),
        what: What::Container {
            image: record.image().to_owned(),
            command: What::shown(&record.process.args),
            terminal: flags.tty,
            stdin: flags.interactive,
            hostname: flags.hostname.clone(),
        },
        vcpus: flags.machine.cpus(),
        memory_mib: flags.machine.memory_mib(),
        layers,
    }
}

/// The least segments of a large packet that the guest's TCP makes. Where guest kernels are emulated a packet costs the same whatever
/// is in it. To a peer that seems slow, and a fast one does since every answer to it takes its time, Linux sends small ones, so that
/// they do not come in bursts: two segments, and a tenth of the speed. These are 64 KiB.
const LARGE_PACKETS: &str = "sysctl.net.ipv4.tcp_min_tso_segs=44";

/// The machine without its devices.
pub fn machine(flags: &Run) -> anyhow::Result<VmConfig> {
    let packets = (host::kind() == KvmKind::SoftwareNested).then_some(LARGE_PACKETS);
    let kernel = match &flags.kernel {
        Some(path) => kernel::Kernel { path: path.clone(), cmdline: USUAL_CMDLINE.into() },
        None => kernel::find(kernel_kind(host::kind()))?,
    };
    let words = [kernel.cmdline.as_str(), EXIT_PORT].into_iter().chain(packets);
    let words = words.chain(flags.append.iter().map(String::as_str));
    Ok(VmConfig {
        snapshot: None,
        boot_source: Some(BootSource {
            kernel_image_path: kernel.path,
            initrd_path: None,
            boot_args: words.collect::<Vec<_>>().join(" "),
            protocol: BootProtocol::Auto,
        }),
        machine: MachineConfig {
            vcpu_count: flags.machine.cpus(),
            mem_size_mib: flags.machine.memory_mib(),
            track_dirty_pages: false,
        },
        serial: SerialConfig::Off,
        cpuid_cache: None,
        devices: serde_json::Map::new(),
    })
}

/// The kernel flavour that suits a kind of KVM.
pub fn kernel_kind(kvm: KvmKind) -> kernel::KernelKind {
    match kvm {
        KvmKind::SoftwareNested => kernel::KernelKind::Nested,
        KvmKind::VtX | KvmKind::AmdV => kernel::KernelKind::Hardware,
    }
}

/// What the guest is told.
pub fn start(record: &Record, layers: &[Layer], network: Option<&net::Connection>) -> anyhow::Result<Start> {
    let flags = &record.flags;
    // Only at a tap the gateway is this host (passt: `--no-map-gw`).
    let taps = ["host_dev_name", "new_tap"];
    let at_tap = network.filter(|network| taps.iter().any(|tap| !network.section[0][tap].is_null()));
    let gateway = at_tap.and_then(|network| network.guest.address?.gateway).map(Ipv4Addr::from);
    let mut names = flags.settings.names(network.and_then(|network| network.resolv_conf.clone()), gateway)?;
    if let (Some(own), false) = (network.and_then(|network| network.membership.as_ref()), flags.settings.dns.is_empty())
    {
        // Who is in its network, only that one's resolver knows.
        let others = names.resolv_conf.unwrap_or_default();
        names.resolv_conf = Some(format!("nameserver {}\n{others}", own.network.gateway));
    }
    Ok(Start {
        // The session fills in both when it sends this.
        seed: Seed([0; 32]),
        wall_clock_ns: 0,
        machine_id: machine_id()?,
        hostname: flags.hostname.clone().unwrap_or_else(|| record.id.short().to_owned()),
        root: Root {
            layers: layers.iter().take(1).map(layer).collect(),
            upper: if flags.on_disk() { Upper::Disk } else { Upper::Memory { bytes: None } },
            read_only: flags.read_only,
        },
        volumes: Vec::new(),
        network: network.as_ref().map(|network| network.guest.clone()),
        names,
        settings: flags.settings.for_guest(),
        end: if flags.kernel.is_none() { End::PowerOff } else { End::Reset },
        process: record.process.clone(),
        helper: None,
        changes: flags.for_layer,
    })
}

/// The file system that the disk begins with.
fn layer(image: &Layer) -> DiskLayer {
    DiskLayer { start_sector: 0, sectors: image.bytes.div_ceil(SECTOR), fs: LayerFs::Erofs }
}
