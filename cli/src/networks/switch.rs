//! The switch of a network: a process that whoever joins first starts, and that ends with the last member. It is this program once more,
//! confined, without an environment.
//!
//! Its socket is in the directory of run directories, `.net-ID`. Whoever leaves removes it if nobody listens there any more, and so does the
//! sweep of every verb: a switch that was killed leaves nothing else.

use std::net::Ipv4Addr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{fs, io};

use anyhow::{Context, anyhow};
use serde_json::{Value, json};
use switch::client::{self, ClientError, Lease};
use switch::protocol::{Join, Listing, Network as Served, VERSION};
use vmm::user_network as user;

use super::{Network, Networks};
use crate::args::Publish;
use crate::args::vmm::{SANDBOX_VARIABLE, Sandbox};
use crate::failure::Outcome;
use crate::{paths, rundir};

/// The verb that starts it, which is for no one else.
pub const VERB: &str = "switch";
/// What it is called in error messages and to the kernel.
const NAME: &str = "switch";
/// How often to try: one that ends just now is in the way once.
const TRIES: usize = 5;

/// Who joins.
#[derive(Debug, Clone)]
pub struct Member {
    /// The container's id, or something else that nobody has.
    pub id: String,
    /// What it answers to.
    pub names: Vec<String>,
    /// Its address, if it is to have a certain one.
    pub ip: Option<Ipv4Addr>,
    /// What its guest sends from.
    pub mac: [u8; 6],
}

/// A place in a network, for as long as this is there.
#[derive(Debug)]
pub struct Membership {
    /// Of which.
    pub network: Network,
    /// Its address.
    pub ip: Ipv4Addr,
    mac: [u8; 6],
    socket: PathBuf,
    lease: Option<Lease>,
}

/// Joins the network of this name, starting its switch if there is none.
pub fn join(name: &str, member: Member) -> anyhow::Result<Membership> {
    // None comes or goes meanwhile, and two do not start a switch each.
    let locked = Networks::of(&paths::store())?.lock()?;
    let network = locked.find(name)?;
    let (socket, mac) = (socket(&network), member.mac);
    let join = Join { version: VERSION, id: member.id, names: member.names, mac, ip: member.ip };
    for _ in 0..TRIES {
        match client::join(&socket, &join) {
            Ok((lease, ip)) => return Ok(Membership { network, ip, mac, socket, lease: Some(lease) }),
            Err(ClientError::Io(error)) if is_gone(&error) => start(&network, &socket)?,
            Err(error) => return Err(error).with_context(|| format!("network {}", network.name)),
        }
    }
    let _ = rundir::remove_if_deaf(&paths::run(), &socket);
    Err(anyhow!(
        "network {}: its switch ends as soon as it is started; `dmesg` may tell why, or BULKHEAD_SANDBOX asks for more than this host has",
        network.name
    ))
}

/// Who is in a network. Nobody, if there is no switch.
pub fn members(network: &Network) -> Result<Listing, ClientError> {
    match client::list(&socket(network)) {
        Err(ClientError::Io(error)) if is_gone(&error) => Ok(Listing::default()),
        other => other,
    }
}

impl Membership {
    /// What is behind the interface of the member's microVM, in a machine's configuration. Ports of the host lead to it by `publish`.
    pub fn port(&self, publish: &[Value]) -> Value {
        let Network { name, gateway, subnet, internal, .. } = &self.network;
        let mut port = json!({ "socket": self.socket, "greeting": client::greeting(self.mac), "network": name });
        if !internal {
            let place = json!({ "guest": self.ip, "prefix_len": subnet.prefix_len(), "gateway": gateway });
            port["uplink"] = json!({ "publish": publish, "place": place });
        }
        port
    }

    /// What its guest is told.
    pub fn guest(&self) -> guest_protocol::Network {
        let Network { gateway, subnet, internal, .. } = &self.network;
        let address = guest_protocol::Address {
            ip: self.ip.octets(),
            prefix_len: subnet.prefix_len(),
            gateway: (!internal).then(|| gateway.octets()),
        };
        guest_protocol::Network { mac: self.mac, mtu: Some(user::MTU), address: Some(address) }
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        drop(self.lease.take());
        // If it was the last one.
        let _ = rundir::remove_if_deaf(&paths::run(), &self.socket);
    }
}

/// `-p`, as passt is configured.
pub fn published(publish: &[Publish]) -> Vec<Value> {
    let port = |port: &Publish| {
        let protocol = if port.udp { "udp" } else { "tcp" };
        json!({ "protocol": protocol, "host_ip": port.host_ip, "host_port": port.host_port, "guest_port": port.guest_port })
    };
    publish.iter().map(port).collect()
}

/// Whether there is no switch: there never was, it has ended, or it was about to.
fn is_gone(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionRefused, ConnectionReset, NotFound, UnexpectedEof};
    matches!(error.kind(), BrokenPipe | ConnectionRefused | ConnectionReset | NotFound | UnexpectedEof)
}

fn socket(network: &Network) -> PathBuf {
    paths::run().join(format!("{}{}", rundir::SWITCH_PREFIX, network.id.short()))
}

/// Starts the switch of a network. It serves connections that are made from now on.
fn start(network: &Network, socket: &Path) -> anyhow::Result<()> {
    let listen = || {
        match fs::remove_file(socket) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(socket)?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    };
    let listener = rundir::beside(&paths::run(), listen)?.with_context(|| format!("socket {}", socket.display()))?;
    let served = Served {
        name: network.name.clone(),
        gateway: network.gateway,
        prefix_len: network.subnet.prefix_len(),
        internal: network.internal,
    };
    let mut command = Command::new("/proc/self/exe");
    command.arg0("bulkhead").args([VERB, &serde_json::to_string(&served)?]).current_dir("/").env_clear();
    command.envs(std::env::var_os(SANDBOX_VARIABLE).map(|value| (SANDBOX_VARIABLE, value)));
    command.stdin(OwnedFd::from(listener)).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = command.spawn().context("cannot start the network's switch")?;
    // It may end while this process goes on, and is to be nobody then.
    let wait = move || drop(child.wait());
    std::thread::Builder::new().name("switch-end".into()).spawn(wait).context("cannot start a thread")?;
    Ok(())
}

/// Is the switch of the network that `served` describes, whose socket is on stdin. The first thing that its process does.
pub fn serve(served: &str) -> Outcome {
    let _ = rustix::process::setsid();
    let served: Served = serde_json::from_str(served).map_err(|error| anyhow!("switch: {error}"))?;
    let listener = io::stdin().as_fd().try_clone_to_owned()?;
    rustix::stdio::dup2_stdin(fs::File::open("/dev/null")?)?;
    let missing = match Sandbox::wanted(None)? {
        wanted @ (Sandbox::Enforce | Sandbox::Require) => {
            let missing = vmm::sandbox::confine(NAME, switch::CALLS)?;
            match missing.first().filter(|_| wanted == Sandbox::Require) {
                Some(what) => return Err(anyhow!("the network's switch lacks {what}").into()),
                None => missing,
            }
        }
        Sandbox::Log | Sandbox::Off => vec!["all of it, as it was told (BULKHEAD_SANDBOX)".into()],
    };
    switch::serve(listener, served, missing)?;
    Ok(0)
}
