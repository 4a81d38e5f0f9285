//! `bulkhead audit`: what a workload reaches, from inside and from outside.

use serde_json::Value;

use crate::lab;

/// Of an image without any program that it could need. An attempt that the guest allows reaches the guest's kernel, and the process
/// behind it is confined; a container's, if there is something to run one with, reaches the host's.
#[test]
fn an_audit_tells_whose_kernel_a_workload_reaches() {
    let lab = lab!("an_audit_tells_whose_kernel_a_workload_reaches");
    let image = lab.probe_image();
    let told = lab.run(["audit", "--format", "json", "--arms", "microvm,runc", &image]);
    assert_eq!(told.code, Some(0), "{told:?}");
    let told: Value = serde_json::from_str(told.text()).expect("JSON");
    let arm = |name: &str| told["arms"].as_array().unwrap().iter().find(|arm| arm["arm"] == name).unwrap();
    let outcome = |arm: &Value, what: &str| {
        let probes = arm["inside"]["probes"].as_array().unwrap();
        let probe = probes.iter().find(|probe| probe["what"] == what).unwrap_or_else(|| panic!("no {what}: {arm}"));
        (probe["outcome"].as_str().unwrap().to_owned(), probe["reaches"].as_str().unwrap().to_owned())
    };
    let vm = arm("microvm");
    assert!(vm["problem"].is_null() && vm["inside"]["own_kernel"] == true, "{vm}");
    assert_eq!(outcome(vm, "set up an io_uring").1, "own kernel");
    for never in ["signal a process of the host", "trace a process of the host", "load a module"] {
        assert_ne!(outcome(vm, never).0, "allowed", "{never}: {vm}");
    }
    let threads = vm["outside"]["threads"].as_array().unwrap();
    let named = |name: &str| threads.iter().find(|thread| thread["name"] == name).unwrap();
    for name in ["main", "events", "nursery"] {
        let thread = named(name);
        assert!(thread["filtered"] == true && thread["no_new_privs"] == true, "{thread}");
        assert_eq!(thread["bounding"], Value::Array(vec![]), "{thread}");
        let calls = thread["syscalls"].as_u64().unwrap();
        assert!(calls > 10 && told["host_syscalls"].as_u64().is_none_or(|all| calls < all / 2), "{thread}");
    }
    assert!(vm["outside"]["namespaces"]["mnt"] == true, "{vm}");
    // The kernel's own figures are not the program's: the container's process has no filter, and all calls.
    let container = arm("runc");
    match container["problem"].as_str() {
        // The rest of this test holds without.
        Some(problem) => eprintln!("no container to compare with: {problem}"),
        None => {
            assert_eq!(container["inside"]["own_kernel"], false, "{container}");
            let main = &container["outside"]["threads"][0];
            let all = if main["filtered"] == true { &Value::Null } else { &told["host_syscalls"] };
            assert_eq!(&main["syscalls"], all, "{main}");
        }
    }
    let nothing = lab.run(["audit", "no-such-image-or-container"]);
    nothing.assert_failed(125, &["no microVM of that name runs", "no-such-image-or-container"]);
    lab.assert_clean();
}
