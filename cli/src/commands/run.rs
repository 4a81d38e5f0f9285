//! `bulkhead run`: an image in, the command's own output and exit code out.
//!
//! ```text
//! image ready ─► run directory, initramfs, sockets ─► per-VM process ─► session ─► end the VM, remove the directory
//! └── a signal in here ends it all (signals::Guard) ──────────────────┘└ signals go to the command ┘
//! ```

use std::cell::RefCell;
use std::fs;

use anyhow::{Context, anyhow};
use guest_images::kernel::{self, KernelKind};
use guest_images::{ImageRef, PreparedImage, ProcessDefaults, Store};
use guest_protocol::{End, Found, Layer, LayerFs, Names, Process, Root, Seed, Start};
use vmm::config::{BootProtocol, BootSource, MachineConfig, SerialConfig, VmConfig};
use vmm::events::monotonic_ns;
use vmm::host::{self, KvmKind};

use super::restore::run_warm;
use crate::args::{Run, Talk};
use crate::container::{Place, breakdown, console_tail, devices, end, machine_id};
use crate::env;
use crate::failure::Outcome;
use crate::launch::Launch;
use crate::net;
use crate::output::Progress;
use crate::owner::{Facts, History, Owner};
use crate::paths;
use crate::rundir::RunDir;
use crate::session::{Io, Session};
use crate::signals::Guard;
use crate::snapshots::What;
use crate::snapshots::name::WARM;
use crate::templates::Templates;
use crate::volumes::Volumes;

/// Sectors of virtio disks and of layer ranges, in bytes.
const SECTOR: u64 = 512;
/// The kernels built here end the machine through this port (docs/interfaces.md).
pub const EXIT_PORT: &str = "bulkhead.exit=0x600";
/// For kernels that bring no command line of their own.
pub const USUAL_CMDLINE: &str = "quiet reboot=k panic=-1";

/// Runs it; `began` is when this process did.
pub fn run(mut args: Run, talk: Talk, began: u64) -> Outcome {
    if args.image_and_command[0].ends_with(WARM) {
        return run_warm(args, talk, began);
    }
    let guard: Guard<RunDir> = Guard::new().context("cannot wait for signals")?;
    let command = args.image_and_command.split_off(1);
    let image: ImageRef = args.image_and_command[0].parse().map_err(guest_images::ImageError::from)?;
    let io = Io::inherit(args.interactive, args.tty)?;
    // First what nothing works without, before anything is read or written.
    drop(host::open()?);
    let network = net::connection(args.network.as_ref(), &args.publish)?;
    let volumes = Volumes::find(&args.volume)?;
    let mut config = machine(&args)?;
    config.validate(host::memory_mib())?;

    let store = Store::open(paths::store())?;
    let prepared = store.prepare(&image, &mut Progress::new(talk))?;
    let image_ready = monotonic_ns();

    let holding = guard.hold();
    let directory = RunDir::create(&paths::run(), args.name.as_deref())?;
    let (name, log) = (directory.name().to_owned(), directory.file("console.log"));
    let (initrd, uds, control) = (directory.file("initrd"), directory.file("vsock"), directory.file("api"));
    let mut start = start(&args, command, &prepared, &name, network.as_ref())?;
    start.volumes = volumes.for_guest();
    let facts = facts(&args, &start.process.args, &prepared, &name);
    let session = Session::listen(&uds)?;
    let mut devices = devices(prepared.disk(), &uds)?;
    if let Some(network) = &network {
        devices.insert(net::SECTION.into(), network.section.clone());
    }
    devices.extend(volumes.section()?.map(|section| ("fs".into(), section)));
    let place = Place {
        session: &session,
        control: control.clone(),
        log: log.clone(),
        devices: devices.clone(),
        hostname: start.hostname.clone(),
        network,
        verbose: talk.verbose,
    };
    let mut owner = Owner::listen(&directory, facts, History::new()?, place.succession(&directory))?;
    holding.keep(directory);
    if let Some(source) = &mut config.boot_source {
        tracing::info!("kernel {}: {}", source.kernel_image_path.display(), source.boot_args);
        source.initrd_path = Some(initrd.clone());
    }
    config.serial = SerialConfig::Log { path: log.clone() };
    config.devices = devices;
    let templates = if args.cold { None } else { Templates::of(store.dir()).ok() };
    let launch = Launch { config, templates: templates.as_ref(), control, session: &session, verbose: talk.verbose };
    let booting = || {
        fs::write(&initrd, guest_images::initramfs::cpio(guest_images::INIT))
            .with_context(|| format!("write {}", initrd.display()))
    };
    // Kept here from the moment on in which a signal is for the session.
    let directory = RefCell::new(None);
    let started = || {
        if let Some(passed) = guard.pass() {
            directory.replace(Some(passed));
        }
    };
    let result = launch.run(start, io, &booting, &started, &mut owner)?;
    let result = place.follow(result, &mut owner)?;
    let console = if talk.verbose && result.is_err() { console_tail(&log) } else { String::new() };
    let result = end(result);
    drop((owner, session, directory, prepared));
    if talk.verbose {
        eprint!("{console}");
        if let Ok(done) = &result {
            eprint!("{}", breakdown(began, image_ready, done.run_at, &done.outcome.times, done.warm).table());
        }
    }
    result.map(|done| done.outcome.exit_code)
}

