//! `bulkhead volume`: named volumes, made, listed and removed.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::containers::each;
use super::inspect;
use crate::args::{Filter, Talk, Volume as Args, VolumeWhat};
use crate::clock;
use crate::failure::{Failure, Outcome, conclude, sanitize};
use crate::output::{self, Columns};
use crate::paths;
use crate::size::human;
use crate::volumes::anonymous;
use crate::volumes::named::{NamedVolumes, Volume, VolumesError};

/// Does the one thing that was asked for.
pub fn volume(args: &Args, talk: Talk) -> Outcome {
    match &args.what {
        VolumeWhat::Create { label, name } => create(name.as_deref(), label),
        VolumeWhat::Ls { filter, format } => list(filter, format, talk),
        VolumeWhat::Inspect { format, names } => {
            inspect::show(names.iter().map(|name| find(name).map(|volume| describe(&volume))), format)
        }
        VolumeWhat::Rm { force, names } => each(names, |name| remove(name, *force).map(|()| name.to_owned())),
        VolumeWhat::Prune { all, .. } => prune(*all, talk),
    }
}

fn create(name: Option<&str>, labels: &[String]) -> Outcome {
    let labels = labels.iter().map(|label| {
        let (key, value) = label.split_once('=').unwrap_or((label, ""));
        (key.to_owned(), value.to_owned())
    });
    let make = || -> anyhow::Result<String> {
        let mut labels: BTreeMap<_, _> = labels.collect();
        let name = match name {
            Some(name) => name.to_owned(),
            None => {
                labels.insert(anonymous::LABEL.to_owned(), String::new());
                anonymous::name()?
            }
        };
        NamedVolumes::of(&paths::store())?.lock()?.create(&name, labels)?;
        Ok(name)
    };
    let name = make().map_err(|error| Failure::with_code(1, error))?;
    Ok(output::print(&format!("{name}\n")).map(|()| 0)?)
}

const COLUMNS: Columns<2> = Columns { head: ["DRIVER", "VOLUME NAME"], fields: ["Driver", "Name"] };

fn list(filters: &[Filter], format: &str, talk: Talk) -> Outcome {
    let volumes = NamedVolumes::existing(&paths::store()).map(|volumes| volumes.list()).transpose()?;
    let volumes = volumes.unwrap_or_default();
    let shown = volumes.iter().filter(|volume| fits(volume, filters));
    if talk.quiet {
        return Ok(output::print(&shown.map(|volume| format!("{}\n", volume.name)).collect::<String>()).map(|()| 0)?);
    }
    output::listing(format, &COLUMNS, shown.map(row))
}

/// Under docker's names.
fn row(volume: &Volume) -> Value {
    let labels = volume.labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",");
    json!({
        "Driver": "local", "Scope": "local", "Name": volume.name, "Mountpoint": volume.data, "Labels": sanitize(&labels),
        "Links": volume.users.len().to_string(),
    })
}

/// Values of the same key are alternatives, different keys conditions; but each label is a condition of its own.
fn fits(volume: &Volume, filters: &[Filter]) -> bool {
    let fits = |filter: &Filter| match (filter.key.as_str(), filter.value.as_str()) {
        ("name", part) => volume.name.contains(part),
        ("label", label) => match label.split_once('=') {
            Some((key, value)) => volume.labels.get(key).is_some_and(|found| found == value),
            None => volume.labels.contains_key(label),
        },
        (_, dangling) => volume.users.is_empty() == matches!(dangling, "true" | "1"),
    };
    filters.iter().all(|filter| match filter.key.as_str() {
        "label" => fits(filter),
        key => filters.iter().filter(|other| other.key == key).any(fits),
    })
}

fn find(name: &str) -> Result<Volume, VolumesError> {
    match NamedVolumes::existing(&paths::store()) {
        Some(volumes) => volumes.find(name),
        None => Err(VolumesError::NotFound(sanitize(name))),
    }
}

/// Under docker's names.
fn describe(volume: &Volume) -> Value {
    let labels: &BTreeMap<String, String> = &volume.labels;
    json!({
        "CreatedAt": clock::rfc3339(volume.created_ns), "Driver": "local", "Labels": labels, "Mountpoint": volume.data,
        "Name": volume.name, "Options": {}, "Scope": "local",
        "UsageData": { "RefCount": volume.users.len(), "Size": paths::disk_bytes_below(&volume.data) },
    })
}

fn remove(name: &str, force: bool) -> anyhow::Result<()> {
    let removed = match NamedVolumes::existing(&paths::store()) {
        Some(volumes) => volumes.lock()?.remove(name),
        None => Err(VolumesError::NotFound(sanitize(name))),
    };
    match removed {
        // As docker: that it is gone is what was wanted.
        Err(VolumesError::NotFound(_)) if force => Ok(()),
        other => Ok(other?),
    }
}

/// What somebody has begun to use meanwhile stays.
fn prune(all: bool, talk: Talk) -> Outcome {
    let (mut removed, mut freed, mut code) = (Vec::new(), 0, 0);
    let volumes = NamedVolumes::existing(&paths::store());
    let unused = volumes.as_ref().map(NamedVolumes::list).transpose()?.unwrap_or_default();
    let unused: Vec<Volume> = unused.into_iter().filter(|volume| volume.users.is_empty()).collect();
    let (goes, stays): (Vec<_>, Vec<_>) = unused.into_iter().partition(|volume| all || volume.is_anonymous());
    if !stays.is_empty() && !talk.quiet {
        eprintln!("bulkhead: {} volumes that no container has stay; --all removes those with a name, too", stays.len());
    }
    for volume in &goes {
        let bytes = paths::disk_bytes_below(&volume.data);
        match remove(&volume.name, true) {
            Ok(()) => {
                removed.push(format!("{}\n", volume.name));
                freed += bytes;
            }
            Err(error) if matches!(error.downcast_ref(), Some(VolumesError::InUse { .. })) => {}
            Err(error) => code = conclude(Err(Failure::with_code(1, error)), false),
        }
    }
    if !removed.is_empty() {
        output::print(&format!("Deleted Volumes:\n{}\n", removed.concat()))?;
    }
    output::print(&format!("Total reclaimed space: {}\n", human(freed)))?;
    Ok(code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_are_dockers() {
        let labels = BTreeMap::from([("tier".to_owned(), "db".to_owned()), ("x".to_owned(), String::new())]);
        let volume = Volume { name: "data".into(), created_ns: 0, labels, data: "/d".into(), users: Vec::new() };
        let filter = |(key, value): &(&str, &str)| Filter { key: (*key).into(), value: (*value).into() };
        for (list, wanted) in [
            (&[][..], true),
            (&[("name", "at")], true),
            (&[("name", "no")], false),
            (&[("name", "no"), ("name", "da")], true),
            (&[("label", "x")], true),
            (&[("label", "tier=db"), ("label", "x=1")], false),
            (&[("dangling", "true"), ("label", "tier=db")], true),
            (&[("dangling", "0")], false),
        ] {
            let filters: Vec<Filter> = list.iter().map(filter).collect();
            assert_eq!(fits(&volume, &filters), wanted, "{list:?}");
        }
    }
}
