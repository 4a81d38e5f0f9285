//! The command line of `volume`.

use clap::builder::NonEmptyStringValueParser;
use clap::{Args, Subcommand};

use super::containers::{Filter, key_of};

#[derive(Debug, Args)]
#[command(
    after_help = "A volume is a directory that containers have by its name (`run -v NAME:DST`), and that stays when they go. `run -v` makes one that \
                  is not there. See docs/volumes.md."
)]
pub struct Volume {
    #[command(subcommand)]
    pub what: VolumeWhat,
}

#[derive(Debug, Subcommand)]
pub enum VolumeWhat {
    /// Make a volume, and print its name
    Create {
        /// Add to what is known of it, for `ls --filter` and `inspect`
        #[arg(short, long, value_name = "KEY[=VALUE]")]
        label: Vec<String>,
        /// Its name; one is made up if not given, and the volume is an anonymous one
        #[arg(value_name = "NAME")]
        name: Option<String>,
    },
    /// List volumes
    #[command(visible_alias = "list")]
    Ls {
        /// Only those that fit: `name=`, `label=KEY[=VALUE]`, `dangling=true|false`: whether no container has it
        #[arg(short, long, value_name = "KEY=VALUE", value_parser = filter)]
        filter: Vec<Filter>,
        /// How to print: `table`, `json`, or a template such as '{{.Name}} {{.Mountpoint}}'
        #[arg(long, value_name = "FORMAT", default_value = "table")]
        format: String,
    },
    /// Print all that is known of volumes
    Inspect {
        /// How to print: `json`, or a template such as '{{.Mountpoint}}'
        #[arg(short, long, value_name = "FORMAT", default_value = "json")]
        format: String,
        /// Volumes
        #[arg(required = true, value_name = "NAME", value_parser = NonEmptyStringValueParser::new())]
        names: Vec<String>,
    },
    /// Remove volumes that no container has, with what is in them
    #[command(visible_alias = "remove")]
    Rm {
        /// It is no error that there is no such volume
        #[arg(short, long)]
        force: bool,
        /// Volumes
        #[arg(required = true, value_name = "NAME", value_parser = NonEmptyStringValueParser::new())]
        names: Vec<String>,
    },
    /// Remove the anonymous volumes that no container has, with what is in them
    Prune {
        /// Also those with a name of their own
        #[arg(short, long)]
        all: bool,
        /// Accepted, as in docker: nothing is asked
        #[arg(short, long)]
        force: bool,
    },
}

/// What volumes can be filtered by.
const FILTERS: [&str; 3] = ["name", "label", "dangling"];

fn filter(text: &str) -> Result<Filter, String> {
    let filter = key_of(text, &FILTERS)?;
    match (filter.key.as_str(), filter.value.as_str()) {
        ("dangling", "true" | "false" | "1" | "0") | ("name" | "label", _) => Ok(filter),
        _ => Err("dangling is true or false".into()),
    }
}
