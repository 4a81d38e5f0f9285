//! `--isolation container`: the image and the flags in a container of this host's kernel, through runc or crun.
//!
//! ```text
//! <container's directory>/bundle/{root/, config.json, state/, files/, …}, the image's files ─► RUNTIME run ─► init ─► sockets in the run directory ─► session
//! ```
//!
//! The runtime makes namespaces and limits; init is the first process in them and lives the life that it lives in a microVM
//! (`guest-images/init/src/contained.rs`), so that all verbs are the same. The image's files are unpacked once for all containers of it, which needs no
//! privileges; what a container has of its own is in its directory, and goes with that. When nobody has the other end of init's connection any
//! more it ends, and all of the container with it; what the runtime remembers of it the next command takes away ([`clear`]).

mod alive;
mod cable;
mod config;
mod controls;
mod disks;
mod group;
mod refused;

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, anyhow};
use bench::compare::bundle::Runtime;
use bench::compare::conformance::find;
use guest_images::INIT;
use guest_protocol::VolumeSource;
use guest_protocol::contained;
use rustix::process::geteuid;
use serde_json::Value;

use crate::args::{Isolation, Run};
use crate::containers::Record;
use crate::failure::sanitize;
use crate::volumes::Volumes;

pub use alive::{Alive, Lost};
pub use config::for_init;
pub use controls::{Controls, Keeper};
pub use group::Group;
pub use refused::check;

/// Names the runtime where `--runtime` does not.
const VARIABLE: &str = "BULKHEAD_RUNTIME";
/// Those that are looked for.
const RUNTIMES: [&str; 2] = ["runc", "crun"];
/// What is its own, in the directory of a container.
const BUNDLE: &str = "bundle";
/// The file that says which runtime has it.
const RUNTIME: &str = "runtime";
/// What the runtime has written for it.
const SPEC: &str = "spec.json";

