//! `bulkhead pull` and `push`: images from and to registries.

use anyhow::Context;
use guest_images::Store;
use registry::{Registry, RemoteName};

use super::images::tell;
use crate::args::{Pull, Push, Talk};
use crate::failure::{Failure, Outcome};
use crate::output::{self, Progress};
use crate::paths;
use crate::signals::Guard;

/// Brings an image from the registry that its name leads to.
pub fn pull(args: &Pull, talk: Talk) -> Outcome {
    // What has come whole stays, and what has not is the next command's to remove; the store knows how.
    let _guard: Guard<()> = Guard::new().context("cannot wait for signals")?;
    let pull = || -> anyhow::Result<String> {
        let name: RemoteName = args.image.parse()?;
        let head = format!("{}: Pulling from {}\n", name.version(), name.familiar());
        let store = Store::open(paths::store())?;
        let pulled = Registry::of(name)?.pull(&store, &mut Progress::new(talk))?;
        tell(&store, &pulled.image, "pull");
        let local = format!("{}:{}", pulled.image.name, pulled.image.tag);
        let status = match pulled.new {
            true => format!("Downloaded newer image for {local}"),
            false => format!("Image is up to date for {local}"),
        };
        let told =
            if talk.quiet { String::new() } else { format!("{head}Digest: {}\nStatus: {status}\n", pulled.digest) };
        Ok(format!("{told}{local}\n"))
    };
    let text = pull().map_err(|error| Failure::with_code(1, error))?;
    output::print(&text)?;
    Ok(0)
}

/// Gives an image to the registry that its name leads to.
pub fn push(args: &Push, talk: Talk) -> Outcome {
    let _guard: Guard<()> = Guard::new().context("cannot wait for signals")?;
    let push = || -> anyhow::Result<String> {
        let name: RemoteName = args.image.parse()?;
        let (version, whole) = (name.version().to_owned(), name.familiar());
        let store = Store::open(paths::store())?;
        let pushed = Registry::of(name)?.push(&store, &mut Progress::new(talk))?;
        if let Ok(image) = store.image(&args.image) {
            tell(&store, &image, "push");
        }
        Ok(match talk.quiet {
            true => format!("{whole}:{version}\n"),
            false => format!("{version}: digest: {} size: {}\n", pushed.manifest, pushed.bytes),
        })
    };
    let text = push().map_err(|error| Failure::with_code(1, error))?;
    output::print(&text)?;
    Ok(0)
}
