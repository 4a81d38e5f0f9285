//! What a workload can reach in a microVM and in a container: what it finds from inside, where a program of ours makes its attempts
//! (`guest_protocol::audit`), and what its host sees meanwhile of the process that it would be in if it broke out.
//!
//! A container's process is the host kernel's own; a microVM's is its guest kernel's, and what stands behind that is the monitor.

mod host;
mod inside;

use std::path::Path;
use std::process::Command;

use serde::Serialize;

use super::arm::{Arm, Instance, Making};
use super::running::{Input, Patience, Running};
use super::{PREFIX, What, oci, vm};
use crate::place::Place;
use crate::process::{BenchError, io_error};

pub use host::{Descriptors, Outside, Thread, capabilities, host_syscalls};
pub use inside::{Inside, Mount, Tried};

/// Where the program is in the root directory of a container.
const PROGRAM: &str = "/.bulkhead-audit";

/// What audits are made with.
pub struct Tools<'a> {
    /// The program that makes the attempts: static, for any root directory.
    pub program: &'a [u8],
    /// Its first argument.
    pub argument: &'a str,
    /// Where it is in a guest.
    pub in_guest: &'a str,
    /// The process of the microVM that the verb with this process id has, and how many system calls each of its threads is let through, by
    /// its name.
    pub monitor: &'a dyn Fn(u32, &str) -> Result<Monitor, String>,
}

/// The process of a microVM.
#[derive(Debug, Clone, Default)]
pub struct Monitor {
    /// Its id.
    pub pid: u32,
    /// The lists of its threads' filters, by their names: `main`, `vcpu`, and what others are called.
    pub lists: Vec<(String, usize)>,
}

/// What was found of one way to run the workload.
#[derive(Debug, Serialize)]
pub struct Found {
    /// `microvm`, `runc`, `crun`.
    pub arm: String,
    /// Why nothing was found.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// From inside.
    pub inside: Option<Inside>,
    /// From outside: the process that has the guest, or that is the container's.
    pub outside: Option<Outside>,
}

impl Found {
    fn of(arm: &str, result: Result<(Inside, Outside), BenchError>) -> Result<Self, BenchError> {
        let arm = arm.to_owned();
        match result {
            Err(BenchError::Interrupted) => Err(BenchError::Interrupted),
            Err(error) => Ok(Found { arm, problem: Some(error.to_string()), inside: None, outside: None }),
            Ok((inside, outside)) => Ok(Found { arm, problem: None, inside: Some(inside), outside: Some(outside) }),
        }
    }
}

/// Audits an image: in a microVM, and in containers where there is something to run them with. `what.arms` says which, all if it is empty.
///
/// # Errors
/// It was told to stop. What keeps an arm from being used is in what is found of it.
pub fn image(what: &What<'_>, tools: &Tools<'_>) -> Result<Vec<Found>, BenchError> {
    let patience = Patience { limit: what.timeout, stop: what.stop };
    let wanted = |name: &str| what.arms.is_empty() || what.arms.contains(&name);
    let mut found = Vec::new();
    if wanted("microvm") {
        (what.say)("in a microVM");
        vm::sweep(what, patience)?;
        let arm = vm::Vm::of(what, "audit");
        let result = instance(&arm, what, tools, tools.in_guest, patience, &|verb, id| {
            let monitor = (tools.monitor)(verb, id).map_err(BenchError::Container)?;
            Outside::monitor(&monitor).map_err(io_error("/proc of the microVM's process"))
        });
        found.push(Found::of("microvm", result)?);
    }
    let runtimes: Vec<_> = ["runc", "crun"].into_iter().filter(|name| wanted(name)).collect();
    if runtimes.is_empty() {
        return Ok(found);
    }
    let place = Place::new()?;
    let root = place.path().join("root");
    (what.say)("unpacking the image");
    let unpacked = unpack(what, &root, tools.program);
    for name in runtimes {
        (what.say)(&format!("in {name}"));
        let made = unpacked
            .as_ref()
            .map_err(String::clone)
            .and_then(|()| oci::make(name, &Making { what, place: &place, root: &root, patience }));
        let result = made.map_err(BenchError::Container).and_then(|made| {
            instance(&*made.arm, what, tools, PROGRAM, patience, &|verb, id| {
                let pid = made.arm.processes(verb, id).into_iter().find(|pid| host::runs(*pid, PROGRAM));
                let pid = pid.ok_or_else(|| BenchError::Container("its process is not to be found".into()))?;
                Outside::container(pid).map_err(io_error("/proc of the container's process"))
            })
        });
        found.push(Found::of(name, result)?);
    }
    Ok(found)
}

