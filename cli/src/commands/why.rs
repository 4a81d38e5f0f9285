//! `bulkhead why`: why a container has ended, or does not run, in one paragraph, and what to do next.

use std::time::Duration;

use serde_json::json;

use super::inspect::find;
use crate::args::{Format, Isolation, Why};
use crate::clock;
use crate::containers::record::{Cause, now_ns};
use crate::containers::{Entry, Record, Status};
use crate::failure::{Failure, Outcome};
use crate::output;
use crate::signals;

const SIGKILL: u8 = 9;
/// Exit codes from here on are signals.
const SIGNALLED: u8 = 128;

/// What is to be said.
#[derive(Debug, PartialEq, Eq)]
struct Told {
    /// In one word, for programs.
    cause: &'static str,
    /// What has happened.
    text: String,
    /// What to do.
    next: String,
}

/// Says it.
pub fn why(args: &Why) -> Outcome {
    let entry = find(&args.container).map_err(|error| Failure::with_code(1, error))?;
    let Told { cause, text, next } = tell(&entry, now_ns());
    let Record { id, state, .. } = &entry.record;
    if args.format == Format::Json {
        output::json(&json!({
            "Id": id, "Name": entry.name, "Status": state.word(), "Cause": cause, "ExitCode": state.exit_code,
            "Error": state.error, "OutOfMemory": state.out_of_memory, "Signals": state.signals, "Console": state.console,
            "StartedAt": clock::rfc3339(state.started_ns), "FinishedAt": clock::rfc3339(state.finished_ns),
            "Text": text, "Next": next,
        }))?;
        return Ok(0);
    }
    let console: String = state.console.iter().map(|line| format!("  | {line}\n")).collect();
    let console = if console.is_empty() { console } else { format!("The end of the guest's console:\n{console}") };
    output::print(&format!("{text}\n{console}{next}\n"))?;
    Ok(0)
}

fn tell(entry: &Entry, now_ns: u64) -> Told {
    let (name, state) = (&entry.name, &entry.record.state);
    let ago = |then: u64| clock::human(Duration::from_nanos(now_ns.saturating_sub(then)));
    let told = |cause, text: String, next: String| Told { cause, text, next };
    match state.status {
        Status::Running if state.paused => told(
            "paused",
            format!("Container {name} has not ended: it is paused."),
            format!("`bulkhead unpause {name}` has it go on."),
        ),
        Status::Running => told(
            "running",
            format!("Container {name} has not ended: its process runs since {}.", ago(state.started_ns)),
            format!("`bulkhead logs {name}` shows what it writes, `bulkhead top {name}` its processes."),
        ),
        Status::Created if state.error.is_empty() => {
            told("created", format!("Container {name} has never run."), format!("`bulkhead start {name}` starts it."))
        }
        Status::Created => {
            Told { text: format!("Container {name} did not start: {}.", state.error), ..not_started(entry) }
        }
        Status::Exited => {
            let restarting =
                if state.restarting { " It is about to be started again, by its --restart policy." } else { "" };
            let Told { cause, text, next } = ended(entry);
            let when = format!("Container {name} ended {} ago, after {}: ", ago(state.finished_ns), ran(entry));
            told(cause, when + &text + restarting, next)
        }
    }
}

/// How long it ran.
fn ran(entry: &Entry) -> String {
    let state = &entry.record.state;
    clock::human(Duration::from_nanos(state.finished_ns.saturating_sub(state.started_ns))).to_lowercase()
}

/// Its process could not be started.
fn not_started(entry: &Entry) -> Told {
    let (name, state) = (&entry.name, &entry.record.state);
    let command = entry.record.process.args.first().map_or("", String::as_str);
    let image = entry.record.image();
    let (cause, next) = match state.exit_code {
        127 => (
            "command-not-found",
            format!(
                "There is no '{command}' in the image: look with `bulkhead run --rm {image} ls`, or name another command."
            ),
        ),
        126 => (
            "command-not-executable",
            format!("Give '{command}' the right to be executed, or look whether it is a program for this machine."),
        ),
        code if code > SIGNALLED => ("interrupted", format!("It was interrupted; `bulkhead start {name}` starts it.")),
        _ => (
            "bulkhead-failed",
            format!(
                "`bulkhead start -a --verbose {name}` tries again and says more; `bulkhead doctor` looks at the host."
            ),
        ),
    };
    Told { cause, text: String::new(), next }
}

