//! `bulkhead vmm`: the process of one microVM. Nothing of images is known here.
//!
//! The other verbs start it with a configuration on one descriptor and events on another. Started by hand, it is a
//! foreground process with the serial console on stdin and stdout, as Firecracker is: configured by a file, by clients of
//! its control socket, or both.
//!
//! Exit code 0: the guest powered off or reset itself, or was stopped; 128+n signal n; 125 anything else, with one line on
//! stderr.

use std::cell::RefCell;
use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal, Read, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::rc::Rc;

use anyhow::{Context, anyhow, bail};
use rustix::process::{Signal, set_parent_process_death_signal};
use vmm::VmConfig;
use vmm::api::Draft;
use vmm::config::SerialConfig;
use vmm::events::{EVENTS_VERSION, Event, ExitReason, Phase};
use vmm::process::Lineage;
use vmm::sandbox::Wanted;
use vmm::session::{self, Beginning, Ended, Options};

use crate::args::Vmm;
use crate::args::vmm::Sandbox;
use crate::failure::{FAILED, Failure, Outcome, one_line};
use crate::terminal::Raw;

/// A configuration longer than this is none.
const MAX_CONFIG: u64 = 4 << 20;

/// Runs the machine that the configuration or a client describes to its end.
pub fn vmm(args: &Vmm) -> Outcome {
    let begun = args.parent.map(|parent| attended(args, parent)).transpose()?;
    let mut events = Events { to: events(args)?, waiting: Vec::new() };
    events.emit(&Event::Hello { version: EVENTS_VERSION });
    if args.api_sock.is_some() {
        // What comes next may be long in coming.
        events.flush();
    }
    let mut emit = |event| events.emit(&event);
    let ended = machine(args, begun, &mut emit).map(|ended| {
        // This process ends, and with it what is left of the machine.
        std::mem::forget(ended.remains);
        (ended.reason, ended.signal)
    });
    match ended {
        Ok((_, Some(signal))) => Err(Failure::silent(u8::try_from(128 + signal).unwrap_or(FAILED))),
        Ok((reason, None)) => match reason {
            ExitReason::PowerOff | ExitReason::Reset | ExitReason::Stopped => Ok(0),
            ExitReason::Panic => Err(Failure::with_code(FAILED, anyhow!("the guest kernel panicked"))),
            ExitReason::TripleFault => Err(Failure::with_code(FAILED, anyhow!("the guest crashed (triple fault)"))),
        },
        Err(error) => {
            emit(Event::Failed { message: one_line(&error) });
            Err(error.into())
        }
    }
}

/// The beginning of a process that `parent` has started, which has the configuration ready: what needs none does not wait for that.
fn attended(args: &Vmm, parent: u32) -> anyhow::Result<Beginning> {
    // Whatever the user's shell had open is nothing that a guest should find. Who starts it by hand may name them as files.
    vmm::process::close_inherited_but([args.config_fd, args.events_fd]);
    let begun = session::begin(true, makes(args))?;
    die_with_parent(parent)?;
    Ok(begun)
}

/// Whether it makes a machine at once, in a sandbox.
fn makes(args: &Vmm) -> bool {
    let confined = || Sandbox::wanted(args.sandbox).is_ok_and(|sandbox| sandbox.mode().is_some());
    (args.config_fd.is_some() || args.config_file.is_some()) && confined()
}

