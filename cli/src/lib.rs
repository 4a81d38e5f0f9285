//! Docker-shaped verbs on top of the libraries, as two programs: `bulkhead` has all of them, `bulkhead-vmm` is the process of one
//! microVM and nothing else.
//!
//! | module | what it does |
//! |---|---|
//! | [`args`] | the command line, parsed and explained |
//! | [`commands`] | the verbs |
//! | [`session`] | the host's half of a container's run: streams, signals, exit code |
//! | [`containers`] | the store of containers, running or not |
//! | [`life`] | a container from its record to its end |
//! | [`supervisor`] | whoever looks after a container in the background |
//! | [`running`] | which container or microVM a word means |
//! | [`logs`] | what a container's process has written |
//! | [`launch`] | a microVM for a container, from a template or by booting |
//! | [`container`] | where a container's microVM lives, what takes its place, how it ends |
//! | [`bare`] | a bare microVM in the foreground |
//! | [`owner`], [`attend`] | what the verb that has a microVM does for others, and how they ask |
//! | [`successor`], [`plug`] | what takes a running microVM's place, and what is behind its interfaces meanwhile |
//! | [`build`] | images from Dockerfiles |
//! | [`snapshots`] | named snapshots: the store of them |
//! | [`monitor`] | the per-VM process, seen from its parent |
//! | [`cgroup`] | the control group of a per-VM process |
//! | [`host_log`] | what the host's kernel has said of a process |
//! | [`rundir`] | run directories, and sweeping up after SIGKILL |
//! | [`control`] | a client of a microVM's control socket |
//! | [`templates`] | snapshots that later runs go on from |
//! | [`signals`] | signals by name, and before there is a guest |
//! | [`net`], [`egress`] | what a microVM's interfaces lead to, and where its packets may go |
//! | [`networks`] | networks of several containers, and the process that each of them has |
//! | [`pods`] | microVMs that several containers share |
//! | [`upper`] | the writable layer of a container that stays |
//! | [`usage`] | what a container takes of its host |
//! | [`visit`] | a container that does not run, for verbs that have business with its files |
//! | [`volumes`] | directories of this host in a container, and named volumes |
//! | [`terminal`] | a bare microVM's console on a terminal |
//! | [`events`] | what happens to containers and images: a journal |
//! | [`restart`] | whether and when a container is started again |
//! | [`rotated`] | reading what is written to bounded files |
//! | [`failure`] | exit codes and one-line errors |
//! | [`output`], [`phases`] | tables, JSON, progress; where the time goes |
//! | [`template`] | `--format` |
//! | [`env`], [`clock`], [`paths`], [`size`] | docker's rules for variables, times and sizes; where files live |
//!
//! stdout carries results only. What a microVM is made of, and how, is the libraries' business.
#![forbid(unsafe_code)]

mod args;
mod attend;
mod bare;
mod build;
mod cgroup;
mod clock;
mod commands;
mod container;
mod containers;
mod control;
mod copying;
mod egress;
mod env;
mod events;
mod failure;
#[cfg(feature = "testing")]
pub mod fuzzing;
mod helping;
mod host_log;
mod launch;
mod life;
mod logs;
mod monitor;
mod net;
mod networks;
mod oci;
mod output;
mod owner;
mod paths;
mod phases;
mod plug;
mod pods;
mod rates;
mod restart;
mod rotated;
mod rundir;
mod running;
mod session;
mod signals;
mod size;
mod snapshots;
mod successor;
mod supervisor;
mod template;
mod templates;
mod terminal;
mod upper;
mod usage;
mod visit;
mod volumes;
mod window;

use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::anyhow;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::args::{Cli, Parsed, Verb, Vmm};
use crate::containers::Containers;
use crate::failure::{FAILED, Failure, Outcome};
use crate::snapshots::Snapshots;

#[cfg(target_env = "musl")]
#[global_allocator]
static HEAP: vmm::heap::Heap = vmm::heap::Heap;

