//! The command line of the verbs on containers.

use clap::builder::NonEmptyStringValueParser;
use clap::{ArgAction, Args, ValueEnum};

use super::Format;
use crate::clock;
use crate::containers::record::now_ns;
use crate::rates::Rates;
use crate::restart::Policy;
use crate::session::keys::Keys;
use crate::signals;
use crate::size::{self, Cpus, Refused};

#[derive(Debug, Args)]
pub struct Ps {
    /// Also those that do not run
    #[arg(short, long)]
    pub all: bool,
    /// Do not cut ids and commands
    #[arg(long)]
    pub no_trunc: bool,
    /// Also which pod each is in
    #[arg(short, long)]
    pub pod: bool,
    /// Only those that fit: `name=`, `id=`, `status=`, `label=KEY[=VALUE]`, `ancestor=IMAGE`, `exited=CODE`, `network=NAME`, `pod=NAME`
    #[arg(short, long, value_name = "KEY=VALUE", value_parser = filter)]
    pub filter: Vec<Filter>,
    /// How to print: `table`, `json`, or a template such as '{{.ID}} {{.Names}}'
    #[arg(long, value_name = "FORMAT", default_value = "table")]
    pub format: String,
}

/// What `ps --filter` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter {
    pub key: String,
    pub value: String,
}

/// What can be filtered by.
const FILTERS: [&str; 8] = ["name", "id", "status", "label", "ancestor", "exited", "network", "pod"];

fn filter(text: &str) -> Result<Filter, String> {
    key_of(text, &FILTERS)
}

pub fn key_of(text: &str, keys: &[&str]) -> Result<Filter, String> {
    match text.split_once('=') {
        Some((key, value)) if keys.contains(&key) => Ok(Filter { key: key.into(), value: value.into() }),
        _ => Err(format!("it is KEY=VALUE, and KEY one of {}", keys.join(", "))),
    }
}

#[derive(Debug, Args)]
pub struct Inspect {
    /// How to print: `json`, or a template such as '{{.State.Status}}'
    #[arg(short, long, value_name = "FORMAT", default_value = "json")]
    pub format: String,
    /// Only containers, or only images; without it what there is, containers first
    #[arg(long = "type", value_enum, value_name = "TYPE")]
    pub kind: Option<Kind>,
    /// Containers or loaded images, by name or the beginning of the id
    #[arg(required = true, value_name = "NAME", value_parser = NonEmptyStringValueParser::new())]
    pub names: Vec<String>,
}

/// What can be inspected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    Container,
    Image,
}

#[derive(Debug, Args)]
pub struct Rename {
    /// A container, by name or the beginning of the id
    #[arg(value_name = "CONTAINER", value_parser = NonEmptyStringValueParser::new())]
    pub container: String,
    /// Its name from now on
    #[arg(value_name = "NAME", value_parser = NonEmptyStringValueParser::new())]
    pub name: String,
}

#[derive(Debug, Args)]
pub struct Rm {
    /// Kill those that run
    #[arg(short, long)]
    pub force: bool,
    /// Remove their anonymous volumes, too
    #[arg(short, long)]
    pub volumes: bool,
    /// Containers, by name or the beginning of the id
    #[arg(required = true, value_name = "CONTAINER", value_parser = NonEmptyStringValueParser::new())]
    pub containers: Vec<String>,
}

#[derive(Debug, Args)]
pub struct Start {
    /// Have the container here, as `run` does: its output, signals, its exit code
    #[arg(short, long)]
    pub attach: bool,
    /// Connect stdin, too, if the container was created with -i
    #[arg(short, long, requires = "attach")]
    pub interactive: bool,
    /// Keys that leave the container, which goes on
    #[arg(long, value_name = "KEYS", value_parser = Keys::parse)]
    pub detach_keys: Option<Keys>,
    /// Containers, by name or the beginning of the id
    #[arg(required = true, value_name = "CONTAINER", value_parser = NonEmptyStringValueParser::new())]
    pub containers: Vec<String>,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Ctrl-P Ctrl-Q, or other --detach-keys, leave a container that has a terminal; it goes on. What it wrote before is in `logs`."
)]
pub struct Attach {
    /// Keys that leave the container, which goes on: characters, or ctrl- and one of a-z@[\]^_, between commas
    #[arg(long, value_name = "KEYS", value_parser = Keys::parse)]
    pub detach_keys: Option<Keys>,
    /// Do not connect stdin
    #[arg(long)]
    pub no_stdin: bool,
    /// Pass signals on to its process; of one that has a terminal they end `attach` alone
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_value_t = true, default_missing_value = "true", action = ArgAction::Set)]
    #[arg(require_equals = true)]
    pub sig_proxy: bool,
    /// A container that runs, by name or the beginning of the id
    #[arg(value_name = "CONTAINER", value_parser = NonEmptyStringValueParser::new())]
    pub container: String,
}

#[derive(Debug, Args)]
pub struct Stop {
    /// Send this signal instead of the one that the image or the container asks for
    #[arg(short, long, value_name = "SIGNAL", value_parser = signals::number)]
    pub signal: Option<u8>,
    /// How long to wait before the kill, in seconds; -1: for ever
    #[arg(
        short = 't',
        long = "time",
        visible_alias = "timeout",
        value_name = "SECONDS",
        default_value_t = 10,
        allow_negative_numbers = true
    )]
    pub seconds: i64,
    /// Containers, by name or the beginning of the id
    #[arg(required = true, value_name = "CONTAINER", value_parser = NonEmptyStringValueParser::new())]
    pub containers: Vec<String>,
}