/// Where the runtime is.
///
/// # Errors
/// There is none.
pub fn program(given: Option<&Path>) -> anyhow::Result<PathBuf> {
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

/// Makes in the directory of a container what one without a microVM needs, for the runtime that is given, or one that there is.
///
/// # Errors
/// There is no runtime; something cannot be made.
pub fn furnish(container: &Path, runtime: Option<&Path>) -> anyhow::Result<()> {
    let bundle = Bundle::at(container, program(runtime)?);
    let make = |name: &str| {
        let path = bundle.dir.join(name);
        DirBuilder::new().recursive(true).mode(0o700).create(&path).with_context(|| path.display().to_string())
    };
    ["state", "files"].into_iter().try_for_each(make)?;
    let mounted = [contained::IMAGE, contained::FILES, contained::VOLUMES, contained::SOCKETS, contained::SCRATCH];
    mounted.iter().chain(&["/proc", "/dev"]).try_for_each(|target| make(&format!("root{target}")))?;
    let init = bundle.dir.join("root").join(contained::INIT.trim_start_matches('/'));
    let written = OpenOptions::new().write(true).create_new(true).mode(0o755).open(&init);
    written.and_then(|mut file| file.write_all(INIT)).with_context(|| init.display().to_string())?;
    fs::write(bundle.dir.join(RUNTIME), bundle.runtime.program.as_os_str().as_encoded_bytes()).context("bundle")?;
    let spec = bundle.runtime.usual(&bundle.dir)?;
    fs::write(bundle.dir.join(SPEC), spec.to_string()).context("bundle")
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

    /// What [`furnish`] has made.
    fn find(container: &Path) -> anyhow::Result<Self> {
        let path = container.join(BUNDLE).join(RUNTIME);
        let program = fs::read(&path).with_context(|| path.display().to_string())?;
        Ok(Self::at(container, OsString::from_vec(program).into()))
    }

    /// Says what it is to be in this life.
    fn configure(
        &self,
        flags: &Run,
        image: &Path,
        sockets: &Path,
        volumes: &Volumes,
        networked: bool,
    ) -> anyhow::Result<()> {
        let (root, files) = (self.dir.join("root"), self.dir.join("files"));
        let places = config::Places {
            root: &root,
            image,
            files: &files,
            sockets,
            volumes: &self.make_mount_points(volumes)?,
            networked,
        };
        let spec = fs::read(self.dir.join(SPEC)).context("bundle")?;
        let spec = serde_json::from_slice(&spec).context("bundle")?;
        let config = config::configuration(spec, flags, &places, volumes);
        fs::write(self.dir.join("config.json"), config.to_string()).context("bundle")
    }

    /// A directory in which there is something for each of what it has of this host to be mounted on.
    fn make_mount_points(&self, volumes: &Volumes) -> anyhow::Result<PathBuf> {
        let all = self.dir.join("volumes");
        let make = || {
            fs::create_dir_all(&all)?;
            for (_, volume) in volumes.binds() {
                match &volume.source {
                    VolumeSource::Directory(name) => fs::create_dir_all(all.join(name))?,
                    VolumeSource::File(name) => {
                        fs::create_dir_all(all.join(name))?;
                        drop(File::create(all.join(name).join("file"))?);
                    }
                    VolumeSource::Own => {}
                }
            }
            std::io::Result::Ok(())
        };
        make().context("bundle")?;
        Ok(all)
    }

    /// Starts it in the background: `output` is its first process's alone.
    fn start(&self, id: &str, output: OwnedFd) -> anyhow::Result<()> {
        // What it has been told of another life.
        let (log, pid) = (self.dir.join("log"), self.dir.join("pid"));
        [&log, &pid].into_iter().for_each(|path| drop(fs::remove_file(path)));
        let errors = File::create(self.dir.join("errors")).context("bundle")?;
        let mut command = self.runtime.command(&["--log-format", "json", "--log"]);
        command.arg(&log).args(["run", "--detach", "--bundle"]).arg(&self.dir);
        command.arg("--pid-file").arg(pid).arg(id);
        // A signal from a terminal is not for it, but for whoever has the container.
        command.stdin(Stdio::null()).stdout(output).stderr(errors).process_group(0);
        let status = command.status().with_context(|| format!("start of '{}'", self.runtime.program.display()))?;
        if status.success() {
            return Ok(());
        }
        let last = last_error(&fs::read_to_string(log).unwrap_or_default());
        Err(anyhow!("{}: {}", self.runtime.program.display(), last.unwrap_or_else(|| self.said(&status.to_string()))))
    }

    /// Its first process, as this host numbers it. None: it has never run.
    fn pid(&self) -> Option<u32> {
        fs::read_to_string(self.dir.join("pid")).ok()?.trim().parse().ok()
    }

    /// What it said on stderr last, if anything.
    fn said(&self, otherwise: &str) -> String {
        let text = fs::read_to_string(self.dir.join("errors")).unwrap_or_default();
        text.lines().rfind(|line| !line.trim().is_empty()).map_or_else(|| otherwise.to_owned(), sanitize)
    }
}

/// The first process of a container that runs, in whose directory this is, if that is one without a microVM.
pub fn first_process(container: &Path, record: &Record) -> Option<u32> {
    let contained = record.flags.isolation == Isolation::Container;
    contained.then(|| Bundle::find(container).ok()?.pid()).flatten()
}

/// The last error in a runtime's log, one line of JSON each.
fn last_error(log: &str) -> Option<String> {
    let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let mut errors = lines.filter(|line| matches!(line["level"].as_str(), Some("error" | "fatal")));
    errors.next_back().map(|line| sanitize(line["msg"].as_str().unwrap_or_default()))
}

/// Away with what a runtime has of a container that is nobody's any more, in whose directory this is.
pub fn clear(container: &Path, record: &Record) {
    if record.flags.isolation != Isolation::Container {
        return;
    }
    // The state is there from before there is anything to be removed.
    if let Ok(bundle) = Bundle::find(container) {
        bundle.runtime.delete(record.id.as_str());
    }
    open_up(container);
}

/// Lets this user look into all directories of a container that is about to be removed, whatever it has made of them. Root may anyway.
pub fn open_up(container: &Path) {
    if geteuid().is_root() {
        return;
    }
    let mut waiting = vec![container.join(BUNDLE).join("files")];
    while let Some(dir) = waiting.pop() {
        // What cannot be done is said by whoever removes it.
        let _ = fs::set_permissions(&dir, Permissions::from_mode(0o700));
        let entries = fs::read_dir(&dir).into_iter().flatten().flatten();
        waiting.extend(
            entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()),
        );
    }
}

/// Why this process can give a container no interface, if it cannot.
///
/// # Errors
/// That is why.
pub fn check_interfaces() -> anyhow::Result<()> {
    let opened = OpenOptions::new().read(true).write(true).open(config::TUN).map(drop);
    opened.with_context(|| format!("a network of a container without a microVM is made by {}", config::TUN))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_runtime_says_last_is_why_it_failed() {
        let log = "{\"level\":\"warning\",\"msg\":\"w\"}\n{\"level\":\"error\",\"msg\":\"no\\u001b\"}\nnot JSON\n";
        assert!(last_error(log).is_some_and(|error| error.starts_with("no") && !error.contains('\u{1b}')));
        assert_eq!(last_error("{\"level\":\"warning\",\"msg\":\"w\"}"), None);
    }
}
