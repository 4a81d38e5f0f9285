//! The command line of `bulkhead bench`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use bench::report::assert::Assertion;
use bench::report::metric::{ARMS, GROUPS, Kind, VARIANTS};
use bench::report::objective::Objective;

use super::Format;
use crate::size;

/// What to measure.
#[derive(Debug, Args)]
pub struct Bench {
    #[command(subcommand)]
    pub what: BenchWhat,
}

#[derive(Debug, Subcommand)]
pub enum BenchWhat {
    /// One image as a bare process, in containers (runc, crun, podman, docker) and in microVMs, side by side: time to start, memory,
    /// disk, processor, how many a minute, how many fit
    Compare(BenchCompare),
    /// What each thing that a microVM has adds to its start and memory: one at a time is switched, beside what users type
    Ablate(BenchAblate),
    /// How many idle instances there can be while starts stay within an objective: containers and microVMs
    Density(BenchDensity),
    /// Two results of `bench compare --out`: what has changed, and whether that is more than chance
    Diff(BenchDiff),
    /// A result of `bench compare --out` once more: as a table, a page, or against conditions
    Report(BenchReport),
    /// What `bench compare` runs in instances
    #[command(hide = true)]
    Move {
        /// What to move, as `bench compare` says it
        order: String,
    },
    /// What `bench neighbours` has beside it: a process that disturbs until it is killed
    #[command(hide = true)]
    Disturb {
        /// How
        way: bench::disturb::Way,
        /// A file to write to
        file: PathBuf,
    },
    /// The cost of a microVM that does nothing: process start, one port write by the guest, process exit
    Null {
        /// How many to run
        #[arg(short = 'n', long, value_name = "N", default_value = "200", value_parser = clap::value_parser!(u32).range(1..=100_000))]
        runs: u32,
        /// How to print
        #[arg(long, value_enum, default_value_t)]
        format: Format,
    },
    /// A container's run, booting and from a template: the same command, in turns
    Run {
        /// How many of each
        #[arg(short = 'n', long, value_name = "N", default_value = "5", value_parser = clap::value_parser!(u32).range(1..=10_000))]
        runs: u32,
        /// How to print
        #[arg(long, value_enum, default_value_t)]
        format: Format,
        /// The image, and the command to run in it
        #[arg(required = true, num_args = 1.., trailing_var_arg = true, value_names = ["IMAGE", "COMMAND"])]
        image_and_command: Vec<String>,
    },
    /// What it takes to go on from a snapshot: process start to the guest's first instruction, and to the answer of a process in
    /// it, for machines of several sizes; beside `runc run`, where that is installed
    Restore {
        /// How many of each size
        #[arg(short = 'n', long, value_name = "N", default_value = "100", value_parser = clap::value_parser!(u32).range(1..=100_000))]
        runs: u32,
        /// How to print
        #[arg(long, value_enum, default_value_t)]
        format: Format,
    },
    /// What it takes to take a snapshot, whole and of what has changed: beside a plain write of as many bytes
    Snapshot {
        /// How many of each kind and size
        #[arg(short = 'n', long, value_name = "N", default_value = "10", value_parser = clap::value_parser!(u32).range(1..=10_000))]
        runs: u32,
        /// Resident memory of the guests
        #[arg(long, value_name = "SIZE", value_delimiter = ',', default_value = "64m,256m,1g", value_parser = size::mib)]
        resident: Vec<u64>,
        /// Where to write: what is measured is this file system, too
        #[arg(long, value_name = "DIR")]
        dir: Option<PathBuf>,
        /// How to print
        #[arg(long, value_enum, default_value_t)]
        format: Format,
    },
    /// Many microVMs from one snapshot, all running at once: what each costs, and how soon it answers
    Clones {
        /// How many; with --most, at most
        #[arg(short = 'n', long, value_name = "N", default_value = "200", value_parser = clap::value_parser!(u32).range(1..=100_000))]
        number: u32,
        /// Memory of each
        #[arg(short, long, value_name = "SIZE", default_value = "128m", value_parser = size::mib)]
        memory: u64,
        /// How many start at the same time; as many as there are processors, if not given
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
        parallel: Option<u32>,
        /// Go on until no more can be had, and say why; 2 GiB of memory and 2048 process ids stay with the host
        #[arg(long)]
        most: bool,
        /// How to print
        #[arg(long, value_enum, default_value_t)]
        format: Format,
    },
    /// A network: TCP to and from a guest without an operating system, through a tap interface of its own; beside the same without a
    /// microVM. It takes CAP_NET_ADMIN
    Net {
        /// How many runs of each
        #[arg(short = 'n', long, value_name = "N", default_value = "5", value_parser = clap::value_parser!(u32).range(1..=10_000))]
        runs: u32,
        /// MiB of a run
        #[arg(long, value_name = "SIZE", default_value = "4g", value_parser = size::mib)]
        size: u64,
        /// How to print
        #[arg(long, value_enum, default_value_t)]
        format: Format,
    },
    /// A vsock: bytes each way by a guest without an operating system; beside the same from one process to another
    Vsock {
        /// How many runs of each
        #[arg(short = 'n', long, value_name = "N", default_value = "5", value_parser = clap::value_parser!(u32).range(1..=10_000))]
        runs: u32,
        /// MiB of a run
        #[arg(long, value_name = "SIZE", default_value = "4g", value_parser = size::mib)]
        size: u64,
        /// How to print
        #[arg(long, value_enum, default_value_t)]
        format: Format,
    },
    /// Every device without a guest: what Linux has asked of each, recorded, is asked again of the device alone, and of one that does
    /// nothing
    Replay {
        /// How many runs of each
        #[arg(short = 'n', long, value_name = "N", default_value = "20", value_parser = clap::value_parser!(u32).range(1..=10_000))]
        runs: u32,
        /// How to print
        #[arg(long, value_enum, default_value_t)]
        format: Format,
        /// Recorded traces (see `bench record`); one of each device that comes with the benchmark, if none are given
        #[arg(value_name = "TRACE")]
        traces: Vec<PathBuf>,
    },
    /// Boot a machine, its serial port on stdin and stdout (unless the file says otherwise), and record what its guest asks of each device
    /// until it ends, or ^C ends it
    Record {
        /// The machine: JSON with its kernel, devices and memory, as in Firecracker's configuration files, and with our sections
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// Where to put the traces, one of each device
        #[arg(value_name = "DIR")]
        directory: PathBuf,
    },
    /// What a microVM notices of its neighbours: one that answers questions, beside others that compute, flood their console, kick
    /// devices or fill their disks without end
    Neighbours {
        /// How many rounds
        #[arg(short = 'n', long, value_name = "N", default_value = "3", value_parser = clap::value_parser!(u32).range(1..=10_000))]
        rounds: u32,
        /// How many neighbours; as many as there are processors, if not given
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
        neighbours: Option<u32>,
        /// Without control groups, which share the processors out
        #[arg(long)]
        no_groups: bool,
        /// Where their disks are: its file system is measured, too
        #[arg(long, value_name = "DIR")]
        dir: Option<PathBuf>,
        /// How to print
        #[arg(long, value_enum, default_value_t)]
        format: Format,
    },
    /// The largest layer of an image as the root of a guest, as a disk and as memory that microVMs share (pmem): the guest's start, and
    /// reading some of /usr/bin, with what memory each takes
    Layers {
        /// How many runs of each
        #[arg(short = 'n', long, value_name = "N", default_value = "5", value_parser = clap::value_parser!(u32).range(1..=10_000))]
        runs: u32,
        /// How to print
        #[arg(long, value_enum, default_value_t)]
        format: Format,
        /// An image with a shell and programs in that layer
        #[arg(value_name = "IMAGE")]
        image: String,
    },
    /// A disk: random reads of 4 KiB by a guest without an operating system, from the page cache; beside fio, where that is
    /// installed
    Blk {
        /// How many runs of each
        #[arg(short = 'n', long, value_name = "N", default_value = "5", value_parser = clap::value_parser!(u32).range(1..=10_000))]
        runs: u32,
        /// Requests of a run
        #[arg(long, value_name = "N", default_value = "400000", value_parser = clap::value_parser!(u32).range(1..=100_000_000))]
        requests: u32,
        /// Requests under way at a time: up to 32
        #[arg(long, value_name = "N", value_delimiter = ',', default_value = "1,32", value_parser = clap::value_parser!(u32).range(1..=bench::blk::MOST as i64))]
        depth: Vec<u32>,
        /// Where to put a file of 256 MiB: its file system is measured, too
        #[arg(long, value_name = "DIR")]
        dir: Option<PathBuf>,
        /// How to print
        #[arg(long, value_enum, default_value_t)]
        format: Format,
    },
}

