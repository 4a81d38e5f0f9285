//! A network for runtimes, which make none themselves: a network namespace, and a pair of interfaces between it and the host, as
//! engines have it, without the bridge that they put in between. By unshare(1), nsenter(1) and ip(8), and for root.
//!
//! Nothing of it has a name or is mounted: a process holds the namespace, and ends with what it reads, which is a pipe of ours. So all of it
//! goes with this process, however that ends.

use std::path::PathBuf;
use std::process::Command;

use super::arm::{missing, program};
use super::running::{Input, Patience, Running, answer};
use crate::process::BenchError;

/// Says that the namespace is there, and holds it.
const HOLD: &str = "echo; exec cat";

/// The network. Dropped, it is gone.
pub(super) struct Wire {
    holder: Running,
}

impl Wire {
    /// A new one, or why there is none. `number`: of several that a process has.
    pub fn new(number: u8, patience: Patience<'_>) -> Result<Self, String> {
        if !rustix::process::geteuid().is_root() {
            return Err("network namespaces are for root".into());
        }
        let tool = |name: &str| program(name).ok_or_else(|| missing(name));
        let [unshare, nsenter, ip] = [tool("unshare")?, tool("nsenter")?, tool("ip")?];
        let said = |error: BenchError| error.to_string();
        let mut hold = Command::new(unshare);
        hold.args(["--net", "sh", "-c", HOLD]);
        let mut holder = Running::start(hold, Input::Open(Vec::new())).map_err(said)?;
        holder.line(1, patience).map_err(|error| said(holder.words(error)))?;
        let pid = holder.pid();
        let interface = format!("bb{}-{number}", std::process::id());
        let [here, there] = addresses(std::process::id(), number);
        let inside = |words: String| (Some(&nsenter), words);
        for (enter, words) in [
            (None, format!("link add {interface} type veth peer name eth0 netns {pid}")),
            (None, format!("addr add {here}/30 dev {interface}")),
            (None, format!("link set {interface} up")),
            inside(format!("addr add {there}/30 dev eth0")),
            inside(String::from("link set eth0 up")),
            inside(String::from("link set lo up")),
            inside(format!("route add default via {here}")),
        ] {
            let command = line(&ip, enter, pid, &words);
            answer(command, patience).map_err(said)?;
        }
        Ok(Wire { holder })
    }

    /// The namespace.
    pub fn path(&self) -> String {
        format!("/proc/{}/ns/net", self.holder.pid())
    }
}

/// `ip WORDS`, in the namespace of a process if there is something to enter it by.
fn line(ip: &PathBuf, enter: Option<&PathBuf>, pid: u32, words: &str) -> Command {
    let mut command = match enter {
        Some(nsenter) => {
            let mut command = Command::new(nsenter);
            command.args(["--net", "--target", &pid.to_string()]).arg(ip);
            command
        }
        None => Command::new(ip),
    };
    command.args(words.split(' '));
    command
}

/// Of the host and of the other end: a network of 4 in 198.19.0.0/16, which RFC 2544 keeps off the internet for benchmarks.
fn addresses(pid: u32, number: u8) -> [String; 2] {
    let place = (pid.wrapping_mul(2).wrapping_add(u32::from(number)) % (1 << 14)) << 2;
    [1, 2].map(|host| format!("198.19.{}.{}", place >> 8, (place & 0xff) + host))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd as _;
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    #[test]
    fn each_wire_has_a_network_of_its_own() {
        assert_eq!(addresses(0, 0), ["198.19.0.1", "198.19.0.2"]);
        assert_eq!(addresses(0, 1), ["198.19.0.5", "198.19.0.6"]);
        assert_eq!(addresses(8191, 1), ["198.19.255.253", "198.19.255.254"]);
        let pairs = (1000..1100).flat_map(|pid| [addresses(pid, 0), addresses(pid, 1)]);
        assert_eq!(pairs.collect::<std::collections::BTreeSet<_>>().len(), 200);
        // IFNAMSIZ is 16 with the NUL, and the greatest process id 4194304.
        assert!("bb4194304-1".len() < 16);
    }

    #[test]
    fn it_goes_with_who_has_it() {
        let (stop, _other) = UnixStream::pair().unwrap();
        let patience = Patience { limit: Duration::from_secs(30), stop: stop.as_fd() };
        // Not for everyone, and not everywhere.
        let Ok(wire) = Wire::new(0, patience) else { return };
        let interface = format!("/sys/class/net/bb{}-0", std::process::id());
        assert!(std::fs::exists(&interface).unwrap() && std::fs::exists(wire.path()).unwrap());
        drop(wire);
        // The kernel takes a namespace down in its own time.
        let began = std::time::Instant::now();
        while std::fs::exists(&interface).unwrap() {
            assert!(began.elapsed() < Duration::from_secs(30), "{interface} stays");
            std::thread::yield_now();
        }
    }
}
