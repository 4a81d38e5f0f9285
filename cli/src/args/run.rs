//! The command line of `run`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};

use super::network::{self, Destination, Network, Place, Publish};
use super::settings::Settings;
use crate::cgroup::Limits;
use crate::rates::Rates;
use crate::restart::Policy;
use crate::session::keys::Keys;
use crate::signals;
use crate::size::{self, Cpus, Refused};
use crate::volumes::{ImageVolume, VolumeFlag};

/// Guest RAM where `-m` does not say, MiB. Memory costs the host nothing before the guest touches it, but a guest kernel
/// prepares each page of it at boot, which is what counts on software-nested KVM.
const DEFAULT_MEMORY_MIB: u64 = 256;

#[derive(Debug, Clone, Default, PartialEq, Args, Serialize, Deserialize)]
#[serde(default)]
#[command(
    override_usage = "bulkhead run [OPTIONS] IMAGE [COMMAND [ARG]...]",
    after_help = "IMAGE is oci:DIR[:TAG], oci-archive:FILE[:TAG], docker-archive:FILE[:NAME], rootfs:DIR, rootfs:TAR, the name of \
                  a loaded image, or NAME@warm (see `bulkhead commit`). Everything after IMAGE belongs to the command."
)]
pub struct Run {
    /// Connect stdin to the command
    #[arg(short, long)]
    pub interactive: bool,
    /// Give the command a terminal
    #[arg(short, long)]
    pub tty: bool,
    /// Keys that leave a container that was run with -it, and goes on then; ctrl-p,ctrl-q if not given
    #[arg(long, value_name = "KEYS", value_parser = Keys::parse)]
    #[serde(skip)]
    pub detach_keys: Option<Keys>,
    /// Leave the container to itself and print its id, once it has started
    #[arg(short, long)]
    pub detach: bool,
    /// Remove the container when it ends; without, `ps -a` shows it until `rm`
    #[arg(long)]
    pub rm: bool,
    /// Whether to start it again when it has ended: `no` (the default), `on-failure[:TIMES]`, `always` or `unless-stopped`; with -d
    #[arg(long, value_name = "POLICY", default_value_t, value_parser = str::parse::<Policy>)]
    pub restart: Policy,
    /// Set an environment variable, or take it over from here
    #[arg(short, long, value_name = "KEY[=VALUE]")]
    pub env: Vec<String>,
    /// Set environment variables from a file, one KEY[=VALUE] a line
    #[arg(long, value_name = "FILE")]
    pub env_file: Vec<PathBuf>,
    /// Working directory of the command
    #[arg(short, long, value_name = "DIR")]
    pub workdir: Option<String>,
    /// User and group of the command, by name or number
    #[arg(short, long, value_name = "USER[:GROUP]")]
    pub user: Option<String>,
    /// Run this program instead of the image's entrypoint; "" for none
    #[arg(long, value_name = "PROGRAM")]
    pub entrypoint: Option<String>,
    /// A directory or file of this host in the container, for reading and writing or (ro) for reading only; or a volume, by its name, or
    /// without one
    #[arg(short, long, value_name = "[SRC:]DST[:ro]")]
    pub volume: Vec<VolumeFlag>,
    /// What the container has where its image wants a volume (VOLUME)
    #[arg(long, value_name = "WHAT", value_enum, default_value_t)]
    pub image_volume: ImageVolume,
    /// What is between the container and this host: a microVM of its own, or only what runc or crun make of the host's kernel. With
    /// `container`, flags that are about a microVM are refused
    #[arg(long, value_name = "KIND", value_enum, default_value_t, env = "BULKHEAD_ISOLATION")]
    pub isolation: Isolation,
    /// The runtime for `--isolation container`, instead of BULKHEAD_RUNTIME, or runc or crun, whichever is installed
    #[arg(long, value_name = "PROGRAM")]
    pub runtime: Option<PathBuf>,
    /// Run in this pod (`bulkhead pod`), whose microVM it shares with the pod's other containers; `new:NAME` makes it. `-m` and --cpus
    /// are the container's share of it then
    #[arg(long, value_name = "[new:]NAME", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// It is a pod's own, and this is how many containers that takes
    #[arg(skip)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub places: Option<u8>,
    /// Name of the container; one is made up if not given
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// Host name of the guest; the beginning of the container's id if not given
    #[arg(long, value_name = "NAME", value_parser = super::hostname)]
    pub hostname: Option<String>,
    /// Write the container's id to this file, which must not be there
    #[arg(long, value_name = "FILE")]
    pub cidfile: Option<PathBuf>,
    /// Add to what is known of the container, for `ps --filter` and `inspect`
    #[arg(short, long, value_name = "KEY[=VALUE]")]
    pub label: Vec<String>,
    /// Signal that asks the command to stop, instead of the image's
    #[arg(long, value_name = "SIGNAL", value_parser = signals::number)]
    pub stop_signal: Option<u8>,
    /// Do not run where this host cannot give all of the sandbox of the microVM's process (see `doctor`)
    #[arg(long)]
    pub require_jail: bool,
    /// The container sees its root file system read-only
    #[arg(long)]
    pub read_only: bool,
    /// What the container's network is: `user` (through passt, without privileges; the default where passt is installed), `none`, or
    /// a tap interface: the host's `NAME`, or one of its own; or one of `bulkhead network`, by its name
    #[arg(long, alias = "net", value_name = "none|user|tap[=NAME]|NAME", value_parser = network::network)]
    pub network: Option<Network>,
    #[command(flatten)]
    pub place: Place,
    /// Have a port of the host lead to one of the container; on 127.0.0.1 if there is no IP. Implies `--network user`
    #[arg(short, long, value_name = "[IP:]HOST_PORT:PORT[/tcp|/udp]", value_parser = network::publish)]
    pub publish: Vec<Publish>,
    /// Let the container reach only these, over IPv4, instead of everything; may be repeated. Names are looked up on this host when
    /// it starts. Implies `--network user`
    #[arg(long, value_name = "CIDR|HOST[:PORT]", value_parser = network::egress)]
    pub egress: Vec<Destination>,
    #[command(flatten)]
    pub settings: Settings,
    #[command(flatten)]
    pub machine: Machine,
    #[command(flatten)]
    pub rates: Rates,
    /// Boot this kernel instead of the one built for this kind of host
    #[arg(long, value_name = "FILE")]
    pub kernel: Option<PathBuf>,
    /// Add to the kernel's command line, at its end
    #[arg(long, value_name = "WORDS", allow_hyphen_values = true)]
    pub append: Vec<String>,
    /// Boot, even if there is a template to go on from, and leave none
    #[arg(long)]
    pub cold: bool,
    /// It has a disk of its own for its files, although they go with it: what is on it is to become a layer (`build`)
    #[arg(skip)]
    #[serde(skip)]
    pub for_layer: bool,
    /// The image, and the command to run in it
    #[arg(required = true, num_args = 1.., trailing_var_arg = true, value_names = ["IMAGE", "COMMAND"], hide = true)]
    #[arg(value_parser = clap::builder::StringValueParser::new())]
    pub image_and_command: Vec<String>,
}

