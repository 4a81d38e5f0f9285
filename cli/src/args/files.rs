//! The command line of the verbs that look into a container.

use clap::Args;
use clap::builder::NonEmptyStringValueParser;

#[derive(Debug, Args)]
#[command(
    override_usage = "bulkhead cp [OPTIONS] CONTAINER:PATH PATH|-\n       bulkhead cp [OPTIONS] PATH|- CONTAINER:PATH",
    after_help = "'-' is a tar archive on stdin or stdout. A PATH of the host that has a colon is written with ./ or / before it. What goes \
                  into a container is root's there, what comes out is the caller's, unless --archive is given. The \
                  files of a container that does not run are copied by its own microVM, without its process. See docs/cli.md for \
                  where docker differs."
)]
pub struct Copy {
    /// Keep owners, and permissions to be somebody else
    #[arg(short, long)]
    pub archive: bool,
    /// If the source is a symbolic link, copy what it leads to
    #[arg(short = 'L', long)]
    pub follow_link: bool,
    /// From where
    #[arg(value_name = "SOURCE", value_parser = NonEmptyStringValueParser::new())]
    pub source: String,
    /// Where to
    #[arg(value_name = "DESTINATION", value_parser = NonEmptyStringValueParser::new())]
    pub destination: String,
}

#[derive(Debug, Args)]
pub struct Diff {
    /// A container, by name or the beginning of the id
    #[arg(value_name = "CONTAINER", value_parser = NonEmptyStringValueParser::new())]
    pub container: String,
}

#[derive(Debug, Args)]
#[command(
    after_help = "MEM USAGE is what programs in the guest have, without its file cache; HOST MEM what the container takes of this host: its guest's memory, \
                  the monitor's own, and its share of what it has together with others. SHARED is all that it has together with others, LAYER CACHE what \
                  of its image is in this host's page cache, for whoever has that image. AS CONTAINER is what its processes would have in a container: \
                  their own memory, page tables, and files in memory. `--format json` has them in bytes."
)]
pub struct Stats {
    /// Also those that do not run
    #[arg(short, long)]
    pub all: bool,
    /// Show it once
    #[arg(long)]
    pub no_stream: bool,
    /// Do not cut ids
    #[arg(long)]
    pub no_trunc: bool,
    /// How to print: `table`, `json`, or a template such as '{{.Name}} {{.MemUsage}}'
    #[arg(long, value_name = "FORMAT", default_value = "table")]
    pub format: String,
    /// Containers, by name or the beginning of the id; all that run if not given
    #[arg(value_name = "CONTAINER", value_parser = NonEmptyStringValueParser::new())]
    pub containers: Vec<String>,
}

#[derive(Debug, Args)]
pub struct Top {
    /// How to print: `table`, `json`, or a template such as '{{.PID}} {{.RSS}}'
    #[arg(long, value_name = "FORMAT", default_value = "table")]
    pub format: String,
    /// A running container, by name or the beginning of the id
    #[arg(value_name = "CONTAINER", value_parser = NonEmptyStringValueParser::new())]
    pub container: String,
}
