//! The command line of `build`.

use std::path::PathBuf;

use clap::builder::NonEmptyStringValueParser;
use clap::{Args, ValueEnum};

use super::Machine;
use super::network::{self, Network};
use super::settings;

#[derive(Debug, Args)]
#[command(
    after_help = "Exit codes: 1 the build failed, 125 wrong command line, 128+n ended by signal n. See docs/build.md."
)]
pub struct Build {
    /// Name of the image; may be repeated. One without a name is called build:ID
    #[arg(short, long, value_name = "NAME[:TAG]", value_parser = NonEmptyStringValueParser::new())]
    pub tag: Vec<String>,
    /// The Dockerfile, or - for stdin; CONTEXT_DIR/Dockerfile if not given
    #[arg(short, long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// Value of an ARG; without VALUE that of this environment
    #[arg(long, value_name = "NAME[=VALUE]", value_parser = NonEmptyStringValueParser::new())]
    pub build_arg: Vec<String>,
    /// Stop after this stage, by name or number, instead of the last
    #[arg(long, value_name = "STAGE", value_parser = NonEmptyStringValueParser::new())]
    pub target: Option<String>,
    /// Make all layers, also those that are there from earlier builds
    #[arg(long)]
    pub no_cache: bool,
    /// Bring images of registries also if they are here already
    #[arg(long)]
    pub pull: bool,
    /// Add a label to the image
    #[arg(long, value_name = "KEY[=VALUE]", value_parser = NonEmptyStringValueParser::new())]
    pub label: Vec<String>,
    /// How to tell what happens; both are lines of text
    #[arg(long, value_enum, default_value_t)]
    pub progress: ProgressKind,
    /// The network of RUN: `user`, `none`, or a tap interface, as with `run`, also by default
    #[arg(long, value_name = "none|user|tap[=NAME]", value_parser = network::network)]
    pub network: Option<Network>,
    /// A line of /etc/hosts for RUN, as with `run`
    #[arg(long, value_name = "NAME:IP", value_parser = settings::host)]
    pub add_host: Vec<(String, String)>,
    #[command(flatten)]
    pub machine: Machine,
    /// Boot for each RUN, even if there is a template to go on from
    #[arg(long)]
    pub cold: bool,
    /// The directory that COPY and ADD copy from
    #[arg(value_name = "CONTEXT_DIR")]
    pub context: PathBuf,
}

/// A way to tell.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum ProgressKind {
    #[default]
    Auto,
    Plain,
}
