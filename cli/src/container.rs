//! A container's VM from outside: where it lives, what takes its place, and how it ends.
//!
//! ```text
//! run:      launch ──────────┐
//!                            ├─► process ends ─► end ─► exit code
//! restore:  revive ──────────┤
//!              ┌────────────►└─► rollback ─► a successor lives ─► end the VM ─┐
//!              └── succeed ◄──────────────────────────────────────────────────┘
//! ```

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, anyhow};
use guest_images::Layer;
use guest_protocol::{Identity, Seed, WindowSize};
use rustix::rand::GetRandomFlags;
use serde_json::{Map, Value, json};
use vmm::VmConfig;
use vmm::config::{MachineConfig, Paging, SerialConfig, SnapshotSource};
use vmm::events::monotonic_ns;

use crate::cgroup::Limits;
use crate::control::Control;
use crate::failure::{Failure, sanitize};
use crate::launch::{Broken, Ran, conclude};
use crate::monitor::{Console, Monitor, MonitorError};
use crate::net::{self, Connection};
use crate::owner::{self, Owner};
use crate::phases::Phases;
use crate::plug;
use crate::rundir::RunDir;
use crate::session::{Ended, Io, Outcome, Session, SessionError, Times};
use crate::successor::{Arrived, Succession};
use crate::volumes;

/// Size of the layers' disk as guests see it, in bytes: the same for every image, so that a guest can have booted before it is
/// known which one it gets. What no layer covers is zeros.
pub const LAYERS_CAPACITY: u64 = 1 << 40;
/// How long a VM that lost its connection may take to be gone before it counts as alive.
const GRACE: Duration = Duration::from_secs(1);
/// How many of the guest console's last lines `--verbose` shows after a failure.
const CONSOLE_TAIL: usize = 20;
/// And how much of it is looked at for them, bytes.
const CONSOLE_BYTES: u64 = 16 << 10;

/// What stays the same when another VM takes the place of the one there is.
pub struct Place<'a> {
    /// Where the guest connects.
    pub session: &'a Session,
    /// Where the VM's control socket is.
    pub control: PathBuf,
    /// Where its console goes.
    pub log: PathBuf,
    /// Its devices, with the files that they have here.
    pub devices: Map<String, Value>,
    /// Host name of the guest.
    pub hostname: String,
    /// What its interface is, if it has one.
    pub network: Option<Connection>,
    /// The file of its writable layer, if that is to stay.
    pub upper: Option<PathBuf>,
    /// What the VM's process may take of the host.
    pub limits: Limits,
    /// The VM's process may talk on stderr.
    pub verbose: bool,
}

