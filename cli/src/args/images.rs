//! The command line of the verbs on images.

use std::path::PathBuf;

use clap::Args;
use clap::builder::NonEmptyStringValueParser;

use super::Format;

#[derive(Debug, Args)]
pub struct Load {
    /// OCI layout directory, OCI archive or docker archive; stdin if there is none
    #[arg(value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// The same, as docker has it
    #[arg(short, long, value_name = "FILE", conflicts_with = "file")]
    pub input: Option<PathBuf>,
    /// Name for the image, instead of what the file says
    #[arg(long, value_name = "NAME[:TAG]")]
    pub name: Option<String>,
}

#[derive(Debug, Args)]
pub struct Save {
    /// Write to this file instead of stdout
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Loaded images, by name or the beginning of the id
    #[arg(required = true, value_name = "IMAGE", value_parser = NonEmptyStringValueParser::new())]
    pub images: Vec<String>,
}

#[derive(Debug, Args)]
pub struct Pull {
    /// An image at a registry; without a host in its name that is docker's
    #[arg(value_name = "[HOST[:PORT]/]NAME[:TAG][@DIGEST]", value_parser = NonEmptyStringValueParser::new())]
    pub image: String,
}

#[derive(Debug, Args)]
pub struct Push {
    /// A loaded image, whose name says where to; `bulkhead tag` gives it one
    #[arg(value_name = "[HOST[:PORT]/]NAME[:TAG]", value_parser = NonEmptyStringValueParser::new())]
    pub image: String,
}

#[derive(Debug, Args)]
pub struct Tag {
    /// A loaded image, by name or the beginning of the id
    #[arg(value_name = "IMAGE", value_parser = NonEmptyStringValueParser::new())]
    pub image: String,
    /// What it is called as well from now on
    #[arg(value_name = "NAME[:TAG]", value_parser = NonEmptyStringValueParser::new())]
    pub name: String,
}

#[derive(Debug, Args)]
pub struct History {
    /// How to print: `table`, `json`, or a template such as '{{.Size}} {{.CreatedBy}}'
    #[arg(long, value_name = "FORMAT", default_value = "table")]
    pub format: String,
    /// Do not cut ids and commands
    #[arg(long)]
    pub no_trunc: bool,
    /// Sizes and times for people
    #[arg(short = 'H', long, value_name = "BOOL", num_args = 0..=1, require_equals = true,
          default_value_t = true, default_missing_value = "true", action = clap::ArgAction::Set)]
    pub human: bool,
    /// A loaded image, by name or the beginning of the id
    #[arg(value_name = "IMAGE", value_parser = NonEmptyStringValueParser::new())]
    pub image: String,
}

#[derive(Debug, Args)]
pub struct Images {
    /// How to print
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
    /// Only those of this name
    #[arg(value_name = "NAME[:TAG]", value_parser = NonEmptyStringValueParser::new())]
    pub name: Option<String>,
}

#[derive(Debug, Args)]
pub struct Rmi {
    /// Also those that containers were made from: what a container needs of one stays with it
    #[arg(short, long)]
    pub force: bool,
    /// Images to remove
    #[arg(required = true, value_name = "IMAGE", value_parser = NonEmptyStringValueParser::new())]
    pub images: Vec<String>,
}
