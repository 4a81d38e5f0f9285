//! `bulkhead vmm`: the process of one microVM. Configuration in, events out; nothing of the user's terminal or images is
//! known here.
//!
//! Exit code 0: the guest powered off or reset itself; 125 anything else, with one line on stderr.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};

use anyhow::{Context, anyhow, bail};
use rustix::process::{Signal, getppid, set_parent_process_death_signal};
use vmm::events::{EVENTS_VERSION, Event, ExitReason};
use vmm::{Machine, VmConfig};

use crate::args::Vmm;
use crate::failure::{FAILED, Failure, Outcome, one_line};

/// A configuration longer than this is none.
const MAX_CONFIG: u64 = 4 << 20;

/// Runs the machine that the configuration describes to its end.
pub fn vmm(args: &Vmm) -> Outcome {
    die_with_parent(args.parent)?;
    let mut events = events(args.events_fd)?;
    let mut emit = |event: Event| {
        // Nobody listens any more: then nobody misses it.
        if let Ok(mut line) = serde_json::to_vec(&event) {
            line.push(b'\n');
            let _ = events.write_all(&line);
        }
    };
    emit(Event::Hello { version: EVENTS_VERSION });
    match machine(args.config_fd, &mut emit) {
        Ok(ExitReason::PowerOff | ExitReason::Reset | ExitReason::Stopped) => Ok(0),
        Ok(ExitReason::Panic) => Err(Failure::with_code(FAILED, anyhow!("the guest kernel panicked"))),
        Ok(ExitReason::TripleFault) => Err(Failure::with_code(FAILED, anyhow!("the guest crashed (triple fault)"))),
        Err(error) => {
            emit(Event::Failed { message: one_line(&error) });
            Err(error.into())
        }
    }
}

fn machine(config_fd: u32, emit: &mut dyn FnMut(Event)) -> anyhow::Result<ExitReason> {
    let config = VmConfig::from_json(&read_config(config_fd)?)?;
    let machine = Machine::build(&config, None, emit)?;
    Ok(machine.run(emit)?)
}

/// Asks the kernel to end this process with its parent, and makes sure that the parent had not ended before that.
fn die_with_parent(parent: Option<u32>) -> anyhow::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL)).context("cannot arrange to end with the parent process")?;
    let now = getppid().map_or(0, |pid| pid.as_raw_nonzero().get().unsigned_abs());
    match parent {
        Some(parent) if parent != now => bail!("the parent process {parent} is gone"),
        _ => Ok(()),
    }
}

/// Reads a descriptor that we inherited up to its end. A number is no proof of ownership, so it is opened anew through
/// /proc, which works for files and pipes.
fn read_config(fd: u32) -> anyhow::Result<String> {
    let mut text = String::new();
    let read = match fd {
        0 => io::stdin().lock().take(MAX_CONFIG + 1).read_to_string(&mut text),
        fd => File::open(format!("/proc/self/fd/{fd}")).and_then(|f| f.take(MAX_CONFIG + 1).read_to_string(&mut text)),
    };
    read.with_context(|| format!("machine configuration: descriptor {fd}"))?;
    if text.len() as u64 > MAX_CONFIG {
        bail!("machine configuration: more than {MAX_CONFIG} bytes");
    }
    Ok(text)
}

fn events(fd: u32) -> anyhow::Result<Box<dyn Write>> {
    if fd == 1 {
        return Ok(Box::new(io::stdout()));
    }
    let file = OpenOptions::new().write(true).open(format!("/proc/self/fd/{fd}"));
    Ok(Box::new(file.with_context(|| format!("events: descriptor {fd}"))?))
}