/// Audits a container that runs in a microVM: `command` runs the program there.
///
/// # Errors
/// It does not run, or says nothing that is understood; it was told to stop.
pub fn running(
    mut command: Command,
    monitor: &Monitor,
    tools: &Tools<'_>,
    patience: (std::time::Duration, std::os::fd::BorrowedFd<'_>),
) -> Result<Found, BenchError> {
    let patience = Patience { limit: patience.0, stop: patience.1 };
    command.args(words(tools.in_guest, tools));
    let mut process = Running::start(command, Input::Open(Vec::new()))?;
    let inside = report(&mut process, patience)?;
    let outside = Outside::monitor(monitor).map_err(io_error("/proc of the microVM's process"))?;
    process.close_input();
    process.end(patience)?.good("the program that looks from inside")?;
    Found::of("microvm", Ok((inside, outside)))
}

fn unpack(what: &What<'_>, root: &Path, program: &[u8]) -> Result<(), String> {
    use std::os::unix::fs::OpenOptionsExt;
    std::fs::create_dir(root).map_err(|error| error.to_string())?;
    (what.unpack)(root)?;
    // The image's own file of that name, or a link, is not followed.
    let path = root.join(PROGRAM.trim_start_matches('/'));
    let mut options = std::fs::OpenOptions::new();
    let file = options.write(true).create_new(true).mode(0o755).open(path);
    file.and_then(|mut file| std::io::Write::write_all(&mut file, program))
        .map_err(|error| format!("{PROGRAM} in the image's files: {error}"))
}

fn words(program: &str, tools: &Tools<'_>) -> [String; 3] {
    [program.to_owned(), tools.argument.to_owned(), std::process::id().to_string()]
}

/// Runs the program in an instance, and looks at that from outside while it is there.
fn instance(
    arm: &dyn Arm,
    what: &What<'_>,
    tools: &Tools<'_>,
    program: &str,
    patience: Patience<'_>,
    look: &dyn Fn(u32, &str) -> Result<Outside, BenchError>,
) -> Result<(Inside, Outside), BenchError> {
    let id = format!("{PREFIX}{}-audit", std::process::id());
    (what.say)(&id);
    let process = Running::start(arm.command(&id, &words(program, tools))?, Input::Open(Vec::new()))?;
    let mut instance = Instance { running: Some(process), id, arm };
    let Some(process) = &mut instance.running else { return Err(BenchError::NoRuns) };
    let inside = report(process, patience)?;
    let outside = look(process.pid(), &instance.id)?;
    process.close_input();
    if let Some(process) = instance.running.take() {
        let ended = process.end(patience);
        arm.clear(&instance.id);
        ended?.good("the program that looks from inside")?;
    }
    Ok((inside, outside))
}

/// What the program says, which ends with a line that says so.
fn report(process: &mut Running, patience: Patience<'_>) -> Result<Inside, BenchError> {
    let mut lines = 0;
    loop {
        lines += 1;
        if let Err(error) = process.line(lines, patience) {
            return Err(process.words(error));
        }
        if let Some(text) = inside::complete(process.said()) {
            return Inside::parse(&text, host::boot_id().as_deref()).map_err(BenchError::Container);
        }
    }
}
