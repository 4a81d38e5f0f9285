//! What a container in a pod may ask for, and what it is told: the network, its names and volumes are the pod's.

use std::fs;
use std::path::Path;

use anyhow::{Context, anyhow};
use guest_protocol::{Beside, Names, Start, Volume};
use serde::{Deserialize, Serialize};

use crate::args::{Isolation, Place, Run};
use crate::rates::Rates;
use crate::volumes::ImageVolume;

/// The file in a pod's run directory.
const FILE: &str = "pod.json";
/// Most processes and threads of a container beside others: what podman lets one have.
pub const PROCESSES: u32 = 2048;
/// Kernel parameters that are each container's own: those of its IPC namespace (namespaces(7)), or what they begin with.
const OWN_PARAMETERS: [&str; 4] = ["kernel/shm", "kernel/msg", "kernel/sem", "fs/mqueue/"];

/// Whether a kernel parameter, by its path, is one of an IPC namespace.
pub fn is_of_ipc(path: &str) -> bool {
    OWN_PARAMETERS.iter().any(|own| path.starts_with(own))
}

/// Refuses the first flag that is none of a member's, with where it goes.
pub fn check(args: &Run) -> anyhow::Result<()> {
    let settings = &args.settings;
    let network = args.network.is_some() || !args.egress.is_empty() || args.place != Place::default();
    let names = !settings.dns.is_empty() || !settings.dns_search.is_empty() || !settings.dns_option.is_empty();
    let its = "it is the pod's: `bulkhead pod create` takes it";
    let refused = [
        (args.isolation == Isolation::Container, "--isolation container", "a pod is a microVM"),
        (network, "--network, --egress, --ip, --mac-address and --network-alias", its),
        (!args.publish.is_empty(), "-p", its),
        (args.hostname.is_some(), "--hostname", its),
        (names, "--dns, --dns-search and --dns-option", its),
        (!settings.add_host.is_empty(), "--add-host", its),
        (
            settings.sysctl.iter().any(|one| !is_of_ipc(&one.path)),
            "--sysctl",
            "but for those of shared memory, messages and semaphores it is the pod's: `bulkhead pod create` takes it",
        ),
        (args.kernel.is_some() || !args.append.is_empty(), "--kernel and --append", its),
        (args.cold || args.require_jail, "--cold and --require-jail", its),
        (
            args.volume.iter().any(|volume| !volume.is_own()),
            "-v",
            "volumes are the pod's, and in all of its containers: `bulkhead pod create -v`",
        ),
        (
            args.image_volume == ImageVolume::Anonymous,
            "--image-volume anonymous",
            "the volumes of a pod are made with it; leave it out",
        ),
        (
            args.rates != Rates::default(),
            "--device-read-bps and its kin",
            "the devices are the pod's, whose containers share them",
        ),
    ];
    match refused.into_iter().find(|(given, ..)| *given) {
        None => Ok(()),
        Some((_, flag, why)) => Err(anyhow!("{flag}: not with --pod: {why}")),
    }
}

/// What all members of a pod are told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Told {
    hostname: String,
    names: Names,
    volumes: Vec<Volume>,
}

impl Told {
    /// From what the pod itself would have been told as a container, and its volumes.
    pub fn of(start: &Start, volumes: Vec<Volume>) -> Self {
        Told { hostname: start.hostname.clone(), names: start.names.clone(), volumes }
    }

    /// Leaves it in the pod's run directory.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn leave(&self, directory: &Path) -> anyhow::Result<()> {
        let path = directory.join(FILE);
        fs::write(&path, serde_json::to_vec(self)?).with_context(|| path.display().to_string())
    }

    /// What the pod of that run directory has left.
    ///
    /// # Errors
    /// It has ended, or is another version's.
    pub fn find(directory: &Path) -> anyhow::Result<Self> {
        let path = directory.join(FILE);
        let read = || anyhow::Ok(serde_json::from_slice(&fs::read(&path)?)?);
        read().with_context(|| path.display().to_string())
    }

    /// Has a member be told that, and what it may take of the guest.
    pub fn tell(self, start: &mut Start, flags: &Run) {
        let Told { hostname, names, volumes } = self;
        start.hostname = hostname;
        start.names = names;
        // What an image wants a volume for gives way to one that is there.
        start.volumes.retain(|own| volumes.iter().all(|one| one.target != own.target));
        start.volumes.extend(volumes);
        // What lies in another one is mounted after it.
        start.volumes.sort_by_key(|volume| volume.target.matches('/').count());
        start.settings.beside = Some(Beside {
            memory_bytes: flags.machine.memory.map(|mib| mib << 20),
            cpu_thousandths: flags.machine.cpus.map(|cpus| cpus.thousandths()),
            processes: Some(PROCESSES),
            privileged: flags.settings.privileged,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Cli, Verb};
    use clap::Parser as _;

    fn run(line: &str) -> Run {
        let words = "bulkhead run --pod p".split(' ').chain(line.split_whitespace()).chain(["image"]);
        let Verb::Run(run) = Cli::parse_from(words).verb else { panic!("not run") };
        *run
    }

    #[test]
    fn what_is_the_pods_is_refused_by_its_name() {
        for fine in [
            "-it --rm -e A=1 -m 64m --cpus 0.5 --tmpfs /run --cap-add SYS_ADMIN --privileged",
            "--sysctl kernel.shmmax=1 --read-only",
        ] {
            check(&run(fine)).unwrap();
        }
        for (line, words) in [
            ("--network none", "--network"),
            ("-p 80:80", "-p: not with --pod: it is the pod's: `bulkhead pod create`"),
            ("--hostname x", "--hostname"),
            ("--dns 9.9.9.9", "--dns"),
            ("--add-host a:1.1.1.1", "--add-host"),
            ("--sysctl net.ipv4.ip_forward=1", "--sysctl"),
            ("--append quiet", "--append"),
            ("-v /a:/b", "pod create -v"),
            ("-v /b", "pod create -v"),
            ("--device-read-bps 1m", "--device-read-bps"),
            ("--isolation container", "--isolation"),
        ] {
            let error = check(&run(line)).unwrap_err().to_string();
            assert!(error.contains(words) && error.contains("--pod"), "{line}: {error}");
        }
    }

    #[test]
    fn members_are_told_what_their_pod_has_left() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Told::find(dir.path()).unwrap_err().to_string().contains(FILE));
        let names = Names { hosts: vec!["10.0.0.1\tdb".into()], resolv_conf: None };
        let told = Told { hostname: "web".into(), names, volumes: Vec::new() };
        told.leave(dir.path()).unwrap();
        assert_eq!(Told::find(dir.path()).unwrap(), told);
        fs::write(dir.path().join(FILE), "{}").unwrap();
        assert!(Told::find(dir.path()).is_err());
    }
}
