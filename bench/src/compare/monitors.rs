//! Bare microVMs: Bulkhead's, and those of other monitors that a path was given to. For all of them the same kernel and command line, the
//! same two read-only disks (the image's files as one file system, and a script), 256 MiB of memory, one processor, and a serial port that is the
//! monitor's stdin and stdout. The first process is the image's shell, which does what the script says, as root.
//!
//! A monitor's exit tells nothing of a guest's command: the script ends in a line that does. Then the first process ends, on which the kernel
//! panics and resets the machine. A monitor that would start it anew is asked to end instead.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

use serde_json::{Value, json};

use super::Process;
use super::arm::{Arm, Made, Making, Mark, first_line, quoted};
use super::running::answer;
use crate::process::{BenchError, io_error};

/// Memory of a machine.
const MEMORY_MIB: u32 = 256;
/// Bytes of a sector, of which disks consist.
const SECTOR: usize = 512;
/// What the script says at its end, before the command's exit code.
const MARK: &str = "bulkhead-bench:";

/// What machines are made of.
#[derive(Debug, Clone)]
pub struct Machine {
    /// The kernel: an ELF `vmlinux`, which all of them take.
    pub kernel: PathBuf,
    /// What it is told first.
    pub words: String,
    /// The disk of the image's files, in pieces that follow each other.
    pub disk: Vec<PathBuf>,
}

/// How a monitor is told what to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dialect {
    Bulkhead,
    Firecracker,
    CloudHypervisor,
    Qemu,
}

impl Dialect {
    fn of(arm: &str) -> Option<Self> {
        match arm {
            "vm-boot" => Some(Dialect::Bulkhead),
            "firecracker" => Some(Dialect::Firecracker),
            "cloud-hypervisor" => Some(Dialect::CloudHypervisor),
            "qemu" => Some(Dialect::Qemu),
            _ => None,
        }
    }

    /// The words after the program; the configuration, where it is a file, is at `config`.
    fn words(self, guest: &Guest<'_>, config: &Path) -> Vec<String> {
        let text = |path: &Path| path.display().to_string();
        let (kernel, [root, script]) = (text(guest.kernel), guest.disks.map(text));
        let line = guest.line();
        let words: Vec<&str> = match self {
            Dialect::Bulkhead => vec!["vmm", "--no-api", "--config-file", "CONFIG"],
            // Its log is on stdout unless it is told otherwise.
            Dialect::Firecracker => {
                vec!["--no-api", "--level", "Error", "--log-path", "LOG", "--config-file", "CONFIG"]
            }
            Dialect::CloudHypervisor => {
                let disk = |path: &str| format!("path={path},readonly=on");
                let memory = format!("size={MEMORY_MIB}M");
                let words = ["--kernel", &kernel, "--cmdline", &line, "--disk", &disk(&root), &disk(&script)];
                let more = ["--cpus", "boot=1", "--memory", &memory, "--serial", "tty", "--console", "off"];
                return words.into_iter().chain(more).map(str::to_owned).collect();
            }
            Dialect::Qemu => {
                let drive = |path: &str, id| format!("file={path},format=raw,if=none,readonly=on,id={id}");
                let device = |id: &str, bus| format!("virtio-blk-device,drive={id},bus=virtio-mmio-bus.{bus}");
                let memory = format!("{MEMORY_MIB}M");
                // What the guest's kernel has no driver for is left out: ACPI, PCI.
                let machine =
                    ["-M", "microvm,acpi=off,rtc=off", "-accel", "kvm", "-cpu", "host", "-smp", "1", "-m", &memory];
                let rest = ["-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio", "-no-reboot"];
                let boot = ["-kernel", &kernel, "-append", &line];
                // It names them to the kernel from the last bus on.
                let disks = [
                    "-drive",
                    &drive(&root, "a"),
                    "-device",
                    &device("a", 1),
                    "-drive",
                    &drive(&script, "b"),
                    "-device",
                    &device("b", 0),
                ];
                return [&machine[..], &rest, &boot, &disks].concat().into_iter().map(str::to_owned).collect();
            }
        };
        let log = config.with_extension("log");
        let place = |word: &str| match word {
            "CONFIG" => text(config),
            "LOG" => text(&log),
            word => word.to_owned(),
        };
        words.into_iter().map(place).collect()
    }

    /// A guest that resets the machine ends the monitor.
    fn ends(self) -> bool {
        self != Dialect::CloudHypervisor
    }
}

/// One machine.
struct Guest<'a> {
    kernel: &'a Path,
    words: &'a str,
    /// The image's files, and the script.
    disks: [&'a Path; 2],
}

