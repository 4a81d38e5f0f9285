//! Hierarchies that are directories: what the kernel refuses in them is left out of them.

use super::*;

const HYBRID: &str = "\
31 1 0:28 / /sys/fs/cgroup/cpu rw,nosuid - cgroup cgroup rw,cpu,cpuacct
32 1 0:29 / /sys/fs/cgroup/memory rw,nosuid - cgroup cgroup rw,memory
33 1 0:30 / /sys/fs/cgroup/pids rw,nosuid - cgroup cgroup rw,pids
37 1 0:34 / /sys/fs/cgroup/blkio rw,nosuid - cgroup cgroup rw,blkio
34 1 0:31 / /sys/fs/cgroup/systemd rw,nosuid - cgroup cgroup rw,name=systemd
35 1 0:32 / /sys/fs/cgroup/unified rw,nosuid shared:3 - cgroup2 cgroup2 rw
36 1 0:33 / / rw - ext4 /dev/vda rw
";
const UNIFIED: &str = "30 1 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n";

struct Fake {
    dir: tempfile::TempDir,
}

impl Fake {
    /// A host on which every process has these lines in its `cgroup`.
    fn new(mounts: &str, own: &str) -> Self {
        let fake = Fake { dir: tempfile::tempdir().unwrap() };
        fake.write("proc/self/mountinfo", mounts);
        fake.write("proc/self/cgroup", own);
        fake
    }

