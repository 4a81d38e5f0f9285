//! Flags of `run` about what a container has beside its files: memory mounted as file systems, limits, kernel parameters, capabilities, name resolution.
//! docker's syntax.

use std::net::{IpAddr, Ipv4Addr};

use anyhow::anyhow;
use clap::Args;
use guest_protocol::{Limit, Names, Resource, Sysctl, Tmpfs, USUAL_CAPABILITIES};
use rustix::thread::CapabilitySet;
use serde::{Deserialize, Serialize};

use crate::size;

/// What `--add-host` calls the host.
const HOST_GATEWAY: &str = "host-gateway";
/// Limits by their names (getrlimit(2)).
const RESOURCES: [(&str, Resource); 15] = [
    ("core", Resource::Core),
    ("cpu", Resource::Cpu),
    ("data", Resource::Data),
    ("fsize", Resource::Fsize),
    ("locks", Resource::Locks),
    ("memlock", Resource::Memlock),
    ("msgqueue", Resource::Msgqueue),
    ("nice", Resource::Nice),
    ("nofile", Resource::Nofile),
    ("nproc", Resource::Nproc),
    ("rss", Resource::Rss),
    ("rtprio", Resource::Rtprio),
    ("rttime", Resource::Rttime),
    ("sigpending", Resource::Sigpending),
    ("stack", Resource::Stack),
];

#[derive(Debug, Clone, Default, PartialEq, Args, Serialize, Deserialize)]
#[serde(default)]
pub struct Settings {
    /// A file system in memory at this place; options: `size=64m`, `mode=1777`, `exec`, `ro`
    #[arg(long, value_name = "DIR[:OPTIONS]", value_parser = tmpfs)]
    pub tmpfs: Vec<Tmpfs>,
    /// Most bytes in /dev/shm, as 64m, which is the default
    #[arg(long, value_name = "SIZE", value_parser = size::bytes)]
    pub shm_size: Option<u64>,
    /// A limit of each process, as nofile=1024:4096; -1 is none
    #[arg(long, value_name = "NAME=SOFT[:HARD]", value_parser = ulimit, allow_hyphen_values = true)]
    pub ulimit: Vec<Limit>,
    /// Set a parameter of the container's kernel, as net.ipv4.ip_forward=1
    #[arg(long, value_name = "KEY=VALUE", value_parser = sysctl)]
    pub sysctl: Vec<Sysctl>,
    /// Give the container's root a capability, or ALL of them: over its own kernel
    #[arg(long, value_name = "CAPABILITY", value_parser = capability)]
    pub cap_add: Vec<String>,
    /// Take a capability from the container, or ALL of them
    #[arg(long, value_name = "CAPABILITY", value_parser = capability)]
    pub cap_drop: Vec<String>,
    /// Let the container do with its own kernel what it likes: all capabilities, and /sys to write to
    #[arg(long)]
    pub privileged: bool,
    /// Have names resolved by this server, instead of those of the network
    #[arg(long, value_name = "IP")]
    pub dns: Vec<IpAddr>,
    /// Domain in which names without a dot are looked for
    #[arg(long, value_name = "DOMAIN", value_parser = word)]
    pub dns_search: Vec<String>,
    /// An option of the resolver (resolv.conf(5))
    #[arg(long, value_name = "OPTION", value_parser = word)]
    pub dns_option: Vec<String>,
    /// Add a line to /etc/hosts; as IP, `host-gateway` is this host, of a container at a tap interface
    #[arg(long, value_name = "NAME:IP", value_parser = host)]
    pub add_host: Vec<(String, String)>,
    /// Have a process of ours reap the command's: that is always so
    #[arg(long)]
    pub init: bool,
}

impl Settings {
    /// What the guest is told of it.
    pub fn for_guest(&self) -> guest_protocol::Settings {
        let mut tmpfs = self.tmpfs.clone();
        // What is in another one comes after it.
        tmpfs.sort_by_key(|one| one.target.split('/').filter(|part| !part.is_empty()).count());
        guest_protocol::Settings {
            tmpfs,
            shm_bytes: self.shm_size,
            sysctls: self.sysctl.clone(),
            limits: self.ulimit.clone(),
            capabilities: self.capabilities(),
            writable_sys: self.privileged,
            beside: None,
        }
    }