fn machine(args: &Vmm, begun: Option<Beginning>, emit: &mut dyn FnMut(Event)) -> anyhow::Result<Ended> {
    let (draft, start) = match (args.config_fd, &args.config_file) {
        (Some(fd), _) => (Draft::of(&VmConfig::from_json(&read_descriptor(fd)?)?), true),
        (None, Some(file)) => (read_file(file)?, true),
        (None, None) => (Draft { serial: SerialConfig::Stdio, ..Draft::default() }, false),
    };
    let terminal: Rc<RefCell<Option<Raw>>> = Rc::default();
    let (id, socket, cpuid_cache) = (args.id.clone(), args.api_sock.clone(), args.cpuid_cache.clone());
    // Without requests, nothing names files any more.
    let files = (!args.files.is_empty() || args.api_sock.is_none()).then(|| args.files.clone());
    let sandbox = Sandbox::wanted(args.sandbox)?;
    let sandbox = sandbox.mode().map(|mode| Wanted {
        mode,
        files,
        all: sandbox == Sandbox::Require,
        apart: args.parent.is_some(),
        ..Wanted::default()
    });
    let mut options = Options { id, socket, cpuid_cache, draft, start, sandbox, ..Options::default() };
    // With a descriptor, the terminal is the business of whoever is at its other end.
    if args.config_fd.is_none() && io::stdin().is_terminal() {
        let terminal = terminal.clone();
        options.on_stdio = Some(Box::new(move || *terminal.borrow_mut() = raw_terminal()));
    }
    // Who has it read what comes late, by hand, may interrupt it until then.
    let begun = begun.map_or_else(|| session::begin(false, makes(args)), Ok)?;
    let ended = session::run(begun, options, emit);
    drop(terminal.take());
    Ok(ended?)
}

/// The terminal in raw mode: every key is the guest's. Without that it still works, only less well.
fn raw_terminal() -> Option<Raw> {
    let raw = io::stdin().as_fd().try_clone_to_owned().and_then(Raw::enter);
    raw.inspect_err(|e| tracing::warn!("the terminal cannot be put into raw mode: {e}")).ok()
}

/// The stream of events, if somebody wants it.
struct Events {
    to: Option<Box<dyn Write>>,
    /// Lines not written yet.
    waiting: Vec<u8>,
}

impl Events {
    /// Writes an event, or keeps it for the next one if that comes at once: each write wakes the process that listens.
    fn emit(&mut self, event: &Event) {
        if self.to.is_some() && serde_json::to_writer(&mut self.waiting, event).is_ok() {
            self.waiting.push(b'\n');
            if !matches!(event, Event::Hello { .. } | Event::Phase { phase: Phase::Build | Phase::Load, .. }) {
                self.flush();
            }
        }
    }

    fn flush(&mut self) {
        if let Some(to) = &mut self.to {
            // Nobody listens any more: then nobody misses it.
            let _ = to.write_all(&self.waiting);
        }
        self.waiting.clear();
    }
}

/// Asks the kernel to end this process with its parent, and makes sure that the parent had not ended before that.
fn die_with_parent(parent: u32) -> anyhow::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL)).context("cannot arrange to end with the parent process")?;
    let now = Lineage::open().and_then(|lineage| lineage.parent()).context("cannot tell the parent process")?;
    if parent != now {
        bail!("the parent process {parent} is gone");
    }
    Ok(())
}

fn read_file(path: &Path) -> anyhow::Result<Draft> {
    let text = File::open(path).map_err(anyhow::Error::from).and_then(read_config);
    let draft = text.and_then(|text| Ok(Draft::from_file(text.as_bytes(), SerialConfig::Stdio)?));
    draft.with_context(|| path.display().to_string())
}

/// Reads a descriptor that we inherited up to its end. A number is no proof of ownership, so it is opened anew through
/// /proc, which works for files and pipes.
fn read_descriptor(fd: u32) -> anyhow::Result<String> {
    let text = match fd {
        0 => read_config(io::stdin().lock()),
        fd => File::open(format!("/proc/self/fd/{fd}")).map_err(anyhow::Error::from).and_then(read_config),
    };
    text.with_context(|| format!("machine configuration: descriptor {fd}"))
}

fn read_config(source: impl Read) -> anyhow::Result<String> {
    let mut text = String::new();
    source.take(MAX_CONFIG + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MAX_CONFIG {
        bail!("more than {MAX_CONFIG} bytes");
    }
    Ok(text)
}

/// Where events go: to the one who configured us by a descriptor, and to nobody else who did not ask.
fn events(args: &Vmm) -> anyhow::Result<Option<Box<dyn Write>>> {
    match (args.events_fd, args.config_fd) {
        (None, None) => Ok(None),
        (None, Some(_)) | (Some(1), _) => Ok(Some(Box::new(io::stdout()))),
        (Some(fd), _) => {
            let file = OpenOptions::new().write(true).open(format!("/proc/self/fd/{fd}"));
            Ok(Some(Box::new(file.with_context(|| format!("events: descriptor {fd}"))?)))
        }
    }
}
