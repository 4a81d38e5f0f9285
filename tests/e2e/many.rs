//! Several vCPUs, much memory, vector registers under preemption, ten at once.

use tests::Running;

use crate::lab;
use crate::warm::was_warm;

/// Two vCPUs are seen as two, and both do work at the same time. Of two containers that are the first of their kind at once one boots, and
/// the other goes on from what that leaves. On the machine, [`crate::load`] and [`crate::adversary`] have two.
#[test]
fn two_vcpus_both_work() {
    let lab = lab!("two_vcpus_both_work", on hardware);
    let (patience, image) = (lab.patience(2), lab.probe_image());
    let start = || Running::start(lab.bulkhead(["run", "--verbose", "--cpus", "2", &image, "/probe", "cpus", "20"]));
    let both = [start(), start()].map(|running| running.end(patience));
    assert!(both.iter().all(|ended| ended.text() == "cpus=2 turned=20\n"), "{both:?}");
    assert!(both.iter().any(was_warm), "{both:?}");
    lab.assert_clean();
}

/// Processes that use AVX keep their registers when the kernel takes the CPU away from them, on one vCPU; on two: [`crate::load`].
#[test]
fn vector_registers_survive_preemption() {
    let lab = lab!("vector_registers_survive_preemption");
    let image = lab.probe_image();
    let ended = lab.run(["run", &image, "/probe", "avx", "3", "2"]);
    if ended.text().starts_with("no avx") {
        // QEMU's TCG takes a nested guest's XSETBV without telling the KVM around it, so CPUID leaf 0xD keeps the size of
        // the first state, and the guest's kernel, finding that inconsistent, turns XSAVE off.
        let reason = "the guest has no AVX: its kernel turned XSAVE off, as it does on the emulated host";
        return tests::lab::skip("vector_registers_survive_preemption", reason);
    }
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let facts = ended.text().trim();
    let switches: u64 = facts.rsplit_once("switches=").and_then(|(_, n)| n.parse().ok()).unwrap_or(0);
    assert!(facts.starts_with("bad=0 ") && switches > 10, "{ended:?}");
    lab.assert_clean();
}

/// A guest with 64 MiB has them, and one with 8 GiB has 8 GiB, above the hole too.
#[test]
fn memory_is_what_was_asked_for() {
    let lab = lab!("memory_is_what_was_asked_for", on hardware);
    let image = lab.probe_image();
    let memory = |size: &str, patience: u32| -> u64 {
        let command = lab.bulkhead(["run", "-m", size, &image, "/probe", "memory"]);
        let ended = Running::start(command).end(lab.patience(patience));
        assert_eq!(ended.code, Some(0), "{size}: {ended:?}");
        ended.text().trim().parse().expect("a number of MiB")
    };
    let small = memory("64m", 1);
    assert!((30..=64).contains(&small), "{small} MiB of 64");
    if lab.memory_mib() < 8192 {
        let reason = "this host has less than 8 GiB; 64 MiB were tested";
        return tests::lab::skip("memory_is_what_was_asked_for", reason);
    }
    let big = memory("8g", 4);
    assert!((7900..=8192).contains(&big), "{big} MiB of 8192");
    lab.assert_clean();
}

/// Ten runs at once do not disturb each other.
#[test]
fn ten_at_once() {
    let lab = lab!("ten_at_once");
    let patience = lab.patience(10);
    let image = lab.probe_image();
    let start = |n: usize| {
        // A small program: what is tested is ten of them, not what a process costs.
        let (name, number) = (format!("vm{n}"), n.to_string());
        Running::start(lab.bulkhead(["run", "--name", &name, "--hostname", &name, &image, "/probe", "say", &number]))
    };
    let running: Vec<Running> = (0..10).map(start).collect();
    let mut uuids = std::collections::BTreeSet::new();
    for (n, running) in running.into_iter().enumerate() {
        let ended = running.end(patience);
        assert_eq!((ended.code, ended.stderr.as_str()), (Some(n as i32), format!("err {n}\n").as_str()), "{ended:?}");
        let rest = ended.text().strip_prefix(&format!("out {n}\nvm{n}\n")).unwrap_or_else(|| panic!("{ended:?}"));
        uuids.insert(rest.to_owned());
    }
    assert_eq!(uuids.len(), 10, "guests drew the same random numbers");
    lab.assert_clean();
}

/// A name is one microVM's at a time.
#[test]
fn a_name_is_used_once_at_a_time() {
    let lab = lab!("a_name_is_used_once_at_a_time");
    let mut first = Running::start(lab.bulkhead([
        "run",
        "--name",
        "only-one",
        &lab.debian(),
        "sh",
        "-c",
        "echo ready; exec sleep 1000",
    ]));
    first.wait_for("ready\n", lab.patience(1));
    lab.run(["run", "--name", "only-one", &lab.debian(), "true"]).assert_failed(125, &["only-one", "in use", "--name"]);
    first.signal(rustix::process::Signal::TERM);
    assert_eq!(first.end(lab.patience(1)).code, Some(143));
    lab.assert_clean();
}