    /// docker's rules: ALL in one list makes the other one the exceptions from it.
    fn capabilities(&self) -> u64 {
        // Those that have a name; not all bits.
        let all = CapabilitySet::all().iter_names().map(|(_, one)| one).collect::<CapabilitySet>().bits();
        // Whatever else is said of them.
        if self.privileged {
            return all;
        }
        let named = |name: &String| CapabilitySet::from_name(name);
        let bits = |list: &[String]| list.iter().filter_map(named).collect::<CapabilitySet>().bits();
        let has_all = |list: &[String]| list.iter().any(|name| name == "ALL");
        let (added, dropped) = (bits(&self.cap_add), bits(&self.cap_drop));
        match (has_all(&self.cap_add), has_all(&self.cap_drop)) {
            (true, true) => 0,
            (true, false) => all & !dropped,
            (false, true) => added,
            (false, false) => (USUAL_CAPABILITIES | added) & !dropped,
        }
    }

    /// Name resolution of a container whose network has `resolv_conf`, and is this host to it at `gateway`.
    ///
    /// # Errors
    /// The host is not to be reached there.
    pub fn names(&self, resolv_conf: Option<String>, gateway: Option<Ipv4Addr>) -> anyhow::Result<Names> {
        let line = |(name, ip): &(String, String)| match (ip.as_str(), gateway) {
            (HOST_GATEWAY, Some(gateway)) => Ok(format!("{gateway}\t{name}")),
            (HOST_GATEWAY, None) => Err(anyhow!(
                "--add-host {name}:{HOST_GATEWAY}: the container does not reach this host; --network tap gives it a way"
            )),
            (ip, _) => Ok(format!("{ip}\t{name}")),
        };
        let hosts = self.add_host.iter().map(line).collect::<anyhow::Result<_>>()?;
        Ok(Names { hosts, resolv_conf: self.resolver(resolv_conf) })
    }

    /// /etc/resolv.conf, if it is not to be the image's own.
    fn resolver(&self, network: Option<String>) -> Option<String> {
        if self.dns.is_empty() && self.dns_search.is_empty() && self.dns_option.is_empty() {
            return network;
        }
        let network = network.unwrap_or_default();
        let servers: Vec<String> = match self.dns.is_empty() {
            true => network.lines().filter(|line| line.starts_with("nameserver")).map(str::to_owned).collect(),
            false => self.dns.iter().map(|ip| format!("nameserver {ip}")).collect(),
        };
        let list = |key: &str, words: &[String]| (!words.is_empty()).then(|| format!("{key} {}", words.join(" ")));
        let lines =
            servers.into_iter().chain(list("search", &self.dns_search)).chain(list("options", &self.dns_option));
        Some(lines.map(|line| line + "\n").collect())
    }
}

fn tmpfs(text: &str) -> Result<Tmpfs, String> {
    let (target, options) = text.split_once(':').unwrap_or((text, ""));
    let up = target.split('/').any(|part| part == "..");
    if !target.starts_with('/') || up || target.trim_end_matches('/').is_empty() {
        return Err(format!("'{target}' is not an absolute path of a directory that is not the root"));
    }
    let mut tmpfs = Tmpfs { target: target.into(), bytes: None, mode: 0o1777, exec: false, writable: true };
    for option in options.split(',').filter(|option| !option.is_empty()) {
        match option.split_once('=') {
            Some(("size", size)) => tmpfs.bytes = Some(size::bytes(size)?),
            Some(("mode", mode)) => {
                let mode = u16::from_str_radix(mode, 8).ok().filter(|mode| *mode <= 0o7777);
                tmpfs.mode = mode.ok_or("a mode is octal, as 1777")?;
            }
            None if option == "exec" => tmpfs.exec = true,
            None if option == "noexec" => tmpfs.exec = false,
            None if option == "ro" => tmpfs.writable = false,
            // As they always are.
            None if ["rw", "nosuid", "nodev"].contains(&option) => {}
            _ => return Err(format!("'{option}' is not one of size=, mode=, exec, noexec, ro, rw, nosuid, nodev")),
        }
    }
    Ok(tmpfs)
}

fn ulimit(text: &str) -> Result<Limit, String> {
    let (name, values) = text.split_once('=').ok_or("it is NAME=SOFT[:HARD]")?;
    let known = RESOURCES.iter().find(|(known, _)| *known == name);
    let names = || RESOURCES.map(|(name, _)| name).join(", ");
    let (_, resource) = known.ok_or_else(|| format!("'{name}' is not one of {}", names()))?;
    let value = |text: &str| match text {
        "-1" => Ok(None),
        number => number.parse().map(Some).map_err(|_| format!("'{number}' is neither a number nor -1")),
    };
    let (soft, hard) = values.split_once(':').unwrap_or((values, values));
    let (soft, hard) = (value(soft)?, value(hard)?);
    if hard.is_some_and(|hard| soft.is_none_or(|soft| soft > hard)) {
        return Err("the soft limit is above the hard one".into());
    }
    Ok(Limit { resource: *resource, soft, hard })
}