#[derive(Debug, Args)]
pub struct BenchCompare {
    /// Samples of the times, of each arm
    #[arg(short = 'n', long, value_name = "N", default_value = "30", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub samples: u32,
    /// How long the samples of times of one arm may take: a slower arm has fewer (six at least), which the result says
    #[arg(long, value_name = "SECONDS", default_value = "60", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub budget: u64,
    /// Only these arms: process, runc, crun, podman, docker, vm-cold, vm-warm, vm-restored, vm-pool; vm-boot is there if it is asked for
    #[arg(long, value_name = "ARM", value_delimiter = ',', value_parser = arm)]
    pub arms: Vec<&'static str>,
    /// Another monitor, and where it is: firecracker, cloud-hypervisor or qemu (machine microvm). It boots a bare microVM of the image's
    /// files, beside Bulkhead's own (vm-boot)
    #[arg(long = "monitor", value_name = "NAME=PATH", value_parser = monitor)]
    pub monitors: Vec<(&'static str, PathBuf)>,
    /// The kernel of bare microVMs (an ELF vmlinux); the guest kernel for this host, if not given
    #[arg(long, value_name = "FILE")]
    pub kernel: Option<PathBuf>,
    /// Only these rows: sizes, times, memory, loops, moves (disks, volumes and networks), rate
    #[arg(long, value_name = "ROWS", value_delimiter = ',', value_parser = rows)]
    pub rows: Vec<&'static str>,
    /// Instances at a time when their memory is looked at
    #[arg(long, value_name = "N", default_value = "4", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub instances: u32,
    /// How long one instance may take to do its work
    #[arg(long, value_name = "SECONDS", default_value = "120", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub timeout: u64,
    /// What the order of the samples is drawn with; another one each time, if not given
    #[arg(long, value_name = "NUMBER")]
    pub seed: Option<u64>,
    /// Memory to calculate for how many instances fit into it; all of this host's, if not given
    #[arg(long, value_name = "SIZE", value_parser = size::mib)]
    pub memory_budget: Option<u64>,
    /// Write the result, with all samples, to this file: JSON, for `bench diff` and `bench report`
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    #[command(flatten)]
    pub shown: Shown,
    /// The image, and a command that says something and ends with 0; `sh -c 'echo ready'`, if not given. The image's entrypoint is left out
    #[arg(required = true, num_args = 1.., trailing_var_arg = true, value_names = ["IMAGE", "COMMAND"])]
    pub image_and_command: Vec<String>,
}

#[derive(Debug, Args)]
pub struct BenchAblate {
    /// Samples of the times, of each variant
    #[arg(short = 'n', long, value_name = "N", default_value = "10", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub samples: u32,
    /// How long the samples of times of one variant may take: a slower one has fewer (six at least), which the result says
    #[arg(long, value_name = "SECONDS", default_value = "60", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub budget: u64,
    /// Only these, beside base: cold, unconfined, disk, console, small, large, two-cpus
    #[arg(long, value_name = "VARIANT", value_delimiter = ',', value_parser = variant)]
    pub variants: Vec<&'static str>,
    /// How long one instance may take to do its work
    #[arg(long, value_name = "SECONDS", default_value = "120", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub timeout: u64,
    /// What the order of the samples is drawn with; another one each time, if not given
    #[arg(long, value_name = "NUMBER")]
    pub seed: Option<u64>,
    /// Write the result, with all samples, to this file: JSON, for `bench diff` and `bench report`
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// How to print
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
    /// The image, and a command that says something and ends with 0; `sh -c 'echo ready'`, if not given. The image's entrypoint is left out
    #[arg(required = true, num_args = 1.., trailing_var_arg = true, value_names = ["IMAGE", "COMMAND"])]
    pub image_and_command: Vec<String>,
}

#[derive(Debug, Args)]
pub struct BenchDensity {
    /// What the last 20 starts (to first output) are to stay within: p50, p90, p99 or max, and a time
    #[arg(long, value_name = "OBJECTIVE", default_value = "p99<10s")]
    pub slo: Objective,
    /// No more than these of each arm
    #[arg(long, value_name = "N", default_value = "30", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub most: u32,
    /// Only these arms: process, runc, crun, podman, docker, vm-cold, vm-warm, vm-restored, vm-pool
    #[arg(long, value_name = "ARM", value_delimiter = ',', value_parser = arm)]
    pub arms: Vec<&'static str>,
    /// Memory that all of an arm may have; all of this host's but 2 GiB, if not given
    #[arg(long, value_name = "SIZE", value_parser = size::mib)]
    pub memory_budget: Option<u64>,
    /// How long one instance may take to do its work
    #[arg(long, value_name = "SECONDS", default_value = "120", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub timeout: u64,
    /// Write the result, with all samples, to this file: JSON, for `bench diff` and `bench report`
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    #[command(flatten)]
    pub shown: Shown,
    /// The image, which has `sh`
    pub image: String,
}

/// How a result is shown.
#[derive(Debug, Args)]
pub struct Shown {
    /// Write the result to this file as one page of HTML with plots
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// Write the phases of each run to this file as a trace (JSON), for ui.perfetto.dev or chrome://tracing
    #[arg(long, value_name = "FILE")]
    pub trace: Option<PathBuf>,
    /// A condition, like 'vm-warm.start.p99 < 3*crun.start.p99': exit code 1 if it does not hold
    #[arg(long, value_name = "CONDITION")]
    pub assert: Vec<Assertion>,
    /// How to print
    #[arg(long, value_enum, default_value_t)]
    pub format: ResultFormat,
}

/// How a result is printed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum ResultFormat {
    /// For a terminal
    #[default]
    Table,
    /// With all samples
    Json,
    /// A table for a document
    Markdown,
}

