//! The command line of `bulkhead audit`.

use clap::Args;
use clap::builder::NonEmptyStringValueParser;

use super::Format;

/// Where a workload can be.
pub const ARMS: [&str; 3] = ["microvm", "runc", "crun"];

#[derive(Debug, Args)]
#[command(
    after_help = "A running microVM of that name comes before an image. A program of Bulkhead's makes attempts from inside, none of which does harm; meanwhile \
                  this host says what the process can that stands behind. An attempt that is allowed reaches the kernel that answers: in a \
                  microVM its own. Exit code 0, whatever is found. See docs/audit.md."
)]
pub struct Audit {
    /// How to print
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
    /// Of an image: only in these of microvm, runc, crun; all if not given
    #[arg(long, value_name = "ARM", value_delimiter = ',', value_parser = arm)]
    pub arms: Vec<&'static str>,
    /// Seconds that one of them may take
    #[arg(long, value_name = "SECONDS", default_value_t = 300, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub timeout: u64,
    /// An image, or a running microVM: a container by name or the beginning of its id
    #[arg(value_name = "IMAGE|VM", value_parser = NonEmptyStringValueParser::new())]
    pub target: String,
}

fn arm(text: &str) -> Result<&'static str, String> {
    let known = ARMS.into_iter().find(|&known| known == text);
    known.ok_or_else(|| format!("one of {}", ARMS.join(", ")))
}
