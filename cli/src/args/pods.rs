//! The command line of `pod`.

use std::net::IpAddr;
use std::path::PathBuf;

use clap::builder::NonEmptyStringValueParser;
use clap::{Args, Subcommand};
use guest_protocol::{MAX_PLACES, Sysctl};

use super::containers::{Filter, key_of};
use super::network::{self, Destination, Network, Place, Publish};
use super::run::{Machine, Run};
use super::settings::{self, Settings};
use crate::signals;
use crate::volumes::VolumeFlag;

#[derive(Debug, Args)]
#[command(
    after_help = "A pod is a microVM that several containers share (`run --pod NAME`): one kernel, one network, one loopback interface. It starts with \
                  its first container and ends with its last. See docs/pods.md."
)]
pub struct PodVerb {
    #[command(subcommand)]
    pub what: PodWhat,
}

#[derive(Debug, Subcommand)]
pub enum PodWhat {
    /// Make a pod, and print its id
    Create(Box<PodCreate>),
    /// List pods
    #[command(visible_aliases = ["ps", "list"])]
    Ls {
        /// Only those that fit: `name=`, `id=`, `status=`, `label=KEY[=VALUE]`
        #[arg(short, long, value_name = "KEY=VALUE", value_parser = filter)]
        filter: Vec<Filter>,
        /// How to print: `table`, `json`, or a template such as '{{.Name}} {{.Status}}'
        #[arg(long, value_name = "FORMAT", default_value = "table")]
        format: String,
        /// Print whole ids
        #[arg(long)]
        no_trunc: bool,
    },
    /// Print all that is known of pods, and which containers are in them
    Inspect {
        /// How to print: `json`, or a template such as '{{.State}}'
        #[arg(short, long, value_name = "FORMAT", default_value = "json")]
        format: String,
        /// Pods, by name or the beginning of the id
        #[arg(required = true, value_name = "POD", value_parser = NonEmptyStringValueParser::new())]
        names: Vec<String>,
    },
    /// Start pods, with all of their containers
    Start {
        /// Pods, by name or the beginning of the id
        #[arg(required = true, value_name = "POD", value_parser = NonEmptyStringValueParser::new())]
        names: Vec<String>,
    },
    /// Stop the containers of pods, and the pods
    Stop {
        /// How long to wait for each container before the kill, in seconds; -1: for ever
        #[arg(short = 't', long = "time", visible_alias = "timeout", value_name = "SECONDS", default_value_t = 10)]
        #[arg(allow_negative_numbers = true)]
        seconds: i64,
        /// Pods, by name or the beginning of the id
        #[arg(required = true, value_name = "POD", value_parser = NonEmptyStringValueParser::new())]
        names: Vec<String>,
    },
    /// Send a signal to the processes of all containers of pods
    Kill {
        /// Which signal
        #[arg(short, long, value_name = "SIGNAL", default_value = "KILL", value_parser = signals::number)]
        signal: u8,
        /// Pods, by name or the beginning of the id
        #[arg(required = true, value_name = "POD", value_parser = NonEmptyStringValueParser::new())]
        names: Vec<String>,
    },
    /// Remove pods that do not run, with their containers
    #[command(visible_alias = "remove")]
    Rm {
        /// Kill those that run; it is no error that there is no such pod
        #[arg(short, long)]
        force: bool,
        /// Pods, by name or the beginning of the id
        #[arg(required = true, value_name = "POD", value_parser = NonEmptyStringValueParser::new())]
        names: Vec<String>,
    },
    /// Remove all pods that do not run, with their containers
    Prune {
        /// Accepted, as in podman: nothing is asked
        #[arg(short, long)]
        force: bool,
    },
}

