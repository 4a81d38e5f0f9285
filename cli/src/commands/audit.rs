//! `bulkhead audit`: what a workload can reach, in a microVM and in a container.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Context;
use bench::compare::Scope;
use bench::compare::audit::{self, Found, Inside, Monitor, Outside, Tools};
use bench::process::BenchError;
use guest_protocol::audit::{ARGUMENT, PROGRAM};
use serde_json::json;

use super::measuring::{Stop, Wish, prepared};
use crate::args::{Audit, Format, Talk};
use crate::control::Control;
use crate::failure::{Failure, Outcome, sanitize};
use crate::output;
use crate::running;

/// Where there is nothing to be told.
const NOTHING: &str = "-";

/// Looks, and tells.
pub fn audit(args: &Audit, talk: Talk) -> Outcome {
    let tools = Tools {
        program: guest_images::INIT,
        argument: ARGUMENT,
        in_guest: PROGRAM,
        monitor: &|_, id| running::find(id).and_then(|(_, dir)| monitor(&dir)).map_err(|error| format!("{error:#}")),
    };
    let (result, signal) = match running::find(&args.target) {
        Ok((name, directory)) => of_running(args, &name, &directory, &tools)?,
        Err(_) => of_image(args, talk, &tools)?,
    };
    let found = match (result, signal) {
        (Err(BenchError::Interrupted), Some(signal)) => return Err(Failure::silent(128 + signal)),
        (result, _) => result?,
    };
    match args.format {
        Format::Json => output::json(&json!({
            "target": args.target, "host_syscalls": audit::host_syscalls(), "arms": found,
        }))?,
        Format::Table => show(&found)?,
    }
    // One arm that could not be had is told; none is nothing to tell.
    let problem = found.iter().find_map(|arm| arm.problem.as_deref());
    match problem.filter(|_| found.iter().all(|arm| arm.problem.is_some())) {
        Some(problem) => Err(anyhow::anyhow!("nothing could be looked at: {}", sanitize(problem)).into()),
        None => Ok(0),
    }
}

type Looked = (Result<Vec<Found>, BenchError>, Option<u8>);

fn of_image(args: &Audit, talk: Talk, tools: &Tools<'_>) -> anyhow::Result<Looked> {
    let words = [args.target.clone(), PROGRAM.to_owned()];
    let wish = Wish::once(Scope::Arms, &words, &args.arms, args.timeout);
    prepared(&wish, talk, |what| audit::image(what, tools)).context("no microVM of that name runs, and as an image")
}

fn of_running(args: &Audit, name: &str, directory: &Path, tools: &Tools<'_>) -> anyhow::Result<Looked> {
    let stop = Stop::new().context("cannot wait for signals")?;
    let monitor = monitor(directory)?;
    let mut command = Command::new(PathBuf::from("/proc/self/exe"));
    command.args(["exec", "--interactive", name]).env_remove("BULKHEAD_LOG");
    let patience = (Duration::from_secs(args.timeout), stop.readable.as_fd());
    let result = audit::running(command, &monitor, tools, patience).map(|found| vec![found]);
    Ok((result, stop.signal()))
}

/// The process that has a microVM, and what that says of its filters.
fn monitor(directory: &Path) -> anyhow::Result<Monitor> {
    let control = Control::at(&directory.join("api"));
    let told = control.call("GET", "/bulkhead/v1/sandbox", &())?;
    let lists = told["threads"].as_array().into_iter().flatten().filter_map(|list| {
        Some((list["thread"].as_str()?.to_owned(), usize::try_from(list["syscalls"].as_u64()?).ok()?))
    });
    Ok(Monitor { pid: control.server()?, lists: lists.collect() })
}

fn show(found: &[Found]) -> std::io::Result<()> {
    let there: Vec<(&Found, &Inside, &Outside)> =
        found.iter().filter_map(|arm| Some((arm, arm.inside.as_ref()?, arm.outside.as_ref()?))).collect();
    let names: Vec<String> = there.iter().map(|(arm, ..)| arm.arm.to_uppercase()).collect();
    let head: Vec<&str> = [""].into_iter().chain(names.iter().map(String::as_str)).collect();
    if !there.is_empty() {
        let row = |(name, of): Line| {
            let cells = there.iter().map(|(_, inside, outside)| sanitize(&of(inside, outside)));
            [name.to_owned()].into_iter().chain(cells).collect::<Vec<_>>()
        };
        output::wide_table(&head, OVERVIEW.iter().copied().map(row))?;
        output::print("\n")?;
        threads(&there)?;
        output::print("\n")?;
        probes(&there)?;
    }
    for arm in found {
        if let Some(problem) = &arm.problem {
            output::print(&format!("not looked at: {}: {}\n", arm.arm, sanitize(problem)))?;
        }
    }
    Ok(())
}

