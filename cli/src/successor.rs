//! What takes the place of a running VM: started beside it and proven, so that one that does not work costs nothing.
//!
//! ```text
//! start ─► its machine is built ─► a container's init says that it is a frozen clone ─► Alive ─► the old VM ends ─► take_place
//!   └────────────┴──────────────────────────┴─► the reason, and nothing is left
//! ```
//!
//! A bare machine stays paused until then, since whatever its guest does is seen by others; a container's guest runs, but its
//! processes stand still. Neither has anything behind its interfaces: that is the old VM's. Sockets and the console's log have other
//! names, until it is the only one.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, anyhow};
use rustix::event::epoll;
use serde_json::{Map, Value};
use vmm::VmConfig;
use vmm::config::{MachineConfig, Paging, SerialConfig, SnapshotSource};

use crate::monitor::{Console, Monitor};
use crate::net;
use crate::plug;
use crate::session::{Arrival, Session};
use crate::size::Cpus;
use crate::snapshots::Held;
use crate::upper;

/// How long a VM that lost its connection may take to be gone.
const GRACE: Duration = Duration::from_secs(1);
/// The sockets of a container's successors, in turns. The first VM's is `vsock`.
const SOCKETS: [&str; 2] = ["vsock2", "vsock3"];

/// How a VM is replaced, as often as that is asked for.
#[derive(Debug)]
pub struct Succession {
    /// Its run directory.
    pub directory: PathBuf,
    /// Its devices, with the files that they have here.
    pub devices: Map<String, Value>,
    /// It has a container. A bare machine has its console on stdin and stdout.
    pub container: bool,
    /// The file of the container's writable layer, if that is to stay; otherwise a new VM's goes with it.
    pub upper: Option<PathBuf>,
    /// Processor time that it may have, if that is less than its vCPUs could take.
    pub quota: Option<Cpus>,
    /// Its process may talk on stderr.
    pub verbose: bool,
    /// Which of [`SOCKETS`] is free.
    pub next: usize,
}

/// A VM that waits for its place. Dropping it ends it, and leaves everything as it was.
#[derive(Debug)]
pub struct Successor {
    monitor: Monitor,
    /// Of a container's guest.
    arrival: Option<Arrival>,
    staged: Staged,
    to: Held,
    /// Readable when there is something for [`Self::step`] to do.
    any: OwnedFd,
}

/// Where a successor is.
#[derive(Debug)]
pub enum Step {
    /// It has not proven anything yet.
    Waits(Box<Successor>),
    /// It can take its place.
    Alive(Box<Successor>),
}

/// A successor in its place.
#[derive(Debug)]
pub struct Arrived {
    /// Its process.
    pub monitor: Monitor,
    /// A container's guest, which has said hello.
    pub arrival: Option<Arrival>,
    /// What it is.
    pub to: Held,
}

impl Succession {
    /// The interfaces, if there are any.
    pub fn interfaces(&self) -> Option<&Value> {
        self.devices.get(net::SECTION)
    }

    /// The machine's control socket.
    pub fn control(&self) -> PathBuf {
        self.directory.join("api")
    }

    /// Starts one that goes on from `to`. To be called on the main thread, as [`Monitor::start`].
    pub fn start(&self, to: Held) -> anyhow::Result<Box<Successor>> {
        let mut staged = Staged::default();
        let mut devices = self.devices.clone();
        // Those in the snapshot, and no others.
        if !self.container {
            devices.remove("drives");
        }
        if let Some(section) = devices.get_mut(net::SECTION) {
            *section = plug::unplugged(section);
        }
        let mut arrival = None;
        if let Some(upper) = &self.upper {
            let now = staged.rename(upper.parent().unwrap_or(Path::new("")), upper::FILE);
            upper::copy_saved(to.path(), &now)?;
            devices["drives"][1] = upper::drive(Some(&now))?;
        }
        let (serial, console) = if self.container {
            let uds = self.directory.join(SOCKETS[self.next % SOCKETS.len()]);
            devices["vsock"]["uds_path"] = uds.to_string_lossy().into();
            arrival = Some(Arrival::at(Session::listen(&uds)?));
            let log = staged.rename(&self.directory, "console.log");
            (SerialConfig::Log { path: log }, Console::None)
        } else {
            if let Some(path) = devices.get("vsock").and_then(|vsock| vsock["uds_path"].as_str()) {
                staged.put_aside(Path::new(path)).with_context(|| format!("socket {path}"))?;
            }
            (SerialConfig::Stdio, Console::Stdio)
        };
        let resume = self.container;
        let config = VmConfig {
            boot_source: None,
            snapshot: Some(SnapshotSource { path: to.path().to_owned(), resume, paging: Paging::Map }),
            machine: MachineConfig::default(),
            serial,
            cpuid_cache: None,
            devices,
        };
        let control = staged.rename(&self.directory, "api");
        let limits = to.record.limits(self.quota);
        let config = serde_json::to_string(&config)?;
        let monitor = Monitor::start(&config, console, &control, limits, self.verbose)?;
        monitor.confined()?;
        if !monitor.runs() {
            return Err(why(monitor));
        }
        let any = epoll::create(epoll::CreateFlags::CLOEXEC).context("cannot wait for the new microVM")?;
        let successor = Successor { monitor, arrival, staged, to, any };
        successor.watch(successor.monitor.ended())?;
        successor.arrival.as_ref().map_or(Ok(()), |arrival| successor.watch(arrival.event()))?;
        Ok(Box::new(successor))
    }
}

