//! The command line of `bulkhead conformance`.

use std::path::PathBuf;

use clap::Args;
use clap::builder::NonEmptyStringValueParser;

use super::Format;

#[derive(Debug, Args)]
#[command(
    after_help = "Each habit is a few commands, told to both with the same image; exit codes and outputs are compared. Where something differs that docs/cli.md \
                  explains, that is said. Exit code 0 if nothing else differs, 1 if something does. What was made for it is removed again, in both."
)]
pub struct Conformance {
    /// How to print
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
    /// The other engine's program, which takes docker's commands; podman, or docker, if not given
    #[arg(long, value_name = "PROGRAM")]
    pub with: Option<PathBuf>,
    /// Only habits with this in their title
    #[arg(long, value_name = "TEXT")]
    pub only: Option<String>,
    /// Seconds that one command may take
    #[arg(long, value_name = "SECONDS", default_value_t = 120, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub timeout: u64,
    /// A loaded image with a shell and the usual programs, such as Debian's
    #[arg(value_name = "IMAGE", value_parser = NonEmptyStringValueParser::new())]
    pub image: String,
}
