//! `bulkhead boot`: bare microVMs with a serial console on stdin and stdout.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use tests::terminal::Terminal;
use tests::{Kvm, Lab, Running};

use crate::control::{PANICS, kernel, tiny_kernel};
use crate::lab;

/// The layer of the Debian image that has Debian itself, as a file system. Call it after [`Lab::patience`], whose guest has it made.
pub fn base_layer(lab: &Lab) -> PathBuf {
    let layers = std::fs::read_dir(lab.store().join("layers")).unwrap().map(|entry| entry.unwrap().path());
    let layer = layers.filter(|path| path.extension().is_some_and(|extension| extension == "erofs"));
    layer.max_by_key(|path| std::fs::metadata(path).unwrap().len()).unwrap()
}

/// Debian's unmodified kernel and an initramfs for it, where this host's harness brings them.
fn debians_kernel(test: &str, lab: &Lab) -> Option<(PathBuf, PathBuf)> {
    if lab.kvm() == Kvm::SoftwareNested {
        tests::lab::skip(test, "an unmodified kernel's system calls do not work on software-nested KVM");
        return None;
    }
    let path = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let found = path("BULKHEAD_TEST_DEBIAN_KERNEL").zip(path("BULKHEAD_TEST_DEBIAN_INITRD"));
    if found.is_none() {
        tests::lab::skip(test, "BULKHEAD_TEST_DEBIAN_KERNEL and _INITRD are not set");
    }
    found
}

/// A panic, as kernels that know the exit port tell of it, is no end that the guest chose. Linux's own is in [`crate::scripted`].
#[test]
fn a_panic_is_told() {
    let lab = lab!("a_panic_is_told");
    let ended = lab.run([Path::new("boot"), Path::new("--kernel"), &kernel(&lab, PANICS)]);
    assert_eq!((ended.code, ended.text()), (Some(125), ""), "{ended:?}");
    assert!(
        ended.stderr.starts_with("bulkhead: the guest kernel panicked") && ended.stderr.lines().count() == 1,
        "{ended:?}"
    );
    lab.assert_clean();
}

/// On a terminal: Ctrl-A x ends the microVM, and the terminal is as it was.
#[test]
fn ctrl_a_x_ends_it() {
    let lab = lab!("ctrl_a_x_ends_it");
    let patience = lab.patience(1);
    let mut terminal = Terminal::new();
    let running = terminal.start(&lab.bulkhead([Path::new("boot"), Path::new("--kernel"), &tiny_kernel(&lab)]));
    terminal.wait_for("Ctrl-A x ends", patience);
    terminal.type_in(b"\x03\x01x");
    assert_eq!(running.end(patience).code, Some(0));
    assert!(terminal.is_usual());
    lab.assert_clean();
}

/// SIGTERM ends the microVM, and the terminal is as it was.
#[test]
fn sigterm_ends_it() {
    let lab = lab!("sigterm_ends_it");
    let patience = lab.patience(1);
    let mut terminal = Terminal::new();
    let running = terminal.start(&lab.bulkhead([Path::new("boot"), Path::new("--kernel"), &tiny_kernel(&lab)]));
    terminal.wait_for("Ctrl-A x ends", patience);
    running.signal(rustix::process::Signal::TERM);
    assert_eq!(running.end(patience).code, Some(143));
    assert!(terminal.is_usual());
}

/// Debian's unmodified cloud kernel, a bzImage, boots as a guest: it sees its CPUs, memory and devices. A layer of the Debian image is
/// memory that it mounts without a copy; what it writes there is lost, which it is told.
#[test]
fn debians_own_kernel_boots() {
    let lab = lab!("debians_own_kernel_boots");
    let Some((kernel, initrd)) = debians_kernel("debians_own_kernel_boots", &lab) else { return };
    let disk = lab.path("disk");
    std::fs::write(&disk, vec![0; 1 << 20]).unwrap();
    let patience = lab.patience(8);
    let layer = base_layer(&lab);
    let pmem = lab.path("layer");
    std::fs::copy(&layer, &pmem).unwrap();
    let [kernel, initrd, disk, pmem] = [kernel, initrd, disk, pmem].map(|path| path.display().to_string());
    let arguments = [
        "boot",
        "--verbose",
        "--kernel",
        &kernel,
        "--initrd",
        &initrd,
        "--disk",
        &disk,
        "--disk",
        &format!("{disk},ro"),
        "--pmem",
        &pmem,
        "--cpus",
        "2",
        "-m",
        "512m",
    ];
    let ended = Running::start(lab.bulkhead(arguments)).end(patience);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(ended.stderr.contains("Reset"), "{ended:?}");
    let text = String::from_utf8_lossy(&ended.stdout);
    for want in ["BULKHEAD-GUEST-UP", "BULKHEAD-GUEST-DONE", "vda", "vdb", "pmem0"] {
        assert!(text.contains(want), "no {want} in {text}");
    }
    let told = text.lines().find(|line| line.starts_with("pmem=")).unwrap();
    assert!(told.contains(" dax=1 mounted=12") && told.contains(" written=lost"), "{told}");
    assert!(std::fs::read(&pmem).unwrap() == std::fs::read(&layer).unwrap(), "the guest has changed the file");
    lab.assert_clean();
}

/// Power-off and reset ([`debians_own_kernel_boots`] ends in one) are told apart. A panic of a kernel that does not know the
/// exit port ends, by `panic=-1`, in a reset; how one that does is told: [`a_panic_is_told`].
#[test]
fn ends_are_told_apart() {
    let lab = lab!("ends_are_told_apart");
    let Some((kernel, initrd)) = debians_kernel("ends_are_told_apart", &lab) else { return };
    let (kernel, initrd) = (kernel.display().to_string(), initrd.display().to_string());
    for (end, word) in [("poweroff", "PowerOff"), ("panic", "Reset")] {
        let end = format!("guest.quiet guest.end={end}");
        let arguments = ["boot", "--verbose", "--kernel", &kernel, "--initrd", &initrd, "--append", &end];
        let ended = Running::start(lab.bulkhead(arguments)).end(lab.patience(8));
        assert_eq!(ended.code, Some(0), "{end}: {ended:?}");
        assert!(ended.stderr.contains(word), "{end}: {ended:?}");
    }
    lab.assert_clean();
}

/// Ctrl-C of a shell's whole foreground group, with stdin not a terminal, ends it like SIGINT.
#[test]
fn sigint_without_a_terminal_ends_it() {
    let lab = lab!("sigint_without_a_terminal_ends_it");
    let mut command = lab.bulkhead([Path::new("boot"), Path::new("--kernel"), &tiny_kernel(&lab)]);
    command.stdin(Stdio::null());
    let mut running = Running::start(command);
    running.wait_for("up\n", lab.patience(1));
    running.signal(rustix::process::Signal::INT);
    assert_eq!(running.end(lab.patience(1)).code, Some(130));
}
