//! MicroVMs without a container: Debian's own programs, which a shell starts as a script says that is on a disk.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};
use tests::{Lab, Running};

use crate::bare::base_layer;
use crate::booted;
use crate::lab;
use crate::snapshots::interactive;

/// Sectors, of which a disk consists.
const SECTOR: usize = 512;

/// What each script begins with: where programs are, and what a failure looks like. A word from the host is awaited with `read`.
const PROLOGUE: &str = "export PATH=/usr/sbin:/usr/bin:/sbin:/bin\ntrap 'echo FAILED over' EXIT\nset -e\n\
    mount -t proc proc /proc\nmount -t sysfs sysfs /sys\nmount -t tmpfs tmpfs /run\n";

/// A guest whose first process is a shell.
pub(crate) struct Guest {
    process: Running,
    patience: Duration,
}

impl Guest {
    /// One that goes on from a Linux that has booted ([`crate::booted`]), with these disks. All that its script does takes less than
    /// `patience`.
    pub(crate) fn start(lab: &Lab, patience: Duration, (disk, data): (&Path, Option<&Path>), script: &str) -> Guest {
        let mut guest = Guest::of(lab, patience, &booted::machine(lab, disk, data, &whole(script)));
        guest.go_on();
        guest
    }

    /// One that boots, with one vCPU and these words for its kernel. The script is the last of its drives.
    fn boot(
        lab: &Lab,
        patience: Duration,
        words: &str,
        (mut drives, pmem): (Vec<Value>, Value),
        script: &str,
    ) -> Guest {
        let (path, mut text) = (lab.path("script"), whole(script).into_bytes());
        text.resize(text.len().next_multiple_of(SECTOR), b'\n');
        fs::write(&path, text).unwrap();
        let letter = char::from(b'a' + drives.len() as u8);
        drives.push(json!({ "drive_id": "script", "path_on_host": path, "is_read_only": true }));
        let arguments = format!("console=ttyS0 quiet {words} init=/bin/sh -- /dev/vd{letter}");
        let config = json!({
            "boot-source": { "kernel_image_path": lab.kernel(), "boot_args": arguments },
            "machine-config": { "vcpu_count": 1, "mem_size_mib": 128 },
            "drives": drives, "pmem": pmem,
        });
        Guest::of(lab, patience, &config)
    }

    fn of(lab: &Lab, patience: Duration, config: &Value) -> Guest {
        let file = lab.path("vm.json");
        fs::write(&file, config.to_string()).unwrap();
        Guest { process: interactive(lab, &["vmm", "--no-api", "--config-file", file.to_str().unwrap()]), patience }
    }

    /// Its output up to the line that begins with `word`, which the script says when it has come that far.
    pub(crate) fn until(&mut self, word: &str) -> Vec<String> {
        let mut said = Vec::new();
        loop {
            let line = self.process.line(self.patience).trim_end().to_owned();
            assert!(!line.contains("FAILED"), "{said:#?}");
            let found = line.starts_with(word);
            said.push(line);
            if found {
                return said;
            }
        }
    }

    pub(crate) fn go_on(&mut self) {
        self.process.say("\n");
    }

    /// Kills its monitor. The whole lines of all its output.
    pub(crate) fn kill(self) -> Vec<String> {
        self.process.signal(Signal::KILL);
        let ended = self.process.end(self.patience);
        let text = String::from_utf8_lossy(&ended.stdout);
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        whole.lines().map(|line| line.trim_end().to_owned()).collect()
    }

    pub(crate) fn end(mut self) -> Vec<String> {
        let said = self.until("over");
        self.process.signal(Signal::TERM);
        assert_eq!(self.process.end(self.patience).code, Some(143));
        said
    }
}

/// A script with what each begins and ends with.
fn whole(script: &str) -> String {
    format!("{PROLOGUE}{script}\ntrap - EXIT\necho over\nread end\n")
}

/// A block device of the host on a file, which gives errors where that ends.
struct Loop(String);

impl Loop {
    /// None, with the reason, where there are none to be had.
    fn on(file: &Path) -> Result<Loop, String> {
        let losetup = Command::new("losetup").args(["--find", "--show"]).arg(file).output();
        let output = losetup.map_err(|error| error.to_string())?;
        let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        if output.status.success() { Ok(Loop(said(&output.stdout))) } else { Err(said(&output.stderr)) }
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        // Where it fails there is a device more on the host; the test has said what it found.
        let _ = Command::new("losetup").args(["--detach", &self.0]).status();
    }
}

