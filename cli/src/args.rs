//! The command line: verbs and flags, with docker's names where the meaning is docker's. It parses and explains; it does
//! nothing.

mod audit;
mod bench;
mod build;
mod conformance;
mod containers;
mod exec;
mod files;
mod images;
mod network;
mod networks;
mod pods;
mod run;
pub mod settings;
mod snapshots;
pub mod vmm;
mod volumes;

use std::ffi::OsString;
use std::path::PathBuf;

use ::vmm::config::BootProtocol;
use clap::{Args, Parser, Subcommand, ValueEnum};

pub use self::audit::Audit;
pub use self::bench::{
    Bench, BenchAblate, BenchCompare, BenchDensity, BenchDiff, BenchReport, BenchWhat, ResultFormat, Shown,
};
pub use self::build::Build;
pub use self::conformance::Conformance;
pub use self::containers::{
    Attach, Events, Filter, Inspect, Kill, Kind, Logs, Names, Port, Ps, Rename, Rm, Start, Stop, Update, Wait, Why,
};
pub use self::exec::Exec;
pub use self::files::{Copy, Diff, Stats, Top};
pub use self::images::{History, Images, Load, Pull, Push, Rmi, Save, Tag};
pub use self::network::{Destination, Network, Place, Publish, network};
#[cfg(test)]
pub use self::network::{egress, publish};
pub use self::networks::{NetworkVerb, NetworkWhat};
pub use self::pods::{PodCreate, PodVerb, PodWhat};
pub use self::run::{Isolation, Machine, Run};
pub use self::settings::Settings;
pub use self::snapshots::{Commit, Restore, Rollback, Snapshot, Snapshots, SnapshotsWhat};
pub use self::vmm::Vmm;
pub use self::volumes::{Volume, VolumeWhat};
use crate::failure::sanitize;

/// Runs container images, each in a microVM of its own.
#[derive(Debug, Parser)]
#[command(name = "bulkhead", version, disable_help_subcommand = true, max_term_width = 110, args_override_self = true)]
#[command(
    after_help = "Exit codes: the command's own; 125 Bulkhead failed, 126 not executable, 127 not found, 128+n signal n."
)]
pub struct Cli {
    #[command(flatten)]
    pub talk: Talk,
    #[command(subcommand)]
    pub verb: Verb,
}

/// How much to say.
#[derive(Debug, Clone, Copy, Default, Args)]
pub struct Talk {
    /// Say more on stderr: phases and their times, causes of errors, logs
    #[arg(long, global = true)]
    pub verbose: bool,
    /// Say less: no progress; with `images`, ids only
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub quiet: bool,
}

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Run a command in a new microVM made from a container image
    Run(Box<Run>),
    /// Make a container without running it
    #[command(override_usage = "bulkhead create [OPTIONS] IMAGE [COMMAND [ARG]...]")]
    Create(Box<Run>),
    /// Start containers that do not run, with the data that they had
    Start(Start),
    /// Ask containers to stop, and kill those that do not
    Stop(Stop),
    /// Stop containers and start them again
    Restart(Stop),
    /// Send a signal to the processes of containers
    Kill(Kill),
    /// Have the processors of containers stand still
    Pause(Names),
    /// Have paused containers go on
    Unpause(Names),
    /// Wait for containers to end, and print their exit codes
    Wait(Wait),
    /// Print what a container's process has written
    Logs(Logs),
    /// List containers
    Ps(Ps),
    /// Tell why a container has ended, and what to do next
    Why(Why),
    /// Tell what happens to containers and images
    Events(Events),
    /// List the ports of the host that lead to a container's
    Port(Port),
    /// Tell all that is known of containers and images
    Inspect(Inspect),
    /// Change what a container is to do when it has ended
    Update(Update),
    /// Give a container another name
    Rename(Rename),
    /// Remove containers that do not run
    Rm(Rm),
    /// Be at the streams of a running container's process
    Attach(Attach),
    /// Run another command in a running container
    Exec(Exec),
    /// List the processes of a running container
    Top(Top),
    /// Show what containers use, again and again
    Stats(Stats),
    /// Copy files between a container and this host
    Cp(Copy),
    /// List what a container has changed in its files: A added, C changed, D deleted
    Diff(Diff),
    /// Boot a bare microVM, its serial console on stdin and stdout
    Boot(Boot),
    /// Take a snapshot of a running microVM, which goes on
    Snapshot(Snapshot),
    /// List or remove snapshots
    Snapshots(Snapshots),
    /// Go on from a snapshot in a new microVM
    Restore(Restore),
    /// Have a running microVM go on from an earlier snapshot of it
    Rollback(Rollback),
    /// Make an image of a container's files, or of a running one's memory as well
    Commit(Commit),
    /// Make an image of a Dockerfile and the files of a directory
    Build(Box<Build>),
    /// Load images from an OCI layout, an OCI archive or a docker archive into the store
    Load(Load),
    /// Bring an image from a registry into the store
    Pull(Pull),
    /// Give a loaded image to a registry
    Push(Push),
    /// List loaded images
    Images(Images),
    /// Remove loaded images
    Rmi(Rmi),
    /// Give a loaded image another name as well
    Tag(Tag),
    /// Show what made a loaded image
    History(History),
    /// Write loaded images into an archive, for `load`, docker and podman
    Save(Save),
    /// Tell what this host offers to microVMs, and what to do about what is missing
    Doctor(Doctor),
    /// Make, list and remove named volumes
    Volume(Volume),
    /// Networks in which containers reach each other by name: make, list and remove them
    Network(NetworkVerb),
    /// Several containers in one microVM: make, list, start, stop and remove pods
    Pod(PodVerb),
    /// See and clear what is kept on this host
    System(System),
    /// Tell what a workload can reach, in a microVM and in a container
    Audit(Audit),
    /// Tell where docker's habits come to something else here than with podman or docker
    Conformance(Conformance),
    /// Measure this host
    Bench(Bench),
    /// Run one microVM in the foreground, from a file in Firecracker's format or over its control socket
    Vmm(Vmm),
}

