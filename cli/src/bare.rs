//! A bare microVM in the foreground: its console on stdin and stdout, and whoever attends to it.
//!
//! Input goes through a thread of this process, so that a terminal has a way out (Ctrl-A x), a regular file can be typed in,
//! and the VM can be replaced by another; output is the per-VM process's own.

use std::io::{self, IsTerminal, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::process::ChildStdin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, anyhow};
use rustix::event::{PollFd, PollFlags, poll};
use serde_json::json;
use vmm::VmConfig;
use vmm::host;

use crate::args::Talk;
use crate::cgroup::{self, Limits};
use crate::control::Control;
use crate::failure::{Outcome, one_line};
use crate::monitor::{Console, Monitor, MonitorError, Report};
use crate::owner::{Facts, History, Owner};
use crate::paths;
use crate::rundir::RunDir;
use crate::session::{Attendant, Wish};
use crate::signals::Guard;
use crate::snapshots::What;
use crate::successor::{Arrived, Succession, aside};
use crate::terminal::{Escape, Raw};
use crate::window::Window;

/// A microVM that is to be.
pub struct Bare {
    /// Its machine, the console on stdin and stdout.
    pub config: VmConfig,
    /// Its name; one is made up if there is none.
    pub name: Option<String>,
    /// What it is.
    pub what: What,
    /// What it may take of the host.
    pub limits: Limits,
    /// Where it comes from.
    pub history: History,
    /// A socket outside the run directory that goes with it.
    pub socket: Option<PathBuf>,
}

impl Bare {
    /// Runs it and waits for its end: 0 if the guest powered off or reset itself, or the user left by Ctrl-A x.
    pub fn run(mut self, talk: Talk) -> Outcome {
        // Dropped in this order: the terminal first.
        let guard: Guard<(Option<Raw>, RunDir)> = Guard::new().context("cannot wait for signals")?;
        self.config.validate(host::memory_mib())?;
        let holding = guard.hold();
        let directory = RunDir::create(&paths::run(), self.name.as_deref())?;
        if let Some(socket) = &self.socket {
            directory.own_socket(socket)?;
            directory.own_socket(&aside(socket))?;
        }
        let name = directory.name().to_owned();
        give_socket(&mut self.config, &directory);
        let limits = self.limits;
        cgroup::check(limits.quota)?;
        let Limits { vcpus, memory_mib, quota } = limits;
        let facts = Facts { name: name.clone(), what: self.what, vcpus, memory_mib, layers: Vec::new() };
        let succession = Succession {
            directory: directory.path(),
            devices: self.config.devices.clone(),
            container: false,
            upper: None,
            quota,
            verbose: talk.verbose,
            next: 0,
        };
        let owner = Owner::listen(&directory, facts, self.history, succession)?;
        let place = Place { control: directory.file("api"), limits, verbose: talk.verbose };
        let mut monitor = place.start(&self.config)?;
        let on_terminal = io::stdin().is_terminal();
        let raw = on_terminal.then(enter_raw).transpose()?;
        holding.keep((raw, directory));
        if on_terminal && !talk.quiet {
            eprint!("bulkhead: Ctrl-A x ends the microVM {name}\r\n");
        }
        let window = self.config.devices.contains_key("console").then(|| Window::of(Control::at(&place.control)));
        let keys = Keys::of(&mut monitor)?;
        keys.relay(on_terminal.then(Escape::default))?;
        let result = attend(monitor, owner, &keys, window.as_ref());
        drop(guard);
        match result? {
            Ok(report) => {
                if talk.verbose {
                    tell(&report);
                }
                Ok(0)
            }
            Err(_) if keys.lock().left => Ok(0),
            Err(error @ MonitorError::Guest(_)) => {
                Err(anyhow!("{error}; --append loglevel=7 shows more of its kernel's messages").into())
            }
            Err(error) => Err(error.into()),
        }
    }
}

/// A machine that goes on from a snapshot would have its vsock socket where the original has it: it gets one of its own.
fn give_socket(config: &mut VmConfig, directory: &RunDir) {
    let wanted = config.snapshot.is_some();
    if let Some(section) = config.devices.get_mut("vsock").filter(|_| wanted) {
        section["uds_path"] = directory.file("vsock").to_string_lossy().into();
    }
}

/// Where a VM's process is started.
struct Place {
    control: PathBuf,
    limits: Limits,
    verbose: bool,
}

impl Place {
    fn start(&self, config: &VmConfig) -> anyhow::Result<Monitor> {
        let config = serde_json::to_string(config)?;
        let monitor = Monitor::start(&config, Console::Stdio, &self.control, self.limits, self.verbose)?;
        monitor.confined()?;
        Ok(monitor)
    }
}

