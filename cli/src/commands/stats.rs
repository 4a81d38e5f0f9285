//! `bulkhead stats`: what containers take of this host, and what of their own machines they use, again and again or once.

use std::io::IsTerminal;
use std::thread;
use std::time::{Duration, Instant};

use guest_protocol::files::{FileMessage, Helper, Usage};
use serde_json::{Value, json};

use super::inspect::find;
use crate::args::{Isolation, Stats};
use crate::containers::{Containers, Entry, Status};
use crate::control::Control;
use crate::failure::{Failure, Outcome};
use crate::helping::Helping;
use crate::oci::{self, Group};
use crate::output::{self, Columns};
use crate::paths;
use crate::running;
use crate::size::{MIB, human};
use crate::usage::{self, Memory, Moved};
use vmm::host;

/// Between two looks; processor time is told of that long.
const INTERVAL: Duration = Duration::from_secs(1);
/// A guest that has not said what it uses after this long is left out of its row.
const PATIENCE: Duration = Duration::from_secs(10);
/// What cannot be told.
const UNKNOWN: &str = "--";
/// Clears a terminal, as docker does.
const CLEAR: &str = "\x1b[2J\x1b[H";

const COLUMNS: Columns<13> = Columns {
    head: [
        "CONTAINER ID",
        "NAME",
        "CPU %",
        "MEM USAGE / LIMIT",
        "MEM %",
        "NET I/O",
        "BLOCK I/O",
        "PIDS",
        "HOST MEM",
        "OF IT MONITOR",
        "SHARED",
        "LAYER CACHE",
        "AS CONTAINER",
    ],
    fields: [
        "ID",
        "Name",
        "CPUPerc",
        "MemUsage",
        "MemPerc",
        "NetIO",
        "BlockIO",
        "PIDs",
        "HostMem",
        "MonitorMem",
        "SharedMem",
        "LayerCache",
        "AsContainer",
    ],
};

/// What is known of one container at one moment; what could not be had is none.
struct Look {
    entry: Entry,
    at: Instant,
    cpu_ms: Option<u64>,
    memory: Option<Memory>,
    guest: Option<Usage>,
    moved: Option<Moved>,
    cached: Option<u64>,
}

/// Shows them.
pub fn stats(args: &Stats) -> Outcome {
    let again = !args.no_stream;
    let clears = again && args.format == "table" && std::io::stdout().is_terminal();
    let mut before = cpu(&chosen(args)?);
    loop {
        thread::sleep(INTERVAL);
        let looks = look_at(chosen(args)?);
        let rows: Vec<Value> = looks.iter().map(|look| row(look, &before, args.no_trunc)).collect();
        if clears {
            output::print(CLEAR)?;
        }
        output::listing(&args.format, &COLUMNS, rows)?;
        let ended = looks.iter().all(|look| look.entry.record.state.status != Status::Running);
        if !again || (ended && !args.containers.is_empty()) {
            return Ok(0);
        }
        before =
            looks.into_iter().filter_map(|look| Some((look.entry.record.state.pid, look.cpu_ms?, look.at))).collect();
    }
}

/// Those that were named, or all that run.
fn chosen(args: &Stats) -> Result<Vec<Entry>, Failure> {
    if !args.containers.is_empty() {
        let found = args.containers.iter().map(|word| find(word)).collect::<Result<Vec<_>, _>>();
        return found.map_err(|error| Failure::with_code(1, error));
    }
    let entries = match Containers::existing(&paths::store()) {
        Some(containers) => containers.list()?,
        None => Vec::new(),
    };
    Ok(entries.into_iter().filter(|entry| args.all || entry.record.state.status == Status::Running).collect())
}

/// Processor time of whoever has them, by its process id.
type Before = Vec<(u32, u64, Instant)>;

fn cpu(entries: &[Entry]) -> Before {
    let now = Instant::now();
    let of = |entry: &Entry| match oci::first_process(&entry.dir, &entry.record) {
        Some(first) => contained_cpu_ms(entry.record.state.pid, first),
        None => cpu_ms(entry.record.state.pid),
    };
    entries.iter().filter_map(|entry| Some((entry.record.state.pid, of(entry)?, now))).collect()
}