#[derive(Debug, Args)]
pub struct BenchDiff {
    /// The result that was
    pub old: PathBuf,
    /// The result that is
    pub new: PathBuf,
    /// Exit code 1 if something has become worse by more than chance
    #[arg(long)]
    pub check: bool,
    /// How to print
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
}

#[derive(Debug, Args)]
pub struct BenchReport {
    #[command(flatten)]
    pub shown: Shown,
    /// The result
    pub result: PathBuf,
}

fn arm(name: &str) -> Result<&'static str, String> {
    one_of(&ARMS, name)
}

/// An arm's name, and the path of its program.
fn monitor(text: &str) -> Result<(&'static str, PathBuf), String> {
    let (name, path) = text.split_once('=').ok_or("NAME=PATH, like qemu=/usr/bin/qemu-system-x86_64")?;
    let others = || ARMS.iter().filter(|kind| kind.monitor && kind.name != "vm-boot").map(|kind| kind.name);
    let known = others().find(|known| *known == name);
    let known =
        known.ok_or_else(|| format!("there is no '{name}'; there are {}", others().collect::<Vec<_>>().join(", ")))?;
    Ok((known, path.into()))
}

fn rows(name: &str) -> Result<&'static str, String> {
    GROUPS
        .iter()
        .map(|(known, _)| *known)
        .find(|known| *known == name)
        .ok_or_else(|| format!("there is no '{name}'; there are {}", GROUPS.map(|(known, _)| known).join(", ")))
}

fn variant(name: &str) -> Result<&'static str, String> {
    one_of(&VARIANTS, name)
}

fn one_of(all: &'static [Kind], name: &str) -> Result<&'static str, String> {
    all.iter().find(|kind| kind.name == name).map(|kind| kind.name).ok_or_else(|| {
        format!("there is no '{name}'; there are {}", all.iter().map(|kind| kind.name).collect::<Vec<_>>().join(", "))
    })
}