/// A kernel parameter's path from its name, or its name from its path: the two separators change places, as sysctl(8) has it.
pub fn swapped(text: &str) -> String {
    let swap = |c| match c {
        '.' => '/',
        '/' => '.',
        other => other,
    };
    text.chars().map(swap).collect()
}

/// What a limit is called.
pub fn resource_name(resource: Resource) -> &'static str {
    RESOURCES.iter().find(|(_, known)| *known == resource).map_or("", |(name, _)| name)
}

pub fn sysctl(text: &str) -> Result<Sysctl, String> {
    let (key, value) = text.split_once('=').ok_or("it is KEY=VALUE")?;
    // As sysctl(8): the first of either decides which of the two is the separator.
    let path = match key.find(['.', '/']) {
        Some(at) if key[at..].starts_with('.') => swapped(key),
        _ => key.to_owned(),
    };
    let part =
        |part: &str| !part.is_empty() && part != "." && part != ".." && part.bytes().all(|b| b.is_ascii_graphic());
    if path.len() > 256 || !path.contains('/') || !path.split('/').all(part) {
        return Err(format!("'{key}' is not the name of a kernel parameter, as net.ipv4.ip_forward"));
    }
    if value.is_empty() || value.len() > 4096 || value.contains(['\n', '\0']) {
        return Err("a value is one line that is not empty".into());
    }
    Ok(Sysctl { path, value: value.into() })
}

fn capability(text: &str) -> Result<String, String> {
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("CAP_").unwrap_or(&upper);
    match name == "ALL" || CapabilitySet::from_name(name).is_some() {
        true => Ok(name.to_owned()),
        false => Err(format!("'{text}' is not a capability, as NET_ADMIN, nor ALL")),
    }
}

/// One word of a configuration file.
pub fn word(text: &str) -> Result<String, String> {
    match (1..=253).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic()) {
        true => Ok(text.to_owned()),
        false => Err("it is one word".into()),
    }
}