/// The program `bulkhead`.
pub fn main() -> ExitCode {
    let began = vmm::events::monotonic_ns();
    if std::env::args_os().nth(1).is_some_and(|verb| verb == "vmm")
        && let Some(code) = one_vmm(&std::env::args_os().skip(2).collect::<Vec<_>>())
    {
        return code.into();
    }
    if let [verb, id] = std::env::args().skip(1).take(3).collect::<Vec<_>>().as_slice()
        && [supervisor::VERB, supervisor::POD_VERB].contains(&verb.as_str())
    {
        vmm::process::close_inherited();
        return failure::conclude(supervisor::supervise(verb, id), false).into();
    }
    if let [verb, served] = std::env::args().skip(1).take(3).collect::<Vec<_>>().as_slice()
        && verb == networks::switch::VERB
    {
        vmm::process::close_inherited();
        return failure::conclude(networks::switch::serve(served), false).into();
    }
    ExitCode::from(all_verbs(began))
}

fn all_verbs(began: u64) -> u8 {
    let cli = match args::parse(std::env::args_os()) {
        Parsed::Cli(cli) => *cli,
        Parsed::Text(text) => return failure::conclude(output::print(&text).map(|()| 0).map_err(Failure::from), false),
        Parsed::Usage(line) => return failure::conclude(Err(Failure::with_code(FAILED, anyhow!(line))), false),
    };
    let verbose = cli.talk.verbose;
    logs(verbose);
    failure::conclude(verb(cli, began), verbose)
}

/// The program `bulkhead-vmm`: what `bulkhead vmm` does, in a process that has little else in it. `bulkhead` starts it for each
/// microVM if it lies beside it; it costs 0.2 ms less to start, and is less for a guest that breaks out to find.
/// `words` are its arguments, the verb before all others. Returns its exit code.
pub fn vmm_main(words: &[OsString]) -> u8 {
    if let Err(error) = vmm::process::prepare() {
        return failure::conclude(Err(Failure::with_code(FAILED, anyhow!("standard streams: {error}"))), false);
    }
    words.get(1..).and_then(one_vmm).unwrap_or_else(|| {
        let usage = "usage: bulkhead-vmm vmm --config-fd N [FLAG VALUE]...; see bulkhead vmm --help";
        failure::conclude(Err(Failure::with_code(FAILED, anyhow!(usage))), false)
    })
}

/// Runs the microVM that the arguments ask for, if they are as the other verbs write them. What is not is for clap to
/// understand, or to explain: a microVM's process is spared the definition of all verbs.
fn one_vmm(words: &[OsString]) -> Option<u8> {
    let args = Vmm::quick(words)?;
    logs(false);
    Some(failure::conclude(commands::vmm::vmm(&args), false))
}

