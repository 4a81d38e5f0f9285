//! A Linux that has booted, once: bare machines with Debian's programs go on from it, where a boot is not what they are about.
//!
//! It has two vCPUs, 128 MiB, a vsock device, and four disks: Debian, [`DISK`] bytes to write to, [`DATA`] to read, and a script, which its
//! first process becomes when it is told to. Each machine brings files of its own for all of them. Its kernel was entered by its PVH note;
//! those of containers are by the 64-bit entry.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use serde_json::{Value, json};
use tests::Lab;
use tests::control::Control;

use crate::bare::base_layer;
use crate::snapshots::interactive;

/// Bytes of /dev/vdb.
pub(crate) const DISK: u64 = 16 << 20;
/// Bytes of /dev/vdc: what a machine has there is followed by zeros.
pub(crate) const DATA: u64 = 3 << 20;
/// Bytes of /dev/vdd.
const SCRIPT: usize = 64 << 10;

/// What its first process does until then.
const WAITS: &str = "echo booted; read go; exec /bin/sh /dev/vdd";

/// A machine that goes on from there with these files, and becomes the script at the first line on its console.
pub(crate) fn machine(lab: &Lab, disk: &Path, data: Option<&Path>, script: &str) -> Value {
    let path = lab.path("script");
    let mut text = script.to_owned().into_bytes();
    assert!(text.len() < SCRIPT, "a script of {} bytes", text.len());
    // A shell reads on to its end.
    text.resize(SCRIPT, b'\n');
    fs::write(&path, text).unwrap();
    let disk = json!({ "drive_id": "disk", "path_on_host": disk });
    json!({ "snapshot": { "path": booted(lab) }, "drives": drives(lab, disk, data, Some(&path)), "vsock": vsock(lab) })
}

fn drives(lab: &Lab, disk: Value, data: Option<&Path>, script: Option<&Path>) -> Value {
    let read = |id: &str, path: Option<&Path>, capacity: u64| {
        let extents: Vec<&Path> = path.into_iter().collect();
        json!({ "drive_id": id, "extents": extents, "capacity": capacity, "is_read_only": true })
    };
    json!([root(&base_layer(lab)), disk, read("data", data, DATA), read("script", script, SCRIPT as u64)])
}

/// Debian as the root of a guest, on a disk.
fn root(layer: &Path) -> Value {
    json!({ "drive_id": "root", "path_on_host": layer, "is_read_only": true, "is_root_device": true })
}

fn vsock(lab: &Lab) -> Value {
    json!({ "guest_cid": 3, "uds_path": lab.path("v") })
}

/// Its snapshot, which the first one that asks for it makes.
fn booted(lab: &Lab) -> &'static Path {
    static BOOTED: OnceLock<PathBuf> = OnceLock::new();
    BOOTED.get_or_init(|| boot(lab))
}

fn boot(lab: &Lab) -> PathBuf {
    let (file, socket, patience) = (lab.path("booted.json"), lab.path("booted.sock"), lab.patience(2));
    let kernel = Path::new(lab.kernel());
    let words = fs::read_to_string(kernel.with_file_name("cmdline")).unwrap();
    let config = json!({
        "boot-source": { "kernel_image_path": kernel, "protocol": "pvh",
                         "boot_args": format!("{} console=ttyS0 bulkhead.exit=0x600 init=/bin/sh -- -c \"{WAITS}\"", words.trim()) },
        "machine-config": { "vcpu_count": 2, "mem_size_mib": 128 },
        // Places for the disks to come.
        "drives": drives(lab, json!({ "drive_id": "disk", "capacity": DISK, "is_read_only": false }), None, None),
        "vsock": vsock(lab),
    });
    fs::write(&file, config.to_string()).unwrap();
    let paths = [&file, &socket].map(|path| path.to_str().unwrap());
    let mut linux = interactive(lab, &["vmm", "--config-file", paths[0], "--api-sock", paths[1]]);
    linux.wait_for("booted", patience);
    let control = Control::of(&linux, socket.clone(), patience);
    let snapshot = lab.beside_the_store("booted");
    control.done("PUT", "/snapshot/create", json!({ "snapshot_path": snapshot, "snapshot_type": "Full" }));
    control.done("PUT", "/bulkhead/v1/stop", Value::Null);
    assert_eq!(linux.end(patience).code, Some(0));
    snapshot
}
