//! The flags of `exec`.

use std::path::PathBuf;

use clap::Args;

#[derive(Debug, Args)]
#[command(
    override_usage = "bulkhead exec [OPTIONS] VM COMMAND [ARG]...",
    after_help = "The command gets the environment, user and working directory of the container's first one, as far as nothing is said here. \
                  Everything after VM belongs to the command. See docs/cli.md for where docker differs."
)]
pub struct Exec {
    /// Do not wait for the command: it goes on with nobody at its streams
    #[arg(short, long)]
    pub detach: bool,
    /// Connect stdin to the command
    #[arg(short, long)]
    pub interactive: bool,
    /// Give the command a terminal
    #[arg(short, long)]
    pub tty: bool,
    /// Set an environment variable, or take it over from here
    #[arg(short, long, value_name = "KEY[=VALUE]")]
    pub env: Vec<String>,
    /// Set environment variables from a file, one KEY[=VALUE] a line
    #[arg(long, value_name = "FILE")]
    pub env_file: Vec<PathBuf>,
    /// Working directory of the command, which has to be there
    #[arg(short, long, value_name = "DIR")]
    pub workdir: Option<String>,
    /// User and group of the command, by name or number
    #[arg(short, long, value_name = "USER[:GROUP]")]
    pub user: Option<String>,
    /// The microVM, by its name or the beginning of it, and the command to run in it
    #[arg(required = true, num_args = 2.., trailing_var_arg = true, value_names = ["VM", "COMMAND"], hide = true)]
    #[arg(value_parser = clap::builder::StringValueParser::new())]
    pub vm_and_command: Vec<String>,
}
