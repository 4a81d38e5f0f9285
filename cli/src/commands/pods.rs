//! `bulkhead pod`: pods, made, listed, started, stopped and removed, with their containers.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use serde_json::{Value, json};

use super::containers::{self as verbs, each};
use super::inspect;
use super::run::decide_network;
use crate::args::{Filter, Kill, PodCreate, PodVerb as Args, PodWhat, Rm, Stop, Talk};
use crate::clock;
use crate::containers::record::now_ns;
use crate::containers::{ContainersError, Entry, Status};
use crate::failure::{Failure, Outcome, conclude, sanitize};
use crate::life;
use crate::output::{self, Columns};
use crate::pods;
use crate::volumes;

/// How long one that is being started may take to be removed.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two tries.
const INTERVAL: Duration = Duration::from_millis(50);

/// Does the one thing that was asked for.
pub fn pod(args: Args, talk: Talk) -> Outcome {
    match args.what {
        PodWhat::Create(create) => {
            let id = make(*create)?;
            Ok(output::print(&format!("{id}\n")).map(|()| 0)?)
        }
        PodWhat::Ls { filter, format, no_trunc } => list(&filter, &format, no_trunc, talk),
        PodWhat::Inspect { format, names } => {
            inspect::show(names.iter().map(|name| pods::find(name).and_then(|entry| describe(&entry))), &format)
        }
        PodWhat::Start { names } => each(&names, |name| start(name).map(|()| name.to_owned())),
        PodWhat::Stop { seconds, names } => {
            each(&names, |name| stop(&pods::find(name)?, seconds).map(|()| name.to_owned()))
        }
        PodWhat::Kill { signal, names } => each(&names, |name| kill(name, signal).map(|()| name.to_owned())),
        PodWhat::Rm { force, names } => each(&names, |name| remove(name, force).map(|()| name.to_owned())),
        PodWhat::Prune { .. } => prune(),
    }
}

/// Makes one that does not run; returns its id.
pub fn make(create: PodCreate) -> anyhow::Result<String> {
    let (name, labels) = (create.name.clone().or_else(|| create.named.clone()), create.label.clone());
    let mut flags = create.flags();
    if flags.volume.iter().any(|volume| !volume.is_given()) {
        return Err(anyhow!("-v DST: in a pod a volume has a name, as NAME:DST"));
    }
    decide_network(&mut flags)?;
    life::check(&flags)?;
    flags.volume.iter_mut().try_for_each(|volume| volume.make_absolute()).context("-v")?;
    if let Some(kernel) = &mut flags.kernel {
        *kernel = std::path::absolute(&*kernel)?;
    }
    // Held until the record says that it has them.
    let _volumes = volumes::prepare_empty(&flags.volume)?;
    Ok(pods::create(name.as_deref(), flags, &labels)?.to_string())
}

const COLUMNS: Columns<6> = Columns {
    head: ["POD ID", "NAME", "STATUS", "CREATED", "# OF CONTAINERS", "PLACES"],
    fields: ["Id", "Name", "Status", "Created", "NumberOfContainers", "Places"],
};

fn list(filters: &[Filter], format: &str, whole: bool, talk: Talk) -> Outcome {
    let entries = pods::existing().map(|pods| pods.list()).transpose()?.unwrap_or_default();
    let entries = entries.iter().filter(|entry| fits(entry, filters));
    let rows = entries.map(|entry| row(entry, whole)).collect::<Result<Vec<_>, _>>()?;
    if talk.quiet {
        output::print(&rows.iter().map(|row| format!("{}\n", output::text(row, "Id"))).collect::<String>())?;
        return Ok(0);
    }
    output::listing(format, &COLUMNS, rows)
}

/// Under podman's names.
fn row(entry: &Entry, whole: bool) -> Result<Value, ContainersError> {
    let record = &entry.record;
    let members = pods::members(&record.id)?;
    let age = clock::human(Duration::from_nanos(now_ns().saturating_sub(record.created_ns)));
    let containers: Vec<Value> = members
        .iter()
        .map(|member| json!({ "Id": member.record.id, "Names": member.name, "Status": member.record.state.word() }))
        .collect();
    Ok(json!({
        "Id": if whole { record.id.as_str() } else { record.id.short() },
        "Name": entry.name,
        "Status": status(entry),
        "Created": format!("{age} ago"),
        "NumberOfContainers": members.len().to_string(),
        "Containers": containers,
        "Places": record.flags.places.unwrap_or(0).to_string(),
        "Labels": record.labels,
    }))
}

/// As podman says it.
fn status(entry: &Entry) -> &'static str {
    match entry.record.state.status {
        Status::Created => "Created",
        Status::Running => "Running",
        Status::Exited => "Exited",
    }
}

/// Values of the same key are alternatives, different keys conditions; but each label is a condition of its own.
fn fits(entry: &Entry, filters: &[Filter]) -> bool {
    let fits = |filter: &Filter| match (filter.key.as_str(), filter.value.as_str()) {
        ("name", part) => entry.name.contains(part),
        ("id", part) => entry.record.id.as_str().starts_with(part),
        ("status", word) => status(entry).eq_ignore_ascii_case(word),
        (_, label) => match label.split_once('=') {
            Some((key, value)) => entry.record.labels.get(key).is_some_and(|found| found == value),
            None => entry.record.labels.contains_key(label),
        },
    };
    filters.iter().all(|filter| match filter.key.as_str() {
        "label" => fits(filter),
        key => filters.iter().filter(|other| other.key == key).any(fits),
    })
}

