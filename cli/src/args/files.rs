//! The command line of the verbs that look into a running container.

use clap::Args;
use clap::builder::NonEmptyStringValueParser;

#[derive(Debug, Args)]
#[command(
    override_usage = "bulkhead cp [OPTIONS] CONTAINER:PATH PATH|-\n       bulkhead cp [OPTIONS] PATH|- CONTAINER:PATH",
    after_help = "'-' is a tar archive on stdin or stdout. A PATH of the host that has a colon is written with ./ or / before it. What goes \
                  into a container is root's there, what comes out is the caller's, unless --archive is given. See docs/cli.md for \
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
    /// A running container, by name or the beginning of the id
    #[arg(value_name = "CONTAINER", value_parser = NonEmptyStringValueParser::new())]
    pub container: String,
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
