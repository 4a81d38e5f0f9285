//! User-defined networks: what is known of them, in the store. Who is in one, only its switch knows ([`switch`]), which lives as long
//! as somebody is.
//!
//! ```text
//! <store>/networks/.lock        held while networks come and go, and while a container joins one
//! <store>/networks/NAME.json    a network exists from the moment that it has its name, complete
//! ```
//!
//! Lock order: `.lock`, then that of the run directories.

mod subnet;
pub mod switch;

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::Ipv4Addr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::args::Network as Flag;
use crate::containers::record::now_ns;
use crate::containers::{self, ContainersError, Id};
use crate::failure::sanitize;
use crate::pods;

pub use subnet::Subnet;

/// Where they are, in the store.
const NETWORKS: &str = "networks";
/// What a record's name ends with.
const SUFFIX: &str = ".json";
/// What it is called until it is complete.
const UNFINISHED: &str = ".new";
/// Version of records.
const VERSION: u32 = 1;
/// Longest one that is believed.
const MAX_RECORD: u64 = 1 << 20;
/// What `--network` means otherwise, here or to docker.
const RESERVED: [&str; 6] = ["none", "user", "tap", "host", "bridge", "default"];

/// What cannot be done with networks. The words are docker's where docker has some.
#[derive(Debug, thiserror::Error)]
pub enum NetworksError {
    /// Not a name.
    #[error("invalid network name ({0}): letters, digits, '_', '.' and '-', up to 63, the first a letter or digit")]
    BadName(String),
    /// It means something else.
    #[error("operation is not permitted on predefined {0} network; choose another name")]
    Predefined(String),
    /// There is one.
    #[error("network with name {0} already exists")]
    Exists(String),
    /// There is none.
    #[error("network {0} not found; `bulkhead network ls` lists those there are")]
    NotFound(String),
    /// Containers run in it.
    #[error("error while removing network: network {name} has active endpoints ({}); `bulkhead stop` these before", members.join(", "))]
    InUse {
        /// Which.
        name: String,
        /// Who is in it.
        members: Vec<String>,
    },
    /// Addresses that another has.
    #[error("Pool overlaps with other one on this address space: {0}; choose another --subnet")]
    Overlaps(String),
    /// None is left.
    #[error("all predefined address pools have been fully subnetted; say which with --subnet, or remove networks")]
    NoSubnet,
    /// An address that it cannot have.
    #[error("no matching subnet for gateway {0}: it is an address of the subnet, and neither its first nor its last")]
    BadGateway(Ipv4Addr),
    /// Its record.
    #[error("network {name}: its record: {problem}")]
    Record {
        /// Whose.
        name: String,
        /// What is wrong.
        problem: String,
    },
    /// Who has it cannot be known.
    #[error(transparent)]
    Containers(#[from] ContainersError),
    /// The host said no.
    #[error("networks: {path}: {source}")]
    Io {
        /// Where.
        path: PathBuf,
        /// The host's answer.
        source: io::Error,
    },
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> NetworksError {
    let path = path.to_owned();
    move |source| NetworksError::Io { path, source }
}

/// What is known of a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    version: u32,
    /// Its name for ever.
    pub id: Id,
    /// What it is called.
    pub name: String,
    /// When it was made, in nanoseconds since the epoch.
    pub created_ns: u64,
    /// Its addresses.
    pub subnet: Subnet,
    /// That of its switch.
    pub gateway: Ipv4Addr,
    /// Nothing leads out of it.
    pub internal: bool,
    /// What was said of it when it was made.
    pub labels: BTreeMap<String, String>,
}

/// One that is to be made.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    /// Its addresses; free ones if it does not say.
    pub subnet: Option<Subnet>,
    /// Its switch's; the first if it does not say.
    pub gateway: Option<Ipv4Addr>,
    /// Nothing leads out of it.
    pub internal: bool,
    /// What is said of it.
    pub labels: BTreeMap<String, String>,
}

/// The networks of a store.
#[derive(Debug, Clone)]
pub struct Networks {
    store: PathBuf,
}

impl Networks {
    /// Those of a store; their place is made if it is not there.
    pub fn of(store: &Path) -> Result<Self, NetworksError> {
        let dir = store.join(NETWORKS);
        DirBuilder::new().recursive(true).mode(0o700).create(&dir).map_err(io_error(&dir))?;
        Ok(Networks { store: store.to_owned() })
    }

    /// The same, if there has ever been one.
    pub fn existing(store: &Path) -> Option<Self> {
        store.join(NETWORKS).is_dir().then(|| Networks { store: store.to_owned() })
    }

    /// All of them, by name. One whose record cannot be read is left out, with a warning.
    pub fn list(&self) -> Result<Vec<Network>, NetworksError> {
        let dir = self.dir();
        let entries = fs::read_dir(&dir).map_err(io_error(&dir))?;
        let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
        let names = names.filter_map(|name| name.strip_suffix(SUFFIX).map(str::to_owned));
        let mut networks = Vec::new();
        for name in names.filter(|name| check_name(name).is_ok()) {
            match self.read(&name) {
                Ok(network) => networks.push(network),
                // Removed meanwhile.
                Err(NetworksError::NotFound(_)) => {}
                Err(error) => tracing::warn!("{error}"),
            }
        }
        networks.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(networks)
    }