/// A line of the overview: what it is about, and how it is told.
type Line = (&'static str, fn(&Inside, &Outside) -> String);

/// What is told of each in a line: of the workload, and of the process of this host that stands behind.
const OVERVIEW: [Line; 13] = [
    ("kernel that answers the workload", |inside, _| {
        let whose = if inside.own_kernel { "its own" } else { "this host's" };
        format!("{whose}, {}", fact(inside, "kernel"))
    }),
    ("user, processes it sees", |inside, _| format!("{}, {}", fact(inside, "Uid"), fact(inside, "processes"))),
    ("capabilities over that kernel", |inside, _| list(&audit::capabilities(&fact(inside, "CapEff")))),
    ("its filter of system calls", |inside, _| {
        (if fact(inside, "Seccomp") == "2" { "yes" } else { "none" }).to_owned()
    }),
    ("file systems it sees", |inside, _| inside.mounts.len().to_string()),
    ("disks it sees", |inside, _| fact(inside, "partitions")),
    ("process of this host", |_, outside| format!("{}, {}", outside.what, outside.pid)),
    ("its user on this host", |_, outside| outside.uid.clone()),
    ("calls of this host's kernel, by thread", |_, outside| calls(outside)),
    ("capabilities over this host", |_, outside| {
        let mut all: Vec<String> = outside.threads.iter().flat_map(|thread| thread.capabilities.clone()).collect();
        all.sort_unstable();
        all.dedup();
        list(&all)
    }),
    ("namespaces of its own", |_, outside| {
        let own: Vec<String> =
            outside.namespaces.iter().filter(|(_, own)| **own).map(|(name, _)| (*name).to_owned()).collect();
        list(&own)
    }),
    ("file systems in its root", |_, outside| {
        let mut kinds: Vec<String> = outside.mounts.iter().map(|mount| mount.kind.clone()).collect();
        kinds.sort_unstable();
        kinds.dedup();
        format!("{}: {}", outside.mounts.len(), list(&kinds))
    }),
    ("open descriptors", |_, outside| {
        let all = &outside.descriptors;
        format!(
            "{}: {} sockets and pipes, {} kernel objects, {} files",
            all.count,
            all.connected,
            all.objects,
            all.files.len()
        )
    }),
];

fn fact(inside: &Inside, key: &str) -> String {
    inside.facts.get(key).filter(|value| !value.is_empty()).map_or_else(|| NOTHING.to_owned(), Clone::clone)
}

fn list(words: &[String]) -> String {
    if words.is_empty() { "none".to_owned() } else { words.join(", ") }
}

/// The fewest and the most, of how many there are.
fn calls(outside: &Outside) -> String {
    let counts: Option<Vec<usize>> =
        outside.threads.iter().filter(|thread| !thread.kernels).map(|thread| thread.syscalls).collect();
    let all = audit::host_syscalls().map_or_else(String::new, |all| format!(" of {all}"));
    match counts.as_deref().map(|counts| (counts.iter().min(), counts.iter().max())) {
        Some((Some(least), Some(most))) if least != most => format!("{least} to {most}{all}"),
        Some((Some(each), _)) => format!("{each}{all}"),
        _ => "not known".to_owned(),
    }
}

fn threads(there: &[(&Found, &Inside, &Outside)]) -> std::io::Result<()> {
    let of_arm = |(arm, _, outside): &(&Found, &Inside, &Outside)| {
        let row = |thread: &audit::Thread| {
            let name = if thread.kernels { format!("{} (the kernel's own)", thread.name) } else { thread.name.clone() };
            let yes = |is| (if is { "yes" } else { "no" }).to_owned();
            let calls = thread.syscalls.map_or_else(|| NOTHING.to_owned(), |count| count.to_string());
            let privileges = yes(thread.no_new_privs);
            [arm.arm.clone(), sanitize(&name), yes(thread.filtered), calls, privileges, list(&thread.capabilities)]
        };
        outside.threads.iter().map(row).collect::<Vec<_>>()
    };
    let head = ["ARM", "THREAD", "FILTER", "CALLS", "NO NEW PRIVS", "CAPABILITIES OVER THIS HOST"];
    output::table(head, there.iter().flat_map(of_arm))
}

/// Each attempt, beside what came of it in each: the same program makes the same ones.
fn probes(there: &[(&Found, &Inside, &Outside)]) -> std::io::Result<()> {
    let names = there.iter().flat_map(|(arm, ..)| [arm.arm.to_uppercase(), "REACHES".to_owned()]);
    let names: Vec<String> = ["ATTEMPT".to_owned(), String::new()].into_iter().chain(names).collect();
    let head: Vec<&str> = names.iter().map(String::as_str).collect();
    let Some((_, first, _)) = there.first() else { return Ok(()) };
    let rows = first.probes.iter().map(|probe| {
        let cells = there.iter().flat_map(|(_, inside, _)| {
            let same = |other: &&audit::Tried| other.group == probe.group && other.what == probe.what;
            match inside.probes.iter().find(same) {
                Some(tried) if tried.outcome == "allowed" => [tried.outcome.clone(), tried.reaches.to_owned()],
                Some(tried) => [tried.outcome.clone(), NOTHING.to_owned()],
                None => [NOTHING.to_owned(), NOTHING.to_owned()],
            }
        });
        [sanitize(&probe.group), sanitize(&probe.what)].into_iter().chain(cells).collect::<Vec<_>>()
    });
    output::wide_table(&head, rows)
}
