//! The verbs on containers that have been made already: start, stop, kill, wait, remove, rename.
//!
//! Each does what it can for each container it is told, says so on stdout, and what it cannot on stderr; the exit code is 1
//! then, as docker's.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use guest_images::{Keeper, Store};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::Signal;
use vmm::events::monotonic_ns;

use super::attach::{attach_to, in_front};
use super::inspect::find;
use crate::args::{Kill, Names, Rename, Rm, Start, Stop, Talk, Wait};
use crate::attend::Order;
use crate::attend::client::{AskError, ask};
use crate::containers::{Containers, ContainersError, Entry, Status};
use crate::events::{self, Event};
use crate::failure::{self, Failure, Outcome};
use crate::life::{Kept, Life};
use crate::logs::writer::Writer;
use crate::output;
use crate::owner::Attached;
use crate::paths;
use crate::running;
use crate::session::Io;
use crate::signals::Guard;
use crate::supervisor;
use crate::volumes;

/// How long somebody may still have a container that nobody runs, and how often that is looked at: no event tells of a lock.
const MOMENT: Duration = Duration::from_secs(3);
const LOOK: Duration = Duration::from_millis(10);
const SIGKILL: u8 = 9;
/// How long one that waits to be started again may take to hear that it is not to be.
const DEAF: Duration = Duration::from_millis(500);
/// How long a guest may take to end its processes by SIGKILL before its VM is ended.
const GRACE: Duration = Duration::from_secs(10);

/// Does something for each, and prints what that says.
pub fn each(words: &[String], mut work: impl FnMut(&str) -> anyhow::Result<String>) -> Outcome {
    let mut code = 0;
    for word in words {
        match work(word) {
            Ok(said) => output::print(&format!("{said}\n"))?,
            Err(error) => code = failure::conclude(Err(Failure::with_code(1, error)), false),
        }
    }
    Ok(code)
}

/// Starts them, in the background or here.
pub fn start(args: &Start, talk: Talk, began: u64) -> Outcome {
    if !args.attach {
        return each(&args.containers, |word| in_background(word).map(|()| word.to_owned()));
    }
    let [word] = args.containers.as_slice() else {
        return Err(Failure::with_code(1, anyhow!("you cannot start and attach multiple containers at once")));
    };
    here(word, args, talk, began)
}

/// Starts one, unless it runs.
pub fn in_background(word: &str) -> anyhow::Result<()> {
    let entry = find(word)?;
    if entry.record.state.paused {
        return Err(anyhow!("cannot start container {word}: it is paused; `bulkhead unpause {word}` has it go on"));
    }
    if entry.record.state.status == Status::Running {
        return Ok(());
    }
    let (_, held, _) = Containers::of(&paths::store())?.take(record_word(&entry))?;
    let started = supervisor::spawn(supervisor::VERB, held, None)?.wait();
    started.map_err(|failure| failure.error.unwrap_or_else(|| anyhow!("the container did not start")))
}

/// An id means the same whatever others rename meanwhile.
pub fn record_word(entry: &Entry) -> &str {
    entry.record.id.as_str()
}

fn here(word: &str, args: &Start, talk: Talk, began: u64) -> Outcome {
    let guard: Guard<Kept> = Guard::new().context("cannot wait for signals")?;
    let entry = find(word).map_err(|error| Failure::with_code(1, error))?;
    if entry.record.state.status == Status::Running {
        drop(guard);
        return attach_to(&entry, args.interactive, args.detach_keys.clone(), true);
    }
    let flags = &entry.record.flags;
    let io = Io::inherit(args.interactive && flags.interactive, flags.tty)?;
    let holding = guard.hold();
    let store = Store::open(paths::store())?;
    let (name, held, record) = Containers::of(store.dir())?.take(record_word(&entry))?;
    if io.stdin.is_some() && record.flags.tty && !talk.verbose {
        return in_front(&name, held, io, args.detach_keys.clone(), &guard, holding);
    }
    let kept = store.kept(Keeper::Container(record.id.as_str()))?;
    let kept = kept.ok_or_else(|| anyhow!("container {name}: it has no list of layers"))?;
    let log = Arc::new(Writer::open(&held.dir()).context("log")?);
    let attached = Attached::new(Some(log), None, record.flags.tty, None);
    let (layers, keys) = (kept.layers, kept.keys);
    let times = [began, monotonic_ns()];
    let life = Life { name, record, layers, keys, io, attached, report: None, changes: None, talk, times };
    life.live(&guard, holding, held)
}

/// Asks them to stop, and kills those that do not.
pub fn stop(args: &Stop) -> Outcome {
    each(&args.containers, |word| stop_one(word, args).map(|()| word.to_owned()))
}

/// Stops them and starts them again.
pub fn restart(args: &Stop) -> Outcome {
    each(&args.containers, |word| {
        stop_one(word, args).and_then(|()| in_background(word))?;
        tell(&find(word)?, "restart", &[]);
        Ok(word.to_owned())
    })
}