    /// The network of this name or id, or the only one whose id begins so.
    pub fn find(&self, word: &str) -> Result<Network, NetworksError> {
        let not_found = || NetworksError::NotFound(sanitize(word).chars().take(160).collect());
        match check_name(word).and_then(|()| self.read(word)) {
            // A whole id is longer than names are.
            Err(NetworksError::NotFound(_) | NetworksError::BadName(_)) if !word.is_empty() => {}
            Err(NetworksError::BadName(_) | NetworksError::Predefined(_)) => return Err(not_found()),
            other => return other,
        }
        let fits = |network: &Network| network.id.as_str().starts_with(word);
        let mut fitting = self.list()?.into_iter().filter(fits);
        match (fitting.next(), fitting.next()) {
            (Some(network), None) => Ok(network),
            _ => Err(not_found()),
        }
    }

    /// Takes the lock, waiting for it, and removes what killed processes have left.
    pub fn lock(&self) -> Result<Locked, NetworksError> {
        let path = self.dir().join(".lock");
        let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path);
        let file = file.map_err(io_error(&path))?;
        loop {
            match flock(&file, FlockOperation::LockExclusive) {
                Err(Errno::INTR) => {}
                other => break other.map_err(|error| io_error(&path)(error.into()))?,
            }
        }
        for entry in fs::read_dir(self.dir()).into_iter().flatten().flatten() {
            if entry.file_name().as_encoded_bytes().ends_with(UNFINISHED.as_bytes()) {
                let _ = fs::remove_file(entry.path());
            }
        }
        Ok(Locked { networks: self.clone(), _lock: file })
    }

    /// The containers that are to be in a network, running or not, by what they were made with.
    pub fn users(&self, network: &Network) -> Result<Vec<Id>, NetworksError> {
        let records = pods::and_containers(&self.store)?.into_iter().map(|entry| entry.record);
        let has = |flag: &Option<Flag>| matches!(flag, Some(Flag::Named(name)) if *name == network.name);
        Ok(records.filter(|record| has(&record.flags.network)).map(|record| record.id).collect())
    }

    fn dir(&self) -> PathBuf {
        self.store.join(NETWORKS)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir().join(format!("{name}{SUFFIX}"))
    }

    fn read(&self, name: &str) -> Result<Network, NetworksError> {
        let bad = |problem: String| NetworksError::Record { name: name.to_owned(), problem };
        let file = match File::open(self.path(name)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(NetworksError::NotFound(name.to_owned()));
            }
            other => other.map_err(|error| bad(error.to_string()))?,
        };
        let mut bytes = Vec::new();
        file.take(MAX_RECORD).read_to_end(&mut bytes).map_err(|error| bad(error.to_string()))?;
        decode(&bytes)
            .and_then(|network| if network.name == name { Ok(network) } else { Err("it is another's".into()) })
            .map_err(bad)
    }
}

/// A record; `Err` says what is wrong with it.
pub fn decode(bytes: &[u8]) -> Result<Network, String> {
    let network: Network = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    match network.version {
        VERSION if network.subnet.may_have(network.gateway) => Ok(network),
        VERSION => Err(format!("its gateway {} is not one of {}", network.gateway, network.subnet)),
        version => Err(format!("it has version {version}, this program reads {VERSION}")),
    }
}

fn check_name(name: &str) -> Result<(), NetworksError> {
    if RESERVED.contains(&name) {
        return Err(NetworksError::Predefined(name.into()));
    }
    match containers::is_name(name) {
        true => Ok(()),
        false => Err(NetworksError::BadName(sanitize(name).chars().take(160).collect())),
    }
}

/// The networks of a store, none of which comes, goes or gets another member meanwhile, but by this.
#[derive(Debug)]
pub struct Locked {
    networks: Networks,
    /// The kernel gives the lock back if this process is killed.
    _lock: File,
}

