//! `bulkhead attach`, and what `run -it` and `start -ai` do: being at the streams of a container's own process, which somebody else
//! looks after.

use anyhow::anyhow;

use super::inspect::find;
use crate::args::Attach as Args;
use crate::attend::client::{AskError, Asking};
use crate::attend::{Attach, Order};
use crate::containers::{Entry, Held, Status};
use crate::failure::{Failure, Outcome};
use crate::life::Kept;
use crate::running;
use crate::session::joined::{JoinError, Joined, Manners, Parted, size};
use crate::session::keys::Keys;
use crate::session::{Io, SessionError};
use crate::signals::{Guard, Holding};
use crate::supervisor;

/// Exit code, as docker's: there is no such container, or it cannot be had.
const REFUSED: u8 = 1;

/// Attaches to one that runs, and ends as it does, or when it is left.
pub fn attach(args: &Args) -> Outcome {
    let entry = find(&args.container).map_err(|error| Failure::with_code(REFUSED, error))?;
    attach_to(&entry, !args.no_stdin, args.detach_keys.clone(), args.sig_proxy)
}

/// The same, to one that has been found.
pub fn attach_to(entry: &Entry, stdin: bool, keys: Option<Keys>, proxy: bool) -> Outcome {
    let (name, record) = (&entry.name, &entry.record);
    let refused = match record.state.status {
        _ if record.state.paused => {
            Some(anyhow!("cannot attach to container {name}: it is paused; `bulkhead unpause {name}` has it go on"))
        }
        Status::Running => None,
        _ => Some(anyhow!("cannot attach to container {name}: it does not run; `bulkhead start -a {name}` starts it")),
    };
    if let Some(refused) = refused {
        return Err(Failure::with_code(REFUSED, refused));
    }
    let (stdin, tty) = (stdin && record.flags.interactive, record.flags.tty);
    let io = Io::inherit(stdin, tty).map_err(|error| Failure::with_code(REFUSED, error))?;
    // As docker: a terminal's keys become signals where they belong.
    let manners = Manners { shared: true, keys: tty.then(|| keys.unwrap_or_default()), proxy: proxy && !tty };
    let order = |terminal| Asking::ask(&running::directory(entry), name, &Order::Attach(Attach { stdin, terminal }));
    match Joined::ask(io, manners, order).and_then(Joined::attend) {
        Ok(parted) => Ok(conclude(name, parted)),
        Err(JoinError::NotStarted { code, detail }) => Err(Failure::with_code(code, anyhow!(detail))),
        Err(JoinError::Session(error @ SessionError::Interrupted(_))) => Err(Failure::silent(error.exit_code())),
        Err(error) => Err(Failure::with_code(REFUSED, error)),
    }
}

/// Runs a container, which is made or taken already, with its terminal here. It ends with this process, unless it is left.
pub fn in_front(
    name: &str,
    held: Held,
    io: Io,
    keys: Option<Keys>,
    guard: &Guard<Kept>,
    holding: Holding<'_, Kept>,
) -> Outcome {
    let order = Order::Attach(Attach { stdin: true, terminal: Some(size(&io)) });
    let (asking, stream) = Asking::first(name, &order).map_err(anyhow::Error::from)?;
    let mut supervisor = supervisor::spawn(supervisor::VERB, held, Some(stream))?;
    let manners = Manners { shared: true, keys: Some(keys.unwrap_or_default()), proxy: true };
    let joined = Joined::ask(io, manners, |_| Ok(asking));
    drop(holding);
    guard.pass();
    let outcome = match joined.and_then(Joined::attend) {
        Ok(Parted::Left) => return Ok(conclude(name, Parted::Left)),
        Ok(parted) => Ok(conclude(name, parted)),
        Err(JoinError::NotStarted { code, detail }) => Err(Failure::with_code(code, anyhow!(detail))),
        Err(JoinError::Session(error @ SessionError::Interrupted(signal))) => {
            supervisor.interrupt(signal);
            Err(Failure::silent(error.exit_code()))
        }
        // It may have said why before it had anybody to attend to.
        Err(JoinError::Ask(error @ AskError::Gone(_))) => Err(supervisor.wait().err().unwrap_or_else(|| error.into())),
        Err(error) => Err(anyhow::Error::from(error).into()),
    };
    supervisor.ended()?;
    outcome
}

/// The exit code; says so if the container goes on.
fn conclude(name: &str, parted: Parted) -> u8 {
    match parted {
        Parted::Exited(code) => code,
        Parted::Left => {
            eprintln!("bulkhead: container {name} goes on; `bulkhead attach {name}` comes back to it");
            0
        }
    }
}