/// A kernel that panics, as its first process has ended, is told apart from an end that the guest chose.
#[test]
fn linux_panics_and_that_is_told() {
    let lab = lab!("linux_panics_and_that_is_told");
    let (disk, patience) = (lab.path("disk"), lab.patience(2));
    fs::File::create(&disk).unwrap().set_len(booted::DISK).unwrap();
    let mut guest = Guest::of(&lab, patience, &booted::machine(&lab, &disk, None, "exit 3"));
    guest.go_on();
    let ended = guest.process.end(patience);
    assert_eq!(ended.code, Some(125), "{ended:?}");
    let said = String::from_utf8_lossy(&ended.stdout);
    assert!(said.contains("Kernel panic") && said.contains("Attempted to kill init"), "{said}");
    assert!(
        ended.stderr.starts_with("bulkhead: the guest kernel panicked") && ended.stderr.lines().count() == 1,
        "{ended:?}"
    );
    lab.assert_clean();
}

/// Errors of the host's disk reach the guest as such, one by one; the rest of that disk and the others serve on, and it is whole again
/// when the host's is.
#[test]
fn a_disk_that_fails_is_told_and_harms_nothing_else() {
    const NAME: &str = "a_disk_that_fails_is_told_and_harms_nothing_else";
    const SIZES: [u64; 2] = [1 << 20, booted::DISK];
    let lab = lab!(NAME);
    let beneath = lab.path("beneath");
    let file = fs::File::create(&beneath).unwrap();
    file.set_len(SIZES[1]).unwrap();
    let device = match Loop::on(&beneath) {
        Ok(device) => device,
        Err(reason) => return tests::lab::skip(NAME, &format!("no loop device: {reason}")),
    };
    file.set_len(SIZES[0]).unwrap();
    let patience = lab.patience(10);
    let script = r#"
        cat >/run/reads <<'EOF'
            use strict; use Errno qw(EIO);
            my ($good, $bad, $root) = (0, 0, 0);
            for my $round (1 .. 5) {
                for my $at (0, 2 << 20, (16 << 20) - 4096) {
                    open(my $disk, "<", "/dev/vdb") or die "open: $!";
                    sysseek($disk, $at, 0);
                    my $count = sysread($disk, my $data, 4096);
                    if (defined $count) { $good++ } else { $! == EIO or die "read: $!"; $bad++ }
                }
                open(my $file, "<", "/usr/bin/perl") or die "open: $!";
                sysseek($file, $round << 16, 0);
                $root++ if sysread($file, my $data, 4096) == 4096;
            }
            print "reads $good $bad $root\n";
EOF
        perl /run/reads; read go; perl /run/reads
    "#;
    let mut guest = Guest::start(&lab, patience, (Path::new(&device.0), None), script);
    let said = |lines: Vec<String>| lines.last().unwrap().clone();
    assert_eq!(said(guest.until("reads ")), "reads 5 10 5");
    // The monitor has it open: it goes with that, whatever becomes of this test.
    drop(device);
    file.set_len(SIZES[1]).unwrap();
    guest.go_on();
    assert_eq!(said(guest.until("reads ")), "reads 15 0 5");
    guest.end();
    lab.assert_clean();
}

/// A guest's root is memory with a layer in it: its programs run there, in place, and are the same as on a disk. What is written there is
/// lost, whoever flushes it is told, and the host's file stays.
#[test]
fn a_layer_is_used_in_place() {
    let lab = lab!("a_layer_is_used_in_place", on hardware);
    let (patience, layer) = (lab.patience(10), lab.path("layer"));
    fs::copy(base_layer(&lab), &layer).unwrap();
    let before = fs::read(&layer).unwrap();
    let script = r#"
        echo dax $(cat /sys/block/pmem0/queue/dax) $(grep -c '^/dev/root / erofs .*dax=always' /proc/mounts)
        mount -t erofs -o ro /dev/vda /mnt
        cmp /usr/bin/bash /mnt/usr/bin/bash; echo same
        set +e
        dd if=/dev/zero of=/dev/pmem0 bs=4096 count=1 conv=notrunc,fsync; echo written $?
        head -c 4 /usr/bin/bash | od -An -tx1
        set -e
    "#;
    let pmem = json!([{ "id": "m", "path_on_host": layer, "read_only": true, "root_device": true }]);
    let copy = json!({ "drive_id": "copy", "path_on_host": layer, "is_read_only": true });
    let words = "rootfstype=erofs rootflags=dax=always";
    let said = Guest::boot(&lab, patience, words, (vec![copy], pmem), script).end();
    for want in ["dax 1 1", "same", "written 1", " 7f 45 4c 46"] {
        assert!(said.iter().any(|line| line == want), "no '{want}' in {said:#?}");
    }
    assert!(fs::read(&layer).unwrap() == before, "the guest has changed the file");
    lab.assert_clean();
}