impl Guest<'_> {
    /// The kernel's command line. It is silent, even when it panics: all words are the command's. And it resets the machine by a triple fault,
    /// since not all of them have a keyboard controller. A word that the kernel does not know is the first process's: after `--` all would be, and
    /// QEMU puts the devices at the end.
    fn line(&self) -> String {
        let words = self.words;
        format!("console=ttyS0 {words} loglevel=0 reboot=t root=/dev/vda ro rootfstype=erofs init=/bin/sh /dev/vdb")
    }

    /// In Firecracker's format.
    fn config(&self) -> Value {
        let drive = |id: &str, path: &Path| {
            // The command line says which is the root.
            json!({ "drive_id": id, "path_on_host": path, "is_root_device": false, "is_read_only": true })
        };
        json!({
            "boot-source": { "kernel_image_path": self.kernel, "boot_args": self.line() },
            "drives": [drive("image", self.disks[0]), drive("script", self.disks[1])],
            "machine-config": { "vcpu_count": 1, "mem_size_mib": MEMORY_MIB },
        })
    }
}

struct Bare {
    dialect: Dialect,
    program: PathBuf,
    machine: Machine,
    /// The image's files as one disk.
    disk: PathBuf,
    image_kib: u64,
    process: Process,
    dir: PathBuf,
    /// The words that there are scripts for, in the order of their files' numbers.
    scripts: Mutex<Vec<Vec<String>>>,
}

/// The arm of that name, or why there is none.
pub(super) fn make(name: &str, making: &Making<'_>) -> Result<Made, String> {
    let dialect = Dialect::of(name).ok_or_else(|| format!("there is no '{name}'"))?;
    let what = making.what;
    let program = match what.monitors.iter().find(|(monitor, _)| *monitor == name) {
        Some((_, path)) if path.is_file() => path.clone(),
        Some((_, path)) => return Err(format!("there is no file '{}'", path.display())),
        None if dialect == Dialect::Bulkhead => what.bulkhead.to_owned(),
        None => return Err(format!("nobody said where it is: --monitor {name}=PATH")),
    };
    let version = if dialect == Dialect::Bulkhead {
        format!("bulkhead {}", what.version)
    } else {
        let mut version = Command::new(&program);
        version.arg("--version");
        first_line(&answer(version, making.patience).map_err(|error| error.to_string())?)
    };
    let machine = (what.machine)()?;
    let dir = making.place.path().join(name);
    let said = |error: io::Error| error.to_string();
    fs::create_dir(&dir).map_err(said)?;
    let disk = one_disk(&machine.disk, &making.place.path().join("image.disk")).map_err(said)?;
    let (process, image_kib, scripts) = (what.process.clone(), what.image_kib, Mutex::default());
    Ok(Made { version, arm: Box::new(Bare { dialect, program, machine, disk, image_kib, process, dir, scripts }) })
}

/// The pieces as one file: the only one, or `path`, which is made at the first time.
fn one_disk(pieces: &[PathBuf], path: &Path) -> io::Result<PathBuf> {
    if let [only] = pieces {
        return Ok(only.clone());
    }
    if !path.exists() {
        let mut disk = File::create(path)?;
        for piece in pieces {
            io::copy(&mut File::open(piece)?, &mut disk)?;
        }
    }
    Ok(path.to_owned())
}

/// What the shell is to do, in whole sectors.
fn script(process: &Process, words: &[String]) -> Vec<u8> {
    // A shell that is told to export what is no name for it goes no further.
    let is_name = |name: &str| {
        !name.starts_with(|c: char| c.is_ascii_digit())
            && !name.is_empty()
            && name.chars().all(|c| c == '_' || c.is_ascii_alphanumeric())
    };
    let known = process.env.iter().filter(|entry| entry.split_once('=').is_some_and(|(name, _)| is_name(name)));
    let env: String = known.map(|entry| format!("export {}\n", quoted(std::slice::from_ref(entry)))).collect();
    let cwd = quoted(std::slice::from_ref(&process.cwd));
    let text = format!("{env}cd {cwd}\n{}\necho {MARK}$?\n", quoted(words));
    let mut bytes = text.into_bytes();
    bytes.resize(bytes.len().next_multiple_of(SECTOR), b'\n');
    bytes
}

impl Bare {
    /// The number of the script of these words, which is written at the first time.
    fn script(&self, words: &[String]) -> Result<usize, BenchError> {
        let mut scripts = self.scripts.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(number) = scripts.iter().position(|known| known == words) {
            return Ok(number);
        }
        let number = scripts.len();
        let path = |kind: &str| self.dir.join(format!("{number}.{kind}"));
        fs::write(path("script"), script(&self.process, words)).map_err(io_error("script for the guest"))?;
        let guest = self.guest(&path("script")).config();
        fs::write(path("json"), guest.to_string()).map_err(io_error("configuration"))?;
        File::create(path("log")).map_err(io_error("log"))?;
        scripts.push(words.to_vec());
        Ok(number)
    }

