//! `bulkhead ps`: the containers, from their records alone. Nothing is started, and nobody asked.

use std::time::Duration;

use serde_json::{Value, json};

use crate::args::{Filter, Ps, Publish, Talk};
use crate::clock;
use crate::containers::record::now_ns;
use crate::containers::{Containers, Entry, Record, Status};
use crate::failure::{Outcome, sanitize};
use crate::output::{self, Columns, text};
use crate::paths;
use crate::pods;

/// Characters of a command that are shown, its quotes and the mark of the cut included.
const COMMAND: usize = 22;

/// Lists them.
pub fn ps(args: &Ps, talk: Talk) -> Outcome {
    let entries = match Containers::existing(&paths::store()) {
        Some(containers) => containers.list()?,
        None => Vec::new(),
    };
    // A filter by state is about those that do not run, too.
    let all = args.all || args.filter.iter().any(|filter| matches!(filter.key.as_str(), "status" | "exited"));
    let shown = entries.iter().filter(|entry| all || entry.record.state.is_live());
    let pods = pods::Known::for_all(&entries);
    let shown = shown.filter(|entry| fits(entry, &pods, &args.filter));
    let now = now_ns();
    let rows = shown.map(|entry| row(entry, &pods, now, args.no_trunc));
    if talk.quiet {
        output::print(&rows.map(|row| format!("{}\n", text(&row, "ID"))).collect::<String>())?;
        return Ok(0);
    }
    if args.pod {
        output::listing(&args.format, &WITH_PODS, rows)
    } else {
        output::listing(&args.format, &COLUMNS, rows)
    }
}

const COLUMNS: Columns<7> = Columns {
    head: ["CONTAINER ID", "IMAGE", "COMMAND", "CREATED", "STATUS", "PORTS", "NAMES"],
    fields: ["ID", "Image", "Command", "RunningFor", "Status", "Ports", "Names"],
};

/// With `--pod`, as podman.
const WITH_PODS: Columns<9> = Columns {
    head: ["CONTAINER ID", "IMAGE", "COMMAND", "CREATED", "STATUS", "PORTS", "NAMES", "POD ID", "PODNAME"],
    fields: ["ID", "Image", "Command", "RunningFor", "Status", "Ports", "Names", "Pod", "PodName"],
};

/// What is shown of one, under docker's names.
fn row(entry: &Entry, pods: &pods::Known, now_ns: u64, whole: bool) -> Value {
    let record = &entry.record;
    let command = sanitize(&record.process.args.join(" "));
    let command = match command.char_indices().nth(COMMAND - 3) {
        Some((end, _)) if !whole => format!("\"{}…\"", &command[..end]),
        _ => format!("\"{command}\""),
    };
    let labels = record.labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",");
    json!({
        "ID": if whole { record.id.as_str() } else { record.id.short() },
        "Image": sanitize(record.image()),
        "Command": command,
        "CreatedAt": clock::rfc3339(record.created_ns),
        "RunningFor": format!("{} ago", since(record.created_ns, now_ns)),
        "State": record.state.word(),
        "Status": status(record, now_ns),
        "Ports": ports(record, pods).join(", "),
        "Labels": sanitize(&labels),
        "Mounts": record.flags.volume.iter().map(|volume| sanitize(&volume.shown())).collect::<Vec<_>>().join(","),
        "Names": entry.name,
        "Networks": network(record),
        "Pod": record.flags.pod.as_deref().map(|id| if whole { id } else { id.get(..12).unwrap_or(id) }).unwrap_or_default(),
        "PodName": pods.of(record).unwrap_or_default(),
    })
}

/// What it is connected to, by what it was made with.
fn network(record: &Record) -> String {
    record.flags.network.as_ref().map_or("none".into(), ToString::to_string)
}

fn since(then_ns: u64, now_ns: u64) -> String {
    clock::human(Duration::from_nanos(now_ns.saturating_sub(then_ns)))
}

fn status(record: &Record, now_ns: u64) -> String {
    let state = &record.state;
    match state.status {
        Status::Created => "Created".into(),
        Status::Running => {
            let paused = if state.paused { " (Paused)" } else { "" };
            format!("Up {}{paused}", since(state.started_ns, now_ns))
        }
        Status::Exited if state.restarting => {
            format!("Restarting ({}) {} ago", state.exit_code, since(state.finished_ns, now_ns))
        }
        Status::Exited => format!("Exited ({}) {} ago", state.exit_code, since(state.finished_ns, now_ns)),
    }
}

/// The ports of the host that lead to it, while it runs.
fn ports(record: &Record, pods: &pods::Known) -> Vec<String> {
    let running = record.state.status == Status::Running;
    pods.ports(record).iter().filter(|_| running).map(shown_port).collect()
}