/// Of a container's owner and of its microVM's process.
fn cpu_ms(owner: u32) -> Option<u64> {
    let own = usage::cpu_ms(owner).ok()?;
    Some(own + usage::monitor(owner).and_then(|pid| usage::cpu_ms(pid).ok()).unwrap_or(0))
}

/// Looks at all of them at once: each guest takes its time to answer.
fn look_at(entries: Vec<Entry>) -> Vec<Look> {
    thread::scope(|scope| {
        let looks: Vec<_> = entries.into_iter().map(|entry| scope.spawn(move || look(entry))).collect();
        looks.into_iter().filter_map(|look| look.join().ok()).collect()
    })
}

fn look(entry: Entry) -> Look {
    let (at, state) = (Instant::now(), &entry.record.state);
    let mut look =
        Look { at, cpu_ms: None, memory: None, guest: None, moved: None, cached: None, entry: entry.clone() };
    if state.status != Status::Running {
        return look;
    }
    if let Some(pid) = oci::first_process(&entry.dir, &entry.record) {
        look_at_contained(&mut look, pid);
        return look;
    }
    look.cpu_ms = cpu_ms(state.pid);
    // A foreground `run` is this container's alone as well.
    let owners = Memory::of(state.pid).ok();
    let monitors = usage::monitor(state.pid).and_then(|pid| Memory::of(pid).ok());
    look.memory = monitors.map(|monitors| owners.map_or(monitors, |owners| monitors.and(owners)));
    let control = Control::at(&running::directory(&entry).join("api"));
    look.moved = Moved::of(&control).ok();
    look.cached = usage::layer_files(&control).ok().and_then(|files| usage::cached(&files));
    if !state.paused {
        look.guest = guest(entry.record.id.as_str());
    }
    look
}

/// The same of one that has no microVM: what its control group tells.
fn look_at_contained(look: &mut Look, pid: u32) {
    let owner = look.entry.record.state.pid;
    let group = Group::of(pid, owner);
    look.cpu_ms = contained_cpu_ms(owner, pid);
    let used = group.memory();
    look.memory = used.map(|used| {
        let own = Memory::of(owner).unwrap_or_default();
        Memory { guest: used, monitor: own.guest + own.monitor, ..own }
    });
    look.moved =
        Some(Moved { net: usage::interface(pid).unwrap_or_default(), block: group.moved().unwrap_or_default() });
    if look.entry.record.state.paused {
        return;
    }
    look.guest = guest(look.entry.record.id.as_str()).map(|host| {
        let total = group.limit().map_or(host.total, |limit| limit.min(host.total));
        let workload = used.unwrap_or(0);
        Usage { total, available: total.saturating_sub(workload), workload, ..host }
    });
}

/// Of a container's owner and of its processes.
fn contained_cpu_ms(owner: u32, first: u32) -> Option<u64> {
    Some(usage::cpu_ms(owner).ok()? + Group::of(first, owner).cpu_ms()?)
}

/// What a guest says that it uses. It is not trusted to answer.
fn guest(id: &str) -> Option<Usage> {
    let mut helping = Helping::begin_within(id, Helper::Usage, PATIENCE).ok()?;
    match helping.hear_file() {
        Ok(Some(FileMessage::Usage(usage))) => Some(usage),
        _ => None,
    }
}

