//! RUN: a command in a microVM of its own, and the layer that it makes.

use std::fs::File;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::thread;

use anyhow::{Context as _, anyhow, bail};
use guest_images::{Draft, DraftLayer, Store};
use guest_protocol::files::FileMessage;
use rustix::pipe::{PipeFlags, pipe_with};
use vmm::events::monotonic_ns;

use super::Builder;
use super::progress::Step;
use crate::args::{Network, Run, Settings};
use crate::commands::run::make;
use crate::copying::archive;
use crate::failure::{Failure, Interrupted};
use crate::helping::Helping;
use crate::life::{self, Life};
use crate::output::Progress;
use crate::owner::Attached;
use crate::session::Io;

/// A command that is to run.
#[derive(Debug)]
pub struct Command {
    /// It and its arguments.
    pub words: Vec<String>,
    /// Its variables beside those of the image, `KEY=value`.
    pub env: Vec<String>,
    /// What it is connected to.
    pub network: Network,
}

impl Builder<'_> {
    /// Runs a command on what a draft is by now: the layer with what it has changed.
    pub(super) fn run(&self, draft: &Draft, command: Command, step: &Step<'_>) -> anyhow::Result<DraftLayer> {
        if draft.diff_ids().next().is_none() {
            bail!("there is nothing in the image yet that could run: COPY or ADD it first");
        }
        let flags = Run {
            rm: true,
            for_layer: true,
            entrypoint: Some(String::new()),
            env: command.env,
            network: Some(command.network),
            settings: Settings { add_host: self.args.add_host.clone(), ..Settings::default() },
            machine: self.args.machine,
            cold: self.args.cold,
            image_and_command: std::iter::once("build".to_owned()).chain(command.words).collect(),
            ..Run::default()
        };
        life::check(&flags)?;
        let began = monotonic_ns();
        let image = self.store.prepare_draft(draft, &mut Progress::new(self.talk))?;
        self.merged.borrow_mut().extend(image.merged.iter().map(|layer| layer.path.clone()));
        let (output, io) = output()?;
        let (ours, theirs) = UnixStream::pair().context("a way to the microVM's owner")?;
        let guard = self.take_guard()?;
        let holding = guard.hold();
        let (name, held, record) = make(flags, &image, self.store, None, false)?;
        let life = Life {
            name: name.clone(),
            record,
            layers: image.disk().cloned().collect(),
            keys: image.keys(),
            io,
            attached: Attached::new(None, None, false, None),
            report: None,
            changes: Some(theirs),
            talk: self.talk,
            times: [began, monotonic_ns()],
        };
        let (store, created, limit) = (self.store, self.created.as_str(), self.clamp.then_some(self.made));
        let (outcome, layer) = thread::scope(|scope| {
            let relay = scope.spawn(|| step.relay(output));
            let changes = scope.spawn(|| layer_of_changes(store, &name, ours, (created, limit)));
            let outcome = life.live(&guard, holding, held);
            let _ = relay.join();
            (outcome, changes.join())
        });
        drop(guard);
        self.guard_again()?;
        match outcome {
            _ if self.interrupted() != 0 => Err(Interrupted(self.interrupted()).into()),
            Ok(0) => layer.map_err(|_| anyhow!("a thread of this program ended"))?,
            Ok(code) => Err(anyhow!("the command did not succeed: exit code {code}")),
            Err(Failure { error: Some(error), .. }) => Err(error),
            Err(Failure { code, error: None }) => Err(anyhow!("the command was ended: exit code {code}")),
        }
    }
}

/// Packs what the guest says has changed. It waits meanwhile. The layer is made at a moment, and no file is younger than another one,
/// in seconds since the epoch, if there is one.
fn layer_of_changes(
    store: &Store,
    name: &str,
    stream: UnixStream,
    (created, limit): (&str, Option<i64>),
) -> anyhow::Result<DraftLayer> {
    let mut helping = Helping::expect(name, stream)?;
    let mut messages = || {
        let mut message = helping.hear_file()?;
        if let (Some(limit), Some(FileMessage::Entry(entry))) = (limit, &mut message)
            && entry.mtime.0 >= limit
        {
            entry.mtime = (limit, 0);
        }
        Ok(message)
    };
    store.draft_layer(created, |out: &mut dyn Write| archive::write(&mut messages, "", out))
}

/// Where a command's output comes from, and its streams.
fn output() -> anyhow::Result<(File, Io)> {
    let (ours, theirs) = pipe_with(PipeFlags::CLOEXEC).context("a pipe for the command's output")?;
    let stderr = theirs.try_clone().context("a pipe for the command's output")?;
    Ok((ours.into(), Io { stdin: None, stdout: theirs, stderr, terminal: false, size: None, recorder: None }))
}
