//! What an OCI runtime is told of a container (runtime-spec, config.md and config-linux.md): namespaces, limits, and where init finds what is
//! the container's ([`guest_protocol::contained`]). All else is init's business, as in a microVM.

use std::path::Path;

use guest_protocol::contained::{ARGUMENT, FILES, IMAGE, INIT, SOCKETS, VOLUMES};
use guest_protocol::{Beside, Settings, VolumeSource};
use rustix::process::geteuid;
use rustix::thread::{CapabilitySet, capability_is_in_bounding_set};
use serde_json::{Value, json};

use crate::args::Run;
use crate::pods::member::PROCESSES;
use crate::size::{Cpus, MIB};
use crate::volumes::Volumes;

/// Microseconds of which a quota is part, and per thousandth of a processor.
const PERIOD: u64 = 100_000;
/// What interfaces are made by (Documentation/networking/tuntap.rst), and its number.
pub const TUN: &str = "/dev/net/tun";
const TUN_NUMBER: (u32, u32) = (10, 200);
/// Without these what init does to its kernel it would do to the host.
const NAMESPACES: [&str; 5] = ["pid", "mount", "uts", "ipc", "network"];
/// What init needs of what the runtime mounts by itself.
const MOUNTS: [&str; 2] = ["/proc", "/dev"];

/// The places of what a container is made of, on this host.
pub struct Places<'a> {
    /// Its root, before init makes another.
    pub root: &'a Path,
    /// The image.
    pub image: &'a Path,
    /// Its own files.
    pub files: &'a Path,
    /// The sockets for init.
    pub sockets: &'a Path,
    /// An empty directory of the same structure as what it has of the host's.
    pub volumes: &'a Path,
    /// Init is to make an interface.
    pub networked: bool,
}

/// The configuration of a container with these flags, from what the runtime has written.
pub fn configuration(mut spec: Value, flags: &Run, places: &Places<'_>, volumes: &Volumes) -> Value {
    spec["root"] = json!({ "path": places.root, "readonly": true });
    spec["process"] = json!({
        "terminal": false, "user": { "uid": 0, "gid": 0 }, "args": [INIT, ARGUMENT], "env": [], "cwd": "/",
        "capabilities": all_capabilities(), "noNewPrivileges": false,
    });
    let linux = &mut spec["linux"];
    complete(&mut linux["namespaces"]);
    // What a process finds in /proc is mounted and narrowed by init, which needs one that hides nothing to be let mount its own.
    linux["maskedPaths"] = json!([]);
    linux["readonlyPaths"] = json!([]);
    limit_resources(linux, flags);
    if let Some(devices) = linux["resources"]["devices"].as_array_mut().filter(|_| places.networked) {
        let (major, minor) = TUN_NUMBER;
        devices.push(json!({ "allow": true, "type": "c", "major": major, "minor": minor, "access": "rwm" }));
    }
    spec["mounts"] = mounts(&spec["mounts"], places, volumes);
    spec
}

/// Without root a runtime would leave it on the host's network; and init is at home in all of them.
fn complete(namespaces: &mut Value) {
    for kind in NAMESPACES {
        if let Some(list) = namespaces.as_array_mut().filter(|list| list.iter().all(|one| one["type"] != kind)) {
            list.push(json!({ "type": kind }));
        }
    }
}

/// Init has them all in its namespaces; what it starts has those that the container is to have.
fn all_capabilities() -> Value {
    let known = |bit: &CapabilitySet| !geteuid().is_root() || capability_is_in_bounding_set(*bit).unwrap_or(false);
    let names = CapabilitySet::all().iter_names().filter(|(_, bit)| known(bit));
    let names: Vec<String> = names.map(|(name, _)| format!("CAP_{name}")).collect();
    json!({ "bounding": names, "permitted": names, "effective": names })
}

/// No limit of memory and processors where none was given: a microVM has its size, a container the host's.
fn limit_resources(linux: &mut Value, flags: &Run) {
    if let Some(mib) = flags.machine.memory {
        linux["resources"]["memory"] = json!({ "limit": mib * MIB });
    }
    if let Some(cpus) = flags.machine.cpus {
        let (quota, period) = quota(cpus);
        linux["resources"]["cpu"] = json!({ "quota": quota, "period": period });
    }
    // Who is not root may have no control groups at all.
    if geteuid().is_root() {
        linux["resources"]["pids"] = json!({ "limit": PROCESSES });
    }
}

