//! `bulkhead restore`, and `bulkhead run NAME@warm`: a new microVM that goes on from a snapshot.

use std::cell::RefCell;

use anyhow::{Context, anyhow};
use guest_images::{Keeper, Store};
use serde_json::Value;
use vmm::config::{Paging, SerialConfig, SnapshotSource, VmConfig};
use vmm::events::monotonic_ns;
use vmm::host;

use crate::args::{self, Restore, Run, Settings, Talk};
use crate::bare::Bare;
use crate::container::{Place, breakdown, console_tail, devices, end};
use crate::failure::Outcome;
use crate::net;
use crate::owner::{BALLOON, Facts, History, Owner};
use crate::paths;
use crate::rates::{self, Rates};
use crate::rundir::RunDir;
use crate::session::{Io, Session};
use crate::signals::Guard;
use crate::snapshots::{Held, Name, Snapshots, What};

/// Restores it and waits for its end.
pub fn restore(args: Restore, talk: Talk, began: u64) -> Outcome {
    drop(host::open()?);
    let store = Store::open(paths::store())?;
    let held = Snapshots::of(store.dir())?.find(&args.snapshot)?;
    match held.record.what {
        What::Container { .. } => container(args, held, &store, talk, began),
        What::Machine { .. } => machine(args, held, talk),
    }
}

/// Starts a warm image.
pub fn run_warm(args: Run, talk: Talk, began: u64) -> Outcome {
    let [name, command @ ..] = args.image_and_command.as_slice() else {
        return Err(anyhow!("no image").into());
    };
    let name: Name = name.parse()?;
    let refused = [
        (!command.is_empty(), "a command"),
        (!args.env.is_empty(), "--env"),
        (!args.env_file.is_empty(), "--env-file"),
        (args.workdir.is_some(), "--workdir"),
        (args.user.is_some(), "--user"),
        (args.entrypoint.is_some(), "--entrypoint"),
        (args.read_only, "--read-only"),
        (args.kernel.is_some(), "--kernel"),
        (!args.volume.is_empty(), "--volume"),
        (!args.append.is_empty(), "--append"),
        (args.cold, "--cold"),
        (args.detach, "--detach"),
        (args.cidfile.is_some(), "--cidfile"),
        (!args.label.is_empty(), "--label"),
        (args.stop_signal.is_some(), "--stop-signal"),
        (args.settings != Settings::default(), "what it has beside its files (--tmpfs to --init)"),
        (args.place != args::Place::default(), "--ip, --mac-address or --network-alias"),
        (args.machine.memory.is_some(), "--memory"),
        (args.machine.cpus.is_some(), "--cpus"),
        (args.rates != Rates::default(), "a rate of its disks or network"),
    ];
    if let Some((_, what)) = refused.iter().find(|(given, _)| *given) {
        return Err(anyhow!(
            "'{name}' is a warm image: its process runs already, so {what} has no effect; leave it out"
        )
        .into());
    }
    let args = Restore {
        snapshot: name.to_string(),
        name: args.name,
        interactive: args.interactive,
        tty: args.tty,
        hostname: args.hostname,
        network: args.network,
        publish: args.publish,
        egress: args.egress,
    };
    restore(args, talk, began)
}