/// Sees to the VM, and to what it is replaced by, until its end.
fn attend(
    mut monitor: Monitor,
    mut owner: Owner,
    keys: &Keys,
    window: Option<&Window>,
) -> anyhow::Result<Result<Report, MonitorError>> {
    // Its control socket answers from then on.
    if !monitor.runs() {
        return Ok(monitor.wait());
    }
    let _following = window.map(Window::follow).transpose().context("cannot follow the terminal's size")?;
    while wait(&monitor, &mut owner)? {
        drop(monitor.stop());
        monitor = succeed(&mut owner, keys).inspect_err(|error| owner.arrived(Err(one_line(error))))?;
        // Its console has the size that the terminal had then.
        if let Some(window) = window {
            window.tell();
        }
    }
    Ok(monitor.wait())
}

/// The VM that has been tried out beside the one that has ended, and is paused.
fn succeed(owner: &mut Owner, keys: &Keys) -> anyhow::Result<Monitor> {
    let control = Control::at(&owner.control());
    let Arrived { mut monitor, to, .. } = owner.succeed()?;
    keys.go_to(&mut monitor)?;
    control.call("PATCH", "/vm", &json!({ "state": "Resumed" }))?;
    owner.arrived(Ok(to));
    Ok(monitor)
}

/// Waits for the VM's end, attending to its clients: false. True: it is to be replaced.
fn wait(monitor: &Monitor, owner: &mut Owner) -> anyhow::Result<bool> {
    loop {
        let ended = monitor.ended();
        let mut fds = vec![PollFd::new(&ended, PollFlags::IN)];
        let event = owner.event();
        fds.extend(event.iter().map(|event| PollFd::new(event, PollFlags::IN)));
        match poll(&mut fds, None) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => return Err(error).context("cannot wait for the microVM"),
        }
        if !fds[0].revents().is_empty() {
            return Ok(false);
        }
        match owner.wish() {
            // Nobody in the guest has to be asked: it is the user's own.
            Some(Wish::Freeze) => {
                owner.frozen();
                owner.over(Ok(()));
            }
            Some(Wish::Leave) => return Ok(true),
            Some(Wish::End) => Monitor::kill_through(monitor.ended()),
            // There is no process that it could be for, nor an init that it could be told.
            Some(Wish::GiveUp | Wish::Signal(_) | Wish::Tell(_)) | None => {}
        }
    }
}

fn tell(report: &Report) {
    if let Some((reason, counts)) = report.exit {
        eprintln!(
            "bulkhead: {reason:?}; exits: {} port, {} MMIO, {} other; {} instructions completed in user space",
            counts.pio, counts.mmio, counts.other, counts.completed
        );
    }
}

fn enter_raw() -> anyhow::Result<Raw> {
    let terminal = io::stdin().as_fd().try_clone_to_owned().context("cannot use the terminal")?;
    Raw::enter(terminal).context("cannot put the terminal into raw mode")
}

/// Where what is typed goes.
#[derive(Clone)]
struct Keys(Arc<Mutex<Target>>);

struct Target {
    /// None: there is no more to type.
    console: Option<ChildStdin>,
    vm: OwnedFd,
    /// There was the end of what is typed.
    over: bool,
    /// The user wanted out.
    left: bool,
}

impl Keys {
    fn of(monitor: &mut Monitor) -> anyhow::Result<Self> {
        let (console, vm) = (monitor.take_stdin(), watched(monitor)?);
        Ok(Keys(Arc::new(Mutex::new(Target { console, vm, over: false, left: false }))))
    }

    /// From now on they go to this VM; the one before has ended.
    fn go_to(&self, monitor: &mut Monitor) -> anyhow::Result<()> {
        let vm = watched(monitor)?;
        let mut target = self.lock();
        target.console = monitor.take_stdin().filter(|_| !target.over);
        target.vm = vm;
        if target.left {
            Monitor::kill_through(target.vm.as_fd());
        }
        Ok(())
    }

    /// Passes what is typed on from a thread, until there is no more, or the user wants out.
    fn relay(&self, escape: Option<Escape>) -> anyhow::Result<()> {
        let keys = self.clone();
        let relay = move || {
            keys.pass_on(escape);
            let mut target = keys.lock();
            target.over = true;
            target.console = None;
        };
        std::thread::Builder::new().name("console-input".into()).spawn(relay).map(drop).context("cannot start a thread")
    }

    fn pass_on(&self, mut escape: Option<Escape>) {
        let mut stdin = io::stdin().lock();
        let mut input = [0; 4096];
        let mut output = Vec::new();
        loop {
            let count = match stdin.read(&mut input) {
                Ok(0) => return,
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => return,
            };
            output.clear();
            let out = match &mut escape {
                Some(escape) => escape.filter(&input[..count], &mut output),
                None => {
                    output.extend_from_slice(&input[..count]);
                    false
                }
            };
            let mut target = self.lock();
            if out {
                target.left = true;
                Monitor::kill_through(target.vm.as_fd());
                return;
            }
            // A guest that has ended takes nothing; the one that replaces it, if there is one, takes what comes next.
            let _ = target.console.as_mut().map(|console| console.write_all(&output));
        }
    }

    fn lock(&self) -> MutexGuard<'_, Target> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn watched(monitor: &Monitor) -> anyhow::Result<OwnedFd> {
    monitor.ended().try_clone_to_owned().context("cannot watch the microVM's process")
}
