//! `update` of what a container may take of its host.

use std::time::Duration;

use tests::control::Control;
use tests::{Lab, Running};

use crate::lab;
use crate::lifecycle::{done, inspect, unique};
use crate::net::the_only_machine;

/// What it has, as `inspect` shows it: bytes, and billionths of a CPU.
const SIZE: &str = "{{.HostConfig.Memory}} {{.HostConfig.NanoCpus}}";

/// The same of its disks.
const RATES: &str = "{{json .HostConfig.BlkioDeviceReadIOps}} {{json .HostConfig.BlkioDeviceWriteBps}} {{json .HostConfig.BlkioDeviceReadBps}}";

/// How often a request of one of the one machine's disks had to wait for a limit.
fn waited(lab: &Lab, patience: Duration) -> u64 {
    let control = Control::at(the_only_machine(lab, patience).join("api"), patience);
    let metrics = control.get("/bulkhead/v1/metrics");
    let disks = metrics["devices"].as_array().into_iter().flatten().filter(|device| device["kind"] == "blk");
    let queues = disks.flat_map(|disk| disk["queues"].as_array().into_iter().flatten());
    queues.map(|queue| queue["throttled"].as_u64().unwrap()).sum()
}

/// While it runs, its guest's kernel has less memory and then what it began with, its process has less time, and it gets no more of either
/// than it began with. When it has ended, whatever the host has.
#[test]
fn a_container_gets_less_and_what_it_had() {
    let lab = lab!("a_container_gets_less_and_what_it_had");
    let (patience, name, image) = (lab.patience(2), unique("resized"), lab.debian());
    // Pages that the balloon takes are none of the guest's any more.
    let script = "total() { read -r _ kib _ </proc/meminfo; }; total; began=$kib; echo up; \
                  while total; [ $kib -gt $((began - 60000)) ]; do sleep 0.1; done; echo less; \
                  while total; [ $kib -lt $began ]; do sleep 0.1; done; echo whole; \
                  dd if=/dev/zero of=/f bs=4k count=2 oflag=direct status=none && echo written; sleep 1000";
    let line = ["run", "-d", "--device-read-iops", "100000", "--name", &name, &image, "bash", "-c", script];
    done(Running::start(lab.keeping(line)).end(patience));
    let mut follower = Running::start(lab.bulkhead(["logs", "-f", &name]));
    follower.wait_for("up\n", patience);
    done(lab.run(["update", "-m", "192m", &name]));
    follower.wait_for("less\n", patience);
    assert_eq!(inspect(&lab, &name, SIZE), "201326592 1000000000");
    assert_eq!(waited(&lab, patience), 0);
    done(lab.run(["update", "--memory", "256m", "--device-write-bps", "1k", &name]));
    follower.wait_for("whole\nwritten\n", patience);
    assert!(waited(&lab, patience) > 0);
    assert_eq!(inspect(&lab, &name, RATES), "[{\"Path\":\"\",\"Rate\":100000}] [{\"Path\":\"\",\"Rate\":1024}] []");
    drop(follower);

    lab.run(["update", "-m", "257m", &name]).assert_failed(1, &["-m 257m", "256 MiB", "stop"]);
    lab.run(["update", "--cpus", "1.5", &name]).assert_failed(1, &["--cpus 1.5", "1 vCPU", "stop"]);
    // What still waits does so no longer.
    done(lab.run(["update", "--device-write-bps", "0", &name]));
    assert_eq!(inspect(&lab, &name, "{{json .HostConfig.BlkioDeviceWriteBps}}"), "[]");
    lab.run(["update", "--network-send-bps", "1m", &name]).assert_failed(1, &["no network"]);
    lab.run(["update", "--memory-swap", "1g", &name]).assert_failed(125, &["--memory-swap", "no swap"]);
    lab.run(["update", &name]).assert_failed(125, &["--cpus", "--memory", "--restart"]);
    let quota = || {
        let groups = lab.control_groups();
        let of = |file: &str| groups.iter().find_map(|group| std::fs::read_to_string(group.join(file)).ok());
        of("cpu.cfs_quota_us").or_else(|| of("cpu.max")).map(|quota| quota.trim().to_owned())
    };
    let given = lab.no_control_group().is_none();
    if given {
        done(lab.run(["update", "--cpus", "0.5", &name]));
        assert!(quota().is_some_and(|quota| ["50000", "50000 100000"].contains(&quota.as_str())), "{:?}", quota());
        assert_eq!(inspect(&lab, &name, SIZE), "268435456 500000000");
        done(lab.run(["update", "--cpus", "1", &name]));
        assert!(quota().is_some_and(|quota| ["-1", "max 100000"].contains(&quota.as_str())), "{:?}", quota());
    }
    done(lab.run(["kill", &name]));
    done(lab.run(["wait", &name]));

    let (cpus, shown) = if given { ("1.5", "314572800 1500000000") } else { ("2", "314572800 2000000000") };
    done(lab.run(["update", "--cpus", cpus, "-m", "300m", &name]));
    assert_eq!(inspect(&lab, &name, SIZE), shown);
    let too_much = format!("{}m", lab.memory_mib() + 1);
    lab.run(["update", "-m", &too_much, &name]).assert_failed(1, &[&name, "memory"]);
    lab.run(["update", "--network-send-bps", "1m", &name]).assert_failed(1, &[&name, "no network"]);
    assert_eq!(inspect(&lab, &name, SIZE), shown);
    done(lab.run(["rm", &name]));
    lab.assert_clean();
}
