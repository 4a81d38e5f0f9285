//! Where the time of each start goes, run by run, for viewers of traces (Chrome's Trace Event Format; ui.perfetto.dev, chrome://tracing).
//!
//! Each arm is a process, each run one of its threads, and each phase a slice: how long it took was measured, and it begins where the
//! one before it ended. All runs begin at 0, so that they can be compared.

use serde_json::{Value, json};

use super::{Document, Phase};

/// The document's phases as a trace.
#[must_use]
pub fn trace(document: &Document) -> Value {
    let mut events = Vec::new();
    for (number, arm) in document.arms.iter().enumerate() {
        let phases: Vec<_> = document.phases.iter().filter(|phase| phase.arm == arm.name).collect();
        if !phases.is_empty() {
            add_arm(&mut events, number + 1, &arm.name, &phases);
        }
    }
    json!({
        "traceEvents": events,
        "displayTimeUnit": "ms",
        "otherData": { "image": document.image, "command": document.command.join(" "), "began": document.began },
    })
}

fn add_arm(events: &mut Vec<Value>, process: usize, name: &str, phases: &[&Phase]) {
    events.push(json!({ "ph": "M", "name": "process_name", "pid": process, "args": { "name": name } }));
    let runs = phases.iter().map(|phase| phase.samples.len()).max().unwrap_or(0);
    for run in 0..runs {
        let name = format!("run {}", run + 1);
        events.push(
            json!({ "ph": "M", "name": "thread_name", "pid": process, "tid": run + 1, "args": { "name": name } }),
        );
        let mut at = 0.0;
        for phase in phases {
            let Some(ms) = phase.samples.get(run) else { continue };
            // Microseconds are the format's unit.
            let (begins, takes) = (at * 1e3, ms * 1e3);
            events.push(
                json!({ "ph": "X", "name": phase.phase, "pid": process, "tid": run + 1, "ts": begins, "dur": takes }),
            );
            at += ms;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::document;

    #[test]
    fn each_run_is_a_row_of_slices() {
        let mut all = document(&[("runc", "start", vec![30.0, 31.0]), ("vm-warm", "start", vec![1.0])]);
        for (phase, samples) in [("create", vec![20.0, 21.5]), ("start", vec![10.0, 9.5])] {
            all.phases.push(Phase { arm: "runc".into(), phase: phase.into(), samples });
        }
        let trace = trace(&all);
        let events = trace["traceEvents"].as_array().unwrap();
        let slices: Vec<_> = events
            .iter()
            .filter(|event| event["ph"] == "X")
            .map(|event| {
                (event["name"].as_str().unwrap(), event["tid"].as_u64(), event["ts"].as_f64(), event["dur"].as_f64())
            })
            .collect();
        let wanted = [
            ("create", 1, 0.0, 20e3),
            ("start", 1, 20e3, 10e3),
            ("create", 2, 0.0, 21.5e3),
            ("start", 2, 21.5e3, 9.5e3),
        ];
        assert_eq!(slices, wanted.map(|(name, tid, ts, dur)| (name, Some(tid), Some(ts), Some(dur))));
        // An arm without phases is not there.
        let names: Vec<_> =
            events.iter().filter(|event| event["name"] == "process_name").map(|event| &event["args"]["name"]).collect();
        assert_eq!(names, [&json!("runc")]);
    }
}
