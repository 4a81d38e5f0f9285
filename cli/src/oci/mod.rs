//! `run --isolation container`: the image and the flags in a container of this host's kernel, through runc or crun.
//!
//! ```text
//! record, lock ─► <container's directory>/bundle/{root, config.json, state/, hosts, …} ─► RUNTIME run ─► its end, in the record
//! ```
//!
//! The root file system is unpacked for each container: with it all that there is of one is in its directory, goes with that, and needs no
//! privileges. The runtime has this process's streams; it is asked to remove the container whatever has become of it, after SIGKILL of this process by
//! the next command, which finds the container lost ([`clear`]).

mod config;
mod refused;

use std::fs::{self, DirBuilder};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::thread;

use anyhow::{Context, anyhow};
use bench::compare::bundle::Runtime;
use bench::compare::conformance::find;
use guest_images::PreparedImage;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use signal_hook::consts::signal::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2};
use signal_hook::iterator::Signals;

use crate::args::{Isolation, Run, Talk};
use crate::commands::run::{make, prepare};
use crate::containers::record::Cause;
use crate::containers::{Entry, Held, Record};
use crate::events::{self, Event};
use crate::failure::{FAILED, Outcome, one_line, sanitize};
use crate::paths;
use crate::signals::Guard;
use crate::volumes::{self, Volumes};

/// Names the runtime where `--runtime` does not.
const VARIABLE: &str = "BULKHEAD_RUNTIME";
/// Those that are looked for.
const RUNTIMES: [&str; 2] = ["runc", "crun"];
/// What is its own, in the directory of a container.
const BUNDLE: &str = "bundle";
/// The file that says which runtime has it.
const RUNTIME: &str = "runtime";
/// How often somebody has to want its end until it is killed.
const INSISTENT: u32 = 3;

/// Runs it.
pub fn run(mut args: Run, talk: Talk) -> Outcome {
    refused::check(&args)?;
    Volumes::check(&args.volume)?;
    let program = program(args.runtime.as_deref())?;
    let guard: Guard<Held> = Guard::new().context("cannot wait for signals")?;
    let (image, store, volumes) = prepare(&mut args, talk)?;
    let holding = guard.hold();
    let (name, held, mut record) = make(args, &image, &store, volumes, false)?;
    let dir = held.dir();
    holding.keep(held);
    let bundle = Bundle::make(&dir, &record, &image, program);
    // From here on signals are the container's.
    let signals =
        Signals::new([SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2]).context("cannot wait for signals")?;
    let held = guard.pass();
    let ended = bundle.and_then(|bundle| {
        record.start();
        record.write(&dir, false).context("record.json")?;
        tell(&record, &name, "start", &[]);
        bundle.run(&record, signals)
    });
    let (code, cause, error) = match &ended {
        Ok((code, error)) if error.is_empty() => (*code, Cause::Process, String::new()),
        Ok((code, error)) => (*code, Cause::Failed, error.clone()),
        Err(error) => (FAILED, Cause::Failed, one_line(error)),
    };
    let ran = record.state.started_ns != 0;
    record.end(code, cause, error);
    if let Err(error) = record.write(&dir, !record.flags.rm) {
        tracing::warn!("record.json: {error}");
    }
    if ran {
        tell(&record, &name, "die", &[("exitCode", code.to_string())]);
    }
    drop(held);
    volumes::sweep();
    Ok(ended?.0)
}

fn tell(record: &Record, name: &str, action: &str, more: &[(&str, String)]) {
    events::tell(&paths::store(), Event::of_container(record, name, action, more));
}

/// Where the runtime is.
fn program(given: Option<&Path>) -> anyhow::Result<PathBuf> {
    let variable = std::env::var_os(VARIABLE).filter(|value| !value.is_empty()).map(PathBuf::from);
    let found = match given.map(Path::to_owned).or(variable) {
        Some(path) if path.components().count() > 1 => Some(std::path::absolute(path)?),
        Some(name) => {
            let name = name.to_string_lossy();
            let (_, path) = find(&[&name]).with_context(|| format!("--runtime: there is no '{name}' in PATH"))?;
            Some(path)
        }
        None => find(&RUNTIMES).map(|(_, path)| path),
    };
    found.with_context(|| {
        format!(
            "--isolation container: neither of {} is installed; install one, or name another with --runtime",
            RUNTIMES.join(", ")
        )
    })
}

/// What the runtime is given.
struct Bundle {
    dir: PathBuf,
    runtime: Runtime,
}

impl Bundle {
    fn at(container: &Path, program: PathBuf) -> Self {
        let dir = container.join(BUNDLE);
        Bundle { runtime: Runtime { program, state: dir.join("state") }, dir }
    }

    fn make(container: &Path, record: &Record, image: &PreparedImage, program: PathBuf) -> anyhow::Result<Self> {
        let bundle = Self::at(container, program);
        let root = bundle.dir.join("root");
        DirBuilder::new().recursive(true).mode(0o700).create(&bundle.runtime.state).context("bundle")?;
        fs::write(bundle.dir.join(RUNTIME), bundle.runtime.program.as_os_str().as_encoded_bytes()).context("bundle")?;
        fs::create_dir(&root).context("bundle")?;
        image.unpack(&root)?;
        let spec = bundle.runtime.usual(&bundle.dir)?;
        let config = config::configuration(spec, record, &root, &config::Files::write(&bundle.dir, record)?)?;
        fs::write(bundle.dir.join("config.json"), config.to_string()).context("bundle")?;
        Ok(bundle)
    }

