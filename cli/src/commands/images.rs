//! `bulkhead load`, `images` and `rmi`: the store of loaded images.

use anyhow::Context;
use guest_images::Store;

use crate::args::{Format, Images, Load, Rmi, Talk};
use crate::failure::{Outcome, sanitize};
use crate::output::{self, Progress};
use crate::paths;
use crate::signals::Guard;
use crate::size::human;

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
    let short = |id: &guest_images::Digest| id.hex().chars().take(SHORT_ID).collect::<String>();
    if args.format == Format::Json {
        output::json(&images)?;
    } else if talk.quiet {
        let ids: String = images.iter().map(|image| short(&image.id) + "\n").collect();
        output::print(&ids)?;
    } else {
        let rows = images.iter().map(|image| {
            let created =
                image.created.as_deref().map_or("-".into(), |at| sanitize(at).chars().take(19).collect::<String>());
            [image.name.clone(), image.tag.clone(), short(&image.id), created.replace('T', " "), human(image.size)]
        });
        output::table(["REPOSITORY", "TAG", "IMAGE ID", "CREATED", "SIZE"], rows)?;
    }
    Ok(0)
}

/// Removes loaded images and prints what they were. Stops at the first that cannot be removed.
pub fn rmi(args: &Rmi, talk: Talk) -> Outcome {
    let store = Store::open(paths::store())?;
    for name in &args.images {
        let image = store.remove(name)?;
        if !talk.quiet {
            output::print(&format!("Untagged: {}:{}\n", image.name, image.tag))?;
        }
    }
    Ok(0)
}
