//! The metrics as text in Prometheus's exposition format, 0.0.4. Pure.

use std::fmt::{self, Display, Formatter};

use devices::virtio::DeviceName;
use devices::virtio::metrics::{BUCKETS, QueueReading, bound_us};

use super::metrics::Metrics;
use super::vm::DeviceReport;

/// Media type of the format.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// All of them, of the machine called `vm`.
pub fn text(vm: &str, metrics: &Metrics, devices: &[DeviceReport]) -> String {
    let vm = Escaped(vm);
    let mut page = Page::default();
    page.family("bulkhead_api_requests_total", "counter", "Requests at the control socket.");
    for (method, count) in metrics.requests() {
        page.sample("", format_args!("vm=\"{vm}\",method=\"{method}\""), count);
    }
    page.family("bulkhead_api_requests_failed_total", "counter", "Requests that were refused.");
    page.sample("", format_args!("vm=\"{vm}\""), metrics.failed());
    let labels: Vec<String> = devices.iter().map(|device| device_labels(vm, &device.name)).collect();
    let each = || devices.iter().zip(&labels);
    page.family("bulkhead_device_interrupts_total", "counter", "Interrupts sent to the guest.");
    each().for_each(|(device, labels)| page.sample("", labels, device.reading.interrupts));
    page.family("bulkhead_device_faults_total", "counter", "Times that the device needed a reset.");
    each().for_each(|(device, labels)| page.sample("", labels, device.reading.faults));
    let queues: Vec<(String, &QueueReading)> = each()
        .flat_map(|(device, labels)| {
            let label = move |(index, queue)| (format!("{labels},queue=\"{index}\""), queue);
            device.reading.queues.iter().enumerate().map(label)
        })
        .collect();
    for (name, help, value) in QUEUE {
        page.family(name, "counter", help);
        queues.iter().for_each(|(labels, queue)| page.sample("", labels, value(queue)));
    }
    page.family("bulkhead_queue_bytes_total", "counter", "Bytes of requests given back, headers included.");
    for (labels, queue) in &queues {
        page.sample("", format_args!("{labels},direction=\"from_guest\""), queue.bytes_from_guest);
        page.sample("", format_args!("{labels},direction=\"to_guest\""), queue.bytes_to_guest);
    }
    page.family("bulkhead_queue_latency_seconds", "histogram", "How long requests were with the device.");
    queues.iter().for_each(|(labels, queue)| page.histogram(labels, queue));
    page.text
}

type Value = fn(&QueueReading) -> u64;

/// A queue's numbers that are one sample each.
const QUEUE: [(&str, &str, Value); 6] = [
    ("bulkhead_queue_operations_total", "Requests given back.", |queue| queue.operations),
    ("bulkhead_queue_errors_total", "Requests that failed, and packets that were dropped.", |queue| queue.errors),
    ("bulkhead_queue_denied_total", "Packets of the guest's that may not leave.", |queue| queue.denied),
    ("bulkhead_queue_throttled_total", "Times that a request had to wait for a limit.", |queue| queue.throttled),
    ("bulkhead_queue_kicks_total", "Notifications of the driver's.", |queue| queue.kicks),
    ("bulkhead_queue_interrupts_total", "Batches that the driver wanted an interrupt for.", |queue| queue.interrupts),
];

fn device_labels(vm: Escaped, DeviceName { kind, id }: &DeviceName) -> String {
    let id = Escaped(id.as_deref().unwrap_or(""));
    format!("vm=\"{vm}\",kind=\"{kind}\",id=\"{id}\"")
}

#[derive(Default)]
struct Page {
    text: String,
    family: &'static str,
}

impl Page {
    fn family(&mut self, name: &'static str, kind: &str, help: &str) {
        self.text.push_str(&format!("# HELP {name} {help}\n# TYPE {name} {kind}\n"));
        self.family = name;
    }