fn container(args: Restore, held: Held, store: &Store, talk: Talk, began: u64) -> Outcome {
    let guard: Guard<RunDir> = Guard::new().context("cannot wait for signals")?;
    let What::Container { terminal, stdin, hostname, .. } = &held.record.what else {
        return Err(anyhow!("not a container").into());
    };
    if args.tty && !terminal {
        return Err(anyhow!("-t: the process of '{}' has no terminal; leave it out", args.snapshot).into());
    }
    if args.interactive && !stdin {
        return Err(anyhow!("-i: the process of '{}' was started without input; leave it out", args.snapshot).into());
    }
    let io = Io::inherit(args.interactive, args.tty)?;
    let (saved, _) = vmm::snapshot::files::open(held.path())?;
    let kept = store.kept(Keeper::Snapshot(&held.record.id.to_string()))?;
    let kept = kept.ok_or_else(|| anyhow!("snapshot '{}': it has no list of layers", args.snapshot))?;
    let holding = guard.hold();
    let directory = RunDir::create(&paths::run(), args.name.as_deref())?;
    let (name, log, uds) = (directory.name().to_owned(), directory.file("console.log"), directory.file("vsock"));
    let (section, place) = (saved.config.devices.get(net::SECTION), args::Place::default());
    let who = net::Who { id: &name, names: &[&name], place: &place };
    let network = net::of_clone(section, args.network.as_ref(), &args.publish, &args.egress, who)
        .with_context(|| format!("snapshot '{}'", args.snapshot))?;
    let facts = Facts {
        name: name.clone(),
        what: held.record.what.clone(),
        vcpus: held.record.vcpus,
        memory_mib: held.record.memory_mib,
        layers: kept.keys.clone(),
    };
    let hostname = args.hostname.or_else(|| hostname.clone()).unwrap_or(name);
    let snapshot = held.path().to_owned();
    let session = Session::listen(&uds)?;
    let mut devices = devices(kept.layers.iter(), &uds)?;
    // It may be older than some of them.
    devices.retain(|section, _| saved.config.devices.contains_key(section));
    // Its writable layer, if that was on a disk, is a copy that ends with the microVM.
    let own = saved
        .config
        .devices
        .get("drives")
        .and_then(Value::as_array)
        .map_or(&[][..], |drives| drives.get(1..).unwrap_or(&[]));
    devices
        .get_mut("drives")
        .and_then(Value::as_array_mut)
        .into_iter()
        .for_each(|drives| drives.extend_from_slice(own));
    // What it has taken from its guest, it has in the clone as well.
    devices.extend(saved.config.devices.get(BALLOON).map(|balloon| (BALLOON.to_owned(), balloon.clone())));
    devices.extend(network.as_ref().map(|network| (net::SECTION.to_owned(), network.section.clone())));
    rates::keep(&saved.config.devices, &mut devices);
    let place = Place {
        session: &session,
        control: directory.file("api"),
        log: log.clone(),
        devices,
        hostname,
        network,
        upper: None,
        limits: held.record.limits(None),
        verbose: talk.verbose,
    };
    let mut owner = Owner::listen(&directory, facts, History::of(held), place.succession(&directory))?;
    holding.keep(directory);
    let ready = monotonic_ns();
    // Kept here from the moment on in which a signal is for the session.
    let directory = RefCell::new(None);
    let started = || {
        if let Some(passed) = guard.pass() {
            directory.replace(Some(passed));
        }
    };
    let result = place.revive(snapshot, io, &mut owner, &started)?;
    let result = place.follow(result, &mut owner)?;
    let console = if talk.verbose && result.is_err() { console_tail(&log) } else { String::new() };
    let result = end(result);
    drop((owner, session, directory, kept));
    if talk.verbose {
        eprint!("{console}");
        if let Ok(done) = &result {
            eprint!("{}", breakdown(began, ready, done.run_at, &done.outcome.times, true).table());
        }
    }
    result.map(|done| done.outcome.exit_code)
}

fn machine(args: Restore, held: Held, talk: Talk) -> Outcome {
    let flags = [(args.interactive, "-i"), (args.tty, "-t"), (args.hostname.is_some(), "--hostname")];
    if let Some((_, flag)) = flags.iter().find(|(given, _)| *given) {
        let name = &args.snapshot;
        return Err(anyhow!(
            "{flag}: '{name}' is of a bare microVM, whose console is on stdin and stdout; leave it out"
        )
        .into());
    }
    let (saved, _) = vmm::snapshot::files::open(held.path())?;
    let mut devices = saved.config.devices;
    devices.remove("drives");
    let interfaces = devices.get(net::SECTION).unwrap_or(&Value::Null);
    let interfaces = net::of_bare_clone(interfaces, args.network.as_ref(), &args.publish, &args.egress)
        .with_context(|| format!("snapshot '{}'", args.snapshot))?;
    if !interfaces.is_null() {
        devices.insert(net::SECTION.into(), interfaces);
    }
    let config = VmConfig {
        boot_source: None,
        snapshot: Some(SnapshotSource { path: held.path().to_owned(), resume: true, paging: Paging::Map }),
        machine: vmm::config::MachineConfig::default(),
        // What is typed is for one of them.
        serial: if devices.contains_key("console") { SerialConfig::Off } else { SerialConfig::Stdio },
        cpuid_cache: None,
        devices,
    };
    let bare = Bare {
        config,
        name: args.name,
        what: held.record.what.clone(),
        limits: held.record.limits(None),
        history: History::of(held),
        socket: None,
    };
    bare.run(talk)
}
