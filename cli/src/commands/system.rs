//! `bulkhead system df` and `system prune`: what is kept to make things fast, and away with it.

use anyhow::Context;
use guest_images::Store;
use serde_json::json;

use crate::args::{Format, System, SystemWhat, Talk};
use crate::failure::Outcome;
use crate::output;
use crate::paths;
use crate::size::human;
use crate::snapshots::Snapshots;
use crate::templates::Templates;

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
    let (images, layers) = (store.list()?.len(), store.usage()?);
    let templates = templates.list().context("templates")?;
    let bytes = templates.iter().map(|entry| entry.bytes).sum::<u64>();
    let (snapshots, snapshot_bytes) = snapshots(store)?;
    if format == Format::Json {
        output::json(&json!({
            "snapshots": { "count": snapshots, "bytes": snapshot_bytes },
            "images": { "count": images },
            "layers": { "count": layers.layers, "bytes": layers.bytes },
            "templates": { "count": templates.len(), "bytes": bytes, "entries": templates },
        }))?;
        return Ok(0);
    }
    let row = |what: &str, count: usize, size: String| [what.to_owned(), count.to_string(), size];
    let rows = [
        row("Images", images, "-".into()),
        row("Layers", layers.layers, human(layers.bytes)),
        row("Templates", templates.len(), human(bytes)),
        row("Snapshots", snapshots, human(snapshot_bytes)),
    ];
    output::table(["TYPE", "TOTAL", "SIZE"], rows)?;
    Ok(0)
}

/// How many there are, and what they take.
fn snapshots(store: &Store) -> anyhow::Result<(usize, u64)> {
    match Snapshots::existing(store.dir()) {
        Some(snapshots) => Ok((snapshots.list()?.len(), snapshots.bytes()?)),
        None => Ok((0, 0)),
    }
}

/// Templates, and layers that no loaded image or snapshot has and no microVM uses. What killed processes left, every verb removes.
fn prune(store: &Store, templates: &Templates, talk: Talk) -> Outcome {
    let freed = templates.prune().context("templates")? + store.prune()?;
    output::print(&format!("Total reclaimed space: {}\n", human(freed)))?;
    let (count, bytes) = snapshots(store)?;
    if count != 0 && !talk.quiet {
        eprintln!("bulkhead: {count} snapshots ({}) stay; `bulkhead snapshots rm` removes them", human(bytes));
    }
    Ok(0)
}