fn shown_port(port: &Publish) -> String {
    let Publish { host_ip, host_port, guest_port, udp } = port;
    format!("{host_ip}:{host_port}->{guest_port}/{}", if *udp { "udp" } else { "tcp" })
}

/// Values of the same key are alternatives, different keys conditions; but each label is a condition of its own.
fn fits(entry: &Entry, pods: &pods::Known, filters: &[Filter]) -> bool {
    let fits = |filter: &Filter| fits_one(entry, pods, &filter.key, &filter.value);
    filters.iter().all(|filter| match filter.key.as_str() {
        "label" => fits(filter),
        key => filters.iter().filter(|other| other.key == key).any(fits),
    })
}

fn fits_one(entry: &Entry, pods: &pods::Known, key: &str, value: &str) -> bool {
    let record = &entry.record;
    match key {
        "name" => entry.name.contains(value.trim_start_matches('^').trim_start_matches('/').trim_end_matches('$')),
        "id" => record.id.as_str().starts_with(value),
        "network" => network(record) == value,
        "pod" => {
            record.flags.pod.as_deref().is_some_and(|id| !value.is_empty() && id.starts_with(value))
                || pods.of(record).as_deref() == Some(value)
        }
        "status" => record.state.word() == value,
        "exited" => record.state.status == Status::Exited && value.parse() == Ok(record.state.exit_code),
        "ancestor" => {
            let id = record.image_id.trim_start_matches("sha256:");
            let named = record.image().trim_end_matches(":latest") == value.trim_end_matches(":latest");
            named || (value.len() >= 4 && id.starts_with(value.trim_start_matches("sha256:")))
        }
        "label" => match value.split_once('=') {
            Some((key, value)) => record.labels.get(key).is_some_and(|found| found == value),
            None => record.labels.contains_key(value),
        },
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::containers::Id;
    use crate::containers::record::tests::record;

    fn entry() -> Entry {
        let mut record = record(&Id::random().unwrap());
        record.labels.insert("tier".into(), "web".into());
        record.process.args = ["sh", "-c", "echo a long command\x1b[31m of several words"].map(str::to_owned).to_vec();
        record.flags.publish = vec!["8080:80".parse_publish()];
        Entry { name: "brave_hopper".into(), record, dir: "/x".into() }
    }

    trait ParsePublish {
        fn parse_publish(&self) -> Publish;
    }

    impl ParsePublish for str {
        fn parse_publish(&self) -> Publish {
            crate::args::publish(self).unwrap()
        }
    }

    #[test]
    fn a_row_is_dockers() {
        let mut entry = entry();
        let now = entry.record.created_ns + 61_000_000_000;
        let cells =
            |entry: &Entry| COLUMNS.fields.map(|field| text(&row(entry, &pods::Known::default(), now, false), field));
        let id = entry.record.id.short().to_owned();
        let want = [&id, "debian", "\"sh -c echo a long c…\"", "About a minute ago", "Created", "", "brave_hopper"];
        assert_eq!(cells(&entry), want);
        assert!(!text(&row(&entry, &pods::Known::default(), now, true), "Command").contains('\x1b'));
        entry.record.start();
        entry.record.state.started_ns = now - 5_000_000_000;
        assert_eq!(cells(&entry)[4..6], ["Up 5 seconds", "127.0.0.1:8080->80/tcp"]);
        entry.record.state.paused = true;
        assert_eq!((&cells(&entry)[4][..], entry.record.state.word()), ("Up 5 seconds (Paused)", "paused"));
        entry.record.end(3, crate::containers::record::Cause::Process, String::new());
        entry.record.state.finished_ns = now - 1_000_000_000;
        assert_eq!(cells(&entry)[4..6], ["Exited (3) 1 second ago", ""]);
    }

    #[test]
    fn filters_of_a_key_are_alternatives() {
        let entry = entry();
        let fit = |list: &[&str]| {
            let parse = |text: &&str| {
                let (key, value) = text.split_once('=').unwrap();
                Filter { key: key.into(), value: value.into() }
            };
            fits(&entry, &pods::Known::default(), &list.iter().map(parse).collect::<Vec<_>>())
        };
        assert!(fit(&[]) && fit(&["name=hopper"]) && fit(&["name=x", "name=brave"]) && fit(&["status=created"]));
        assert!(!fit(&["name=hopper", "status=running"]) && !fit(&["name=x"]) && !fit(&["exited=0"]));
        assert!(fit(&["label=tier"]) && fit(&["label=tier=web"]) && !fit(&["label=tier", "label=other"]));
        assert!(fit(&["network=none"]) && !fit(&["network=web"]));
        assert!(fit(&["ancestor=debian"]) && fit(&["ancestor=debian:latest"]) && !fit(&["ancestor=deb"]));
        assert!(fit(&[&format!("id={}", entry.record.id.short())]));
    }
}