/// What others may know of it.
fn facts(args: &Run, command: &[String], image: &PreparedImage, name: &str) -> Facts {
    Facts {
        name: name.to_owned(),
        what: What::Container {
            image: args.image_and_command[0].clone(),
            command: What::shown(command),
            terminal: args.tty,
            stdin: args.interactive,
            hostname: args.hostname.clone(),
        },
        vcpus: args.machine.cpus(),
        memory_mib: args.machine.memory_mib(),
        layers: image.keys(),
    }
}

/// The machine without its devices.
fn machine(args: &Run) -> anyhow::Result<VmConfig> {
    let kernel = match &args.kernel {
        Some(path) => kernel::Kernel { path: path.clone(), cmdline: USUAL_CMDLINE.into() },
        None => kernel::find(kernel_kind(host::kind()))?,
    };
    let words = [kernel.cmdline.as_str(), EXIT_PORT].into_iter().chain(args.append.iter().map(String::as_str));
    Ok(VmConfig {
        snapshot: None,
        boot_source: Some(BootSource {
            kernel_image_path: kernel.path,
            initrd_path: None,
            boot_args: words.collect::<Vec<_>>().join(" "),
            protocol: BootProtocol::Auto,
        }),
        machine: MachineConfig {
            vcpu_count: args.machine.cpus(),
            mem_size_mib: args.machine.memory_mib(),
            track_dirty_pages: false,
        },
        serial: SerialConfig::Off,
        cpuid_cache: None,
        devices: serde_json::Map::new(),
    })
}

/// The kernel flavour that suits a kind of KVM.
pub fn kernel_kind(kvm: KvmKind) -> KernelKind {
    match kvm {
        KvmKind::SoftwareNested => KernelKind::Nested,
        KvmKind::VtX | KvmKind::AmdV => KernelKind::Hardware,
    }
}

/// What the guest is told.
fn start(
    args: &Run,
    command: Vec<String>,
    image: &PreparedImage,
    name: &str,
    network: Option<&net::Connection>,
) -> anyhow::Result<Start> {
    let own_kernel = args.kernel.is_none();
    let mut process = process(args, command, &image.config)?;
    process.found = image.find(&process.user, process.args.first().map_or("", String::as_str), &process.env);
    Ok(Start {
        // The session fills in both when it sends this.
        seed: Seed([0; 32]),
        wall_clock_ns: 0,
        machine_id: machine_id()?,
        hostname: args.hostname.clone().unwrap_or_else(|| name.to_owned()),
        root: Root { layers: image.disk().take(1).map(layer).collect(), upper_bytes: None, read_only: args.read_only },
        volumes: Vec::new(),
        network: network.as_ref().map(|network| network.guest.clone()),
        names: Names { hosts: Vec::new(), resolv_conf: network.and_then(|network| network.resolv_conf.clone()) },
        end: if own_kernel { End::PowerOff } else { End::Reset },
        process,
    })
}

