//! Where on this host control groups for microVMs can be made, and what of their limits there are: looked at, nothing changed.
//!
//! ```text
//! v1, for each controller:   <mount>/<the caller's group>/bulkhead-NAME
//! v2:                        <mount>/<an ancestor>/bulkhead/NAME
//! ```
//!
//! With v1 a group may have processes and groups in it, so a microVM's is made in the caller's: whatever limits the caller limits
//! the microVM as well. With v2 whoever distributes a controller to groups has no processes itself (cgroup-v2.rst, "No Internal
//! Process Constraint"), which the caller's group, having the caller, cannot: so it is the nearest group above it that may be
//! changed and offers most, and the caller's only where that is the root of all, for which the rule does not hold. Of a user it is one in
//! the subtree that systemd has given that user. The group `bulkhead` in between has the controllers of its groups switched on,
//! which keeps whoever manages the ancestor from switching them off there.

use std::fs;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, AtFlags, CWD, accessat};

/// The group of all microVMs, with v2; with v1, what their groups' names begin with.
pub const ALL: &str = "bulkhead";

/// What limits something of a group's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Controller {
    /// Processor time.
    Cpu,
    /// Memory, the page cache's and the kernel's for the group's processes included.
    Memory,
    /// Processes and threads.
    Pids,
    /// Disks of the host, where their scheduler shares them out by groups.
    Io,
}

impl Controller {
    /// Those that a microVM's group is to have.
    pub const WANTED: [Controller; 3] = [Controller::Cpu, Controller::Memory, Controller::Pids];
    /// Those that it gets where they are.
    const ALL: [Controller; 4] = [Controller::Cpu, Controller::Memory, Controller::Pids, Controller::Io];

    fn is_wanted(self) -> bool {
        Self::WANTED.contains(&self)
    }

    /// As the kernel calls it: with v1, that of disks is `blkio`.
    pub fn name(self) -> &'static str {
        match self {
            Controller::Cpu => "cpu",
            Controller::Memory => "memory",
            Controller::Pids => "pids",
            Controller::Io => "io",
        }
    }
}

/// The name that a controller of v1 has in v2.
fn modern(name: &str) -> &str {
    if name == "blkio" { "io" } else { name }
}

/// The kernel's two interfaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// A hierarchy for each controller, or a few of them.
    V1,
    /// One hierarchy.
    V2,
}

/// A place for groups of microVMs, or such a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Of which kind.
    pub version: Version,
    /// In which groups are made, with v2 in the group [`ALL`] there; or the microVM's.
    pub dir: PathBuf,
    /// What they get there.
    pub controllers: Vec<Controller>,
}

impl Place {
    /// The group of a microVM.
    pub fn group(&self, name: &str) -> PathBuf {
        match self.version {
            Version::V1 => self.dir.join(format!("{ALL}-{name}")),
            Version::V2 => self.dir.join(ALL).join(name),
        }
    }
}

/// What this host offers to a process.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// Where groups can be made.
    pub places: Vec<Place>,
    /// What they lack, and why.
    pub lacking: Vec<(Controller, String)>,
}

/// A hierarchy that is mounted.
#[derive(Debug)]
struct Mount {
    version: Version,
    /// Which group is at the mount point.
    root: PathBuf,
    point: PathBuf,
    /// Of v1.
    controllers: Vec<String>,
}

/// The control groups of a host.
#[derive(Debug)]
pub struct Cgroups {
    /// Its root directory.
    root: PathBuf,
}

impl Cgroups {
    /// Those of this host.
    pub fn here() -> Self {
        Self::of(Path::new("/"))
    }

    /// Those of a host whose files are below `root`.
    pub fn of(root: &Path) -> Self {
        Cgroups { root: root.to_owned() }
    }

    fn read(&self, path: &str) -> String {
        fs::read_to_string(self.root.join(path)).unwrap_or_default()
    }

