//! What the flags of `run` are to an OCI runtime (runtime-spec, config.md and config-linux.md).

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use bench::compare::Process;
use bench::compare::bundle::configure;
use guest_protocol::account::{self, Account};
use guest_protocol::{DEFAULT_PATH, Limit, Tmpfs};
use rustix::thread::CapabilitySet;
use serde_json::{Value, json};

use crate::args::{Run, settings};
use crate::containers::Record;
use crate::size::MIB;
use crate::volumes::Volumes;

/// Microseconds of which a quota is part, and per thousandth of a processor.
const PERIOD: u64 = 100_000;

/// Files that are the container's own, whatever its image has: where they are on this host, and in the container.
pub struct Files(Vec<(PathBuf, &'static str)>);

impl Files {
    /// Writes them.
    pub fn write(dir: &Path, record: &Record) -> anyhow::Result<Self> {
        let settings = &record.flags.settings;
        let names = settings.names(None, None)?;
        let hostname = hostname(record);
        let mut hosts =
            format!("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n127.0.1.1\t{hostname}\n");
        names.hosts.iter().for_each(|line| hosts.push_str(&format!("{line}\n")));
        let files = [
            ("/etc/hosts", Some(hosts)),
            ("/etc/hostname", Some(format!("{hostname}\n"))),
            ("/etc/resolv.conf", names.resolv_conf),
        ];
        let mut written = Vec::new();
        for (target, text) in files.into_iter().filter_map(|(target, text)| Some((target, text?))) {
            let path = dir.join(target.trim_start_matches("/etc/"));
            fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
            written.push((path, target));
        }
        Ok(Files(written))
    }
}

fn hostname(record: &Record) -> &str {
    record.flags.hostname.as_deref().unwrap_or(record.id.short())
}

/// The configuration of the container `record`, from what the runtime has written.
pub fn configuration(spec: Value, record: &Record, root: &Path, files: &Files) -> anyhow::Result<Value> {
    let (flags, process) = (&record.flags, &record.process);
    let account = account_of(record)?;
    let process = Process {
        env: environment(record, &account.home),
        cwd: process.cwd.clone(),
        uid: account.uid,
        gid: account.gid,
        groups: account.groups,
    };
    let mut config = configure(spec, root, &process, &record.process.args);
    config["hostname"] = hostname(record).into();
    config["root"]["readonly"] = flags.read_only.into();
    config["process"]["terminal"] = flags.tty.into();
    config["process"]["noNewPrivileges"] = false.into();
    config["process"]["capabilities"] = capabilities(flags.settings.for_guest().capabilities, account.uid == 0);
    config["process"]["rlimits"] = flags.settings.ulimit.iter().map(limit).collect();
    let sysctls = flags.settings.sysctl.iter().map(|one| (settings::swapped(&one.path), json!(one.value)));
    config["linux"]["sysctl"] = Value::Object(sysctls.collect());
    limit_resources(&mut config["linux"], flags);
    mount(&mut config["mounts"], flags, files)?;
    Ok(config)
}

fn account_of(record: &Record) -> anyhow::Result<Account> {
    match &record.process.found.account {
        Some(account) => Ok(account.clone()),
        // A number needs no file that knows it.
        None => account::resolve(&record.process.user, b"", b"").map_err(|unknown| anyhow!("{}", unknown.detail)),
    }
}

/// What is there if it was not given, as in a microVM.
fn environment(record: &Record, home: &str) -> Vec<String> {
    let mut env = record.process.env.clone();
    let usual = [
        ("PATH", Some(DEFAULT_PATH)),
        ("HOSTNAME", Some(hostname(record))),
        ("TERM", record.flags.tty.then_some("xterm")),
        ("HOME", Some(home)),
    ];
    for (key, value) in usual.into_iter().filter_map(|(key, value)| Some((key, value?))) {
        if !env.iter().any(|entry| entry.split('=').next() == Some(key)) {
            env.push(format!("{key}={value}"));
        }
    }
    env
}

/// Another user than root may have them, by a program with set-id bits, and has none.
fn capabilities(bits: u64, root: bool) -> Value {
    let names: Vec<String> =
        CapabilitySet::from_bits_truncate(bits).iter_names().map(|(name, _)| format!("CAP_{name}")).collect();
    let now = if root { names.clone() } else { Vec::new() };
    json!({ "bounding": names, "permitted": now, "effective": now })
}

fn limit(limit: &Limit) -> Value {
    let name = settings::resource_name(limit.resource).to_ascii_uppercase();
    json!({ "type": format!("RLIMIT_{name}"), "soft": limit.soft.unwrap_or(u64::MAX), "hard": limit.hard.unwrap_or(u64::MAX) })
}

/// No limit where none was given: a microVM has its size, a container the host's.
fn limit_resources(linux: &mut Value, flags: &Run) {
    if let Some(mib) = flags.machine.memory {
        linux["resources"]["memory"] = json!({ "limit": mib * MIB });
    }
    if let Some(cpus) = flags.machine.cpus {
        let quota = u64::from(cpus.thousandths()) * PERIOD / 1000;
        linux["resources"]["cpu"] = json!({ "quota": quota, "period": PERIOD });
    }
}

fn mount(mounts: &mut Value, flags: &Run, files: &Files) -> anyhow::Result<()> {
    let mut list = mounts.as_array().cloned().unwrap_or_default();
    if let Some(bytes) = flags.settings.shm_size
        && let Some(shm) = list.iter_mut().find(|mount| mount["destination"] == "/dev/shm")
    {
        shm["options"] = json!(["nosuid", "noexec", "nodev", "mode=1777", format!("size={bytes}")]);
    }
    let bind = |source: &Path, target: &str, read_only: bool| {
        let options = ["rbind", "rprivate", if read_only { "ro" } else { "rw" }];
        json!({ "type": "bind", "source": source, "destination": target, "options": options })
    };
    list.extend(files.0.iter().map(|(path, target)| bind(path, target, false)));
    let volumes = Volumes::find(&flags.volume)?;
    let mut more: Vec<Value> =
        volumes.binds().map(|(path, volume)| bind(path, &volume.target, volume.read_only)).collect();
    more.extend(flags.settings.tmpfs.iter().map(tmpfs));
    // What lies in another one is mounted after it.
    more.sort_by_key(|mount| mount["destination"].as_str().map(|target| target.matches('/').count()));
    list.extend(more);
    *mounts = Value::Array(list);
    Ok(())
}

fn tmpfs(tmpfs: &Tmpfs) -> Value {
    let word = |is, yes: &str, no: &str| String::from(if is { yes } else { no });
    let mut options = vec!["nosuid".to_owned(), "nodev".to_owned(), format!("mode={:o}", tmpfs.mode)];
    options.push(word(tmpfs.exec, "exec", "noexec"));
    options.push(word(tmpfs.writable, "rw", "ro"));
    options.extend(tmpfs.bytes.map(|bytes| format!("size={bytes}")));
    json!({ "type": "tmpfs", "source": "tmpfs", "destination": tmpfs.target, "options": options })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Cli, Verb};
    use crate::containers::Id;
    use crate::containers::record::tests::record;
    use clap::Parser as _;

    #[test]
    fn flags_are_in_the_configuration() {
        let dir = tempfile::tempdir().unwrap();
        let volume = format!("{}:/data/in:ro", dir.path().display());
        let line = [
            "bulkhead",
            "run",
            "-t",
            "--hostname",
            "box",
            "-m",
            "64m",
            "--cpus",
            "1.5",
            "--read-only",
            "--tmpfs",
            "/data:size=1m",
            "-v",
            &volume,
            "--cap-drop",
            "ALL",
            "--cap-add",
            "CHOWN",
            "--ulimit",
            "nofile=5:-1",
            "--sysctl",
            "net.ipv4.ip_forward=1",
            "--shm-size",
            "1m",
            "--add-host",
            "a:10.0.0.1",
            "--dns",
            "10.0.0.2",
            "-u",
            "7",
            "image",
        ];
        let Verb::Run(run) = Cli::parse_from(line).verb else { panic!("not run") };
        let mut record = record(&Id::random().unwrap());
        record.flags = *run;
        record.process.user = "7".into();
        let spec = json!({
            "process": {}, "linux": { "resources": { "devices": [] } },
            "mounts": [{ "destination": "/dev/shm", "type": "tmpfs", "options": [] }],
        });
        let files = Files::write(dir.path(), &record).unwrap();
        let config = configuration(spec, &record, Path::new("/r"), &files).unwrap();
        assert_eq!((&config["hostname"], &config["root"]["readonly"]), (&json!("box"), &json!(true)));
        assert_eq!(config["linux"]["resources"]["memory"]["limit"], 64 << 20);
        assert_eq!(config["linux"]["resources"]["cpu"]["quota"], 150_000);
        assert_eq!(config["linux"]["sysctl"]["net.ipv4.ip_forward"], "1");
        let process = &config["process"];
        assert_eq!(process["terminal"], true);
        assert_eq!(process["capabilities"], json!({ "bounding": ["CAP_CHOWN"], "permitted": [], "effective": [] }));
        assert_eq!(process["rlimits"], json!([{ "type": "RLIMIT_NOFILE", "soft": 5, "hard": u64::MAX }]));
        let env: Vec<&str> = process["env"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
        assert!(env.contains(&"HOSTNAME=box") && env.contains(&"TERM=xterm") && env.contains(&"HOME=/"), "{env:?}");
        let mounts = config["mounts"].as_array().unwrap();
        let targets: Vec<&str> = mounts.iter().filter_map(|mount| mount["destination"].as_str()).collect();
        assert_eq!(targets, ["/dev/shm", "/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/data", "/data/in"]);
        assert!(mounts[0]["options"].as_array().unwrap().contains(&json!("size=1048576")));
        assert!(mounts[5]["options"].as_array().unwrap().contains(&json!("ro")));
        assert!(fs::read_to_string(dir.path().join("hosts")).unwrap().ends_with("10.0.0.1\ta\n"));
    }
}