#[derive(Debug, Args)]
#[command(
    after_help = "On a terminal, every key goes to the guest, ^C too. Ctrl-A x ends the microVM, Ctrl-A Ctrl-A sends a Ctrl-A."
)]
pub struct Boot {
    /// Kernel: an ELF vmlinux or a bzImage
    #[arg(long, value_name = "FILE")]
    pub kernel: PathBuf,
    /// Initial RAM disk
    #[arg(long, value_name = "FILE")]
    pub initrd: Option<PathBuf>,
    /// Do not run where this host cannot give all of the sandbox of the microVM's process (see `doctor`)
    #[arg(long)]
    pub require_jail: bool,
    /// How to enter the kernel: `auto` and `linux64` by its 64-bit entry, `pvh` by the entry of its PVH note
    #[arg(long, value_name = "PROTOCOL", default_value = "auto", value_parser = protocol)]
    pub protocol: BootProtocol,
    /// Disk; the first is /dev/vda in the guest. It is raw unless it is named *.qcow2, or the option says otherwise
    #[arg(long, value_name = "FILE[,ro][,raw|qcow2]")]
    pub disk: Vec<String>,
    /// File as read-only memory that the guest uses in place (DAX); the first is /dev/pmem0 in the guest
    #[arg(long, value_name = "FILE")]
    pub pmem: Vec<String>,
    /// Network interface: `user` needs passt and no privileges, `tap=NAME` is one of the host's, `tap` a new one
    #[arg(long, value_name = "user|tap[=NAME][,mac=MAC]")]
    pub net: Vec<String>,
    /// Balloon that takes so much memory from the guest; `oom`: not its last; `reporting`: and what the guest does not use
    #[arg(long, value_name = "MIB[,oom][,reporting][,stats=SECONDS]")]
    pub balloon: Option<String>,
    /// What is on stdin and stdout: the serial port, or a virtio console, which has the terminal's size (hvc0)
    #[arg(long, value_enum, default_value_t)]
    pub console: ConsoleKind,
    /// Add to the kernel's command line, at its end
    #[arg(long, value_name = "WORDS", allow_hyphen_values = true)]
    pub append: Vec<String>,
    #[command(flatten)]
    pub machine: Machine,
    /// Name of the microVM
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// Give the guest a vsock device whose host side is this unix socket
    #[arg(long, value_name = "SOCKET")]
    pub vsock: Option<PathBuf>,
}

/// A console of `boot`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum ConsoleKind {
    #[default]
    Serial,
    Virtio,
}

fn protocol(text: &str) -> Result<BootProtocol, String> {
    match text {
        "auto" => Ok(BootProtocol::Auto),
        "linux64" => Ok(BootProtocol::Linux64),
        "pvh" => Ok(BootProtocol::Pvh),
        _ => Err("neither auto nor linux64 nor pvh".into()),
    }
}