#[derive(Debug, Default, Args)]
pub struct PodCreate {
    /// Name of the pod; one is made up if not given
    #[arg(long = "name", value_name = "NAME", conflicts_with = "name")]
    pub named: Option<String>,
    /// How many containers it takes at a time. Each place is two disks of the microVM
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=i64::from(MAX_PLACES)))]
    pub places: Option<u8>,
    /// Host name of the guest, and of all containers; the beginning of the pod's id if not given
    #[arg(long, value_name = "NAME", value_parser = super::hostname)]
    pub hostname: Option<String>,
    /// Add to what is known of the pod, for `ls --filter` and `inspect`
    #[arg(short, long, value_name = "KEY[=VALUE]")]
    pub label: Vec<String>,
    /// A directory or file of this host, or a volume by its name, in all of the pod's containers
    #[arg(short, long, value_name = "SRC:DST[:ro]")]
    pub volume: Vec<VolumeFlag>,
    /// What the pod's network is, as `run --network` has it
    #[arg(long, alias = "net", value_name = "none|user|tap[=NAME]|NAME", value_parser = network::network)]
    pub network: Option<Network>,
    #[command(flatten)]
    pub place: Place,
    /// Have a port of the host lead to one of the pod; on 127.0.0.1 if there is no IP. Implies `--network user`
    #[arg(short, long, value_name = "[IP:]HOST_PORT:PORT[/tcp|/udp]", value_parser = network::publish)]
    pub publish: Vec<Publish>,
    /// Let the pod reach only these, as `run --egress`
    #[arg(long, value_name = "CIDR|HOST[:PORT]", value_parser = network::egress)]
    pub egress: Vec<Destination>,
    /// Have names resolved by this server, instead of those of the network
    #[arg(long, value_name = "IP")]
    pub dns: Vec<IpAddr>,
    /// Domain in which names without a dot are looked for
    #[arg(long, value_name = "DOMAIN", value_parser = settings::word)]
    pub dns_search: Vec<String>,
    /// An option of the resolver (resolv.conf(5))
    #[arg(long, value_name = "OPTION", value_parser = settings::word)]
    pub dns_option: Vec<String>,
    /// Add a line to /etc/hosts of all containers
    #[arg(long, value_name = "NAME:IP", value_parser = settings::host)]
    pub add_host: Vec<(String, String)>,
    /// Set a parameter of the pod's kernel, as net.ipv4.ip_forward=1
    #[arg(long, value_name = "KEY=VALUE", value_parser = settings::sysctl)]
    pub sysctl: Vec<Sysctl>,
    #[command(flatten)]
    pub machine: Machine,
    /// Boot this kernel instead of the one built for this kind of host
    #[arg(long, value_name = "FILE")]
    pub kernel: Option<PathBuf>,
    /// Add to the kernel's command line, at its end
    #[arg(long, value_name = "WORDS", allow_hyphen_values = true)]
    pub append: Vec<String>,
    /// Boot, even if there is a template to go on from, and leave none
    #[arg(long)]
    pub cold: bool,
    /// Do not run where this host cannot give all of the sandbox of the microVM's process (see `doctor`)
    #[arg(long)]
    pub require_jail: bool,
    /// Name of the pod
    #[arg(value_name = "NAME")]
    pub name: Option<String>,
}

impl PodCreate {
    /// What a container that had the microVM for itself would have been told.
    pub fn flags(self) -> Run {
        let Self {
            places,
            hostname,
            volume,
            network,
            place,
            publish,
            egress,
            machine,
            kernel,
            append,
            cold,
            require_jail,
            ..
        } = self;
        let Self { dns, dns_search, dns_option, add_host, sysctl, .. } = self;
        let settings = Settings { dns, dns_search, dns_option, add_host, sysctl, ..Settings::default() };
        Run {
            places,
            hostname,
            volume,
            network,
            place,
            publish,
            egress,
            settings,
            machine,
            kernel,
            append,
            cold,
            require_jail,
            ..Run::default()
        }
    }
}

/// What pods can be filtered by.
const FILTERS: [&str; 4] = ["name", "id", "status", "label"];

fn filter(text: &str) -> Result<Filter, String> {
    key_of(text, &FILTERS)
}