/// What is shown of one, under docker's names where docker has some.
fn row(look: &Look, before: &Before, whole: bool) -> Value {
    let Look { entry, at, cpu_ms, memory, guest, moved, cached } = look;
    let record = &entry.record;
    // In a pod, or without a microVM, it may have no limit of its own but what there is.
    let shares = record.flags.pod.is_some() || record.flags.isolation == Isolation::Container;
    let all = guest.filter(|_| shares).map(|guest| guest.total);
    let own = match (record.flags.isolation, record.flags.machine.memory) {
        (Isolation::Container, None) => host::memory_mib(),
        _ => record.flags.machine.memory_mib(),
    };
    let limit = all.unwrap_or(own * MIB);
    let used = guest.map(|guest| guest.total.saturating_sub(guest.available).min(limit));
    let share = before.iter().find(|(pid, ..)| *pid == record.state.pid).zip(*cpu_ms).map(|((_, then, when), now)| {
        let span = at.duration_since(*when).as_secs_f64().max(0.001);
        now.saturating_sub(*then) as f64 / 10.0 / span
    });
    let percent = |value: Option<f64>| value.map_or(UNKNOWN.into(), |value| format!("{value:.2}%"));
    let size = |bytes: Option<u64>| bytes.map_or(UNKNOWN.into(), human);
    let both = |pair: Option<[u64; 2]>| pair.map_or(UNKNOWN.into(), |[a, b]| format!("{} / {}", human(a), human(b)));
    let bytes = |value: Option<u64>| value.map_or(Value::Null, |value| json!(value));
    json!({
        "ID": if whole { record.id.as_str() } else { record.id.short() },
        "Container": record.id,
        "Name": entry.name,
        "CPUPerc": percent(share),
        "MemUsage": format!("{} / {}", size(used), human(limit)),
        "MemPerc": percent(used.map(|used| used as f64 * 100.0 / limit as f64)),
        "NetIO": both(moved.map(|moved| moved.net)),
        "BlockIO": both(moved.map(|moved| moved.block)),
        "PIDs": guest.map_or(UNKNOWN.into(), |guest| guest.processes.to_string()),
        "HostMem": size(memory.map(|memory| memory.guest + memory.monitor + memory.share)),
        "MonitorMem": size(memory.map(|memory| memory.monitor)),
        "SharedMem": size(memory.map(|memory| memory.shared)),
        "LayerCache": size(*cached),
        "AsContainer": size(guest.map(|guest| guest.workload)),
        "Bytes": {
            "Limit": limit, "GuestUsed": bytes(used), "GuestCached": bytes(guest.map(|guest| guest.cached)),
            "GuestFree": bytes(guest.map(|guest| guest.free)), "AsContainer": bytes(guest.map(|guest| guest.workload)),
            "HostGuest": bytes(memory.map(|memory| memory.guest)), "HostMonitor": bytes(memory.map(|memory| memory.monitor)),
            "HostShare": bytes(memory.map(|memory| memory.share)), "HostShared": bytes(memory.map(|memory| memory.shared)),
            "LayerCache": bytes(*cached),
            "NetIn": bytes(moved.map(|moved| moved.net[0])), "NetOut": bytes(moved.map(|moved| moved.net[1])),
            "BlockRead": bytes(moved.map(|moved| moved.block[0])), "BlockWritten": bytes(moved.map(|moved| moved.block[1])),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::containers::Id;
    use crate::containers::record::tests::record;

    #[test]
    fn what_cannot_be_told_is_said_so() {
        let mut record = record(&Id::random().unwrap());
        record.start();
        let pid = record.state.pid;
        let entry = Entry { name: "web".into(), record, dir: "/x".into() };
        let (at, then) = (Instant::now(), Instant::now() - Duration::from_secs(2));
        let mut look = Look { entry, at, cpu_ms: None, memory: None, guest: None, moved: None, cached: None };
        let cells =
            |look: &Look| COLUMNS.fields.map(|field| output::text(&row(look, &vec![(pid, 1000, then)], false), field));
        let mut unknown = vec![UNKNOWN; 11];
        unknown[1] = "-- / 268.4MB";
        assert_eq!(cells(&look)[2..].to_vec(), unknown);
        look.cpu_ms = Some(2000);
        let (total, available, free, cached) = (200 * MIB, 150 * MIB, 100 * MIB, MIB);
        look.guest = Some(Usage { total, available, free, cached, workload: 2_000_000, processes: 3 });
        look.memory = Some(Memory { guest: 20_000_000, monitor: 1_000_000, share: 4_000_000, shared: 30_000_000 });
        look.moved = Some(Moved { net: [1, 2], block: [3000, 4000] });
        look.cached = Some(0);
        let want = [
            "50.00%",
            "52.4MB / 268.4MB",
            "19.53%",
            "1B / 2B",
            "3.0kB / 4.0kB",
            "3",
            "25.0MB",
            "1.0MB",
            "30.0MB",
            "0B",
            "2.0MB",
        ];
        let got = cells(&look);
        assert!(got[2].starts_with("50.") || got[2].starts_with("49."), "{got:?}");
        assert_eq!(got[3..], want[1..]);
    }
}
