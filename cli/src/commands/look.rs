//! `bulkhead top` and `diff`: what a running container does, and what one has changed.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, anyhow};
use guest_images::erofs::Files;
use guest_images::{Keeper, KeptLayers, LayerKey, Store};
use guest_protocol::files::{EntryKind, FileMessage, Helper, ProcessInfo};
use serde_json::{Value, json};

use crate::args::{Diff, Top};
use crate::attend::Order;
use crate::attend::client::ask;
use crate::clock;
use crate::failure::{Failure, Outcome, sanitize};
use crate::helping::Helping;
use crate::output::{self, Columns};
use crate::paths;
use crate::running;
use crate::visit;

const PROCESSES: Columns<8> = Columns {
    head: ["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"],
    fields: ["UID", "PID", "PPID", "C", "STime", "TTY", "Time", "Command"],
};

/// Most bytes that a guest may have to say: it is not trusted to end.
const MOST: usize = 64 << 20;

/// Counts what a guest says.
///
/// # Errors
/// It is too much.
fn bounded(said: &mut usize, more: usize) -> anyhow::Result<()> {
    *said += more;
    if *said > MOST { Err(anyhow!("the container says more than {} MiB of itself", MOST >> 20)) } else { Ok(()) }
}

/// Lists a container's processes.
pub fn top(args: &Top) -> Outcome {
    let (mut rows, mut said) = (Vec::new(), 0);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut hear = || {
        Helping::begin(&args.container, Helper::Processes, false)?.hear_all(|message| {
            if let FileMessage::Process(process) = message {
                bounded(&mut said, size_of::<ProcessInfo>() + process.command.len())?;
                rows.push(row(&process, now));
            }
            Ok(())
        })
    };
    hear().map_err(|error| Failure::with_code(1, error))?;
    output::listing(&args.format, &PROCESSES, rows)
}

/// As `ps -ef` has it, and docker's `top` so.
fn row(process: &ProcessInfo, now: Duration) -> Value {
    let ProcessInfo { pid, ppid, uid, age_ms, cpu_ms, terminal, resident, command } = process;
    let share = (cpu_ms * 100).checked_div(*age_ms).unwrap_or(0);
    let seconds = cpu_ms / 1000;
    let time = format!("{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60);
    let began = now.saturating_sub(Duration::from_millis(*age_ms));
    json!({
        "UID": uid.to_string(), "PID": pid.to_string(), "PPID": ppid.to_string(), "C": share.to_string(),
        "STime": clock::rfc3339(u64::try_from(began.as_nanos()).unwrap_or(u64::MAX)).get(11..16).unwrap_or_default(),
        "TTY": terminal.map_or("?".into(), |number| format!("pts/{number}")),
        "Time": time, "RSS": resident.to_string(), "Command": sanitize(command),
    })
}

/// The layers of a container's image, held in the store.
fn layers(container: &str) -> anyhow::Result<KeptLayers> {
    let store = Store::open(paths::store())?;
    if let Some(id) = visit::idle(container) {
        let kept = store.kept(Keeper::Container(id.as_str()))?;
        return kept.ok_or_else(|| anyhow!("container {container}: it has no list of layers"));
    }
    let (name, directory) = running::find(container)?;
    let about = ask(&directory, &name, &Order::About {}, &mut |_| ())?;
    let keys = about["layers"].as_array().into_iter().flatten();
    let keys = keys.filter_map(|key| key.as_str()).map(str::parse).collect::<Result<Vec<LayerKey>, _>>()?;
    Ok(store.in_use(keys)?)
}

/// Lists what a container has changed.
pub fn diff(args: &Diff) -> Outcome {
    let work = || -> anyhow::Result<Vec<String>> {
        let image = layers(&args.container)?;
        visit::helped(&args.container, Helper::Changes { content: false }, false, move |mut helping| {
            let image = Files::open(image.lock.files().iter()).context("the container's image")?;
            let (mut lines, mut said) = (Vec::new(), 0);
            helping.hear_all(|message| {
                let FileMessage::Entry(entry) = message else { return Ok(()) };
                let path = [b"/", entry.path.0.as_slice()].concat();
                bounded(&mut said, path.len())?;
                let letter = match entry.kind {
                    EntryKind::Removed => 'D',
                    _ if image.holds(&path).context("the container's image")? => 'C',
                    _ => 'A',
                };
                lines.push(format!("{letter} {}", sanitize(&String::from_utf8_lossy(&path))));
                Ok(())
            })?;
            Ok(lines)
        })
    };
    let mut lines = work().map_err(Failure::refused)?;
    lines.sort_unstable_by(|a, b| a[2..].cmp(&b[2..]));
    Ok(output::print(&lines.iter().map(|line| format!("{line}\n")).collect::<String>()).map(|()| 0)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_is_not_heard_for_ever() {
        let mut said = 0;
        let rounds = (0..).take_while(|_| bounded(&mut said, 1 << 20).is_ok()).count();
        assert_eq!(rounds, MOST >> 20);
    }

    #[test]
    fn a_process_is_shown_as_ps_does() {
        let process = ProcessInfo {
            pid: 7,
            ppid: 1,
            uid: 33,
            age_ms: 3_600_000,
            cpu_ms: 3_725_000 / 2,
            terminal: Some(2),
            resident: 4096,
            command: "sh -c \u{1b}[31m".into(),
        };
        let now = Duration::from_nanos(clock::parse_rfc3339("2026-01-02T06:04:06Z").unwrap());
        let cells = PROCESSES.fields.map(|field| output::text(&row(&process, now), field));
        assert_eq!(cells[..7], ["33", "7", "1", "51", "05:04", "pts/2", "00:31:02"].map(str::to_owned));
        assert!(!cells[7].contains('\u{1b}'));
        let cells = PROCESSES
            .fields
            .map(|field| output::text(&row(&ProcessInfo { age_ms: 0, terminal: None, ..process.clone() }, now), field));
        assert_eq!((cells[3].as_str(), cells[5].as_str()), ("0", "?"));
    }
}
