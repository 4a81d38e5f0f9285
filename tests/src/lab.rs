//! Where things are, and a place of its own for each test.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tempfile::TempDir;

use crate::boots;
use crate::process::{Ended, Running};

/// How KVM runs guests here, as `bulkhead doctor` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kvm {
    /// VT-x or AMD-V.
    Hardware,
    /// Guest kernel mode is emulated.
    SoftwareNested,
}

/// What all tests of this process share.
#[derive(Debug)]
struct Site {
    bin: PathBuf,
    images: PathBuf,
    guest: PathBuf,
    scratch: PathBuf,
    kernel: String,
    kvm: Kvm,
    memory_mib: u64,
}

/// Of the scratch directory: the image store that all tests share.
const STORE: &str = "store";
/// A first guest may take this long; all others are measured by it.
const FIRST_GUEST: Duration = Duration::from_secs(300);

/// For what a test has left to go away.
const A_WHILE: Timespec = Timespec { tv_sec: 30, tv_nsec: 0 };

static SITE: OnceLock<Result<Site, String>> = OnceLock::new();
static GUEST_TIME: OnceLock<Duration> = OnceLock::new();

fn variable(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}

fn find_site() -> Result<Site, String> {
    let path = |name: &str| variable(name).ok_or_else(|| format!("{name} is not set; tests/run sets it"));
    let bin = path("BULKHEAD_BIN")?;
    let (images, guest) = (path("BULKHEAD_TEST_IMAGES")?, path("BULKHEAD_TEST_GUEST")?);
    for file in [&bin, &images.join("debian.tar"), &guest] {
        if !file.exists() {
            return Err(format!("{} is missing; tests/run makes it", file.display()));
        }
    }
    let scratch = path("BULKHEAD_TEST_DIR")?;
    let doctor = Command::new(&bin).args(["doctor", "--format", "json"]).output().map_err(|e| e.to_string())?;
    let report: serde_json::Value =
        serde_json::from_slice(&doctor.stdout).map_err(|e| format!("bulkhead doctor: {e}"))?;
    if report["can_run"] != true {
        return Err(format!("no microVM can run here: {}", report["checks"]));
    }
    let kvm = if report["kvm"]["kind"] == "software-nested" { Kvm::SoftwareNested } else { Kvm::Hardware };
    let memory_mib = report["kvm"]["memory_mib"].as_u64().unwrap_or(0);
    let mut checks = report["checks"].as_array().into_iter().flatten();
    let kernel = checks.find(|check| check["name"] == "guest kernel").and_then(|check| check["detail"].as_str());
    let (_, kernel) = kernel.and_then(|detail| detail.split_once(": ")).ok_or("bulkhead doctor tells of no kernel")?;
    boots::count(kernel.as_ref()).map_err(|error| format!("{kernel}: {error}"))?;
    let kernel = kernel.to_owned();
    Ok(Site { bin, images, guest, scratch, kernel, kvm, memory_mib })
}

/// Says that a test is skipped, where the test harness does not hide it.
pub fn skip(test: &str, reason: &str) {
    let line = format!("SKIP {test}: {}\n", reason.replace('\n', " "));
    std::io::stderr().write_all(line.as_bytes()).expect("stderr");
}

/// A copy of a directory, its files as links. What has a dot before its name is somebody's work.
fn link(from: &Path, to: &Path) -> std::io::Result<()> {
    fs::create_dir_all(to)?;
    fs::set_permissions(to, fs::metadata(from)?.permissions())?;
    for entry in fs::read_dir(from)?.flatten() {
        let to = to.join(entry.file_name());
        if entry.file_name().as_encoded_bytes().starts_with(b".") {
            continue;
        }
        let linked =
            if entry.file_type()?.is_dir() { link(&entry.path(), &to) } else { fs::hard_link(entry.path(), to) };
        // What others do not need any more may go meanwhile.
        linked.or_else(|e| if e.kind() == std::io::ErrorKind::NotFound { Ok(()) } else { Err(e) })?;
    }
    Ok(())
}