    /// What there is for microVMs that this process starts.
    pub fn plan(&self) -> Plan {
        let (mounts, own) = (self.mounts(), self.read("proc/self/cgroup"));
        let mut plan = Plan::default();
        let mut left = Vec::new();
        for controller in Controller::ALL {
            let has = |mount: &&Mount| mount.controllers.iter().any(|name| name == controller.name());
            match shown(mounts.iter().filter(has), &own) {
                Some(mount) => plan.add_v1(controller, mount, &own),
                None => left.push(controller),
            }
        }
        if !left.is_empty() {
            let unified = mounts.iter().filter(|mount| mount.version == Version::V2);
            plan.add_v2(&left, shown(unified, &own), &own);
        }
        plan.lacking.retain(|(controller, _)| controller.is_wanted());
        plan
    }

    /// The groups of microVMs that a process is in, and the controllers of each.
    pub fn groups_of(&self, pid: u32) -> Vec<Place> {
        let text = self.read(&format!("proc/{pid}/cgroup"));
        let mut found = Vec::new();
        for mount in self.mounts() {
            let Some(dir) = group(&mount, &text) else { continue };
            let name = dir.file_name().unwrap_or_default().to_string_lossy();
            let (ours, names) = match mount.version {
                Version::V1 => (name.starts_with(&format!("{ALL}-")), mount.controllers),
                Version::V2 => {
                    (dir.parent().is_some_and(|parent| parent.ends_with(ALL)), words(&dir, "cgroup.controllers"))
                }
            };
            let controllers = wanted_of(&names);
            if ours && !controllers.is_empty() {
                found.push(Place { version: mount.version, dir, controllers });
            }
        }
        found
    }

    /// The group of a process that has a controller of this name, whoever has made it.
    pub fn group_with(&self, controller: &str, pid: u32) -> Option<(Version, PathBuf)> {
        let text = self.read(&format!("proc/{pid}/cgroup"));
        let has = |mount: &Mount, dir: &Path| match mount.version {
            Version::V1 => mount.controllers.iter().any(|name| name == controller),
            Version::V2 => words(dir, "cgroup.controllers").iter().any(|name| name == controller),
        };
        let mut found = self.mounts().into_iter().filter_map(|mount| Some((group(&mount, &text)?, mount)));
        found.find(|(dir, mount)| has(mount, dir)).map(|(dir, mount)| (mount.version, dir))
    }

    /// proc_pid_mountinfo(5).
    fn mounts(&self) -> Vec<Mount> {
        let parse = |line: &str| {
            let (before, after) = line.split_once(" - ")?;
            let mut before = before.split(' ').skip(3);
            let (root, point) = (PathBuf::from(before.next()?), before.next()?);
            let mut after = after.split(' ');
            let version = match after.next()? {
                "cgroup" => Version::V1,
                "cgroup2" => Version::V2,
                _ => return None,
            };
            let options = after.nth(1)?.split(',').map(|name| modern(name).to_owned());
            let controllers = if version == Version::V1 { options.collect() } else { Vec::new() };
            let point = self.root.join(point.trim_start_matches('/'));
            Some(Mount { version, root, point, controllers })
        };
        self.read("proc/self/mountinfo").lines().filter_map(parse).collect()
    }
}

/// Of these mounts of a hierarchy, the first in which the group is that a process is in; of those where it is not, the first.
fn shown<'m>(mounts: impl Iterator<Item = &'m Mount> + Clone, own: &str) -> Option<&'m Mount> {
    mounts.clone().find(|mount| group(mount, own).is_some()).or_else(|| mounts.clone().next())
}

impl Plan {
    fn add_v1(&mut self, controller: Controller, mount: &Mount, own: &str) {
        let Some(dir) = group(mount, own) else {
            return self
                .lacking
                .push((controller, format!("{} does not show this process's group", mount.point.display())));
        };
        if !writable(&dir) {
            return self.lacking.push((controller, format!("no group can be made in {}", dir.display())));
        }
        match self.places.iter_mut().find(|place| place.dir == dir) {
            Some(place) => place.controllers.push(controller),
            None => self.places.push(Place { version: Version::V1, dir, controllers: vec![controller] }),
        }
    }