/// Why one ended that ran.
fn ended(entry: &Entry) -> Told {
    let (name, record) = (&entry.name, &entry.record);
    let (state, memory) = (&record.state, record.flags.machine.memory_mib());
    let told = |cause, text: String, next: String| Told { cause, text, next };
    let start = format!("`bulkhead start {name}` starts it again, with its files as they are.");
    let contained = record.flags.isolation == Isolation::Container;
    match state.cause {
        Cause::Lost if contained => {
            told("supervisor-lost", "the process that looked after it was killed, and its own with it.".into(), start)
        }
        Cause::Lost => told(
            "supervisor-lost",
            "the process that looked after it was killed, and its microVM with it. Whatever it had not synced to its disk is gone.".into(),
            start,
        ),
        Cause::HostRestarted => told(
            "host-restarted",
            "this host was restarted while it ran. Whatever it had not synced to its disk is gone.".into(),
            start,
        ),
        Cause::HostOutOfMemory => told(
            "host-out-of-memory",
            "this host ran out of memory, and its kernel killed the microVM's process.".into(),
            "Have fewer containers at a time, give them less memory (-m), or give the host more.".into(),
        ),
        Cause::MonitorKilled => told(
            "monitor-killed",
            format!("{}. Somebody has killed it, or it has failed.", state.error),
            format!("The host's log (`dmesg`) may tell who; {start}"),
        ),
        Cause::Forbidden => told(
            "seccomp",
            "its microVM's process made a system call that its sandbox forbids, and was ended for it, which is a mistake of ours or a guest that \
             broke out of its microVM."
                .into(),
            "`dmesg` tells which call it was (audit, type 1326). Report it, and do not run what it ran where it matters.".into(),
        ),
        Cause::Guest => told(
            "guest-crashed",
            format!("{}.", state.error),
            if state.console.is_empty() {
                format!("Its console was not used: create it with `--append console=ttyS0`, and `bulkhead why {name}` shows the kernel's last words.")
            } else {
                "What the kernel says above tells what it ran into; more memory (-m) or another --kernel may help.".into()
            },
        ),
        Cause::Failed => told("bulkhead-failed", format!("{}.", state.error), format!("`bulkhead doctor` looks at the host; {start}")),
        Cause::Ordered if contained => told("ended-by-order", "it was ended at once, by `rm -f`, or because whoever had it in front of them was killed or interrupted it.".into(), start),
        Cause::Ordered => told("ended-by-order", "its microVM was ended at once, by `rm -f`, or because whoever had it in front of them was killed or interrupted it.".into(), start),
        Cause::Process => of_its_process(entry, memory),
    }
}