    /// Where the runtime says what it could not do, also on stderr.
    fn log(&self) -> PathBuf {
        self.dir.join("log")
    }

    /// Runs it to its end, and returns its exit code, and what kept it from starting.
    fn run(&self, record: &Record, mut signals: Signals) -> anyhow::Result<(u8, String)> {
        let (flags, id) = (&record.flags, record.id.as_str());
        let mut command = self.runtime.command(&["--log-format", "json", "--log"]);
        command.arg(self.log()).args(["run", "--bundle"]).arg(&self.dir).arg(id);
        // A terminal's keys reach whoever is in its foreground: that is to be the container, and not this process as well.
        let shares = flags.interactive || flags.tty;
        if !shares {
            command.stdin(Stdio::null());
        }
        if !shares {
            command.process_group(0);
        }
        let mut child = command.spawn().with_context(|| format!("start of '{}'", self.runtime.program.display()))?;
        let handle = signals.handle();
        let forward = Forward { child: pid(&child), runtime: self.runtime.clone(), id: id.to_owned(), shares };
        let thread = thread::Builder::new().name("signals".into()).spawn(move || forward.all(&mut signals))?;
        let status = child.wait();
        handle.close();
        let _ = thread.join();
        self.runtime.delete(id);
        let code = code(status.context("cannot wait for the runtime")?);
        // A process may end with any code, but then there is nothing in the log.
        let error = last_error(&fs::read_to_string(self.log()).unwrap_or_default());
        Ok(error.map_or((code, String::new()), |error| (code_of(&error), error)))
    }
}

/// The last error in a runtime's log, one line of JSON each.
fn last_error(log: &str) -> Option<String> {
    let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let mut errors = lines.filter(|line| matches!(line["level"].as_str(), Some("error" | "fatal")));
    errors.next_back().map(|line| sanitize(line["msg"].as_str().unwrap_or_default()))
}

/// docker's codes for a process that cannot be started.
fn code_of(error: &str) -> u8 {
    let says = |words: &[&str]| words.iter().any(|word| error.contains(word));
    match () {
        () if !says(&["exec", "executable"]) => FAILED,
        () if says(&["not found", "no such file"]) => 127,
        () if says(&["denied", "is a directory", "format error"]) => 126,
        () => FAILED,
    }
}

fn pid(child: &Child) -> Option<Pid> {
    i32::try_from(child.id()).ok().and_then(Pid::from_raw)
}

/// As a shell has it.
fn code(status: ExitStatus) -> u8 {
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    u8::try_from(code).unwrap_or(FAILED)
}

/// Passes signals on to the runtime, which passes them on to the container's process.
struct Forward {
    child: Option<Pid>,
    runtime: Runtime,
    id: String,
    /// The runtime has the terminal's signals from the terminal.
    shares: bool,
}

impl Forward {
    fn all(&self, signals: &mut Signals) {
        let mut wanted = 0;
        for signal in signals.forever() {
            let from_keys = matches!(signal, SIGINT | SIGQUIT | SIGHUP);
            wanted += u32::from(from_keys || signal == SIGTERM);
            // One that is the first process of its namespace is not ended by what it has no handler for.
            if wanted >= INSISTENT {
                let _ = self.runtime.verb("kill").args([self.id.as_str(), "KILL"]).stdin(Stdio::null()).output();
            }
            let signal = Signal::from_named_raw(signal).filter(|_| !(self.shares && from_keys));
            if let (Some(child), Some(signal)) = (self.child, signal) {
                let _ = kill_process(child, signal);
            }
        }
    }
}

/// Away with what a runtime has of a container that is nobody's any more, in whose directory this is.
pub fn clear(container: &Path, record: &Record) {
    if record.flags.isolation != Isolation::Container {
        return;
    }
    let bundle = container.join(BUNDLE);
    // The state is there from before there is anything to be removed.
    if let Ok(program) = fs::read_to_string(bundle.join(RUNTIME)) {
        Bundle::at(container, program.into()).runtime.delete(record.id.as_str());
    }
}

/// What does not know how to deal with such a container says so.
///
/// # Errors
/// It is one.
pub fn refuse(entry: &Entry) -> anyhow::Result<()> {
    match entry.record.flags.isolation {
        Isolation::Vm => Ok(()),
        Isolation::Container => Err(refusal(&entry.name)),
    }
}

/// Why not.
pub fn refusal(name: &str) -> anyhow::Error {
    anyhow!(
        "container {name}: it was run with --isolation container: there are no logs of it, no second start and no way in; `bulkhead rm` removes it"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_cannot_be_started_has_dockers_codes() {
        for (error, code) in [
            (
                "runc run failed: unable to start container process: exec: \"nope\": executable file not found in $PATH",
                127,
            ),
            ("executable file `nope` not found in $PATH: No such file or directory", 127),
            ("unable to start container process: exec: \"/etc\": permission denied", 126),
            ("unable to apply cgroup configuration: no such file or directory", FAILED),
        ] {
            assert_eq!(code_of(error), code, "{error}");
        }
        let log = "{\"level\":\"warning\",\"msg\":\"w\"}\n{\"level\":\"error\",\"msg\":\"no\\u001b\"}\nnot JSON\n";
        assert!(last_error(log).is_some_and(|error| error.starts_with("no") && !error.contains('\u{1b}')));
        assert_eq!(last_error("{\"level\":\"warning\",\"msg\":\"w\"}"), None);
    }
}