fn verb(cli: Cli, began: u64) -> Outcome {
    if let Err(error) = rundir::sweep(&paths::run()) {
        // It keeps no verb from working that needs no run directory; the others say it themselves.
        tracing::warn!("{error}");
    }
    for containers in [Containers::existing(&paths::store()), pods::existing()].into_iter().flatten() {
        if let Err(error) = containers.sweep() {
            tracing::warn!("{error}");
        }
    }
    if let Some(Err(error)) = Snapshots::existing(&paths::store()).map(|snapshots| snapshots.collect()) {
        tracing::warn!("{error}");
    }
    volumes::sweep();
    match cli.verb {
        Verb::Run(run) => commands::run::run(*run, cli.talk, began),
        Verb::Create(run) => commands::run::create(*run, cli.talk),
        Verb::Start(start) => commands::containers::start(&start, cli.talk, began),
        Verb::Stop(stop) => commands::containers::stop(&stop),
        Verb::Restart(restart) => commands::containers::restart(&restart),
        Verb::Kill(kill) => commands::containers::kill(&kill),
        Verb::Pause(names) => commands::containers::pause(&names),
        Verb::Unpause(names) => commands::containers::unpause(&names),
        Verb::Wait(wait) => commands::containers::wait(&wait),
        Verb::Rm(rm) => commands::containers::rm(&rm),
        Verb::Update(update) => commands::update::update(&update),
        Verb::Rename(rename) => commands::containers::rename(&rename),
        Verb::Ps(ps) => commands::ps::ps(&ps, cli.talk),
        Verb::Inspect(inspect) => commands::inspect::inspect(&inspect),
        Verb::Port(port) => commands::inspect::port(&port),
        Verb::Logs(logs) => commands::logs::logs(&logs),
        Verb::Attach(attach) => commands::attach::attach(&attach),
        Verb::Events(events) => commands::events::events(&events),
        Verb::Why(why) => commands::why::why(&why),
        Verb::Exec(exec) => commands::exec::exec(exec),
        Verb::Boot(boot) => commands::boot::boot(&boot, cli.talk),
        Verb::Snapshot(snapshot) => commands::snapshots::snapshot(&snapshot, cli.talk),
        Verb::Snapshots(snapshots) => commands::snapshots::snapshots(&snapshots, cli.talk),
        Verb::Restore(restore) => commands::restore::restore(restore, cli.talk, began),
        Verb::Rollback(rollback) => commands::snapshots::rollback(&rollback),
        Verb::Commit(commit) if commit.memory => commands::snapshots::commit(&commit, cli.talk),
        Verb::Commit(commit) => commands::commit::commit(&commit),
        Verb::Top(top) => commands::look::top(&top),
        Verb::Stats(stats) => commands::stats::stats(&stats),
        Verb::Cp(copy) => commands::copy::copy(&copy),
        Verb::Diff(diff) => commands::look::diff(&diff),
        Verb::Pull(pull) => commands::registry::pull(&pull, cli.talk),
        Verb::Push(push) => commands::registry::push(&push, cli.talk),
        Verb::Build(build) => commands::build::build(&build, cli.talk),
        Verb::Load(load) => commands::images::load(&load, cli.talk),
        Verb::Images(images) => commands::images::images(&images, cli.talk),
        Verb::Tag(tag) => commands::images::tag(&tag),
        Verb::History(history) => commands::history::history(&history, cli.talk),
        Verb::Save(save) => commands::images::save(&save),
        Verb::Rmi(rmi) => commands::images::rmi(&rmi, cli.talk),
        Verb::Network(network) => commands::networks::network(network, cli.talk),
        Verb::Pod(pod) => commands::pods::pod(pod, cli.talk),
        Verb::Volume(volume) => commands::volumes::volume(&volume, cli.talk),
        Verb::Doctor(doctor) => commands::doctor::doctor(&doctor),
        Verb::System(system) => commands::system::system(&system, cli.talk),
        Verb::Audit(audit) => commands::audit::audit(&audit, cli.talk),
        Verb::Conformance(conformance) => commands::conformance::conformance(&conformance, cli.talk),
        Verb::Bench(bench) => commands::bench::bench(&bench, cli.talk),
        Verb::Vmm(vmm) => commands::vmm::vmm(&vmm),
    }
}

/// Logs go to stderr, and are off unless asked for: `--verbose`, or a filter in BULKHEAD_LOG (`vmm=debug`, `trace`, …).
///
/// Filters by module and level only: the kind that looks into spans brings regular expressions and their Unicode tables,
/// which every process relocates at its start.
fn logs(verbose: bool) {
    let asked = std::env::var(monitor::LOG_VARIABLE).ok().filter(|filter| !filter.is_empty());
    let usual = || Targets::new().with_default(LevelFilter::INFO);
    let (filter, problem) = match asked.map(|text| text.parse::<Targets>()) {
        Some(Ok(filter)) => (filter, None),
        Some(Err(problem)) => (usual(), Some(problem)),
        None if verbose => (usual(), None),
        None => return,
    };
    let format = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).without_time();
    tracing_subscriber::registry().with(filter).with(format).init();
    if let Some(problem) = problem {
        tracing::warn!("{}: {problem}; logging as with --verbose", monitor::LOG_VARIABLE);
    }
}