/// A test's place: a run directory of its own, and the store all share.
#[derive(Debug)]
pub struct Lab {
    site: &'static Site,
    dir: TempDir,
    store: PathBuf,
}

impl Lab {
    /// The lab for the test `name`; `None`, and a line that says why, if no guest can run here.
    ///
    /// # Panics
    /// BULKHEAD_TEST_STRICT is set and no guest can run here: a run that is meant to boot guests must not pass without.
    pub fn open(name: &str) -> Option<Lab> {
        match SITE.get_or_init(find_site) {
            Ok(site) => {
                fs::create_dir_all(&site.scratch).expect("scratch directory");
                let dir = tempfile::Builder::new().prefix("t").tempdir_in(&site.scratch).expect("scratch directory");
                Some(Lab { site, dir, store: site.scratch.join(STORE) })
            }
            Err(reason) if std::env::var_os("BULKHEAD_TEST_STRICT").is_some() => panic!("{reason}"),
            Err(reason) => {
                skip(name, reason);
                None
            }
        }
    }

    /// How guests run here.
    pub fn kvm(&self) -> Kvm {
        self.site.kvm
    }

    /// Whether a test of the CLI and the guest's init, which are the same on both hosts, is left to the one on which the guest's kernel
    /// mode is not emulated, and a guest costs less. It is said then.
    pub fn leaves_to_hardware(&self, test: &str) -> bool {
        let leaves = self.kvm() == Kvm::SoftwareNested;
        if leaves {
            skip(
                test,
                "guests cost many times as much where their kernel mode is emulated; the emulated AMD-V host has it",
            );
        }
        leaves
    }

    /// The same, left to this machine.
    pub fn leaves_to_machine(&self, test: &str) -> bool {
        let leaves = std::env::var_os("BULKHEAD_TEST_EMULATOR").is_some();
        if leaves {
            skip(test, "all the rest of this host is emulated, too; the machine itself has it");
        }
        leaves
    }

    /// The guest kernel of this host.
    pub fn kernel(&self) -> &str {
        &self.site.kernel
    }

    /// RAM of this host, MiB.
    pub fn memory_mib(&self) -> u64 {
        self.site.memory_mib
    }

    /// A place for the test's files; goes with the lab.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// From now on this lab has an image store of its own, with nothing in it.
    pub fn own_store(mut self) -> Self {
        self.store = self.path("store");
        self
    }

    /// The same, but with these directories of the store that all share.
    pub fn own_store_with(self, directories: &[&str]) -> Self {
        let lab = self.own_store();
        lab.share(directories);
        lab
    }

    /// Has in the lab's own store what is in these directories of the one that all share, its template among it: files that
    /// nobody writes to.
    ///
    /// # Panics
    /// They cannot be linked to.
    pub fn share(&self, directories: &[&str]) {
        // Whose guest leaves the template behind.
        self.patience(1);
        let shared = self.shared_store();
        directories.iter().for_each(|name| link(&shared.join(name), &self.store.join(name)).expect("links"));
    }

    fn shared_store(&self) -> PathBuf {
        self.site.scratch.join(STORE)
    }

    /// A place that all tests share, as they do the store.
    pub fn beside_the_store(&self, name: &str) -> PathBuf {
        self.site.scratch.join(name)
    }

    /// The image store in use.
    pub fn store(&self) -> &Path {
        &self.store
    }

    /// The Debian image as an OCI archive.
    pub fn debian(&self) -> String {
        format!("oci-archive:{}", self.images("debian.tar").display())
    }

    /// An image with nothing but the probe (`tests/guest/probe.rs`) in it, as `/probe`, and a machine id to be filled in.
    pub fn probe_image(&self) -> String {
        let root = self.path("root");
        fs::create_dir_all(root.join("etc")).expect("scratch directory");
        fs::write(root.join("etc/machine-id"), "").expect("scratch directory");
        fs::copy(self.guest_program(), root.join("probe")).expect("the probe");
        format!("rootfs:{}", root.display())
    }

    /// A file of the test images.
    pub fn images(&self, name: &str) -> PathBuf {
        self.site.images.join(name)
    }

