//! `bulkhead load`, `images`, `rmi`, `tag` and `save`: the store of loaded images.

use std::fs::File;
use std::io::{BufWriter, IsTerminal as _};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, anyhow};
use guest_images::{ImageError, ImageInfo, Store};
use serde_json::json;

use super::snapshots::age;
use crate::args::{Format, Images, Load, Rmi, Save, Tag, Talk};
use crate::containers::Containers;
use crate::events::{self, Event};
use crate::failure::{Failure, Outcome, conclude, sanitize};
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
    let stdin = args.file.is_none() && args.input.is_none();
    if stdin && std::io::stdin().is_terminal() {
        return Err(anyhow!("there is no archive on a terminal; name a FILE, or redirect stdin from one").into());
    }
    let (name, mut progress) = (args.name.as_deref(), Progress::new(talk));
    let mut load = || -> anyhow::Result<Vec<ImageInfo>> {
        Ok(match args.file.as_ref().or(args.input.as_ref()) {
            Some(file) => store.load(file, name, &mut progress)?,
            None => store.load_file("stdin", spool(&store)?, name, &mut progress)?,
        })
    };
    for image in load().map_err(Failure::refused)? {
        tell(&store, &image, "load");
        let line =
            if talk.quiet { image.id.to_string() } else { format!("Loaded image: {}:{}", image.name, image.tag) };
        output::print(&(sanitize(&line) + "\n"))?;
    }
    Ok(0)
}

/// What comes on stdin, in a file without a name: an archive is read in no particular order.
fn spool(store: &Store) -> anyhow::Result<File> {
    let mut file = store.unnamed_file().context("stdin")?;
    std::io::copy(&mut std::io::stdin().lock(), &mut file).context("stdin cannot be kept")?;
    Ok(file)
}

/// Gives an image another name as well.
pub fn tag(args: &Tag) -> Outcome {
    let refused = |error| Failure::with_code(1, anyhow::Error::from(error));
    let store = Store::open(paths::store())?;
    store.tag(&args.image, &args.name).map_err(refused)?;
    if let Ok(image) = store.image(&args.name) {
        tell(&store, &image, "tag");
    }
    Ok(0)
}

/// Has the journal say what has happened to an image.
pub fn tell(store: &Store, image: &ImageInfo, action: &str) {
    let name = format!("{}:{}", image.name, image.tag);
    events::tell(store.dir(), Event::of_image(&image.id.to_string(), &name, action));
}

/// Writes images into an archive.
pub fn save(args: &Save) -> Outcome {
    let refused = |error: anyhow::Error| Failure::with_code(1, error);
    let store = Store::open(paths::store())?;
    let Some(path) = &args.output else {
        if std::io::stdout().is_terminal() {
            return Err(refused(anyhow!(
                "an archive is not for a terminal; say where to with -o FILE, or redirect stdout"
            )));
        }
        let out = BufWriter::with_capacity(1 << 20, std::io::stdout().lock());
        store.save(&args.images, out).map_err(|error| match error {
            ImageError::Save(error) => Failure::from(error),
            error => refused(error.into()),
        })?;
        return Ok(0);
    };
    save_to(&store, &args.images, path).map_err(refused)?;
    Ok(0)
}

/// The file is there once it is whole: it is written beside its place.
fn save_to(store: &Store, images: &[String], path: &Path) -> anyhow::Result<()> {
    let shown = || format!("'{}'", path.display());
    // A device or a pipe takes what comes, in its place.
    if path.metadata().is_ok_and(|meta| !meta.is_file()) {
        let file = File::options().write(true).open(path).with_context(shown)?;
        return Ok(store.save(images, BufWriter::with_capacity(1 << 20, file))?);
    }
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let aside = tempfile::Builder::new().prefix(".bulkhead-save-").tempfile_in(dir).with_context(shown)?;
    store.save(images, BufWriter::with_capacity(1 << 20, aside.as_file()))?;
    aside.persist(path).map_err(|error| error.error).with_context(shown)?;
    Ok(())
}