impl Place<'_> {
    /// A VM that goes on from the snapshot in `snapshot`, whose process goes on, until it ends or the VM is to be replaced.
    /// `started` is called when signals have become the session's business.
    ///
    /// # Errors
    /// The outer one: there is no VM.
    pub fn revive(
        &self,
        snapshot: PathBuf,
        io: Io,
        owner: &mut Owner,
        started: &dyn Fn(),
    ) -> anyhow::Result<Result<Ran, Broken>> {
        let mut devices = self.devices.clone();
        // Nobody hears of it before it is somebody of its own.
        if let Some(section) = devices.get_mut(net::SECTION) {
            *section = plug::unplugged(section);
        }
        let config = VmConfig {
            boot_source: None,
            snapshot: Some(SnapshotSource { path: snapshot, resume: true, paging: Paging::Map }),
            machine: MachineConfig::default(),
            serial: SerialConfig::Log { path: self.log.clone() },
            cpuid_cache: None,
            devices,
        };
        let config = serde_json::to_string(&config)?;
        let monitor = Monitor::start(&config, Console::None, &self.control, self.limits, self.verbose)?;
        let mut conversation = self.session.begin(monitor.ended())?;
        started();
        if let Err(error) = conversation.meet() {
            drop(conversation);
            return Ok(Err(Broken { error, monitor: Box::new(monitor) }));
        }
        if let Some(section) = self.devices.get(net::SECTION) {
            plug::plug(&Control::at(&self.control), section)?;
        }
        monitor.confined()?;
        let result = conversation.thaw(self.identity()?, io, owner);
        Ok(conclude(monitor, result, true))
    }

    /// Replaces the VM as often as that is asked for, until its process has ended.
    ///
    /// # Errors
    /// The outer one: there is no VM any more.
    pub fn follow(&self, mut result: Result<Ran, Broken>, owner: &mut Owner) -> anyhow::Result<Result<Ran, Broken>> {
        loop {
            let (monitor, io) = match result {
                Ok(Ran { monitor, ended: Ended::Left(io), .. }) => (monitor, io),
                other => return Ok(other),
            };
            drop(monitor.stop());
            result =
                self.succeed(io, owner).inspect_err(|error| owner.arrived(Err(crate::failure::one_line(error))))?;
        }
    }

    /// The VM that has been tried out beside the one that has ended.
    fn succeed(&self, io: Io, owner: &mut Owner) -> anyhow::Result<Result<Ran, Broken>> {
        let Arrived { monitor, arrival, to } = owner.succeed()?;
        let mut arrival = arrival.ok_or_else(|| anyhow!("the new microVM has no container"))?;
        let conversation = arrival.begin(monitor.ended())?;
        owner.arrived(Ok(to));
        let result = conversation.thaw(self.identity()?, io, owner);
        Ok(conclude(monitor, result, true))
    }

    /// What makes a clone one of its own; the session fills in the rest.
    fn identity(&self) -> anyhow::Result<Identity> {
        Ok(Identity {
            seed: Seed([0; 32]),
            machine_id: machine_id()?,
            hostname: self.hostname.clone(),
            wall_clock_ns: 0,
            network: self.network.as_ref().map(|network| network.guest.clone()),
            resolv_conf: self.network.as_ref().and_then(|network| network.resolv_conf.clone()),
            size: WindowSize { rows: 0, columns: 0 },
            stdin: false,
        })
    }

    /// How it is replaced; its run directory is `directory`.
    pub fn succession(&self, directory: &RunDir) -> Succession {
        Succession {
            directory: directory.path(),
            devices: self.devices.clone(),
            container: true,
            upper: self.upper.clone(),
            quota: self.limits.quota,
            verbose: self.verbose,
            next: 0,
        }
    }
}

/// How a container is replaced that has no microVM of its own: not at all. Its run directory is `directory`.
pub fn place_of_none(directory: &RunDir) -> Succession {
    Succession {
        directory: directory.path(),
        devices: Map::new(),
        container: true,
        upper: None,
        quota: None,
        verbose: false,
        next: 0,
    }
}

/// A machine id that nothing else has.
pub fn machine_id() -> anyhow::Result<[u8; 16]> {
    let mut id = [0; 16];
    rustix::rand::getrandom(&mut id, GetRandomFlags::empty()).context("cannot get random numbers")?;
    Ok(id)
}

/// A container's devices: the layers, in order, as one read-only disk; the way to init; randomness; a balloon. And those that it has nothing
/// behind, unless it is to have something: an interface that leads nowhere, and a file system of the host's directories without one. All
/// containers have all of these, so that all go on from one template.
pub fn devices<'a>(layers: impl Iterator<Item = &'a Layer>, vsock: &Path) -> anyhow::Result<Map<String, Value>> {
    let extents = layers.map(|layer| path_text(&layer.path)).collect::<Result<Vec<_>, _>>()?;
    let drives = json!([{ "drive_id": "layers", "is_root_device": false, "is_read_only": true, "extents": extents,
                          "capacity": LAYERS_CAPACITY }]);
    let vsock = json!({ "guest_cid": 3, "uds_path": path_text(vsock)? });
    let sections = [
        ("drives", drives),
        ("vsock", vsock),
        ("entropy", json!({})),
        (owner::BALLOON, owner::balloon()),
        (net::SECTION, net::nowhere()),
        (volumes::SECTION, volumes::none()),
    ];
    Ok(sections.map(|(key, value)| (key.into(), value)).into_iter().collect())
}

