//! `bulkhead system df` and `system prune`: what is kept to make things fast, and away with it.

use std::collections::HashSet;

use anyhow::Context;
use guest_images::Store;
use serde_json::json;

use super::networks;
use crate::args::{Format, System, SystemWhat, Talk};
use crate::containers::{Containers, Status};
use crate::failure::Outcome;
use crate::output;
use crate::paths;
use crate::size::human;
use crate::snapshots::Snapshots;
use crate::templates::Templates;
use crate::volumes::named::NamedVolumes;

/// Runs the one that was asked for.
pub fn system(args: &System, talk: Talk) -> Outcome {
    let store = Store::open(paths::store())?;
    let templates = Templates::of(store.dir()).context("templates")?;
    match args.what {
        SystemWhat::Df { format } => df(&store, &templates, format),
        SystemWhat::Prune { .. } => prune(&store, &templates, talk),
    }
}

fn df(store: &Store, templates: &Templates, format: Format) -> Outcome {
    let (images, kept) = (store.list()?, store.usage()?);
    let containers = containers(store)?;
    let in_use = images.iter().filter(|image| containers.images.contains(&image.id.to_string())).count();
    let templates = templates.list().context("templates")?;
    let bytes = templates.iter().map(|entry| entry.bytes).sum::<u64>();
    let (snapshots, snapshot_bytes) = snapshots(store)?;
    let volumes = NamedVolumes::existing(store.dir()).map(|volumes| volumes.list()).transpose()?.unwrap_or_default();
    let volume_bytes = volumes.iter().map(|volume| paths::disk_bytes_below(&volume.data)).sum::<u64>();
    let volumes_in_use = volumes.iter().filter(|volume| !volume.users.is_empty()).count();
    if format == Format::Json {
        output::json(&json!({
            "snapshots": { "count": snapshots, "bytes": snapshot_bytes },
            "build_cache": { "count": kept.cached, "bytes": kept.cached_bytes },
            "images": { "count": images.len(), "active": in_use, "blobs": kept.blobs, "bytes": kept.blob_bytes },
            "containers": { "count": containers.count, "active": containers.running, "bytes": containers.bytes },
            "volumes": { "count": volumes.len(), "active": volumes_in_use, "bytes": volume_bytes },
            "layers": { "count": kept.layers, "bytes": kept.bytes },
            "templates": { "count": templates.len(), "bytes": bytes, "entries": templates },
        }))?;
        return Ok(0);
    }
    let row = |what: &str, count: usize, active: Option<usize>, size: u64| {
        [what.to_owned(), count.to_string(), active.map_or("-".into(), |count| count.to_string()), human(size)]
    };
    let rows = [
        row("Images", images.len(), Some(in_use), kept.blob_bytes),
        row("Containers", containers.count, Some(containers.running), containers.bytes),
        row("Volumes", volumes.len(), Some(volumes_in_use), volume_bytes),
        row("Layers", kept.layers, None, kept.bytes),
        row("Build cache", kept.cached, None, kept.cached_bytes),
        row("Templates", templates.len(), None, bytes),
        row("Snapshots", snapshots, None, snapshot_bytes),
    ];
    output::table(["TYPE", "TOTAL", "ACTIVE", "SIZE"], rows)?;
    Ok(0)
}

/// The containers of a store, counted.
#[derive(Default)]
struct Counted {
    count: usize,
    running: usize,
    /// What their directories take on disk: files, logs, records.
    bytes: u64,
    /// Ids of the images that they were made from.
    images: HashSet<String>,
}

fn containers(store: &Store) -> anyhow::Result<Counted> {
    let entries = Containers::existing(store.dir()).map(|containers| containers.list()).transpose()?;
    let mut counted = Counted::default();
    for entry in entries.into_iter().flatten() {
        counted.count += 1;
        counted.running += usize::from(entry.record.state.status == Status::Running);
        // One that is removed meanwhile takes nothing.
        counted.bytes += paths::disk_bytes_below(&entry.dir);
        counted.images.insert(entry.record.image_id);
    }
    Ok(counted)
}

/// How many there are, and what they take.
fn snapshots(store: &Store) -> anyhow::Result<(usize, u64)> {
    match Snapshots::existing(store.dir()) {
        Some(snapshots) => Ok((snapshots.list()?.len(), snapshots.bytes()?)),
        None => Ok((0, 0)),
    }
}

/// Networks that no container has, templates, what builds keep for later ones, and layers that no loaded image or snapshot has and no microVM uses. What killed processes left, every verb removes.
fn prune(store: &Store, templates: &Templates, talk: Talk) -> Outcome {
    let (networks, code) = networks::remove_unused()?;
    if !networks.is_empty() {
        output::print(&format!("Deleted Networks:\n{}\n", networks.concat()))?;
    }
    let freed = templates.prune().context("templates")? + store.prune()?;
    output::print(&format!("Total reclaimed space: {}\n", human(freed)))?;
    let (count, bytes) = snapshots(store)?;
    if count != 0 && !talk.quiet {
        eprintln!("bulkhead: {count} snapshots ({}) stay; `bulkhead snapshots rm` removes them", human(bytes));
    }
    Ok(code)
}
