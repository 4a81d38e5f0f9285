//! `bulkhead cp`: files between a container and this host.

use std::fs;
use std::io;
use std::path::PathBuf;

use anyhow::{Context, anyhow};
use guest_protocol::files::{Copied, EntryKind, FileMessage, Helper, There, destination};

use crate::args::Copy;
use crate::copying::receive::Receiver;
use crate::copying::send::How;
use crate::copying::{Side, archive, copied, send};
use crate::failure::{Failure, Outcome};
use crate::helping::Helping;
use crate::visit;

/// Copies.
pub fn copy(args: &Copy) -> Outcome {
    let how = How { archive: args.archive, follow: args.follow_link };
    let done = match (Side::parse(&args.source), Side::parse(&args.destination)) {
        (Side::Container { name, path }, Side::Host(to)) => to_host(&name, path, to, how),
        (Side::Container { name, path }, Side::Stream) => to_stream(&name, path, how),
        (Side::Host(from), Side::Container { name, path }) => from_host(from, &name, path, how),
        (Side::Stream, Side::Container { name, path }) => from_stream(&name, path),
        (Side::Container { .. }, Side::Container { .. }) => Err(anyhow!("copying between containers is not supported")),
        _ => Err(anyhow!("one of the two must be a container's: CONTAINER:PATH")),
    };
    done.map(|()| 0).map_err(Failure::refused)
}

/// The first that a helper says that sends what is at a path: what that is.
fn first(helping: &mut Helping, path: &str) -> anyhow::Result<(FileMessage, Copied)> {
    let first = helping.hear()?.ok_or_else(|| anyhow!("{path}: the container sent nothing"))?;
    let directory = matches!(&first, FileMessage::Entry(entry) if matches!(entry.kind, EntryKind::Directory { .. }));
    Ok((first, copied(path, directory)))
}

fn to_host(name: &str, path: String, to: String, how: How) -> anyhow::Result<()> {
    let helper = Helper::Pack { path: path.clone(), follow: how.follow };
    visit::helped(name, helper, false, move |mut helping| {
        let (first, copied) = first(&mut helping, &path)?;
        let there = match fs::metadata(&to) {
            Ok(meta) if meta.is_dir() => There::Directory,
            Ok(_) => There::Other,
            Err(error) if error.kind() == io::ErrorKind::NotFound => There::Nothing,
            Err(error) => return Err(error).with_context(|| format!("cannot copy to {to}")),
        };
        let top = destination(&to, there, &copied).map_err(|why| anyhow!("cannot copy to {to}: {why}"))?;
        let mut receiver = Receiver::at(PathBuf::from(top), how.archive);
        receiver.take(first)?;
        helping.hear_all(|message| receiver.take(message))?;
        receiver.finish()
    })
}

fn to_stream(name: &str, path: String, how: How) -> anyhow::Result<()> {
    if rustix::termios::isatty(io::stdout()) {
        return Err(anyhow!("an archive is not for a terminal: redirect it"));
    }
    let helper = Helper::Pack { path: path.clone(), follow: how.follow };
    visit::helped(name, helper, false, move |mut helping| {
        let (first, copied) = first(&mut helping, &path)?;
        let mut first = Some(first);
        let mut messages = || match first.take() {
            Some(first) => Ok(Some(first)),
            None => helping.hear_file(),
        };
        archive::write(&mut messages, &copied.name, io::stdout().lock())
    })
}

fn from_host(from: String, name: &str, path: String, how: How) -> anyhow::Result<()> {
    let follow = how.follow || from.ends_with('/');
    let top = PathBuf::from(&from);
    let meta = if follow { fs::metadata(&top) } else { fs::symlink_metadata(&top) };
    let directory = meta.with_context(|| format!("cannot copy {from}"))?.is_dir();
    let helper = Helper::Unpack { path, copied: copied(&from, directory) };
    visit::helped(name, helper, true, move |mut helping| {
        send::all(&top, How { follow, ..how }, &mut |message| helping.say(&message))?;
        helping.finish()
    })
}

fn from_stream(name: &str, path: String) -> anyhow::Result<()> {
    let all = Copied { name: String::new(), directory: true, contents: true };
    visit::helped(name, Helper::Unpack { path, copied: all }, true, |mut helping| {
        archive::read(io::stdin().lock(), &mut |message| helping.say(&message))?;
        helping.finish()
    })
}
