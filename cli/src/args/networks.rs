//! The command line of `network`.

use std::net::Ipv4Addr;

use clap::builder::NonEmptyStringValueParser;
use clap::{Args, Subcommand};

use super::containers::{Filter, key_of};
use crate::networks::Subnet;

#[derive(Debug, Args)]
#[command(
    after_help = "Containers in a network (`run --network NAME`) reach each other by name, and nobody else's containers do. See docs/network.md."
)]
pub struct NetworkVerb {
    #[command(subcommand)]
    pub what: NetworkWhat,
}

#[derive(Debug, Subcommand)]
pub enum NetworkWhat {
    /// Make a network, and print its id
    Create {
        /// Its addresses; a free part of 172.28.0.0/14 if not given
        #[arg(long, value_name = "CIDR", value_parser = str::parse::<Subnet>)]
        subnet: Option<Subnet>,
        /// The address of its switch and resolver; the subnet's first if not given
        #[arg(long, value_name = "IP")]
        gateway: Option<Ipv4Addr>,
        /// Nothing leads out of it
        #[arg(long)]
        internal: bool,
        /// Add to what is known of it, for `ls --filter` and `inspect`
        #[arg(long, value_name = "KEY[=VALUE]")]
        label: Vec<String>,
        /// Accepted, as in docker: there is only `bridge`
        #[arg(short, long, value_name = "DRIVER", default_value = "bridge", value_parser = ["bridge"])]
        driver: String,
        /// Its name
        #[arg(value_name = "NAME", value_parser = NonEmptyStringValueParser::new())]
        name: String,
    },
    /// List networks
    #[command(visible_alias = "list")]
    Ls {
        /// Only those that fit: `name=`, `id=`, `label=KEY[=VALUE]`, `dangling=true|false`: whether no container has it
        #[arg(short, long, value_name = "KEY=VALUE", value_parser = filter)]
        filter: Vec<Filter>,
        /// How to print: `table`, `json`, or a template such as '{{.Name}} {{.ID}}'
        #[arg(long, value_name = "FORMAT", default_value = "table")]
        format: String,
        /// Print whole ids
        #[arg(long)]
        no_trunc: bool,
    },
    /// Print all that is known of networks, and who is in them
    Inspect {
        /// How to print: `json`, or a template such as '{{.Driver}}'
        #[arg(short, long, value_name = "FORMAT", default_value = "json")]
        format: String,
        /// Networks, by name or the beginning of the id
        #[arg(required = true, value_name = "NETWORK", value_parser = NonEmptyStringValueParser::new())]
        names: Vec<String>,
    },
    /// Remove networks in which no container runs
    #[command(visible_alias = "remove")]
    Rm {
        /// It is no error that there is no such network
        #[arg(short, long)]
        force: bool,
        /// Networks, by name or the beginning of the id
        #[arg(required = true, value_name = "NETWORK", value_parser = NonEmptyStringValueParser::new())]
        names: Vec<String>,
    },
    /// Remove all networks that no container has
    Prune {
        /// Accepted, as in docker: nothing is asked
        #[arg(short, long)]
        force: bool,
    },
    /// Not supported: a container has the network that it was made with
    #[command(hide = true)]
    Connect {
        #[arg(num_args = 0.., trailing_var_arg = true, allow_hyphen_values = true)]
        words: Vec<String>,
    },
    /// Not supported: a container has the network that it was made with
    #[command(hide = true)]
    Disconnect {
        #[arg(num_args = 0.., trailing_var_arg = true, allow_hyphen_values = true)]
        words: Vec<String>,
    },
}

/// What networks can be filtered by.
const FILTERS: [&str; 4] = ["name", "id", "label", "dangling"];

fn filter(text: &str) -> Result<Filter, String> {
    let filter = key_of(text, &FILTERS)?;
    match (filter.key.as_str(), filter.value.as_str()) {
        ("dangling", "true" | "false" | "1" | "0") | ("name" | "id" | "label", _) => Ok(filter),
        _ => Err("dangling is true or false".into()),
    }
}
