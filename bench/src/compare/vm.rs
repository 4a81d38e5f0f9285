//! Bulkhead's own: a guest that boots, one that goes on from a template, and one that goes on from a prepared image.
//!
//! The prepared image is of a shell that waits for a line, which is the command to become: so one serves all commands. It is made of a
//! container in the foreground, which ends when this process does, and is called by this process's id: those of benchmarks that
//! were killed are removed.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::arm::{Arm, Made, Making, quoted};
use super::moving::{Errand, VOLUME};
use super::running::{Input, Patience, Running, answer};
use super::tree;
use super::{PREFIX, What, is_alive, pool};
use crate::process::BenchError;
use crate::run;

/// What the shell of a prepared image does.
const WAIT: &str = "echo waiting; read -r line; eval \"$line\"";

pub(super) struct Vm {
    program: PathBuf,
    image: String,
    /// Of `run`, beside those that all have.
    flags: &'static [&'static str],
    /// Confined as always.
    sandbox: bool,
    image_kib: u64,
    instance_kib: Option<u64>,
}

struct Restored {
    vm: Vm,
    name: String,
}

impl Vm {
    /// The arm or variant of that name.
    pub(super) fn of(what: &What<'_>, name: &str) -> Self {
        let (program, image) = (what.bulkhead.to_owned(), what.image.to_owned());
        let (flags, sandbox) = (flags(name), name != "unconfined");
        Vm { program, image, flags, sandbox, image_kib: what.image_kib, instance_kib: None }
    }

    /// One of its verbs.
    pub(super) fn verb(&self, words: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        // Containers have none beside it.
        command.args(words).env_remove("BULKHEAD_LOG").env("BULKHEAD_NETWORK", "none");
        command
    }

    /// The image, as it is told to them.
    pub(super) fn image(&self) -> &str {
        &self.image
    }

    fn run(&self, id: &str) -> Command {
        let mut command = self.verb(&["run", "--interactive", "--verbose", "--name", id]);
        command.args(self.flags).args(["--entrypoint", "", &self.image]);
        if !self.sandbox {
            command.env("BULKHEAD_SANDBOX", "off");
        }
        command
    }

    /// What a container that stays takes on disk before it has run.
    fn stays_kib(&self, what: &What<'_>, patience: Patience<'_>) -> Result<u64, BenchError> {
        let name = format!("{PREFIX}{}-disk", std::process::id());
        let id = answer(self.verb(&["create", "--name", &name, "--entrypoint", "", &self.image, "true"]), patience)?;
        let kib = tree::disk_kib(&what.store.join("containers").join(id.trim()));
        answer(self.verb(&["rm", &name]), patience)?;
        Ok(kib)
    }
}

/// What `run` is told for the arm or variant of that name.
fn flags(name: &str) -> &'static [&'static str] {
    match name {
        "vm-cold" | "cold" => &["--rm", "--cold"],
        "disk" => &[],
        "console" => &["--rm", "--append", "console=ttyS0"],
        "small" => &["--rm", "-m", "128m"],
        "large" => &["--rm", "-m", "1g"],
        "two-cpus" => &["--rm", "--cpus", "2"],
        _ => &["--rm"],
    }
}

/// Away with what benchmarks have left that were killed.
pub(super) fn sweep(what: &What<'_>, patience: Patience<'_>) -> Result<(), BenchError> {
    let vm = Vm::of(what, "");
    let dead = |name: &str| {
        let rest = name.strip_prefix(PREFIX)?;
        let pid = rest.split(['-', '@']).next()?;
        (!is_alive(pid)).then(|| name.to_owned())
    };
    let snapshots = answer(vm.verb(&["snapshots", "--format", "json"]), patience)?;
    let snapshots: serde_json::Value = serde_json::from_str(&snapshots).unwrap_or_default();
    let snapshots = snapshots.as_array().into_iter().flatten();
    for name in snapshots.filter_map(|snapshot| dead(snapshot["name"].as_str()?)) {
        answer(vm.verb(&["snapshots", "rm", &name]), patience)?;
    }
    let containers = answer(vm.verb(&["ps", "--all", "--format", "{{.Names}}"]), patience)?;
    for name in containers.lines().filter_map(dead) {
        answer(vm.verb(&["rm", "--force", &name]), patience)?;
    }
    Ok(())
}