#[derive(Debug, Args)]
pub struct Doctor {
    /// How to print
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
}

#[derive(Debug, Args)]
pub struct System {
    #[command(subcommand)]
    pub what: SystemWhat,
}

#[derive(Debug, Subcommand)]
pub enum SystemWhat {
    /// Show what images, containers, volumes, layers, the cache of builds, templates for warm starts and snapshots take on disk
    Df {
        /// How to print
        #[arg(long, value_enum, default_value_t)]
        format: Format,
    },
    /// Remove templates, the cache of builds, and layers that no loaded image and no snapshot has; all of it is made again when needed.
    /// Snapshots and volumes stay
    Prune {
        /// Accepted, as in docker: nothing is asked, because nothing is lost
        #[arg(short, long)]
        force: bool,
    },
}

/// How results are printed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    #[default]
    Table,
    Json,
}

/// What Linux takes, and every resolver understands.
fn hostname(text: &str) -> Result<String, String> {
    let label = |part: &str| {
        !part.is_empty()
            && !part.starts_with('-')
            && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    if text.len() <= 64 && text.split('.').all(label) {
        Ok(text.to_owned())
    } else {
        Err("a host name has letters, digits, '-' and '.', up to 64 in all".into())
    }
}

/// What [`parse`] found.
pub enum Parsed {
    /// Something to do.
    Cli(Box<Cli>),
    /// Help or version, for stdout.
    Text(String),
    /// Wrong usage: one line.
    Usage(String),
}

/// Parses the arguments, the program's name first.
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Parsed {
    use clap::error::ErrorKind::{DisplayHelp, DisplayVersion};
    match Cli::try_parse_from(arguments) {
        Ok(cli) => Parsed::Cli(Box::new(cli)),
        Err(error) if matches!(error.kind(), DisplayHelp | DisplayVersion) => Parsed::Text(error.render().to_string()),
        Err(error) => Parsed::Usage(one_line(&error)),
    }
}

/// Clap explains over several lines; here errors have one.
pub fn one_line(error: &clap::Error) -> String {
    let text = error.render().to_string();
    // Without arguments clap shows the help itself.
    if error.kind() == clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        return "no command; see 'bulkhead --help'".into();
    }
    // The message itself ends at the first empty line; a list of what is missing is indented below it.
    let message: Vec<&str> = text.lines().take_while(|line| !line.trim().is_empty()).map(str::trim).collect();
    let message = message.join(" ");
    let message = message.strip_prefix("error: ").unwrap_or(&message);
    let verb =
        text.lines().find_map(|line| line.strip_prefix("Usage: bulkhead ")).and_then(|usage| usage.split(' ').next());
    let verb = verb.filter(|verb| verb.chars().all(|c| c.is_ascii_lowercase()));
    let help = verb.map_or_else(|| "bulkhead --help".to_owned(), |verb| format!("bulkhead {verb} --help"));
    sanitize(&format!("{message}; see '{help}'"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(line: &[&str]) -> Run {
        let words = ["bulkhead", "run"].iter().chain(line).map(OsString::from);
        match parse(words) {
            Parsed::Cli(cli) => match cli.verb {
                Verb::Run(run) => *run,
                other => panic!("{other:?}"),
            },
            Parsed::Text(text) | Parsed::Usage(text) => panic!("{text}"),
        }
    }

    fn usage(line: &[&str]) -> String {
        match parse(std::iter::once("bulkhead").chain(line.iter().copied()).map(OsString::from)) {
            Parsed::Usage(text) => text,
            Parsed::Cli(cli) => panic!("{cli:?}"),
            Parsed::Text(text) => panic!("{text}"),
        }
    }

    #[test]
    fn the_definition_is_sound() {
        use clap::CommandFactory as _;
        Cli::command().debug_assert();
        Vmm::command().debug_assert();
    }

    #[test]
    fn flags_after_the_image_are_the_commands() {
        let got = run(&["-it", "--rm", "-e", "A=1", "img", "ls", "-e", "--help", "--", "--verbose", "-m"]);
        assert!(got.interactive && got.tty && got.rm);
        assert_eq!(got.env, ["A=1"]);
        assert_eq!(got.image_and_command, ["img", "ls", "-e", "--help", "--", "--verbose", "-m"]);
        assert_eq!(run(&["img", "--help"]).image_and_command, ["img", "--help"]);
        assert_eq!(run(&["img", "-x"]).image_and_command, ["img", "-x"]);
    }

    #[test]
    fn sizes_and_defaults() {
        let got = run(&["-m", "1g", "--cpus", "2", "--append", "-x y", "i"]);
        assert_eq!((got.machine.memory_mib(), got.machine.cpus()), (1024, 2));
        assert_eq!(got.append, ["-x y"]);
        let got = run(&["i"]);
        assert_eq!((got.machine.memory_mib(), got.machine.cpus()), (256, 1));
    }

    #[test]
    fn snapshots_are_listed_unless_they_are_removed() {
        let verb = |line: &str| match parse(format!("bulkhead {line}").split(' ').map(OsString::from)) {
            Parsed::Cli(cli) => cli.verb,
            Parsed::Text(text) | Parsed::Usage(text) => panic!("{text}"),
        };
        for line in ["snapshots --format json", "snapshots ls --format json", "snapshots list --format json"] {
            let Verb::Snapshots(got) = verb(line) else { panic!("{line}") };
            let format = match got.what {
                Some(SnapshotsWhat::Ls(list)) => list.format,
                Some(_) => panic!("{line}"),
                None => got.list.format,
            };
            assert_eq!(format, Format::Json, "{line}");
        }
        let Verb::Snapshots(got) = verb("snapshots remove a b") else { panic!() };
        assert!(matches!(got.what, Some(SnapshotsWhat::Rm { names }) if names == ["a", "b"]));
        assert!(usage(&["snapshots", "rm"]).contains("NAME"));
        assert!(usage(&["snapshots", "prune"]).contains("--keep"));
        assert!(usage(&["commit", "vm"]).contains("NAME"));
        assert!(usage(&["commit", "--memory", "-m", "text", "vm", "name"]).contains("--memory"));
        assert!(usage(&["snapshot", ""]).contains("VM"));
    }

    /// As docker's: the last one counts, and lists have all.
    #[test]
    fn a_flag_may_be_given_again() {
        let words = "bulkhead run --rm --rm --name a --name b -e A -e B debian".split(' ');
        let Verb::Run(run) = Cli::try_parse_from(words).unwrap().verb else { panic!() };
        assert!(run.rm && run.name.as_deref() == Some("b") && run.env == ["A", "B"], "{run:?}");
    }

    #[test]
    fn wrong_usage_is_one_line_that_names_the_word() {
        for (line, word) in [
            (&["run"][..], "required"),
            (&["run", "-v", "_data:/b", "img"], "./_data"),
            (&["run", "--nope", "img"], "--nope"),
            (&["run", "-m", "lots", "img"], "lots"),
            (&["run", "--hostname", "a b", "img"], "host name"),
            (&["fly"], "fly"),
            (&["boot"], "--kernel"),
            (&["bench", "null", "-n", "0"], "0"),
            (&[], "--help"),
        ] {
            let text = usage(line);
            assert!(text.contains(word) && !text.contains('\n') && !text.starts_with("error"), "{line:?}: {text}");
        }
        assert!(usage(&["run", "--nope", "img"]).contains("bulkhead run --help"));
    }

    #[test]
    fn a_microvms_process_wants_a_configuration_from_somewhere() {
        let parse = |line: &str| Vmm::try_parse_from(format!("vmm {line}").split_whitespace());
        for good in
            ["--config-fd 0", "--config-file f", "--config-file f --no-api", "--api-sock s --config-fd 3 --id a.b_c-1"]
        {
            parse(good).unwrap_or_else(|e| panic!("{good}: {e}"));
        }
        assert_eq!(parse("--api-sock s").unwrap().id, "anonymous-instance");
        for bad in ["", "--no-api", "--api-sock s --no-api", "--config-fd 0 --config-file f", "--api-sock s --id a/b"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn help_promises_what_there_is() {
        let Parsed::Text(help) = parse(["bulkhead", "--help"].map(OsString::from)) else { panic!() };
        assert!(help.contains("vmm") && help.contains("doctor") && help.contains("125"));
        let Parsed::Text(help) = parse(["bulkhead", "run", "--help"].map(OsString::from)) else { panic!() };
        assert!(help.contains("[SRC:]DST[:ro]") && help.contains("oci-archive:FILE"));
    }
}