pub fn host(text: &str) -> Result<(String, String), String> {
    let (name, ip) = text.split_once(['=', ':']).ok_or("it is NAME:IP")?;
    let ip = ip.strip_prefix('[').and_then(|ip| ip.strip_suffix(']')).unwrap_or(ip);
    let usual = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    if name.is_empty() || name.len() > 253 || !name.bytes().all(usual) {
        return Err(format!("'{name}' is not a host's name"));
    }
    if ip != HOST_GATEWAY && ip.parse::<IpAddr>().is_err() {
        return Err(format!("'{ip}' is neither an IP address nor {HOST_GATEWAY}"));
    }
    Ok((name.to_owned(), ip.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(list: &[&str]) -> Vec<String> {
        list.iter().map(|name| capability(name).unwrap()).collect()
    }

    #[test]
    fn capabilities_follow_dockers_rules() {
        let bits = |add: &[&str], drop: &[&str]| {
            Settings { cap_add: names(add), cap_drop: names(drop), ..Settings::default() }.capabilities()
        };
        assert_eq!(bits(&[], &[]), USUAL_CAPABILITIES);
        assert_eq!(bits(&["net_admin", "CAP_CHOWN"], &["MKNOD"]), (USUAL_CAPABILITIES | 1 << 12) & !(1 << 27));
        assert_eq!(bits(&["NET_BIND_SERVICE"], &["all"]), 1 << 10);
        assert_eq!(bits(&["ALL"], &["SYS_MODULE"]), ((1 << 41) - 1) & !(1 << 16));
        let privileged = Settings { privileged: true, cap_drop: names(&["ALL"]), ..Settings::default() };
        assert_eq!(privileged.capabilities(), (1 << 41) - 1);
        assert!(privileged.for_guest().writable_sys && !Settings::default().for_guest().writable_sys);
        assert_eq!((bits(&["ALL"], &["ALL"]), bits(&["CHOWN"], &["CHOWN"]) & 1), (0, 0));
        assert!(capability("CAP_NONE").is_err() && capability("").is_err());
        // The usual ones, by their names.
        let usual = [
            "AUDIT_WRITE",
            "CHOWN",
            "DAC_OVERRIDE",
            "FOWNER",
            "FSETID",
            "KILL",
            "MKNOD",
            "NET_BIND_SERVICE",
            "NET_RAW",
            "SETFCAP",
            "SETGID",
            "SETPCAP",
            "SETUID",
            "SYS_CHROOT",
        ];
        assert_eq!(bits(&usual, &["ALL"]), USUAL_CAPABILITIES);
    }

    #[test]
    fn file_systems_in_memory_have_dockers_defaults() {
        let usual = Tmpfs { target: "/run".into(), bytes: None, mode: 0o1777, exec: false, writable: true };
        assert_eq!(tmpfs("/run").unwrap(), usual);
        let other = Tmpfs { bytes: Some(64 << 20), mode: 0o755, exec: true, writable: false, ..usual };
        assert_eq!(tmpfs("/run:rw,size=64m,mode=755,exec,nosuid,ro").unwrap(), other);
        for bad in ["run", "/", "//", "/a/../b", "/run:size=", "/run:mode=9", "/run:mode=17777", "/run:suid", ""] {
            assert!(tmpfs(bad).is_err(), "{bad}");
        }
        let tmpfs = ["/a/b/c", "/a", "/a/b/"].map(|text| tmpfs(text).unwrap()).to_vec();
        let sorted = Settings { tmpfs, ..Settings::default() }.for_guest().tmpfs;
        assert_eq!(sorted.iter().map(|one| one.target.as_str()).collect::<Vec<_>>(), ["/a", "/a/b/", "/a/b/c"]);
    }

    #[test]
    fn limits_and_parameters_are_checked_before_anything_runs() {
        let limit = |soft, hard| Limit { resource: Resource::Nofile, soft, hard };
        assert_eq!(ulimit("nofile=10:20").unwrap(), limit(Some(10), Some(20)));
        assert_eq!(ulimit("nofile=10").unwrap(), limit(Some(10), Some(10)));
        assert_eq!(ulimit("nofile=5:-1").unwrap(), limit(Some(5), None));
        assert_eq!(ulimit("nofile=-1").unwrap(), limit(None, None));
        for bad in ["nofile", "nofile=", "files=1", "nofile=2:1", "nofile=-1:5", "nofile=-2", "nofile=1:2:3"] {
            assert!(ulimit(bad).is_err(), "{bad}");
        }
        let path = |text| sysctl(text).map(|sysctl| sysctl.path);
        assert_eq!(path("net.ipv4.ip_forward=1").unwrap(), "net/ipv4/ip_forward");
        assert_eq!(path("net/ipv4/conf/eth0.1/forwarding=1").unwrap(), "net/ipv4/conf/eth0.1/forwarding");
        assert_eq!(path("net.ipv4.conf.eth0/1.forwarding=1").unwrap(), "net/ipv4/conf/eth0.1/forwarding");
        assert_eq!(swapped("net/ipv4/conf/eth0.1/forwarding"), "net.ipv4.conf.eth0/1.forwarding");
        for bad in ["a", "a=1", "net..x=1", "../x=1", "net/../x=1", "a.b=", "a.b=1\n2", "/abs/x=1", "a b.c=1"] {
            assert!(sysctl(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn names_are_resolved_as_asked() {
        let network = || Some("nameserver 10.0.2.3\n".to_owned());
        let none = Settings::default();
        assert_eq!(none.names(network(), None).unwrap().resolv_conf, network());
        assert_eq!(none.names(None, None).unwrap(), Names::default());
        let search = Settings { dns_search: vec!["a.example".into(), "b.example".into()], ..Settings::default() };
        let said = search.names(network(), None).unwrap().resolv_conf.unwrap();
        assert_eq!(said, "nameserver 10.0.2.3\nsearch a.example b.example\n");
        let dns = Settings {
            dns: vec!["9.9.9.9".parse().unwrap(), "::1".parse().unwrap()],
            dns_option: vec!["ndots:2".into()],
            ..Settings::default()
        };
        let said = dns.names(network(), None).unwrap().resolv_conf.unwrap();
        assert_eq!(said, "nameserver 9.9.9.9\nnameserver ::1\noptions ndots:2\n");
        let hosts =
            ["db:10.0.0.1", "six:[fe80::1]", "other=10.0.0.2", "host:host-gateway"].map(|text| host(text).unwrap());
        let hosts = Settings { add_host: hosts.to_vec(), ..Settings::default() };
        let lines = hosts.names(None, Some(Ipv4Addr::new(198, 18, 0, 1))).unwrap().hosts;
        assert_eq!(lines, ["10.0.0.1\tdb", "fe80::1\tsix", "10.0.0.2\tother", "198.18.0.1\thost"]);
        assert!(hosts.names(None, None).unwrap_err().to_string().contains("--network tap"));
        for bad in ["db", "db:", ":10.0.0.1", "db:x", "a b:10.0.0.1", "db\n:10.0.0.1"] {
            assert!(host(bad).is_err(), "{bad}");
        }
    }
}