/// The arm `name`, or why there is none.
pub(super) fn make(name: &str, making: &Making<'_>) -> Result<Made, String> {
    let said = |error: BenchError| error.to_string();
    let what = making.what;
    let mut vm = Vm::of(what, name);
    vm.instance_kib = Some(vm.stays_kib(what, making.patience).map_err(said)?);
    let version = format!("bulkhead {}", what.version);
    if name == "vm-pool" {
        return pool::make(vm, version, making);
    }
    if name != "vm-restored" {
        return Ok(Made { version, arm: Box::new(vm) });
    }
    let restored = Restored { vm, name: format!("{PREFIX}{}", std::process::id()) };
    restored.prepare(making.patience).map_err(said)?;
    Ok(Made { version, arm: Box::new(restored) })
}

impl Arm for Vm {
    fn command(&self, id: &str, words: &[String]) -> Result<Command, BenchError> {
        let mut command = self.run(id);
        command.args(words);
        Ok(command)
    }

    fn clear(&self, id: &str) {
        // It says so if there is none, and that is well; this also removes what a killed verb has left.
        let _ = self.verb(&["rm", "--force", id]).stdin(Stdio::null()).output();
    }

    fn stays(&self) -> bool {
        !self.flags.contains(&"--rm")
    }

    /// Of what users type, but that it stays, which gives it a disk. A guest that has booted has the same devices.
    fn errand(&self, id: &str, errand: &Errand<'_>) -> Result<Option<Command>, BenchError> {
        if self.flags != ["--rm"] {
            return Ok(None);
        }
        let network = if errand.network { "user" } else { "none" };
        let mut command = self.verb(&["run", "--name", id, "--network", network, "-u", "0:0", "-w", "/"]);
        command.arg("-v").arg(format!("{}:{VOLUME}", errand.volume.display())).args(["--entrypoint", "", &self.image]);
        command.args(errand.words(Path::new(VOLUME), Path::new("/")));
        Ok(Some(command))
    }

    fn image_disk(&self) -> Option<u64> {
        Some(self.image_kib)
    }

    fn instance_disk(&self, _: &str) -> Option<u64> {
        self.instance_kib
    }

    fn phases(&self, stderr: &[u8]) -> Vec<(String, f64)> {
        let phases = run::phases(&String::from_utf8_lossy(stderr));
        phases.into_iter().map(|(name, length)| (name, super::milliseconds(length))).collect()
    }
}

impl Restored {
    fn prepare(&self, patience: Patience<'_>) -> Result<(), BenchError> {
        let mut command = self.vm.run(&self.name);
        command.args(["sh", "-c", WAIT]);
        let mut waiting = Running::start(command, Input::Open(Vec::new()))?;
        let made = waiting
            .line(1, patience)
            .and_then(|_| answer(self.vm.verb(&["commit", "--memory", &self.name, &self.name]), patience));
        waiting.close_input();
        let ended = waiting.end(patience);
        made.and_then(|_| ended?.good("run")).map(drop).inspect_err(|_| self.vm.clear(&self.name))
    }
}

impl Arm for Restored {
    fn command(&self, id: &str, _: &[String]) -> Result<Command, BenchError> {
        let image = format!("{}@warm", self.name);
        Ok(self.vm.verb(&["run", "--rm", "--interactive", "--verbose", "--name", id, &image]))
    }

    fn input(&self, words: &[String]) -> Vec<u8> {
        // For the shell to become the command.
        format!("exec {}\n", quoted(words)).into_bytes()
    }

    fn clear(&self, id: &str) {
        // A clone is no container: any verb removes what a killed one has left.
        self.vm.clear(id);
    }

    fn image_disk(&self) -> Option<u64> {
        let list = self.vm.verb(&["snapshots", "--format", "json"]).stdin(Stdio::null()).output().ok()?.stdout;
        let list: serde_json::Value = serde_json::from_slice(&list).ok()?;
        let name = format!("{}@warm", self.name);
        let snapshot = list.as_array()?.iter().find(|snapshot| snapshot["name"] == name.as_str())?;
        Some(self.vm.image_kib + (snapshot["bytes"].as_u64()? >> 10))
    }

    fn instance_disk(&self, _: &str) -> Option<u64> {
        Some(0)
    }

    fn phases(&self, stderr: &[u8]) -> Vec<(String, f64)> {
        self.vm.phases(stderr)
    }
}

impl Drop for Restored {
    fn drop(&mut self) {
        let name = format!("{}@warm", self.name);
        let _ = self.vm.verb(&["snapshots", "rm", &name]).stdin(Stdio::null()).output();
    }
}