    fn guest<'a>(&'a self, script: &'a Path) -> Guest<'a> {
        Guest { kernel: &self.machine.kernel, words: &self.machine.words, disks: [&self.disk, script] }
    }
}

impl Arm for Bare {
    fn command(&self, _: &str, words: &[String]) -> Result<Command, BenchError> {
        let number = self.script(words)?;
        let script = self.dir.join(format!("{number}.script"));
        let words = self.dialect.words(&self.guest(&script), &self.dir.join(format!("{number}.json")));
        let mut command = Command::new(&self.program);
        command.args(words).env_remove("BULKHEAD_LOG");
        Ok(command)
    }

    fn mark(&self) -> Option<Mark> {
        Some(Mark { text: MARK, stop: !self.dialect.ends() })
    }

    fn image_disk(&self) -> Option<u64> {
        Some(self.image_kib)
    }

    fn instance_disk(&self, _: &str) -> Option<u64> {
        Some(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guest() -> Guest<'static> {
        Guest { kernel: Path::new("/k"), words: "quiet panic=-1", disks: [Path::new("/d"), Path::new("/s")] }
    }

    const LINE: &str =
        "console=ttyS0 quiet panic=-1 loglevel=0 reboot=t root=/dev/vda ro rootfstype=erofs init=/bin/sh /dev/vdb";

    #[test]
    fn a_configuration_is_firecrackers() {
        let config = guest().config();
        assert_eq!(config["boot-source"], json!({ "kernel_image_path": "/k", "boot_args": LINE }));
        assert_eq!(config["machine-config"], json!({ "vcpu_count": 1, "mem_size_mib": 256 }));
        let drive = |id: &str, path: &str| json!({ "drive_id": id, "path_on_host": path, "is_root_device": false, "is_read_only": true });
        assert_eq!(config["drives"], json!([drive("image", "/d"), drive("script", "/s")]));
        // It is what the other monitor of that format reads.
        let read = vmm::config::VmConfig::from_json(&config.to_string()).unwrap();
        assert_eq!((read.machine.vcpu_count, read.machine.mem_size_mib), (1, 256));
    }

    #[test]
    fn each_monitor_is_told_in_its_own_words() {
        let said = |dialect: Dialect| dialect.words(&guest(), Path::new("/c/0.json")).join(" ");
        assert_eq!(said(Dialect::Bulkhead), "vmm --no-api --config-file /c/0.json");
        assert_eq!(said(Dialect::Firecracker), "--no-api --level Error --log-path /c/0.log --config-file /c/0.json");
        assert_eq!(
            said(Dialect::CloudHypervisor),
            format!(
                "--kernel /k --cmdline {LINE} --disk path=/d,readonly=on path=/s,readonly=on --cpus boot=1 --memory size=256M --serial tty --console off"
            )
        );
        let qemu = said(Dialect::Qemu);
        assert!(qemu.contains(&format!("-kernel /k -append {LINE} -drive file=/d,format=raw")), "{qemu}");
        assert!(qemu.contains("-m 256M") && qemu.contains("-smp 1") && qemu.contains("-no-reboot"), "{qemu}");
    }

    #[test]
    fn a_script_says_how_its_words_ended() {
        let process = Process { env: vec!["A=it's".into(), "no.name=x".into()], cwd: "/".into(), ..Process::default() };
        let run = |words: &[&str]| {
            let dir = tempfile::tempdir().unwrap();
            let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
            let bytes = script(&process, &words);
            assert_eq!(bytes.len() % SECTOR, 0);
            fs::write(dir.path().join("s"), bytes).unwrap();
            let output = Command::new("sh").arg(dir.path().join("s")).output().unwrap();
            String::from_utf8(output.stdout).unwrap()
        };
        assert_eq!(run(&["sh", "-c", "echo \"$A\" \"$(pwd)\""]), format!("it's /\n{MARK}0\n"));
        assert_eq!(run(&["sh", "-c", "exit 3"]), format!("{MARK}3\n"));
    }

    #[test]
    fn pieces_are_one_disk() {
        let dir = tempfile::tempdir().unwrap();
        let [a, b, all] = ["a", "b", "all"].map(|name| dir.path().join(name));
        fs::write(&a, "first").unwrap();
        fs::write(&b, "second").unwrap();
        assert_eq!(one_disk(std::slice::from_ref(&a), &all).unwrap(), a);
        assert!(!all.exists());
        assert_eq!(fs::read(one_disk(&[a, b], &all).unwrap()).unwrap(), b"firstsecond");
    }
}