impl Locked {
    /// Makes one. `routes`: the host's, as /proc/net/route has them, which it stays away from if it is not told its addresses.
    pub fn create(&self, name: &str, wanted: Wanted, routes: &str) -> Result<Network, NetworksError> {
        check_name(name)?;
        let path = self.networks.path(name);
        if path.exists() {
            return Err(NetworksError::Exists(name.into()));
        }
        let others: Vec<Network> = self.networks.list()?;
        let subnet = match wanted.subnet {
            Some(subnet) => match others.iter().find(|other| other.subnet.overlaps(subnet)) {
                Some(other) => return Err(NetworksError::Overlaps(format!("{} ({})", other.subnet, other.name))),
                None => subnet,
            },
            None => {
                let taken: Vec<Subnet> =
                    others.iter().map(|other| other.subnet).chain(subnet::routed(routes)).collect();
                Subnet::free(&taken).ok_or(NetworksError::NoSubnet)?
            }
        };
        let gateway = wanted.gateway.unwrap_or_else(|| subnet.first());
        if !subnet.may_have(gateway) {
            return Err(NetworksError::BadGateway(gateway));
        }
        let id = Id::random().map_err(io_error(&path))?;
        let Wanted { internal, labels, .. } = wanted;
        let network = Network {
            version: VERSION,
            id,
            name: name.into(),
            created_ns: now_ns(),
            subnet,
            gateway,
            internal,
            labels,
        };
        let unfinished = self.networks.dir().join(format!("{name}{SUFFIX}{UNFINISHED}"));
        let write = || {
            let mut out = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&unfinished)?;
            serde_json::to_writer(&mut out, &network)?;
            out.write_all(b"\n")?;
            out.sync_all()?;
            fs::rename(&unfinished, &path)?;
            File::open(self.networks.dir())?.sync_all()
        };
        write().map_err(io_error(&path))?;
        Ok(network)
    }

    /// Removes one in which nobody is.
    pub fn remove(&self, word: &str) -> Result<Network, NetworksError> {
        let network = self.networks.find(word)?;
        let members = switch::members(&network).unwrap_or_default().members;
        if !members.is_empty() {
            let shown = |member: &::switch::protocol::Member| member.names.first().unwrap_or(&member.id).clone();
            return Err(NetworksError::InUse { name: network.name, members: members.iter().map(shown).collect() });
        }
        let path = self.networks.path(&network.name);
        fs::remove_file(&path).map_err(io_error(&path))?;
        Ok(network)
    }

    /// The network that a container is to join.
    pub fn find(&self, word: &str) -> Result<Network, NetworksError> {
        self.networks.find(word)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_is_there_until_it_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Networks::existing(dir.path()).is_none());
        let networks = Networks::of(dir.path()).unwrap();
        let locked = networks.lock().unwrap();
        let web = locked.create("web", Wanted::default(), "").unwrap();
        assert_eq!((web.subnet.to_string(), web.gateway), ("172.28.0.0/24".into(), [172, 28, 0, 1].into()));
        let labels = BTreeMap::from([("a".to_owned(), "b".to_owned())]);
        let back = Wanted { subnet: Some("10.9.0.0/16".parse().unwrap()), internal: true, labels, ..Wanted::default() };
        let back = locked.create("back", back, "").unwrap();
        assert_eq!(networks.list().unwrap(), [back.clone(), web.clone()]);
        assert_eq!(networks.find("web").unwrap(), web);
        assert_eq!(
            [networks.find(back.id.as_str()), networks.find(back.id.short())].map(Result::unwrap),
            [back.clone(), back]
        );
        assert!(matches!(locked.create("web", Wanted::default(), ""), Err(NetworksError::Exists(_))));
        let overlapping = Wanted { subnet: Some("10.0.0.0/8".parse().unwrap()), ..Wanted::default() };
        assert!(
            matches!(locked.create("other", overlapping, ""), Err(NetworksError::Overlaps(by)) if by.contains("back"))
        );
        let outside = Wanted { gateway: Some([10, 0, 0, 1].into()), ..Wanted::default() };
        assert!(matches!(locked.create("other", outside, ""), Err(NetworksError::BadGateway(_))));
        // Another, and none of the host's.
        let routes = "head\nx\t00011CAC\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n";
        assert_eq!(locked.create("next", Wanted::default(), routes).unwrap().subnet.to_string(), "172.28.2.0/24");
        locked.remove("web").unwrap();
        assert!(matches!(networks.find("web"), Err(NetworksError::NotFound(_))));
        for bad in ["", "a/b", "../x", ".web", &"x".repeat(64)] {
            assert!(locked.create(bad, Wanted::default(), "").is_err() && networks.find(bad).is_err(), "{bad}");
        }
        for reserved in RESERVED {
            assert!(matches!(locked.create(reserved, Wanted::default(), ""), Err(NetworksError::Predefined(_))));
        }
    }

    #[test]
    fn a_damaged_record_is_told_and_what_was_not_finished_goes() {
        let dir = tempfile::tempdir().unwrap();
        let networks = Networks::of(dir.path()).unwrap();
        networks.lock().unwrap().create("web", Wanted::default(), "").unwrap();
        let path = networks.path("web");
        let text = fs::read_to_string(&path).unwrap();
        fs::write(networks.path("copy"), &text).unwrap();
        assert!(networks.find("copy").unwrap_err().to_string().contains("another's"));
        for (from, to, words) in [
            ("\"version\":1", "\"version\":2", "version 2"),
            ("172.28.0.1", "10.0.0.1", "gateway"),
            ("/24", "/31", "prefix"),
            ("}", "", "EOF"),
        ] {
            fs::write(&path, text.replace(from, to)).unwrap();
            let said = networks.find("web").unwrap_err().to_string();
            assert!(said.contains(words) && !said.contains('\n'), "{said}");
        }
        assert!(networks.list().unwrap().is_empty());
        let unfinished = networks.dir().join("x.json.new");
        fs::write(&unfinished, "{").unwrap();
        drop(networks.lock().unwrap());
        assert!(!unfinished.exists());
    }
}