    fn sample(&mut self, suffix: &str, labels: impl Display, value: impl Display) {
        self.text.push_str(&format!("{}{suffix}{{{labels}}} {value}\n", self.family));
    }

    fn histogram(&mut self, labels: &str, queue: &QueueReading) {
        let mut so_far = 0;
        for (index, count) in queue.latency.counts.iter().enumerate().take(BUCKETS) {
            so_far += count;
            match bound_us(index) {
                Some(us) => self.sample("_bucket", format_args!("{labels},le=\"{}\"", us as f64 / 1e6), so_far),
                None => self.sample("_bucket", format_args!("{labels},le=\"+Inf\""), so_far),
            }
        }
        self.sample("_sum", labels, queue.latency.sum_ns as f64 / 1e9);
        // Not the number of operations, which may have gone on since the buckets were read.
        self.sample("_count", labels, so_far);
    }
}

/// A label's value.
#[derive(Clone, Copy)]
struct Escaped<'a>(&'a str);

impl Display for Escaped<'_> {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        for letter in self.0.chars() {
            match letter {
                '\\' => f.write_str("\\\\")?,
                '"' => f.write_str("\\\"")?,
                '\n' => f.write_str("\\n")?,
                other => write!(f, "{other}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use devices::virtio::metrics::{DeviceReading, LatencyReading};

    use super::*;

    #[test]
    fn each_family_is_told_once_with_a_sample_for_each_queue() {
        let mut counts = [0; BUCKETS];
        (counts[0], counts[2], counts[BUCKETS - 1]) = (1, 2, 3);
        let latency = LatencyReading { sum_ns: 1_500_000_000, counts };
        let busy = QueueReading { operations: 6, bytes_to_guest: 512, latency, ..Default::default() };
        let reading = DeviceReading { interrupts: 4, faults: 0, queues: vec![busy, QueueReading::default()] };
        let name = DeviceName { kind: "blk", id: Some("root".into()) };
        let text = text("a \"b\"\\\nc", &Metrics::default(), &[DeviceReport { name, reading }]);
        let vm = r#"vm="a \"b\"\\\nc""#;
        let queue = format!("{vm},kind=\"blk\",id=\"root\",queue=\"0\"");
        for line in [
            format!("bulkhead_device_interrupts_total{{{vm},kind=\"blk\",id=\"root\"}} 4"),
            format!("bulkhead_queue_operations_total{{{queue}}} 6"),
            format!("bulkhead_queue_bytes_total{{{queue},direction=\"to_guest\"}} 512"),
            format!("bulkhead_queue_latency_seconds_bucket{{{queue},le=\"0.000001\"}} 1"),
            format!("bulkhead_queue_latency_seconds_bucket{{{queue},le=\"0.000002\"}} 1"),
            format!("bulkhead_queue_latency_seconds_bucket{{{queue},le=\"4.194304\"}} 3"),
            format!("bulkhead_queue_latency_seconds_bucket{{{queue},le=\"+Inf\"}} 6"),
            format!("bulkhead_queue_latency_seconds_sum{{{queue}}} 1.5"),
            format!("bulkhead_queue_latency_seconds_count{{{queue}}} 6"),
            format!("bulkhead_api_requests_total{{{vm},method=\"get\"}} 0"),
        ] {
            assert_eq!(text.lines().filter(|found| *found == line).count(), 1, "{line}\n{text}");
        }
        let mut families: Vec<_> = text.lines().filter(|line| line.starts_with("# TYPE")).collect();
        let all = families.len();
        families.sort();
        families.dedup();
        assert_eq!((families.len(), text.ends_with('\n')), (all, true));
        let samples = text.lines().filter(|line| !line.starts_with('#'));
        assert!(samples.clone().all(|line| line.starts_with("bulkhead_") && line.contains("} ")), "{text}");
        assert_eq!(samples.filter(|line| line.contains("queue=\"1\"")).count(), 8 + BUCKETS + 2);
    }
}
