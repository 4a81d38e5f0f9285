//! What follows from what was measured: rows that are calculated, and what is to be known beside the figures.

use super::Scope;
use super::rows::{COMPUTE, STATS};
use crate::report::Document;
use crate::report::metric::kind;

/// The rows that are calculated.
pub(super) fn compute(document: &mut Document) {
    let arms: Vec<String> = document.measured().into_iter().map(str::to_owned).collect();
    for arm in arms {
        let median = |metric| Some(document.estimate(&arm, metric)?.p50.value);
        if let (Some(first), Some(next)) = (median("memory-first"), median("memory-next"))
            && next > 0.0
        {
            let budget = (document.memory_mib << 10) as f64;
            let count = if budget < first { 0.0 } else { 1.0 + ((budget - first) / next).floor() };
            document.add(&arm, "density", &[count]);
        }
    }
}

/// What is to be known beside the figures.
pub(super) fn note(document: &mut Document, scope: Scope) {
    let mut notes = vec!["caches are hot: each arm ran the command twice before its first sample".to_owned()];
    let of_arms = [
        format!("compute is {COMPUTE} steps of a loop in the image's sh, syscalls {STATS} calls of stat(2) by it"),
        "runtimes have one directory of the image's files, without an overlay; but for net-*, nobody has a network"
            .into(),
        format!("density is calculated for {} MiB from memory-first and memory-next", document.memory_mib),
    ];
    notes.extend(of_arms.into_iter().filter(|_| scope == Scope::Arms));
    if document.host.emulates_guest_kernels() {
        notes.push(
            "KVM is software-nested here: guests' kernels are emulated, so what they do (booting, waking, system calls) takes many \
             times what it takes with VT-x or AMD-V; guests' processes run as fast as anywhere"
                .into(),
        );
    }
    let fewer = document.arms.iter().filter_map(|arm| {
        let count = document.samples(&arm.name, "run").len();
        (count > 0 && count < document.asked && kind(&arm.name).is_some()).then(|| format!("{} {count}", arm.name))
    });
    let fewer = fewer.collect::<Vec<_>>().join(", ");
    if !fewer.is_empty() {
        let why = if document.interrupted { "it was interrupted" } else { "within the time that an arm may take" };
        notes.push(format!("samples of times, of {}: {fewer} ({why}: {} s)", document.asked, document.budget_s));
    }
    let busiest = document.host.load.into_iter().fold(0.0, f64::max);
    if busiest > document.host.cpus as f64 / 2.0 {
        notes.push(format!("the host had other work: load {busiest:.1} on {} processors", document.host.cpus));
    }
    document.notes.append(&mut notes);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::document;

    #[test]
    fn density_is_what_fits() {
        let mut all = document(&[
            ("runc", "memory-first", vec![10_000.0]),
            ("runc", "memory-next", vec![1000.0, 2000.0, 3000.0]),
            ("crun", "memory-first", vec![3e6]),
            ("crun", "memory-next", vec![1.0]),
            ("docker", "memory-first", vec![1.0]),
        ]);
        all.memory_mib = 100;
        compute(&mut all);
        // 102,400 KiB: one of 10,000, and 46 of 2,000.
        assert_eq!(all.samples("runc", "density"), [47.0]);
        assert_eq!(all.samples("crun", "density"), [0.0]);
        assert!(all.samples("docker", "density").is_empty());
    }

    #[test]
    fn fewer_samples_and_other_work_are_said() {
        let mut all = document(&[("vm-cold", "run", vec![8000.0; 7]), ("runc", "run", vec![40.0; 30])]);
        (all.asked, all.budget_s, all.host.load, all.host.cpus) = (30, 60, [0.1, 5.0], 2);
        note(&mut all, Scope::Arms);
        let notes = all.notes.join("\n");
        assert!(notes.contains("of 30: vm-cold 7 (within") && notes.contains("load 5.0 on 2"), "{notes}");
    }
}