/// Has the journal say what has been done to one.
fn tell(entry: &Entry, action: &str, more: &[(&str, String)]) {
    events::tell(&paths::store(), Event::of_container(&entry.record, &entry.name, action, more));
}

pub fn stop_one(word: &str, args: &Stop) -> anyhow::Result<()> {
    let entry = find(word)?;
    let Some(running) = Running::of(&entry)? else { return Ok(()) };
    if running.entry.record.state.restarting {
        return running.kill();
    }
    running.signal(args.signal.unwrap_or(entry.record.stop_signal))?;
    let patience = u64::try_from(args.seconds).ok().map(Duration::from_secs);
    if !running.ends_within(patience)? {
        running.kill()?;
    }
    tell(&entry, "stop", &[]);
    Ok(())
}

/// Sends them a signal.
pub fn kill(args: &Kill) -> Outcome {
    each(&args.containers, |word| {
        let running = Running::of(&find(word)?)?;
        let running = running.ok_or_else(|| anyhow!("cannot kill container: {word}: it is not running"))?;
        if args.signal == SIGKILL || running.entry.record.state.restarting {
            running.kill()?
        } else {
            running.signal(args.signal)?
        }
        Ok(word.to_owned())
    })
}

/// Has them stand still.
pub fn pause(args: &Names) -> Outcome {
    each(&args.containers, |word| stand_still(word, &Order::Pause {}))
}

/// Has those go on that stand still.
pub fn unpause(args: &Names) -> Outcome {
    each(&args.containers, |word| stand_still(word, &Order::Unpause {}))
}

fn stand_still(word: &str, order: &Order) -> anyhow::Result<String> {
    let running = Running::of(&find(word)?)?;
    let running = running.filter(|running| !running.entry.record.state.restarting);
    let running =
        running.ok_or_else(|| anyhow!("container {word} is not running; `bulkhead start {word}` starts it"))?;
    running.order(order)?;
    Ok(word.to_owned())
}

/// Waits for them to end, and prints their exit codes.
pub fn wait(args: &Wait) -> Outcome {
    each(&args.containers, |word| {
        let containers = Containers::of(&paths::store())?;
        exit_code(&containers, word, &find(word)?).map(|code| code.to_string())
    })
}

/// The exit code of a container, which may be its last one, once it does not run.
fn exit_code(containers: &Containers, word: &str, entry: &Entry) -> anyhow::Result<u8> {
    if !entry.record.state.is_live() {
        return Ok(entry.record.state.exit_code);
    }
    // Of one that has ended since it was looked at, too, only the record of now tells how.
    if let Some(running) = Running::among(containers, entry)? {
        running.ends_within(None)?;
    }
    // If it was killed, it is said so here.
    containers.sweep()?;
    match containers.find(record_word(entry)) {
        Ok(entry) => Ok(entry.record.state.exit_code),
        Err(ContainersError::NotFound(_)) => Err(anyhow!("container {word} is gone, and its exit code with it (--rm)")),
        Err(error) => Err(error.into()),
    }
}

/// Removes them.
pub fn rm(args: &Rm) -> Outcome {
    each(&args.containers, |word| remove_one(word, args).map(|()| word.to_owned()))
}

/// Removes one.
pub fn remove_one(word: &str, args: &Rm) -> anyhow::Result<()> {
    let entry = match find(word) {
        Err(error @ ContainersError::NotFound(_)) if args.force => {
            // As docker: that it is gone is what was wanted.
            failure::conclude(Err(Failure::with_code(0, error)), false);
            return Ok(());
        }
        other => other?,
    };
    if let Some(running) = Running::of(&entry)? {
        if !args.force {
            return Err(anyhow!(
                "cannot remove container \"{}\": it is running: stop it before, or remove it with -f",
                entry.name
            ));
        }
        running.end()?;
    }
    remove(&entry, args.force)?;
    if args.volumes {
        volumes::remove_anonymous(&entry.record.flags.volume)?;
    }
    volumes::sweep();
    Ok(())
}

/// Removes one that does not run. With `force`, one that is about to: it has ended then, as if it had been stopped by its verb's signal.
fn remove(entry: &Entry, force: bool) -> anyhow::Result<()> {
    let containers = Containers::of(&paths::store())?;
    let began = Instant::now();
    loop {
        let busy = match containers.remove(record_word(entry)) {
            // It was to go with its end.
            Ok(_) | Err(ContainersError::NotFound(_)) => return Ok(()),
            Err(error @ ContainersError::Busy(_)) if force => error,
            Err(error) => return Err(error.into()),
        };
        let entry = match containers.find(record_word(entry)) {
            Err(ContainersError::NotFound(_)) => return Ok(()),
            other => other?,
        };
        let Some(owner) = containers.runner(&entry.record.id)? else {
            // Who has ended lets go of it a moment after having said so; who only looks into it has no reason to end for this. Or it is free by now.
            if containers.is_held(&entry.record.id)? {
                if began.elapsed() > MOMENT {
                    return Err(busy.into());
                }
                thread::sleep(LOOK);
            }
            continue;
        };
        let running = Running { entry, owner };
        if running.entry.record.state.is_live() { running.end()? } else { running.stop_start()? }
    }
}