/// What is between a container and the host.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Isolation {
    /// A microVM
    #[default]
    Vm,
    /// Namespaces, by an OCI runtime
    Container,
}

impl Run {
    /// Whether its files are on a disk, and not in memory.
    pub fn on_disk(&self) -> bool {
        (!self.rm || self.for_layer) && self.places.is_none()
    }

    /// Whether it is connected to anything, by what it was made with.
    pub fn has_network(&self) -> bool {
        !matches!(self.network, None | Some(Network::None)) || !self.publish.is_empty() || !self.egress.is_empty()
    }
}

/// Flags that say how big a microVM is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Args, Serialize, Deserialize)]
#[serde(default)]
pub struct Machine {
    /// Guest memory, as 256m (which is the default) or 1g
    #[arg(short, long, value_name = "SIZE", value_parser = size::mib)]
    pub memory: Option<u64>,
    /// Number of CPUs, as 2 or 0.5; 1 if not given. It has as many vCPUs, rounded up
    #[arg(long, value_name = "N", value_parser = size::cpus)]
    pub cpus: Option<Cpus>,
    #[arg(long, value_name = "SIZE", hide = true, allow_hyphen_values = true, value_parser = size::no_swap)]
    #[serde(skip)]
    pub memory_swap: Option<Refused>,
}

impl Machine {
    /// Guest RAM, MiB.
    pub fn memory_mib(&self) -> u64 {
        self.memory.unwrap_or(DEFAULT_MEMORY_MIB)
    }

    /// Number of CPUs.
    pub fn all_cpus(&self) -> Cpus {
        self.cpus.unwrap_or(Cpus::whole(1))
    }

    /// Number of vCPUs.
    pub fn cpus(&self) -> u8 {
        self.all_cpus().vcpus()
    }

    /// What it may take of the host.
    pub fn limits(&self) -> Limits {
        let vcpus = self.cpus();
        Limits { vcpus, memory_mib: self.memory_mib(), quota: self.cpus.and_then(|cpus| cpus.as_quota(vcpus)) }
    }
}