/// The process itself has ended, whoever wanted that.
fn of_its_process(entry: &Entry, memory_mib: u64) -> Told {
    let (name, record) = (&entry.name, &entry.record);
    let state = &record.state;
    let told = |cause, text: String, next: String| Told { cause, text, next };
    let logs = format!("`bulkhead logs --tail 20 {name}` shows what it wrote last.");
    let again = format!("`bulkhead start {name}` starts it again.");
    let signal = state.exit_code.checked_sub(SIGNALLED).filter(|signal| *signal != 0);
    let shown =
        |signal: u8| signals::name(signal).map_or_else(|| format!("signal {signal}"), |name| format!("SIG{name}"));
    if !state.out_of_memory.is_empty()
        && (signal == Some(SIGKILL) && !state.signals.contains(&SIGKILL) || signal.is_none())
    {
        if record.flags.isolation == Isolation::Container {
            let (which, code) = (&state.out_of_memory, state.exit_code);
            let limit = record.flags.machine.memory.map_or_else(String::new, |mib| format!(" ({mib} MiB)"));
            let text = format!(
                "it wanted more memory than it may have{limit}, and this host's kernel killed {which}. Its first process ended with exit code {code}."
            );
            return told("out-of-memory", text, format!("Give it more (-m); {logs}"));
        }
        return told(
            "guest-out-of-memory",
            format!(
                "its guest ran out of memory ({memory_mib} MiB), and its kernel killed process {}. Its first process ended with exit code {}.",
                state.out_of_memory, state.exit_code
            ),
            format!("Give it more: `-m {}m`; {logs}", memory_mib * 2),
        );
    }
    match signal {
        Some(SIGKILL) if state.signals.last() == Some(&SIGKILL) && state.signals.contains(&record.stop_signal) => told(
            "stop-timeout",
            format!(
                "it was asked to stop by {}, had not ended when the time for that was over, and was killed.",
                shown(record.stop_signal)
            ),
            format!(
                "Give it longer (`bulkhead stop -t SECONDS`), or have it heed {}; {logs}",
                shown(record.stop_signal)
            ),
        ),
        Some(signal) if state.signals.contains(&signal) => told(
            "signal-ordered",
            format!("it was sent {}, by `kill` or `stop`, and ended by that.", shown(signal)),
            again,
        ),
        Some(signal) => told(
            "signal",
            format!(
                "its process was ended by {} (exit code {}), from inside the container or by whoever had it in front of them.",
                shown(signal),
                state.exit_code
            ),
            logs,
        ),
        None if state.signals.contains(&record.stop_signal) => told(
            "stopped",
            format!(
                "it was asked to stop by {}, and ended with exit code {}.",
                shown(record.stop_signal),
                state.exit_code
            ),
            again,
        ),
        None if state.exit_code == 0 => {
            told("exit", "its process ended by itself, with exit code 0: it was done.".into(), again)
        }
        None => told("exit", format!("its process ended by itself, with exit code {}.", state.exit_code), logs),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::containers::Id;
    use crate::containers::record::tests::record;

    fn of(change: impl FnOnce(&mut Record)) -> Told {
        let mut record = record(&Id::random().unwrap());
        change(&mut record);
        tell(&Entry { name: "web".into(), record, dir: "/x".into() }, now_ns())
    }

    fn ran(code: u8, cause: Cause, change: impl FnOnce(&mut Record)) -> Told {
        of(|record| {
            record.start();
            record.end(code, cause, "it broke".into());
            change(record);
        })
    }

    #[test]
    fn each_end_has_its_cause_and_its_next_step() {
        let nothing = |_: &mut Record| {};
        let signals = |list: &'static [u8]| move |record: &mut Record| record.state.signals = list.into();
        let scarce = |record: &mut Record| record.state.out_of_memory = "42 (hog)".into();
        for (told, cause, words) in [
            (of(nothing), "created", "never run"),
            (
                of(|record| record.end(127, Cause::Failed, "x: not found".into())),
                "command-not-found",
                "did not start: x: not found.",
            ),
            (of(|record| record.end(126, Cause::Failed, "x: no".into())), "command-not-executable", "did not start"),
            (of(|record| record.end(125, Cause::Failed, "no".into())), "bulkhead-failed", "did not start"),
            (of(Record::start), "running", "has not ended"),
            (ran(0, Cause::Process, nothing), "exit", "exit code 0"),
            (ran(3, Cause::Process, nothing), "exit", "exit code 3"),
            (ran(143, Cause::Process, signals(&[15])), "signal-ordered", "SIGTERM"),
            (ran(0, Cause::Process, signals(&[15])), "stopped", "asked to stop by SIGTERM"),
            (ran(137, Cause::Process, signals(&[15, 9])), "stop-timeout", "SIGTERM"),
            (ran(137, Cause::Process, signals(&[9])), "signal-ordered", "SIGKILL"),
            (ran(139, Cause::Process, nothing), "signal", "SIGSEGV"),
            (ran(137, Cause::Process, scarce), "guest-out-of-memory", "256 MiB"),
            (ran(1, Cause::Process, scarce), "guest-out-of-memory", "42 (hog)"),
            (ran(125, Cause::Guest, nothing), "guest-crashed", "it broke"),
            (ran(137, Cause::MonitorKilled, nothing), "monitor-killed", "it broke"),
            (ran(137, Cause::HostOutOfMemory, nothing), "host-out-of-memory", "out of memory"),
            (ran(159, Cause::Forbidden, nothing), "seccomp", "system call"),
            (ran(137, Cause::Ordered, nothing), "ended-by-order", "rm -f"),
            (ran(125, Cause::Failed, nothing), "bulkhead-failed", "it broke"),
        ] {
            assert_eq!(told.cause, cause, "{told:?}");
            assert!(told.text.contains(words) && told.text.contains("web") && !told.next.is_empty(), "{told:?}");
            assert!(!told.text.contains('\n') && !told.next.contains('\n'), "{told:?}");
        }
        let lost = of(|record| {
            record.start();
            record.lose();
        });
        assert_eq!(lost.cause, "supervisor-lost");
        let restarted = of(|record| {
            record.start();
            record.state.started_ns = 1;
            record.lose();
        });
        assert_eq!(restarted.cause, "host-restarted");
    }
}