    fn path(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn read(&self, path: &str) -> String {
        fs::read_to_string(self.path(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    /// A group of v2 with these controllers, which may be changed.
    fn group(&self, path: &str, controllers: &str) {
        for (file, text) in [("procs", ""), ("subtree_control", ""), ("controllers", controllers), ("type", "domain")] {
            self.write(&format!("sys/fs/cgroup/{path}/cgroup.{file}"), text);
        }
    }

    /// The same of all groups.
    fn root(&self, controllers: &str) {
        self.group("", controllers);
        fs::remove_file(self.path("sys/fs/cgroup/cgroup.type")).unwrap();
    }

    fn cgroups(&self) -> Cgroups {
        Cgroups::of(self.dir.path())
    }

    /// A microVM's group, its process being number 7.
    fn make(&self, limits: Limits) -> Group {
        let run = self.path("run/vm");
        fs::create_dir_all(&run).unwrap();
        let group = Group::make_by(&self.cgroups().plan(), &run, 7, limits);
        let _ = group.hold_to(limits.quota);
        group
    }

    /// The group for process 7 of v2, below which place of all.
    fn place(&self) -> String {
        let plan = self.cgroups().plan();
        let [place] = plan.places.as_slice() else { panic!("{plan:?}") };
        place.dir.strip_prefix(self.path("sys/fs/cgroup")).unwrap().to_string_lossy().into_owned()
    }
}

fn limits(vcpus: u8, quota: Option<f64>) -> Limits {
    Limits { vcpus, memory_mib: 256, quota: quota.map(|cpus| Cpus::try_from(cpus).unwrap()) }
}

/// 256 MiB, an eighth of that, and 128.
const MEMORY: &str = "436207616";

#[test]
fn of_v1_each_controller_has_a_group_in_the_callers() {
    let fake = Fake::new(HYBRID, "5:blkio:/\n3:pids:/\n2:memory:/jobs/one\n1:cpu,cpuacct:/\n4:name=systemd:/x\n0::/\n");
    for dir in ["cpu", "memory/jobs/one", "pids", "blkio"] {
        fs::create_dir_all(fake.path(&format!("sys/fs/cgroup/{dir}"))).unwrap();
    }
    let group = fake.make(limits(2, Some(1.5)));
    assert_eq!(group.missing(), None);
    let read = |path: &str| fake.read(&format!("sys/fs/cgroup/{path}"));
    assert_eq!(read("cpu/bulkhead-vm.7/cpu.cfs_quota_us"), "150000");
    assert_eq!(read("cpu/bulkhead-vm.7/cpu.shares"), "2048");
    assert_eq!(read("memory/jobs/one/bulkhead-vm.7/memory.limit_in_bytes"), MEMORY);
    assert_eq!(read("pids/bulkhead-vm.7/pids.max"), "512");
    assert_eq!(read("blkio/bulkhead-vm.7/blkio.bfq.weight"), "200");
    for dir in ["cpu", "memory/jobs/one", "pids", "blkio"] {
        assert_eq!(read(&format!("{dir}/bulkhead-vm.7/cgroup.procs")), "7", "{dir}");
    }
    // Whoever finds the run directory finds them.
    assert_eq!(fake.read("run/.vm.groups").lines().count(), 4);
    // And whoever finds the process.
    fake.write(
        "proc/7/cgroup",
        "3:pids:/bulkhead-vm.7\n2:memory:/jobs/one/bulkhead-vm.7\n1:cpu,cpuacct:/bulkhead-vm.7\n0::/\n",
    );
    set_quota(&fake.cgroups().groups_of(7), None).unwrap();
    assert_eq!(read("cpu/bulkhead-vm.7/cpu.cfs_quota_us"), "-1");
    fake.write("proc/8/cgroup", "2:memory:/jobs/one\n1:cpu,cpuacct:/\n");
    let error = set_quota(&fake.cgroups().groups_of(8), None).unwrap_err();
    assert!(error.to_string().contains("no control group that limits cpu"), "{error}");
}

#[test]
fn of_v2_it_is_the_nearest_group_above_that_offers_most() {
    // A user's shell in a subtree that systemd has given the user: it is in a group that has processes itself.
    let app = "user.slice/user@1000.service/app.slice";
    let fake = Fake::new(UNIFIED, &format!("0::/{app}/shell.scope\n"));
    fake.group(&format!("{app}/shell.scope"), "cpu memory pids");
    fake.group(app, "memory pids cpu");
    fake.root("cpuset cpu io memory pids");
    assert_eq!(fake.place(), app);
    // Where that offers less, and more may be had further up.
    fake.group(app, "memory pids");
    assert_eq!(fake.place(), "");
    // But may not.
    fs::remove_file(fake.path("sys/fs/cgroup/cgroup.procs")).unwrap();
    assert_eq!(fake.place(), app);
    let error = check_quota(&fake.cgroups().plan().lacking, limits(1, Some(0.5)).quota).unwrap_err().to_string();
    assert!(error.starts_with("--cpus 0.5: ") && error.contains("doctor"), "{error}");
    let group = fake.make(limits(1, Some(0.5)));
    assert!(group.missing().unwrap().contains("limits cpu: "), "{group:?}");
    assert!(group.hold_to(limits(1, Some(0.5)).quota).is_err() && group.hold_to(None).is_ok());
    let read = |path: &str| fake.read(&format!("sys/fs/cgroup/{app}/{path}"));
    assert_eq!(
        (read("cgroup.subtree_control"), read("bulkhead/cgroup.subtree_control")),
        ("+memory +pids".into(), "+memory +pids".into())
    );
    assert_eq!(read("bulkhead/vm.7/memory.max"), MEMORY);
    assert_eq!(read("bulkhead/vm.7/cgroup.procs"), "7");
}

#[test]
fn of_v2_the_root_of_all_has_groups_and_processes() {
    let fake = Fake::new(UNIFIED, "0::/\n");
    fake.root("cpu memory pids io");
    // Switched on by somebody else.
    fake.write("sys/fs/cgroup/cgroup.subtree_control", "memory pids cpu io");
    let group = fake.make(limits(1, Some(0.29)));
    assert_eq!(group.missing(), None);
    let read = |path: &str| fake.read(&format!("sys/fs/cgroup/{path}"));
    assert_eq!(read("cgroup.subtree_control"), "memory pids cpu io");
    assert_eq!(read("bulkhead/vm.7/io.weight"), "100");
    assert_eq!(read("bulkhead/vm.7/cpu.max"), "29000 100000");
    assert_eq!(read("bulkhead/vm.7/cpu.weight"), "100");
    fake.write("proc/7/cgroup", "0::/bulkhead/vm.7\n");
    fake.write("sys/fs/cgroup/bulkhead/vm.7/cgroup.controllers", "cpu memory pids");
    set_quota(&fake.cgroups().groups_of(7), None).unwrap();
    assert_eq!(read("bulkhead/vm.7/cpu.max"), "max 100000");
    // In a container it looks the same, but is not that root.
    fake.write("sys/fs/cgroup/cgroup.type", "domain");
    let plan = fake.cgroups().plan();
    assert!(plan.places.is_empty() && plan.lacking.len() == 3, "{plan:?}");
    assert!(plan.lacking[0].1.contains("not the root of all groups"), "{plan:?}");
    // Beside v1, it has no controllers.
    fake.root("");
    let plan = fake.cgroups().plan();
    assert!(plan.places.is_empty() && plan.lacking[0].1.contains("does not offer it"), "{plan:?}");
}

#[test]
fn what_is_not_shown_or_not_there_is_said() {
    for (mounts, own, reason) in [
        ("", "", "no hierarchy"),
        (UNIFIED, "0::/../../other\n", "does not show"),
        (UNIFIED, "garbage", "does not show"),
        (HYBRID, "1:cpu,cpuacct:/../x\n", "does not show"),
        // There is no such directory to make one in.
        (HYBRID, "1:cpu,cpuacct:/x\n", "no group can be made in"),
    ] {
        let fake = Fake::new(mounts, own);
        let plan = fake.cgroups().plan();
        assert!(plan.places.is_empty() && plan.lacking.len() == 3, "{plan:?}");
        assert!(plan.lacking[0].1.contains(reason), "{plan:?}");
        assert!(fake.make(limits(1, None)).missing().unwrap().contains("cpu, memory, pids"));
    }
    // A container's own groups are mounted where those of all would be.
    let mounts = UNIFIED.replace(" / /sys", " /docker/1 /sys");
    let fake = Fake::new(&mounts, "0::/docker/1/inner\n");
    fake.group("", "cpu memory pids");
    fake.group("inner", "");
    assert_eq!(fake.place(), "");
}

#[test]
fn a_group_goes_with_what_is_listed_and_that_of_all_with_the_last() {
    let dir = tempfile::tempdir().unwrap();
    let all = dir.path().join("bulkhead");
    let groups = ["a.1", "b.2"].map(|name| all.join(name));
    groups.iter().for_each(|group| fs::create_dir_all(group).unwrap());
    let root = dir.path().join("run");
    let run = rundir::RunDir::create(&root, Some("vm")).unwrap();
    assert!(rundir::with_groups(&run.path(), &groups[..1], || ()).is_ok());
    // The rest of an earlier one does not hinder.
    drop(run);
    assert!(!groups[0].exists() && all.exists());
    assert!(rundir::with_groups(&root.join("vm"), &groups[1..], || panic!("nothing is made without it")).is_err());
    remove(&groups[1]).unwrap();
    remove(&groups[1]).unwrap();
    assert!(!all.exists());
}

#[test]
fn a_group_that_has_been_waited_for_is_still_there() {
    let part = Place { version: Version::V1, dir: "/nowhere/bulkhead-vm.7".into(), controllers: vec![Controller::Cpu] };
    let made = part.clone();
    let thread = thread::spawn(|| Group { parts: vec![made], lacking: Vec::new() });
    let mut grouping = Grouping::UnderWay(thread);
    for _ in 0..3 {
        assert_eq!(grouping.wait().parts.as_slice(), std::slice::from_ref(&part));
    }
}

/// Where this host lets it, with its own groups and a process in them.
#[test]
fn a_process_is_in_its_group_and_ends_with_it() {
    let plan = Cgroups::here().plan();
    if plan.places.is_empty() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let run = rundir::RunDir::create(&dir.path().join("run"), None).unwrap();
    let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
    let group = Group::make(&run.path(), child.id(), limits(1, None));
    let (there, missing) = (Cgroups::here().groups_of(child.id()), missing_of(child.id()));
    // Nobody waits for the process: it goes with the run directory.
    drop(run);
    let left: Vec<_> = group.parts.iter().filter(|part| part.dir.exists()).collect();
    let status = if left.is_empty() { child.wait() } else { child.kill().and_then(|()| child.wait()) };
    assert!(left.is_empty() && !status.unwrap().success(), "{left:?}");
    assert_eq!((group.missing(), missing), (None, None), "{plan:?}");
    assert_eq!(there.len(), plan.places.len());
}

#[test]
fn of_two_mounts_that_counts_in_which_the_process_is_seen() {
    // As seen from a namespace of groups, in which the first was not mounted.
    let outside = "29 1 0:26 /.. /outside/cgroup rw - cgroup2 cgroup2 rw\n";
    let fake = Fake::new(&[outside, UNIFIED].concat(), "0::/system.slice/web.service\n");
    fake.root("cpu memory pids");
    fake.group("system.slice", "cpu memory pids");
    fake.group("system.slice/web.service", "memory pids");
    assert_eq!(fake.cgroups().plan().lacking, []);
    let alone = Fake::new(outside, "0::/system.slice/web.service\n");
    assert!(alone.cgroups().plan().lacking[0].1.contains("/outside/cgroup does not show"));
}