/// Prints the loaded images.
pub fn images(args: &Images, talk: Talk) -> Outcome {
    let is_wanted = |name: &str, tag: &str| args.name.as_ref().is_none_or(|wanted| is_called(wanted, name, tag));
    let mut images = Store::open(paths::store())?.list()?;
    images.retain(|image| is_wanted(&image.name, &image.tag));
    let mut warm = warm()?;
    warm.retain(|entry| is_wanted(entry.name.as_str(), ""));
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

/// Whether an image is meant by a name with a tag, or by one without, which means all of its tags.
fn is_called(wanted: &str, name: &str, tag: &str) -> bool {
    // A registry's port is no tag.
    let with_tag = wanted.rsplit_once(':').filter(|(_, tag)| !tag.contains('/'));
    wanted == name || with_tag.is_some_and(|(wanted, wanted_tag)| wanted == name && wanted_tag == tag)
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

/// Removes loaded images and prints what they were.
pub fn rmi(args: &Rmi, talk: Talk) -> Outcome {
    let store = Store::open(paths::store())?;
    let mut code = 0;
    for name in &args.images {
        let mut untagged = String::new();
        let removed = remove(&store, name, args.force, &mut untagged);
        if !talk.quiet {
            output::print(&untagged)?;
        }
        let Err(error) = removed else { continue };
        // As docker: that it is gone is what was wanted.
        let is_gone = matches!(error.downcast_ref(), Some(ImageError::NotFound { .. }));
        let refused = Failure::with_code(u8::from(!(args.force && is_gone)), error);
        code = code.max(conclude(Err(refused), false));
    }
    Ok(code)
}

/// Removes one, by any of its names; `untagged` is told which went.
fn remove(store: &Store, name: &str, force: bool, untagged: &mut String) -> anyhow::Result<()> {
    if name.ends_with(WARM) {
        let removed = Snapshots::of(store.dir())?.remove(name)?;
        *untagged += &format!("Untagged: {removed}\n");
        return Ok(());
    }
    if !force {
        check_unused(store, name)?;
    }
    for name in all_names(store, name, force)? {
        let image = store.remove(&name)?;
        tell(store, &image, "untag");
        if store.list()?.iter().all(|other| other.id != image.id) {
            tell(store, &image, "delete");
        }
        *untagged += &format!("Untagged: {}:{}\n", image.name, image.tag);
    }
    Ok(())
}

/// The names that a word is to take away: the one that it is, or, of an image that it is the id of, its only one; all of them, if that
/// is forced.
fn all_names(store: &Store, word: &str, force: bool) -> anyhow::Result<Vec<String>> {
    let image = store.image(word)?;
    let digits = word.strip_prefix("sha256:").unwrap_or(word);
    let named = word.strip_suffix(&format!(":{}", image.tag)).unwrap_or(word);
    if image.name == named || image.name.ends_with(&format!("/{named}")) || !image.id.hex().starts_with(digits) {
        return Ok(vec![word.to_owned()]);
    }
    let same = store.list()?.into_iter().filter(|other| other.id == image.id);
    let names: Vec<String> = same.map(|other| format!("{}:{}", other.name, other.tag)).collect();
    if names.len() > 1 && !force {
        return Err(anyhow!(
            "conflict: unable to delete {word} (must be forced) - image is referenced in multiple repositories: {}",
            names.join(", ")
        ));
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_means_all_of_its_tags() {
        for (wanted, is) in [
            ("host:5000/a/b", true),
            ("host:5000/a/b:1", true),
            ("host:5000/a/b:2", false),
            ("a/b", false),
            ("host:5000/a", false),
            ("host", false),
        ] {
            assert_eq!(is_called(wanted, "host:5000/a/b", "1"), is, "{wanted}");
        }
        assert!(is_called("x@warm", "x@warm", ""));
    }
}
