//! `bulkhead load`, `images` and `rmi`: the store of loaded images.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, anyhow};
use guest_images::Store;
use serde_json::json;

use super::snapshots::age;
use crate::args::{Format, Images, Load, Rmi, Talk};
use crate::containers::Containers;
use crate::failure::{Outcome, sanitize};
use crate::output::{self, Progress};
use crate::paths;
use crate::signals::Guard;
use crate::size::human;
use crate::snapshots::name::WARM;
use crate::snapshots::{Entry, Snapshots};

/// Digits of a short id, as docker shows it.
const SHORT_ID: usize = 12;

/// Loads the images of a file and prints their names.
pub fn load(args: &Load, talk: Talk) -> Outcome {
    // A half-converted layer is the next command's to remove; the store knows how.
    let _guard: Guard<()> = Guard::new().context("cannot wait for signals")?;
    let store = Store::open(paths::store())?;
    for image in store.load(&args.file, args.name.as_deref(), &mut Progress::new(talk))? {
        let line =
            if talk.quiet { image.id.to_string() } else { format!("Loaded image: {}:{}", image.name, image.tag) };
        output::print(&(sanitize(&line) + "\n"))?;
    }
    Ok(0)
}

/// Prints the loaded images.
pub fn images(args: &Images, talk: Talk) -> Outcome {
    let images = Store::open(paths::store())?.list()?;
    let warm = warm()?;
    let short = |id: &str| id.chars().take(SHORT_ID).collect::<String>();
    if args.format == Format::Json {
        let warm = warm.iter().map(|Entry { name, record, bytes }| {
            json!({ "name": name.as_str(), "tag": null, "id": record.id, "created": null, "size": bytes,
                    "created_ns": record.created_ns })
        });
        let images = images.iter().map(serde_json::to_value).collect::<Result<Vec<_>, _>>()?;
        output::json(&images.into_iter().chain(warm).collect::<Vec<_>>())?;
    } else if talk.quiet {
        let ids = images.iter().map(|image| short(image.id.hex()));
        let ids = ids.chain(warm.iter().map(|entry| short(&entry.record.id.to_string())));
        output::print(&ids.map(|id| id + "\n").collect::<String>())?;
    } else {
        let rows = images.iter().map(|image| {
            let created =
                image.created.as_deref().map_or("-".into(), |at| sanitize(at).chars().take(19).collect::<String>());
            [image.name.clone(), image.tag.clone(), short(image.id.hex()), created.replace('T', " "), human(image.size)]
        });
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let warm = warm.iter().map(|Entry { name, record, bytes }| {
            let created = age(now.saturating_sub(Duration::from_nanos(record.created_ns)));
            [name.to_string(), "-".into(), short(&record.id.to_string()), created, human(*bytes)]
        });
        output::table(["REPOSITORY", "TAG", "IMAGE ID", "CREATED", "SIZE"], rows.chain(warm))?;
    }
    Ok(0)
}

/// Warm images, in the words of the others.
fn warm() -> anyhow::Result<Vec<Entry>> {
    let entries = Snapshots::existing(&paths::store()).map(|snapshots| snapshots.list()).transpose()?;
    Ok(entries.unwrap_or_default().into_iter().filter(|entry| entry.name.is_warm()).collect())
}

/// An image whose last name is to go must not be what a container was made from.
fn check_unused(store: &Store, name: &str) -> anyhow::Result<()> {
    let image = store.image(name)?;
    let last = store.list()?.iter().filter(|other| other.id == image.id).count() == 1;
    let containers =
        Containers::existing(store.dir()).filter(|_| last).map(|containers| containers.list()).transpose()?;
    let id = image.id.to_string();
    let user = containers.iter().flatten().find(|container| container.record.image_id == id);
    user.map_or(Ok(()), |container| {
        Err(anyhow!(
            "conflict: unable to remove repository reference \"{name}\" (must force) - container {} is using its referenced image {}",
            container.record.id.short(),
            image.id.hex().chars().take(SHORT_ID).collect::<String>()
        ))
    })
}

/// Removes loaded images and prints what they were. Stops at the first that cannot be removed.
pub fn rmi(args: &Rmi, talk: Talk) -> Outcome {
    let store = Store::open(paths::store())?;
    for name in &args.images {
        if name.ends_with(WARM) {
            let removed = Snapshots::of(store.dir())?.remove(name)?;
            if !talk.quiet {
                output::print(&format!("Untagged: {removed}\n"))?;
            }
            continue;
        }
        if !args.force {
            check_unused(&store, name)?;
        }
        let image = store.remove(name)?;
        if !talk.quiet {
            output::print(&format!("Untagged: {}:{}\n", image.name, image.tag))?;
        }
    }
    Ok(0)
}