fn describe(entry: &Entry) -> anyhow::Result<Value> {
    let (record, flags) = (&entry.record, &entry.record.flags);
    let members = pods::members(&record.id)?;
    let members: Vec<Value> = members
        .iter()
        .map(|member| json!({ "Id": member.record.id, "Name": member.name, "State": member.record.state.word() }))
        .collect();
    let ports: Vec<String> =
        flags.publish.iter().map(|port| format!("{}:{}:{}", port.host_ip, port.host_port, port.guest_port)).collect();
    Ok(json!({
        "Id": record.id, "Name": entry.name, "Created": clock::rfc3339(record.created_ns), "State": status(entry),
        "Error": record.state.error, "Hostname": flags.hostname.as_deref().unwrap_or(record.id.short()), "Labels": record.labels,
        "NumContainers": members.len(), "Containers": members, "Places": flags.places,
        "Memory": flags.machine.memory_mib() << 20, "CPUs": f64::from(flags.machine.all_cpus()),
        "Network": flags.network.as_ref().map_or("none".into(), ToString::to_string), "Ports": ports,
        "Mounts": flags.volume.iter().map(|volume| sanitize(&volume.shown())).collect::<Vec<_>>(),
        "Sandbox": inspect::sandbox(entry),
    }))
}

/// The names by which the verbs on containers find a pod's.
fn words(entry: &Entry, live: bool) -> anyhow::Result<Vec<String>> {
    let members = pods::members(&entry.record.id)?.into_iter();
    let members = members.filter(|member| !live || member.record.state.is_live());
    Ok(members.map(|member| member.record.id.to_string()).collect())
}

fn start(name: &str) -> anyhow::Result<()> {
    pods::start(name)?;
    for member in words(&pods::find(name)?, false)? {
        verbs::in_background(&member).with_context(|| format!("container {}", member.get(..12).unwrap_or(&member)))?;
    }
    Ok(())
}

fn stop(entry: &Entry, seconds: i64) -> anyhow::Result<()> {
    let args = Stop { signal: None, seconds, containers: Vec::new() };
    words(entry, true)?.iter().try_for_each(|member| verbs::stop_one(member, &args))?;
    end(entry)
}

/// Ends a pod's microVM, whatever runs in it.
fn end(entry: &Entry) -> anyhow::Result<()> {
    let pods = pods::all()?;
    let entry = match pods.find(entry.record.id.as_str()) {
        Err(ContainersError::NotFound(_)) => return Ok(()),
        other => other?,
    };
    match verbs::Running::among(&pods, &entry)? {
        Some(running) => running.end(),
        None => Ok(()),
    }
}

fn kill(name: &str, signal: u8) -> anyhow::Result<()> {
    let entry = pods::find(name)?;
    let members = words(&entry, true)?;
    if members.is_empty() && entry.record.state.status != Status::Running {
        return Err(anyhow!("cannot kill pod {}: it is not running", entry.name));
    }
    match verbs::kill(&Kill { signal, containers: members.clone() }).map_err(|failure| failure.error) {
        Ok(_) if members.is_empty() => end(&entry),
        Ok(0) => Ok(()),
        Ok(_) | Err(None) => Err(anyhow!("pod {}: not all of its containers could be sent the signal", entry.name)),
        Err(Some(error)) => Err(error),
    }
}

fn remove(name: &str, force: bool) -> anyhow::Result<()> {
    let entry = match pods::find(name) {
        Err(_)
            if force
                && pods::existing().is_none_or(|pods| matches!(pods.find(name), Err(ContainersError::NotFound(_)))) =>
        {
            return Ok(());
        }
        other => other?,
    };
    let live = words(&entry, true)?;
    if !force && (!live.is_empty() || entry.record.state.status == Status::Running) {
        return Err(anyhow!(
            "cannot remove pod \"{}\": it is running: stop it before, or remove it with -f",
            entry.name
        ));
    }
    if force {
        // With it end all that are in it.
        end(&entry)?;
    }
    for member in words(&entry, false)? {
        // One that goes with its end may have gone.
        if inspect::find(&member).is_ok() {
            verbs::remove_one(&member, &Rm { force, volumes: false, containers: Vec::new() })?;
        }
    }
    let (pods, deadline) = (pods::all()?, Instant::now() + PATIENCE);
    loop {
        match pods.remove(entry.record.id.as_str()) {
            Ok(_) | Err(ContainersError::NotFound(_)) => return Ok(()),
            // A container that was about to run may have had it started.
            Err(ContainersError::Busy(_)) if force && Instant::now() < deadline => end(&entry)?,
            Err(ContainersError::Busy(name)) => {
                return Err(anyhow!("pod {name} is in use: it is being started, or ended"));
            }
            Err(error) => return Err(error.into()),
        }
        thread::sleep(INTERVAL);
    }
}

fn prune() -> Outcome {
    let (mut removed, mut code) = (String::new(), 0);
    for entry in pods::existing().map(|pods| pods.list()).transpose()?.unwrap_or_default() {
        let idle = entry.record.state.status != Status::Running && words(&entry, true)?.is_empty();
        if !idle {
            continue;
        }
        match remove(entry.record.id.as_str(), false) {
            Ok(()) => removed += &format!("{}\n", entry.record.id),
            Err(error) => code = conclude(Err(Failure::with_code(1, error)), false),
        }
    }
    output::print(&removed)?;
    Ok(code)
}