    /// The static program of `tests/guest/probe.rs`.
    pub fn guest_program(&self) -> &Path {
        &self.site.guest
    }

    /// The static program of `tests/guest/load.rs`.
    ///
    /// # Panics
    /// It is not there.
    pub fn load_program(&self) -> PathBuf {
        let path = variable("BULKHEAD_TEST_LOAD").expect("BULKHEAD_TEST_LOAD is not set; tests/run sets it");
        assert!(path.exists(), "{} is missing; tests/run makes it", path.display());
        path
    }

    /// `bulkhead` with these arguments, this lab's directories, and nothing on stdin. Containers that `run` makes go with their
    /// end: the store is everybody's.
    pub fn bulkhead<S: AsRef<std::ffi::OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Command {
        let mut arguments = arguments.into_iter();
        let verb = arguments.next();
        let removed = verb.as_ref().filter(|verb| verb.as_ref() == "run").map(|_| "--rm");
        let mut command = self.keeping::<&std::ffi::OsStr>([]);
        command.args(verb).args(removed).args(arguments);
        command
    }

    /// The same, as it is: containers stay.
    pub fn keeping<S: AsRef<std::ffi::OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new(&self.site.bin);
        command.args(arguments).env("BULKHEAD_RUN", self.run_dir()).env("BULKHEAD_STORE", &self.store);
        // Most tests have no use for one, and a guest has it sooner without.
        command.env("BULKHEAD_NETWORK", "none");
        command.env_remove("BULKHEAD_LOG").stdin(Stdio::null());
        command
    }

    /// Where this lab's VMs have their directories.
    pub fn run_dir(&self) -> PathBuf {
        self.path("run")
    }

    /// A time within which anything ends that takes as long as `guests` boots, by what the first guest took.
    pub fn patience(&self, guests: u32) -> Duration {
        let measure = || {
            let began = Instant::now();
            let mut command = self.bulkhead(["run", &self.debian(), "true"]);
            command.env("BULKHEAD_STORE", self.shared_store());
            let ended = Running::start(command).end(FIRST_GUEST);
            assert_eq!(ended.code, Some(0), "the first guest: {ended:?}");
            began.elapsed()
        };
        // Other tests run beside, on a machine that has other work.
        *GUEST_TIME.get_or_init(measure) * 10 * guests + Duration::from_secs(30)
    }

    /// Runs `bulkhead` to its end.
    pub fn run<S: AsRef<std::ffi::OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Ended {
        Running::start(self.bulkhead(arguments)).end(self.patience(1))
    }

    /// Runs `bulkhead run FLAGS IMAGE sh -c SCRIPT` to its end.
    pub fn shell(&self, flags: &[&str], image: &str, script: &str) -> Ended {
        self.run([&["run"], flags, &[image, "sh", "-c", script]].concat())
    }

    /// Processes that this lab's commands have started, those commands too.
    pub fn processes(&self) -> Vec<i32> {
        let mark = format!("BULKHEAD_RUN={}", self.run_dir().display());
        let is_ours = |process: &fs::DirEntry| {
            let environ = fs::read(process.path().join("environ")).unwrap_or_default();
            environ.split(|&b| b == 0).any(|entry| entry == mark.as_bytes())
        };
        let ours = fs::read_dir("/proc").into_iter().flatten().flatten().filter(is_ours);
        ours.filter_map(|process| process.file_name().to_str()?.parse().ok()).collect()
    }

    /// Waits for the end of all processes that this lab's commands have started.
    ///
    /// # Panics
    /// There are some after `patience`.
    pub fn wait_for_processes(&self, patience: Duration) {
        let deadline = Instant::now() + patience;
        loop {
            // One that began meanwhile is seen the next time.
            let running = self.processes();
            if running.is_empty() {
                return;
            }
            for pid in running.into_iter().filter_map(Pid::from_raw) {
                let Ok(end) = pidfd_open(pid, PidfdFlags::empty()) else { continue };
                let left = deadline.saturating_duration_since(Instant::now()).try_into().expect("a time");
                let ended = poll(&mut [PollFd::new(&end, PollFlags::IN)], Some(&left)).expect("poll");
                assert_ne!(ended, 0, "after {patience:?}: {:?}", self.left_behind());
            }
        }
    }

    /// The control groups of this lab's microVMs, those that have not been removed.
    pub fn control_groups(&self) -> Vec<PathBuf> {
        let files = fs::read_dir(self.run_dir()).into_iter().flatten().flatten().map(|entry| entry.path());
        let lists = files.filter(|path| path.extension().is_some_and(|extension| extension == "groups"));
        let lists: Vec<String> = lists.filter_map(|list| fs::read_to_string(list).ok()).collect();
        lists.iter().flat_map(|list| list.lines()).map(PathBuf::from).filter(|group| group.exists()).collect()
    }

    /// Why this host gives a microVM no control group, or not all of it.
    ///
    /// # Panics
    /// `doctor` does not say.
    pub fn no_control_group(&self) -> Option<String> {
        let report: serde_json::Value =
            serde_json::from_slice(&self.run(["doctor", "--format", "json"]).stdout).expect("doctor's report");
        let check = report["checks"].as_array().expect("checks").iter().find(|check| check["name"] == "cgroup");
        let check = check.expect("a check of control groups");
        (check["status"] != "ok").then(|| check["detail"].to_string())
    }

    /// What of this lab is left on the host: processes, run directories, half-done work in the store.
    pub fn left_behind(&self) -> Vec<String> {
        let processes = self.processes().into_iter().map(|pid| {
            let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            format!("process {pid}: {}", String::from_utf8_lossy(&command).replace('\0', " "))
        });
        let mut left: Vec<String> = processes.collect();
        // The lock of the root, and what KVM said of CPUID.
        let kept = |path: &Path| path.ends_with(".lock") || path.ends_with(".cpuid");
        let names = |dir: &Path| {
            fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).collect::<Vec<_>>()
        };
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        left.extend(mounts.lines().filter(|line| line.contains(&*self.run_dir().to_string_lossy())).map(str::to_owned));
        left.extend(names(&self.run_dir()).iter().filter(|path| !kept(path)).map(|p| p.display().to_string()));
        if self.store.starts_with(self.dir.path()) {
            left.extend(names(&self.store.join("containers/.running")).iter().map(|path| path.display().to_string()));
            left.extend(names(&self.store.join("tmp")).iter().map(|path| path.display().to_string()));
            // What is half done, and what has no record.
            let half = |path: &PathBuf| match path.file_name().and_then(|name| name.to_str()) {
                Some(".lock" | ".names") => false,
                name => name.is_none_or(|name| name.starts_with('.')) || !path.join("bulkhead.json").exists(),
            };
            let snapshots = names(&self.store.join("snapshots"));
            left.extend(snapshots.iter().filter(|path| half(path)).map(|path| path.display().to_string()));
        }
        left
    }

    /// Nothing of this lab is left on the host.
    ///
    /// # Panics
    /// Something is.
    pub fn assert_clean(&self) {
        assert_eq!(self.left_behind(), Vec::<String>::new());
    }
}

/// What a test that fails has left running has control groups outside of its directory, which nobody would find once that is gone.
impl Drop for Lab {
    fn drop(&mut self) {
        if !std::thread::panicking() || self.left_behind().is_empty() {
            return;
        }
        for pid in self.processes().into_iter().filter_map(Pid::from_raw) {
            let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) else { continue };
            let _ = pidfd_send_signal(&process, Signal::KILL);
            let _ = poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&A_WHILE));
        }
        // Each verb removes what others have left; one that cannot come to it may be why the test has failed.
        let Ok(mut verb) = self.keeping(["ps", "--quiet"]).stdout(Stdio::null()).spawn() else { return };
        if let Ok(process) = pidfd_open(Pid::from_child(&verb), PidfdFlags::empty()) {
            let _ = poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&A_WHILE));
        }
        let _ = verb.kill().and_then(|()| verb.wait());
    }
}