/// Gives one another name.
pub fn rename(args: &Rename) -> Outcome {
    let rename = || Containers::of(&paths::store())?.rename(&args.container, &args.name);
    rename().map(|_| 0).map_err(|error| Failure::with_code(1, error))
}

/// A container that runs, or a pod.
pub struct Running {
    entry: Entry,
    owner: OwnedFd,
}

impl Running {
    fn of(entry: &Entry) -> anyhow::Result<Option<Self>> {
        Self::among(&Containers::of(&paths::store())?, entry)
    }

    /// One of `containers`, if it runs.
    pub fn among(containers: &Containers, entry: &Entry) -> anyhow::Result<Option<Self>> {
        if !entry.record.state.is_live() {
            return Ok(None);
        }
        let owner = running::owner(containers, entry)?;
        Ok(owner.map(|owner| Running { entry: entry.clone(), owner }))
    }

    /// Waits for its end; says whether that came in time.
    fn ends_within(&self, patience: Option<Duration>) -> anyhow::Result<bool> {
        let deadline = patience.map(|patience| Instant::now() + patience);
        loop {
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            let left = left.map(|left| Timespec {
                tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: left.subsec_nanos().into(),
            });
            match poll(&mut [PollFd::new(&self.owner, PollFlags::IN)], left.as_ref()) {
                Ok(ready) => return Ok(ready != 0),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error).context("cannot wait for the container"),
            }
        }
    }

    /// Sends its process a signal. One that has ended meanwhile needs none.
    fn signal(&self, signal: u8) -> anyhow::Result<()> {
        self.order(&Order::Signal { signal })?;
        tell(&self.entry, "kill", &[("signal", signal.to_string())]);
        // As docker: one that stands still goes on to end, and finds any other signal when it goes on.
        let ends = signal == SIGKILL || signal == self.entry.record.stop_signal;
        if ends && self.entry.record.state.paused {
            // Somebody else may have been quicker.
            let _ = self.order(&Order::Unpause {});
        }
        Ok(())
    }

    /// Has one that waits to be started again do so no longer. It may have been started meanwhile: then it is as any that runs.
    fn wait_no_more(&self) -> anyhow::Result<()> {
        while !self.ends_within(Some(Duration::ZERO))? {
            let entry = Containers::of(&paths::store())?.find(record_word(&self.entry))?;
            if entry.record.state.status == Status::Running {
                return Running { entry, owner: self.owner.try_clone()? }.kill();
            }
            let _ = rustix::process::pidfd_send_signal(&self.owner, Signal::TERM);
            // Between two of its lives there is a moment in which it hears nothing.
            self.ends_within(Some(DEAF))?;
        }
        Ok(())
    }

    /// Has one that is about to run not do so.
    fn stop_start(&self) -> anyhow::Result<()> {
        let _ = rustix::process::pidfd_send_signal(&self.owner, Signal::TERM);
        // From some moment on the signal is for the container's process: then it runs.
        self.ends_within(Some(DEAF)).map(drop)
    }

    /// Kills its processes; its VM, if that does not help.
    fn kill(&self) -> anyhow::Result<()> {
        if self.entry.record.state.restarting {
            return self.wait_no_more();
        }
        self.signal(SIGKILL)?;
        if self.ends_within(Some(GRACE))? { Ok(()) } else { self.end() }
    }

    /// Ends its VM.
    pub fn end(&self) -> anyhow::Result<()> {
        if self.entry.record.state.restarting {
            return self.wait_no_more();
        }
        self.order(&Order::End {})?;
        self.ends_within(None).map(drop)
    }

    fn order(&self, order: &Order) -> anyhow::Result<()> {
        match ask(&running::directory(&self.entry), &self.entry.name, order, &mut |_| {}) {
            Ok(_) | Err(AskError::Gone(_)) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::containers::record::tests::record;

    /// It ended after it was looked at, and before it could be waited for.
    #[test]
    fn the_exit_code_is_that_of_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let containers = Containers::of(dir.path()).unwrap();
        let (_, held, mut record) = containers.create(Some("web"), |id| record(&id), |_, _| Ok(())).unwrap();
        record.start();
        record.write(&held.dir(), false).unwrap();
        let seen = containers.find("web").unwrap();
        assert_eq!(seen.record.state.status, Status::Running);
        record.end(7, crate::containers::record::Cause::Process, String::new());
        record.write(&held.dir(), false).unwrap();
        drop(held);
        assert_eq!(exit_code(&containers, "web", &seen).unwrap(), 7);
        assert_eq!(exit_code(&containers, "web", &containers.find("web").unwrap()).unwrap(), 7);
        containers.remove("web").unwrap();
        assert!(exit_code(&containers, "web", &seen).unwrap_err().to_string().contains("web is gone"));
    }
}