fn path_text(path: &Path) -> anyhow::Result<&str> {
    path.to_str().ok_or_else(|| {
        anyhow!("'{}': the path is not UTF-8; set BULKHEAD_STORE and BULKHEAD_RUN to some that are", path.display())
    })
}

/// How a container came to its end.
pub struct Done {
    /// What the guest said.
    pub outcome: Outcome,
    /// It went on from a snapshot.
    pub warm: bool,
    /// When the VM's first instruction ran.
    pub run_at: Option<u64>,
}

/// Ends the VM. Where it ended first, how it did is the better reason for a session that broke.
pub fn end(result: Result<Ran, Broken>) -> Result<Done, Failure> {
    let (error, monitor) = match result {
        Ok(Ran { monitor, ended: Ended::Exited(outcome), warm }) => {
            return Ok(Done { outcome, warm, run_at: monitor.stop().run_at });
        }
        Ok(Ran { ended: Ended::Left(_), .. }) => return Err(anyhow!("the microVM was given up for nothing").into()),
        Err(Broken { error, monitor }) => (error, monitor),
    };
    Err(match error {
        SessionError::VmEnded(before) => died(*monitor, before),
        // A dying VM closes its connections before its process is gone.
        SessionError::GuestClosed if monitor.ends_within(GRACE) => died(*monitor, "the process did"),
        SessionError::Interrupted(_) => Failure::silent(error.exit_code()),
        error => Failure::with_code(error.exit_code(), error),
    })
}

/// Why the VM ended `before` something that should have come first.
fn died(monitor: Monitor, before: &str) -> Failure {
    match monitor.wait() {
        Ok(_) => anyhow!("the microVM ended by itself before {before}; --verbose may tell more").into(),
        Err(error @ MonitorError::Guest(_)) => {
            let line = format!("{error} before {before}; run with --verbose --append console=ttyS0 to see why");
            anyhow::Error::from(error).context(line).into()
        }
        Err(error) => error.into(),
    }
}

/// image, vmm, kernel, init, command, teardown. A warm start has no kernel that boots: it wakes up.
pub fn breakdown(began: u64, image_ready: u64, run_at: Option<u64>, times: &Times, warm: bool) -> Phases {
    let mut phases = Phases::new(began);
    phases.end("image", image_ready);
    phases.end("vmm", run_at.unwrap_or(image_ready));
    phases.end(if warm { "wake" } else { "kernel" }, times.init);
    phases.end("init", times.started);
    phases.end("command", times.exited);
    phases.end("teardown", monotonic_ns());
    phases
}

/// The last lines of the guest's console, for people.
pub fn console_tail(log: &Path) -> String {
    match console_lines(log) {
        None => String::new(),
        Some(lines) if lines.is_empty() => {
            "bulkhead: the guest's console is empty (--append console=ttyS0 makes the kernel use it)\n".into()
        }
        Some(lines) => {
            let shown: String = lines.iter().map(|line| format!("  | {line}\n")).collect();
            format!("bulkhead: the end of the guest's console:\n{shown}")
        }
    }
}

/// The last lines of the guest's console, without what is none of people's. None: there is no console.
pub fn console_lines(log: &Path) -> Option<Vec<String>> {
    let mut file = File::open(log).ok()?;
    let end = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(end.saturating_sub(CONSOLE_BYTES))).ok()?;
    let mut bytes = Vec::new();
    file.take(CONSOLE_BYTES).read_to_end(&mut bytes).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    Some(lines.iter().skip(lines.len().saturating_sub(CONSOLE_TAIL)).map(|line| sanitize(line)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_console_cannot_write_to_the_users_terminal() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("console.log");
        std::fs::write(&log, b"one\n\x1b]0;evil\x07two\xff\n").unwrap();
        let tail = console_tail(&log);
        assert!(tail.contains("| one\n") && !tail.contains('\x1b'), "{tail}");
        assert!(console_tail(Path::new("/nonexistent")).is_empty());
    }
}