impl Successor {
    fn watch(&self, fd: BorrowedFd<'_>) -> anyhow::Result<()> {
        let added = epoll::add(&self.any, fd, epoll::EventData::new_u64(0), epoll::EventFlags::IN);
        added.context("cannot wait for the new microVM")
    }

    /// Its control socket, until it has its place.
    pub fn control(&self) -> PathBuf {
        self.staged.renames.iter().find(|(_, to)| to.ends_with("api")).map(|(from, _)| from.clone()).unwrap_or_default()
    }

    /// Looks at what has come. Never waits for its guest.
    ///
    /// # Errors
    /// It does not work: why.
    pub fn step(mut self: Box<Self>) -> anyhow::Result<Step> {
        let Some(arrival) = &mut self.arrival else { return Ok(Step::Alive(self)) };
        // Each step has another descriptor to wait for.
        let _ = epoll::delete(&self.any, arrival.event());
        match arrival.step() {
            Ok(true) => return Ok(Step::Alive(self)),
            Ok(false) if !self.monitor.ends_within(Duration::ZERO) => {}
            Ok(false) => return Err(why(self.monitor)),
            Err(_) if self.monitor.ends_within(GRACE) => return Err(why(self.monitor)),
            Err(error) => return Err(error.into()),
        }
        self.arrival.as_ref().map_or(Ok(()), |arrival| self.watch(arrival.event()))?;
        Ok(Step::Waits(self))
    }

    /// Gives it the names that the old VM had, which has ended.
    ///
    /// # Errors
    /// As rename(2).
    pub fn take_place(self) -> io::Result<Arrived> {
        let Successor { monitor, arrival, staged, to, any: _ } = self;
        staged.commit()?;
        Ok(Arrived { monitor, arrival, to })
    }
}

impl AsFd for Successor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.any.as_fd()
    }
}

/// Why its process has ended, or will.
fn why(monitor: Monitor) -> anyhow::Error {
    monitor.wait().map_or_else(anyhow::Error::from, |_| anyhow!("it ended by itself"))
}

/// Files that are called otherwise for a while. Dropped, it makes that undone.
#[derive(Debug, Default)]
struct Staged {
    /// What the new one has, and what it will be called.
    renames: Vec<(PathBuf, PathBuf)>,
    /// What the old one had, and what it is called meanwhile.
    aside: Vec<(PathBuf, PathBuf)>,
}

impl Staged {
    /// The name for now of what is to be `name`.
    fn rename(&mut self, directory: &Path, name: &str) -> PathBuf {
        let now = directory.join(format!("next-{name}"));
        self.renames.push((now.clone(), directory.join(name)));
        now
    }

    /// Has what is called `path` called otherwise, whoever uses it: a listening socket goes on.
    fn put_aside(&mut self, path: &Path) -> io::Result<()> {
        let away = aside(path);
        match fs::rename(path, &away) {
            Ok(()) => self.aside.push((path.to_owned(), away)),
            // Somebody has removed it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn commit(mut self) -> io::Result<()> {
        for (_, away) in std::mem::take(&mut self.aside) {
            let _ = fs::remove_file(away);
        }
        std::mem::take(&mut self.renames).into_iter().try_for_each(|(now, name)| fs::rename(now, name))
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        for (now, _) in &self.renames {
            let _ = fs::remove_file(now);
        }
        for (path, away) in &self.aside {
            let _ = fs::rename(away, path);
        }
    }
}

/// What a socket outside the run directory is called while another VM is tried out.
pub fn aside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".before");
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_change_when_it_takes_its_place_and_not_before() {
        let dir = tempfile::tempdir().unwrap();
        let (log, socket) = (dir.path().join("console.log"), dir.path().join("socket"));
        let read = |path: &Path| fs::read_to_string(path).unwrap();
        for (takes_place, expected) in [(false, "old"), (true, "new")] {
            fs::write(&log, "old").unwrap();
            fs::write(&socket, "old").unwrap();
            let mut staged = Staged::default();
            fs::write(staged.rename(dir.path(), "console.log"), "new").unwrap();
            staged.put_aside(&socket).unwrap();
            staged.put_aside(&dir.path().join("missing")).unwrap();
            assert!(read(&log) == "old" && !socket.exists());
            fs::write(&socket, "new").unwrap();
            if takes_place {
                staged.commit().unwrap()
            } else {
                drop(staged)
            }
            assert_eq!((read(&log).as_str(), read(&socket).as_str()), (expected, expected));
            assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
        }
    }
}