/// The file system that the disk begins with.
fn layer(image: &guest_images::Layer) -> Layer {
    Layer { start_sector: 0, sectors: image.bytes.div_ceil(SECTOR), fs: LayerFs::Erofs }
}

/// The process: the image's wishes, changed by the flags, with docker's rules.
fn process(args: &Run, command: Vec<String>, image: &ProcessDefaults) -> anyhow::Result<Process> {
    let mut words = match args.entrypoint.as_deref() {
        // An entrypoint of the user's own leaves nothing of the image's command.
        Some("") => vec![],
        Some(program) => vec![program.to_owned()],
        None => image.entrypoint.clone(),
    };
    if !command.is_empty() {
        words.extend(command);
    } else if args.entrypoint.is_none() {
        words.extend(image.cmd.iter().cloned());
    }
    if words.is_empty() {
        return Err(anyhow!("no command: the image names none; write one after the image"));
    }
    let cwd = match args.workdir.as_deref() {
        Some(dir) if !dir.starts_with('/') => return Err(anyhow!("working directory '{dir}': not an absolute path")),
        Some(dir) => dir.to_owned(),
        None if image.working_dir.is_empty() => "/".into(),
        None if image.working_dir.starts_with('/') => image.working_dir.clone(),
        None => format!("/{}", image.working_dir),
    };
    Ok(Process {
        args: words,
        env: env::merge(&image.env, &args.env_file, &args.env, |key| std::env::var(key).ok())?,
        cwd,
        user: args.user.clone().unwrap_or_else(|| image.user.clone()),
        // The session fills in both, from the streams that there are.
        terminal: None,
        stdin: false,
        found: Found::default(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Cli, Verb};
    use clap::Parser as _;

    fn words(list: &[&str]) -> Vec<String> {
        list.iter().map(|&word| word.to_owned()).collect()
    }

    fn image() -> ProcessDefaults {
        ProcessDefaults {
            entrypoint: words(&["/entry", "-x"]),
            cmd: words(&["default"]),
            env: words(&["A=image", "B=image"]),
            working_dir: "/srv".into(),
            user: "app".into(),
            ..ProcessDefaults::default()
        }
    }

    fn process_of(line: &[&str], image: &ProcessDefaults) -> anyhow::Result<Process> {
        let cli = Cli::parse_from(["bulkhead", "run"].iter().chain(line));
        let Verb::Run(mut run) = cli.verb else { panic!("not run") };
        let command = run.image_and_command.split_off(1);
        process(&run, command, image)
    }

    #[test]
    fn a_command_replaces_cmd_and_an_entrypoint_both() {
        let args = |line: &[&str]| process_of(line, &image()).unwrap().args;
        assert_eq!(args(&["i"]), ["/entry", "-x", "default"]);
        assert_eq!(args(&["i", "a", "b"]), ["/entry", "-x", "a", "b"]);
        assert_eq!(args(&["--entrypoint", "sh", "i"]), ["sh"]);
        assert_eq!(args(&["--entrypoint", "sh", "i", "-c", "x"]), ["sh", "-c", "x"]);
        assert_eq!(args(&["--entrypoint", "", "i", "ls"]), ["ls"]);
        assert!(process_of(&["--entrypoint", "", "i"], &image()).is_err());
        assert!(process_of(&["i"], &ProcessDefaults::default()).is_err());
    }

    #[test]
    fn flags_win_over_the_image() {
        let got = process_of(&["-e", "A=flag", "-e", "C=1", "-w", "/tmp", "-u", "0:0", "i"], &image()).unwrap();
        assert_eq!(got.env, ["A=flag", "B=image", "C=1"]);
        assert_eq!((got.cwd.as_str(), got.user.as_str()), ("/tmp", "0:0"));
        let got = process_of(&["i"], &image()).unwrap();
        assert_eq!((got.cwd.as_str(), got.user.as_str()), ("/srv", "app"));
        assert!(process_of(&["-w", "rel", "i"], &image()).unwrap_err().to_string().contains("rel"));
    }
}
