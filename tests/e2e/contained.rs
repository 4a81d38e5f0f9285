//! Bulkhead inside a container that has nothing of its host but /dev/kvm (docs/in-a-container.md).

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use tests::lab::skip;
use tests::{Ended, Lab, Running};

use crate::lab;

/// Where the store is in there.
const STORE: &str = "/var/lib/bulkhead";

/// A container with the program, guests' kernels, a store and an image in it, and nothing else: no shell, no libraries.
struct Container<'a> {
    lab: &'a Lab,
    bundle: PathBuf,
}

impl<'a> Container<'a> {
    /// None: runc is not there.
    fn new(lab: &'a Lab) -> Option<Self> {
        let bundle = lab.path("bundle");
        fs::create_dir_all(bundle.join("rootfs")).unwrap();
        let mut spec = Command::new("runc");
        let made = spec.args(["spec", "--bundle"]).arg(&bundle).status().is_ok_and(|status| status.success());
        made.then_some(Container { lab, bundle })
    }

    /// Runs the program with these arguments, and these files and directories where they are to be, of which the store can be written to.
    fn run(&self, arguments: &[&str], files: &[(&Path, &str)]) -> Ended {
        let path = self.bundle.join("config.json");
        let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        config["process"]["terminal"] = false.into();
        config["process"]["args"] = [&["/opt/bulkhead"], arguments].concat().into();
        config["process"]["env"].as_array_mut().unwrap().push("HOME=/root".into());
        let kvm = fs::metadata("/dev/kvm").unwrap().rdev();
        let (major, minor) = (rustix::fs::major(kvm), rustix::fs::minor(kvm));
        config["linux"]["devices"] = json!([{ "path": "/dev/kvm", "type": "c", "major": major, "minor": minor }]);
        let rule = json!({ "allow": true, "type": "c", "major": major, "minor": minor, "access": "rwm" });
        config["linux"]["resources"]["devices"].as_array_mut().unwrap().push(rule);
        let mounts = config["mounts"].as_array_mut().unwrap();
        mounts.retain(|mount| !mount["source"].as_str().is_some_and(|source| source.starts_with('/')));
        for place in ["/run", "/tmp"] {
            mounts.push(json!({ "destination": place, "type": "tmpfs", "source": "tmpfs" }));
        }
        for (file, place) in files {
            let options = ["bind", if *place == STORE { "rw" } else { "ro" }];
            mounts.push(json!({ "destination": place, "type": "bind", "source": file, "options": options }));
        }
        fs::write(&path, config.to_string()).unwrap();
        let mut command = Command::new("runc");
        let id = format!("bulkhead-test-{}", std::process::id());
        command.args(["run", "--bundle"]).arg(&self.bundle).arg(id).stdin(std::process::Stdio::null());
        Running::start(command).end(self.lab.patience(2))
    }
}

#[test]
fn a_container_with_nothing_but_kvm_runs_images_in_microvms() {
    const NAME: &str = "a_container_with_nothing_but_kvm_runs_images_in_microvms";
    // Its store, which stays, has templates: nothing boots for this test alone.
    let lab = lab!(NAME, on the machine).own_store_with(&["templates"]);
    let is_root = fs::metadata("/proc/self").unwrap().uid() == 0;
    let Some(container) = Container::new(&lab).filter(|_| is_root) else {
        return skip(NAME, "there is no runc here, or no root to run it");
    };
    let program = PathBuf::from(std::env::var_os("BULKHEAD_BIN").unwrap());
    let image = lab.probe_image();
    let image = Path::new(image.strip_prefix("rootfs:").unwrap());
    let vmm = program.with_file_name("bulkhead-vmm");
    let kernels = Path::new(lab.kernel()).ancestors().nth(2).unwrap();
    let files = [
        (&*program, "/opt/bulkhead"),
        (&vmm, "/opt/bulkhead-vmm"),
        (kernels, "/root/.cache/bulkhead/kernel"),
        (image, "/image"),
        (lab.store(), STORE),
    ];

    let told = container.run(&["doctor", "--format", "json"], &files);
    let report: Value = serde_json::from_slice(&told.stdout).unwrap_or_else(|error| panic!("{error}: {told:?}"));
    let checks = report["checks"].as_array().unwrap();
    let status = |name: &str| &checks.iter().find(|check| check["name"] == name).unwrap()["status"];
    assert_eq!(
        (status("KVM"), status("seccomp"), status("jail")),
        (&json!("ok"), &json!("ok"), &json!("ok")),
        "{report}"
    );

    let run = ["run", "--rm", "--verbose", "--network", "none", "rootfs:/image", "/probe", "say", "7"];
    let ended = container.run(&run, &files);
    assert_eq!((ended.code, ended.text().lines().next()), (Some(7), Some("out 7")), "{ended:?}");
    assert!(ended.stderr.contains("err 7"), "{ended:?}");
    assert!(
        ended.stderr.lines().any(|line| line.trim_start().starts_with("wake ")),
        "not from the template: {ended:?}"
    );
    lab.assert_clean();
}
