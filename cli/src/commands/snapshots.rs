//! `bulkhead snapshot`, `commit`, `rollback` and `snapshots`: what is asked of a running microVM's owner, and of the store.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::anyhow;
use serde_json::{Value, json};

use crate::args::{Commit, Format, Rollback, Snapshot, Snapshots as Args, SnapshotsWhat, Talk};
use crate::attend::Order;
use crate::attend::client::ask;
use crate::failure::{Failure, Outcome, conclude, sanitize};
use crate::output;
use crate::paths;
use crate::running;
use crate::size::human;
use crate::snapshots::tree::{Placed, arrange};
use crate::snapshots::{Name, Snapshots};

/// Takes a snapshot of a running microVM and prints its name.
pub fn snapshot(args: &Snapshot, talk: Talk) -> Outcome {
    let name = args.name.as_deref().map(Name::plain).transpose()?;
    let taken = take(&args.vm, name.as_ref(), talk).map_err(Failure::refused)?;
    match args.format {
        Format::Json => output::json(&taken)?,
        Format::Table => output::print(&format!("{}\n", text(&taken, "name")?))?,
    }
    Ok(0)
}

/// Makes a warm image of a running container and prints its name.
pub fn commit(args: &Commit, talk: Talk) -> Outcome {
    let taken = take(&args.vm, Some(&Name::warm(&args.name)?), talk).map_err(Failure::refused)?;
    output::print(&format!("{}\n", text(&taken, "name")?))?;
    Ok(0)
}

fn take(vm: &str, name: Option<&Name>, talk: Talk) -> anyhow::Result<Value> {
    let order = Order::Snapshot { name: name.map(|name| name.as_str().to_owned()) };
    let taken = order_of(vm, &order)?;
    if talk.verbose {
        let number = |key: &str| taken[key].as_u64().unwrap_or(0);
        eprintln!(
            "bulkhead: {} of memory written ({}); the microVM stood still for {:.1} ms",
            human(number("bytes")),
            text(&taken, "kind")?,
            number("pause_us") as f64 / 1e3
        );
    }
    Ok(taken)
}

/// Has a running microVM go on from a snapshot.
pub fn rollback(args: &Rollback) -> Outcome {
    order_of(&args.vm, &Order::Rollback { to: args.snapshot.clone() }).map_err(Failure::refused)?;
    Ok(0)
}

fn order_of(vm: &str, order: &Order) -> anyhow::Result<Value> {
    let (name, directory) = running::find(vm)?;
    Ok(ask(&directory, &name, order, &mut |text| tracing::info!("{text}"))?)
}

fn text<'a>(value: &'a Value, key: &str) -> anyhow::Result<&'a str> {
    value[key].as_str().ok_or_else(|| anyhow!("the microVM's owner did not say '{key}'"))
}

/// Lists snapshots, or removes some.
pub fn snapshots(args: &Args, talk: Talk) -> Outcome {
    match &args.what {
        None => list(args.list.format, talk),
        Some(SnapshotsWhat::Ls(list_args)) => list(list_args.format, talk),
        Some(SnapshotsWhat::Rm { names }) => remove(names, talk),
        Some(SnapshotsWhat::Prune { keep }) => prune(*keep, talk),
    }
}

fn list(format: Format, talk: Talk) -> Outcome {
    let entries = match Snapshots::existing(&paths::store()) {
        Some(snapshots) => snapshots.list()?,
        None => Vec::new(),
    };
    let placed = arrange(&entries);
    if format == Format::Json {
        output::json(&placed.iter().map(describe).collect::<Vec<_>>())?;
    } else if talk.quiet {
        output::print(&entries.iter().map(|entry| format!("{}\n", entry.name)).collect::<String>())?;
    } else {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let rows = placed.iter().map(|Placed { branch, entry, .. }| {
            let record = &entry.record;
            let source = sanitize(record.what.source());
            [
                format!("{branch}{}", entry.name),
                age(now.saturating_sub(Duration::from_nanos(record.created_ns))),
                human(entry.bytes),
                sanitize(&record.vm),
                source,
            ]
        });
        output::table(["NAME", "CREATED", "SIZE", "VM", "IMAGE/KERNEL"], rows)?;
    }
    Ok(0)
}

fn describe(placed: &Placed<'_>) -> Value {
    let (entry, record) = (placed.entry, &placed.entry.record);
    json!({
        "name": entry.name.as_str(), "id": record.id, "parent": placed.parent.map(|parent| parent.name.as_str()),
        "created_ns": record.created_ns, "bytes": entry.bytes, "incremental": record.base.is_some(), "vm": record.vm,
        "vcpus": record.vcpus, "memory_mib": record.memory_mib, "what": record.what,
    })
}

/// How long ago, for people.
pub fn age(age: Duration) -> String {
    let seconds = age.as_secs();
    let (count, unit) = match seconds {
        0..60 => (seconds, "second"),
        60..3600 => (seconds / 60, "minute"),
        3600..86_400 => (seconds / 3600, "hour"),
        _ => (seconds / 86_400, "day"),
    };
    format!("{count} {unit}{} ago", if count == 1 { "" } else { "s" })
}

/// Removes snapshots and prints what they were called.
fn remove(names: &[String], talk: Talk) -> Outcome {
    let snapshots = Snapshots::of(&paths::store())?;
    let mut code = 0;
    for name in names {
        match snapshots.remove(name) {
            Ok(_) if talk.quiet => {}
            Ok(removed) => output::print(&format!("{removed}\n"))?,
            Err(error) => code = conclude(Err(Failure::refused(error.into())), false),
        }
    }
    Ok(code)
}

/// Removes the older snapshots of each microVM and prints what they were called.
fn prune(keep: usize, talk: Talk) -> Outcome {
    let Some(snapshots) = Snapshots::existing(&paths::store()) else { return Ok(0) };
    let (removed, freed) = snapshots.prune(keep).map_err(|error| Failure::refused(error.into()))?;
    if !talk.quiet {
        output::print(&removed.iter().map(|name| format!("{name}\n")).collect::<String>())?;
        eprintln!("bulkhead: total reclaimed space: {}", human(freed));
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_in_one_unit() {
        let ago = |seconds| age(Duration::from_secs(seconds));
        assert_eq!(
            [ago(0), ago(1), ago(60), ago(7199)],
            ["0 seconds ago", "1 second ago", "1 minute ago", "1 hour ago"]
        );
        assert_eq!([ago(7200), ago(86_400), ago(800_000)], ["2 hours ago", "1 day ago", "9 days ago"]);
    }
}
