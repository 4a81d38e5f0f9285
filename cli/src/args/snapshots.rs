//! The command line of the verbs on snapshots.

use clap::builder::NonEmptyStringValueParser;
use clap::{Args, Subcommand};

use super::network::{self, Destination, Network, Publish};
use super::{Format, hostname};

#[derive(Debug, Args)]
pub struct Snapshot {
    /// A running microVM, or the beginning of its name
    #[arg(value_name = "VM", value_parser = NonEmptyStringValueParser::new())]
    pub vm: String,
    /// Name for the snapshot; the microVM's name and a number if there is none
    #[arg(value_name = "NAME")]
    pub name: Option<String>,
    /// How to print
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
}

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Snapshots {
    #[command(subcommand)]
    pub what: Option<SnapshotsWhat>,
    #[command(flatten)]
    pub list: List,
}

#[derive(Debug, Default, Args)]
pub struct List {
    /// How to print
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
}

#[derive(Debug, Subcommand)]
pub enum SnapshotsWhat {
    /// List snapshots, as `snapshots` alone does
    #[command(visible_alias = "list")]
    Ls(List),
    /// Remove snapshots. What others are changes to stays, without a name, until those go
    #[command(visible_alias = "remove")]
    Rm {
        /// Snapshots to remove, by name or the beginning of the id
        #[arg(required = true, value_name = "NAME", value_parser = NonEmptyStringValueParser::new())]
        names: Vec<String>,
    },
    /// Remove all snapshots of each microVM but its newest ones. Warm images stay
    Prune {
        /// How many of each microVM stay
        #[arg(long, value_name = "N")]
        keep: usize,
    },
}

#[derive(Debug, Args)]
#[command(
    after_help = "A container's process goes on where it was, in a microVM of its own: with other random numbers, host name and machine \
                  id, the time of day, and new streams. A bare microVM goes on with its console on stdin and stdout. Disks that it \
                  can write to are private copies, and end with it."
)]
pub struct Restore {
    /// A snapshot, or the beginning of its id
    #[arg(value_name = "NAME", value_parser = NonEmptyStringValueParser::new())]
    pub snapshot: String,
    /// Name of the microVM
    #[arg(long, value_name = "VM")]
    pub name: Option<String>,
    /// Connect stdin to the process, if its input was connected
    #[arg(short, long)]
    pub interactive: bool,
    /// Have the process on this terminal, if it had one
    #[arg(short, long)]
    pub tty: bool,
    /// Host name of the guest; what it was asked for before, or the microVM's name if not given
    #[arg(long, value_name = "NAME", value_parser = hostname)]
    pub hostname: Option<String>,
    /// What its interface leads to, if it has one: if not given, what that of the original does, without published ports of a container
    #[arg(long, value_name = "none|user|tap[=NAME]", value_parser = network::network)]
    pub network: Option<Network>,
    /// Have a port of the host lead to one of the container; on 127.0.0.1 if there is no IP. Implies `--network user`
    #[arg(short, long, value_name = "[IP:]HOST_PORT:PORT[/tcp|/udp]", value_parser = network::publish)]
    pub publish: Vec<Publish>,
    /// Let the container reach only these, over IPv4, instead of what the original could; may be repeated. Names are looked up now, on this host
    #[arg(long, value_name = "CIDR|HOST[:PORT]", value_parser = network::egress)]
    pub egress: Vec<Destination>,
}

#[derive(Debug, Args)]
pub struct Rollback {
    /// A running microVM, or the beginning of its name
    #[arg(value_name = "VM", value_parser = NonEmptyStringValueParser::new())]
    pub vm: String,
    /// A snapshot of it, or of one that it came from, by name or the beginning of the id
    #[arg(value_name = "NAME", value_parser = NonEmptyStringValueParser::new())]
    pub snapshot: String,
}

#[derive(Debug, Clone, Args)]
#[command(
    after_help = "The new layer holds what `bulkhead diff` shows. The container goes on meanwhile: what changes while it is read is as \
                  with docker's --pause=false."
)]
pub struct Commit {
    /// Keep the memory and the processes, too: `run NAME@warm` goes on from there
    #[arg(long, conflicts_with_all = ["author", "message", "change"])]
    pub memory: bool,
    /// Who is responsible
    #[arg(short, long, value_name = "TEXT", default_value = "")]
    pub author: String,
    /// What it is about
    #[arg(short, long, value_name = "TEXT", default_value = "")]
    pub message: String,
    /// Change what the image says of its process: CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, STOPSIGNAL, USER, VOLUME, WORKDIR, as in a
    /// Dockerfile
    #[arg(short, long, value_name = "INSTRUCTION")]
    pub change: Vec<String>,
    /// A container, by name or the beginning of the id; with --memory one that runs
    #[arg(value_name = "CONTAINER", value_parser = NonEmptyStringValueParser::new())]
    pub vm: String,
    /// Name for the image
    #[arg(value_name = "NAME[:TAG]", value_parser = NonEmptyStringValueParser::new())]
    pub name: String,
}