    fn add_v2(&mut self, wanted: &[Controller], mount: Option<&Mount>, own: &str) {
        let found = mount.and_then(|mount| Some((mount, ancestor(mount, &group(mount, own)?, wanted))));
        let reason = match (mount, &found) {
            (None, _) => "no hierarchy of control groups has it".to_owned(),
            (Some(mount), None) => format!("{} does not show this process's group", mount.point.display()),
            (Some(mount), Some(_)) if group(mount, own).is_some_and(|own| own == mount.point) => {
                let point = mount.point.display();
                if is_root_of_all(&mount.point) {
                    format!("{point} does not offer it, or may not be changed")
                } else {
                    format!("{point} has processes itself, and is not the root of all groups")
                }
            }
            (Some(mount), Some(_)) => {
                format!("no group above this process's in {} that may be changed offers it", mount.point.display())
            }
        };
        let place = found.and_then(|(_, place)| place);
        let has = |controller| place.as_ref().is_some_and(|place| place.controllers.contains(controller));
        let lacking = wanted.iter().filter(|controller| !has(controller));
        self.lacking.extend(lacking.map(|controller| (*controller, reason.clone())));
        self.places.extend(place);
    }
}

/// The nearest group, from `own` upwards, below which others can be made that have most of these.
fn ancestor(mount: &Mount, own: &Path, wanted: &[Controller]) -> Option<Place> {
    let mut best: Option<Place> = None;
    let number = |place: &Place| place.controllers.iter().filter(|one| one.is_wanted()).count();
    for dir in own.ancestors().take_while(|dir| dir.starts_with(&mount.point)) {
        let changeable = || ["", "cgroup.procs", "cgroup.subtree_control"].iter().all(|name| writable(&dir.join(name)));
        if (dir == own && !is_root_of_all(dir)) || !changeable() {
            continue;
        }
        let offered = wanted_of(&words(dir, "cgroup.controllers"));
        let controllers: Vec<_> = wanted.iter().copied().filter(|controller| offered.contains(controller)).collect();
        let place = Place { version: Version::V2, dir: dir.to_owned(), controllers };
        if number(&place) > best.as_ref().map_or(0, number) {
            best = Some(place);
        }
    }
    best
}

/// Whether this group of v2 is above all others: only that one says nothing of its type.
fn is_root_of_all(dir: &Path) -> bool {
    !dir.join("cgroup.type").exists()
}

/// The directory of a process's group in a hierarchy; `text` is its /proc/PID/cgroup (cgroups(7)). None: it is not below the mount point.
fn group(mount: &Mount, text: &str) -> Option<PathBuf> {
    let path = text.lines().find_map(|line| {
        let (number, rest) = line.split_once(':')?;
        let (names, path) = rest.split_once(':')?;
        let fits = match mount.version {
            Version::V1 => {
                names.split(',').any(|name| !name.is_empty() && mount.controllers.iter().any(|own| own == modern(name)))
            }
            Version::V2 => number == "0" && names.is_empty(),
        };
        fits.then(|| Path::new(path))
    })?;
    let below = path.strip_prefix(&mount.root).ok()?;
    // Seen from a namespace, a group that is not in it has such a path.
    let plain = below.components().all(|part| matches!(part, std::path::Component::Normal(_)));
    plain.then(|| if below.as_os_str().is_empty() { mount.point.clone() } else { mount.point.join(below) })
}

fn wanted_of(names: &[String]) -> Vec<Controller> {
    Controller::ALL.into_iter().filter(|one| names.iter().any(|name| name == one.name())).collect()
}

/// The words of a group's file.
pub fn words(dir: &Path, file: &str) -> Vec<String> {
    fs::read_to_string(dir.join(file)).unwrap_or_default().split_ascii_whitespace().map(str::to_owned).collect()
}

fn writable(path: &Path) -> bool {
    accessat(CWD, path, Access::WRITE_OK, AtFlags::EACCESS).is_ok()
}