/// So many processors, as microseconds of a period of microseconds.
pub fn quota(cpus: Cpus) -> (u64, u64) {
    (u64::from(cpus.thousandths()) * PERIOD / 1000, PERIOD)
}

fn mounts(usual: &Value, places: &Places<'_>, volumes: &Volumes) -> Value {
    let needed = |mount: &&Value| mount["destination"].as_str().is_some_and(|target| MOUNTS.contains(&target));
    let mut list: Vec<Value> = usual.as_array().into_iter().flatten().filter(needed).cloned().collect();
    // What is to be read-only init makes so, with all that is mounted below it.
    let mut bind = |source: &Path, target: &str| {
        let options = ["rbind", "rprivate", "rw"];
        list.push(json!({ "type": "bind", "source": source, "destination": target, "options": options }));
    };
    bind(places.image, IMAGE);
    bind(places.files, FILES);
    bind(places.sockets, SOCKETS);
    bind(places.volumes, VOLUMES);
    if places.networked {
        bind(Path::new(TUN), TUN);
    }
    for (path, volume) in volumes.binds() {
        let target = match &volume.source {
            VolumeSource::Directory(name) => format!("{VOLUMES}/{name}"),
            VolumeSource::File(name) => format!("{VOLUMES}/{name}/file"),
            VolumeSource::Own => continue,
        };
        bind(path, &target);
    }
    Value::Array(list)
}

/// What init is told of a container's settings: that there are others on its kernel. What these may take is the runtime's.
pub fn for_init(settings: Settings) -> Settings {
    Settings { beside: Some(Beside::default()), ..settings }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Cli, Verb};
    use clap::Parser as _;

    #[test]
    fn the_runtime_is_told_what_is_its() {
        let dir = tempfile::tempdir().unwrap();
        let shared = format!("{}:/data:ro", dir.path().display());
        let file = dir.path().join("one");
        std::fs::write(&file, "").unwrap();
        let one = format!("{}:/etc/one", file.display());
        let line = ["-m", "64m", "--cpus", "1.5", "-v", &shared, "-v", &one];
        let Verb::Run(run) = Cli::parse_from(["bulkhead", "run"].iter().chain(&line).chain(&["image"])).verb else {
            panic!("not run")
        };
        let spec = json!({
            "process": { "terminal": true }, "mounts": [{ "destination": "/proc" }, { "destination": "/sys" }],
            "linux": { "resources": { "devices": [] }, "namespaces": [{ "type": "pid" }], "maskedPaths": ["/proc/x"] },
        });
        let path = Path::new("/p");
        let places = Places { root: path, image: path, files: path, sockets: path, volumes: path, networked: true };
        let volumes = Volumes::find(&run.volume).unwrap();
        let config = configuration(spec, &run, &places, &volumes);
        assert_eq!(
            (&config["process"]["args"], &config["process"]["terminal"]),
            (&json!([INIT, ARGUMENT]), &json!(false))
        );
        let linux = &config["linux"];
        assert_eq!(linux["maskedPaths"], json!([]));
        let kinds: Vec<&Value> = linux["namespaces"].as_array().unwrap().iter().map(|one| &one["type"]).collect();
        assert_eq!(kinds, ["pid", "mount", "uts", "ipc", "network"]);
        assert_eq!(linux["resources"]["memory"]["limit"], 64 << 20);
        assert_eq!(linux["resources"]["cpu"]["quota"], 150_000);
        assert_eq!(linux["resources"]["devices"][0]["minor"], 200);
        let mounts = config["mounts"].as_array().unwrap();
        let targets: Vec<&str> = mounts.iter().filter_map(|mount| mount["destination"].as_str()).collect();
        assert_eq!(targets, ["/proc", IMAGE, FILES, SOCKETS, VOLUMES, TUN, "/volumes/0", "/volumes/1/file"]);
        let told = for_init(run.settings.for_guest());
        assert_eq!(told.beside, Some(Beside::default()));
    }
}
