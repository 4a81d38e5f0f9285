//! The command line of `bulkhead bench`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

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
