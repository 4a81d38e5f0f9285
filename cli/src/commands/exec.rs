//! `bulkhead exec`: another command in a container that runs.

use anyhow::anyhow;

use crate::args::Exec as Args;
use crate::attend::client::{Asking, ask};
use crate::attend::{Exec, Order, Size};
use crate::env;
use crate::failure::{Failure, Outcome};
use crate::running;
use crate::session::joined::{JoinError, Joined, Manners, Parted, outcome};
use crate::session::{Io, SessionError};

/// Size of a terminal that nobody is at.
const UNSEEN: Size = Size { rows: 24, columns: 80 };

/// Exit code, as docker's: there is no such container, or it cannot be had.
const REFUSED: u8 = 1;

/// Runs it, and ends as it does.
pub fn exec(mut args: Args) -> Outcome {
    let command = args.vm_and_command.split_off(1);
    let vm = args.vm_and_command.first().map_or("", String::as_str);
    let exec = process(&args, command)?;
    let find = || running::find(vm).map_err(|error| Failure::with_code(REFUSED, error));
    if args.detach {
        let terminal = args.tty.then_some(UNSEEN);
        let (name, directory) = find()?;
        let answer = ask(&directory, &name, &Order::Exec(Exec { terminal, ..exec }), &mut |_| ());
        return conclude(answer.map_err(JoinError::from).and_then(|answer| outcome(&answer)));
    }
    let io = match Io::inherit(args.interactive, args.tty) {
        Ok(io) => io,
        Err(error) => return conclude(Err(error.into())),
    };
    let (name, directory) = find()?;
    let order = |terminal| Asking::ask(&directory, &name, &Order::Exec(Exec { terminal, ..exec }));
    let parted = Joined::ask(io, Manners::ALONE, order).and_then(Joined::attend);
    conclude(parted.map(|parted| if let Parted::Exited(code) = parted { code } else { 0 }))
}

/// What the flags say of it.
fn process(args: &Args, command: Vec<String>) -> anyhow::Result<Exec> {
    if let Some(dir) = args.workdir.as_deref().filter(|dir| !dir.starts_with('/')) {
        return Err(anyhow!("working directory '{dir}': not an absolute path"));
    }
    Ok(Exec {
        args: command,
        helper: None,
        env: env::merge(&[], &args.env_file, &args.env, |key| std::env::var(key).ok())?,
        cwd: args.workdir.clone(),
        user: args.user.clone(),
        terminal: None,
        stdin: args.interactive,
        detached: args.detach,
    })
}

fn conclude(result: Result<u8, JoinError>) -> Outcome {
    result.map_err(|error| match error {
        JoinError::NotStarted { code, .. } => Failure::with_code(code, error),
        JoinError::Session(error @ SessionError::Interrupted(_)) => Failure::silent(error.exit_code()),
        error => Failure::with_code(REFUSED, error),
    })
}