#[derive(Debug, Args)]
pub struct Kill {
    /// Which signal
    #[arg(short, long, value_name = "SIGNAL", default_value = "KILL", value_parser = signals::number)]
    pub signal: u8,
    /// Containers, by name or the beginning of the id
    #[arg(required = true, value_name = "CONTAINER", value_parser = NonEmptyStringValueParser::new())]
    pub containers: Vec<String>,
}

#[derive(Debug, Args)]
pub struct Names {
    /// Containers, by name or the beginning of the id
    #[arg(required = true, value_name = "CONTAINER", value_parser = NonEmptyStringValueParser::new())]
    pub containers: Vec<String>,
}

#[derive(Debug, Args)]
pub struct Wait {
    /// Containers, by name or the beginning of the id
    #[arg(required = true, value_name = "CONTAINER", value_parser = NonEmptyStringValueParser::new())]
    pub containers: Vec<String>,
}

#[derive(Debug, Args)]
pub struct Update {
    /// Whether to start it again when it has ended: `no`, `on-failure[:TIMES]`, `always` or `unless-stopped`
    #[arg(long, value_name = "POLICY", value_parser = str::parse::<Policy>)]
    pub restart: Option<Policy>,
    /// Number of CPUs, as 2 or 0.5; while it runs, no more than its vCPUs
    #[arg(long, value_name = "N", value_parser = size::cpus)]
    pub cpus: Option<Cpus>,
    /// Guest memory, as 256m or 1g; while it runs, no more than it was started with
    #[arg(short, long, value_name = "SIZE", value_parser = size::mib)]
    pub memory: Option<u64>,
    #[arg(long, value_name = "SIZE", hide = true, allow_hyphen_values = true, value_parser = size::no_swap)]
    pub memory_swap: Option<Refused>,
    #[command(flatten)]
    pub rates: Rates,
    /// Containers, by name or the beginning of the id
    #[arg(required = true, value_name = "CONTAINER", value_parser = NonEmptyStringValueParser::new())]
    pub containers: Vec<String>,
}

#[derive(Debug, Args)]
pub struct Why {
    /// How to print
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
    /// A container, by name or the beginning of the id
    #[arg(value_name = "CONTAINER", value_parser = NonEmptyStringValueParser::new())]
    pub container: String,
}

#[derive(Debug, Args)]
pub struct Logs {
    /// Go on with what comes, until the container ends
    #[arg(short, long)]
    pub follow: bool,
    /// Only so many lines, the last ones, or `all`
    #[arg(short = 'n', long, value_name = "N", default_value = "all", value_parser = tail)]
    pub tail: Tail,
    /// Only what was written since then: 2006-01-02T15:04:05Z, seconds since the epoch, or how long ago, as 10m
    #[arg(long, value_name = "TIME", value_parser = moment)]
    pub since: Option<u64>,
    /// Only what was written until then
    #[arg(long, value_name = "TIME", value_parser = moment)]
    pub until: Option<u64>,
    /// Show when each line was written
    #[arg(short, long)]
    pub timestamps: bool,
    /// A container, by name or the beginning of the id
    #[arg(value_name = "CONTAINER", value_parser = NonEmptyStringValueParser::new())]
    pub container: String,
}

#[derive(Debug, Args)]
#[command(after_help = "Without --since, what happens from now on. It goes on until --until, or for ever.")]
pub struct Events {
    /// Also what has happened since then: 2006-01-02T15:04:05Z, seconds since the epoch, or how long ago, as 10m
    #[arg(long, value_name = "TIME", value_parser = moment)]
    pub since: Option<u64>,
    /// Only until then
    #[arg(long, value_name = "TIME", value_parser = moment)]
    pub until: Option<u64>,
    /// Only those that fit: `container=`, `image=`, `event=`, `type=`, `label=KEY[=VALUE]`
    #[arg(short, long, value_name = "KEY=VALUE", value_parser = event_filter)]
    pub filter: Vec<Filter>,
    /// How to print: `json`, or a template such as '{{.Action}} {{.Actor.ID}}'
    #[arg(long, value_name = "FORMAT")]
    pub format: Option<String>,
}

/// What events can be filtered by.
const EVENT_FILTERS: [&str; 5] = ["container", "image", "event", "type", "label"];

fn event_filter(text: &str) -> Result<Filter, String> {
    key_of(text, &EVENT_FILTERS)
}

/// How many lines; none: all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tail(pub Option<usize>);

fn tail(text: &str) -> Result<Tail, String> {
    match text {
        "all" => Ok(Tail(None)),
        // As in docker, a negative number is all.
        number => {
            number.parse::<i64>().map(|n| Tail(usize::try_from(n).ok())).map_err(|_| "it is a number or all".into())
        }
    }
}

fn moment(text: &str) -> Result<u64, String> {
    clock::moment(text, now_ns())
}

#[derive(Debug, Args)]
pub struct Port {
    /// A container, by name or the beginning of the id
    #[arg(value_name = "CONTAINER", value_parser = NonEmptyStringValueParser::new())]
    pub container: String,
    /// Only this port of the container's
    #[arg(value_name = "PORT[/PROTOCOL]")]
    pub port: Option<String>,
}
