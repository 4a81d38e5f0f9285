//! The attendance socket: what other verbs ask of the one that has a VM (docs/attendance.md).
//!
//! - this file: the orders there are, and the answers;
//! - [`server`]: the side of the VM's owner, which no client can hold up;
//! - [`talk`]: a client of that side that goes on talking, for as long as the process runs that it asked for;
//! - [`client`]: the side that asks.

pub mod client;
pub mod server;
pub mod talk;

use guest_protocol::files::Helper;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::args::Run;
use crate::rates::Rates;
use crate::restart::Policy;
use crate::size::Cpus;

/// The socket's name in a run directory.
pub const SOCKET: &str = "attend";
/// Version of what is spoken.
pub const VERSION: u64 = 1;
/// Longest line that asks for something, its end included: an environment may be in it, which has as much room on its way to the guest.
pub const MAX_ORDER: usize = 1 << 20;
/// Longest line of an answer, its end included.
const MAX_ANSWER: usize = 64 << 10;
/// Longest line of a client that goes on talking, its end included.
const MAX_WORD: usize = 256;

/// What can be asked: one line of JSON, with `"version": 1` beside these members.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "order", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Order {
    /// Tell about the VM.
    About {},
    /// Take a snapshot.
    Snapshot {
        /// What it is to be called; a number behind the VM's name otherwise.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        name: Option<String>,
    },
    /// Send the container's process a signal.
    Signal {
        /// Which: 1 to 31.
        signal: u8,
    },
    /// Change what the container may take, or what is to become of it when it has ended.
    Update(Update),
    /// Have its processors stand still.
    Pause {},
    /// Have them go on.
    Unpause {},
    /// End the VM, whatever its guest says to that.
    End {},
    /// Go on from a snapshot, in place of what the VM is now.
    Rollback {
        /// Its name, or the beginning of its id.
        to: String,
    },
    /// Start another process in the container.
    Exec(Exec),
    /// Be at the streams of the container's own process.
    Attach(Attach),
}

/// What is to change of a container.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Update {
    /// Whether it is started again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restart: Option<Policy>,
    /// How many CPUs it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpus: Option<Cpus>,
    /// Its guest's memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_mib: Option<u64>,
    /// How fast its devices are.
    #[serde(default, skip_serializing_if = "is_default")]
    pub rates: Rates,
}

fn is_default(rates: &Rates) -> bool {
    *rates == Rates::default()
}

impl Update {
    /// Has the container be started so the next time.
    pub fn apply(self, flags: &mut Run) {
        flags.restart = self.restart.unwrap_or(flags.restart);
        flags.machine.cpus = self.cpus.or(flags.machine.cpus);
        flags.machine.memory = self.memory_mib.or(flags.machine.memory);
        flags.rates = self.rates.or(flags.rates).that_limit();
    }
}

/// A process that is to join a container's main one, and is like that one where nothing is said.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Exec {
    /// The command.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<String>,
    /// Not a command, but something that the guest's init does itself: then all else but `stdin` says nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub helper: Option<Helper>,
    /// `KEY=value`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<String>,
    /// Its working directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// Its user, and group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// It gets a terminal of this size.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub terminal: Option<Size>,
    /// It gets input.
    #[serde(default)]
    pub stdin: bool,
    /// Nobody is to be at its streams, nor waits for its end.
    #[serde(default)]
    pub detached: bool,
}

/// Somebody who wants to be at the streams of a container's own process.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attach {
    /// At its input as well, if it has one.
    #[serde(default)]
    pub stdin: bool,
    /// Size of the terminal that this one has, which the process's has from then on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub terminal: Option<Size>,
}

/// Size of a terminal in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Size {
    /// Lines.
    pub rows: u16,
    /// Characters in a line.
    pub columns: u16,
}

/// What a client says of the process that it has asked for, once that has its streams: one line each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Word {
    /// Send it this signal.
    Signal(u8),
    /// Its terminal has this size.
    Resize(Size),
    /// This client leaves it, and it is to go on.
    Detach,
}

/// One stream of a process, on its way to the client. Each comes with a descriptor, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stream {
    /// What it reads.
    Stdin,
    /// What it writes.
    Stdout,
    /// Its second stream.
    Stderr,
    /// Both ways, instead of the three.
    Terminal,
}

/// What is answered: any number of `progress`, then one of the others, each on a line of its own.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// It goes on.
    Progress(String),
    /// The process runs, and these are its streams: the line carries a descriptor for each (unix(7), SCM_RIGHTS).
    Streams(Vec<Stream>),
    /// It is done.
    Done(Value),
    /// It cannot be done; one line for people.
    Error(String),
}

impl Order {
    /// The line that asks for it.
    pub fn encode(&self) -> Result<String, serde_json::Error> {
        let mut value = serde_json::to_value(self)?;
        value["version"] = VERSION.into();
        Ok(format!("{value}\n"))
    }

    /// The order on a line; `Err` says what is wrong with it.
    pub fn decode(line: &[u8]) -> Result<Self, String> {
        let mut value: Value = serde_json::from_slice(line).map_err(|e| format!("not a line of JSON: {e}"))?;
        let version = value.as_object_mut().and_then(|object| object.remove("version"));
        match version {
            Some(version) if version == json!(VERSION) => {}
            Some(version) => {
                let shown: String = version.to_string().chars().take(20).collect();
                return Err(format!("version {shown} is spoken by the client, {VERSION} by the microVM's owner"));
            }
            None => return Err("'version' is missing".into()),
        }
        match serde_json::from_value(value).map_err(|e| e.to_string())? {
            Order::Exec(Exec { args, helper: None, .. }) if args.is_empty() => Err("missing field `args`".into()),
            order => Ok(order),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn orders_read_back_and_others_are_refused_with_the_reason() {
        let exec = Exec { args: vec!["ls".into()], terminal: Some(Size { rows: 1, columns: 2 }), ..Exec::default() };
        for order in [
            Order::About {},
            Order::Snapshot { name: None },
            Order::Rollback { to: "one".into() },
            Order::Pause {},
            Order::Update(Update { restart: Some(Policy::OnFailure(Some(3))), ..Update::default() }),
            Order::Update(Update { cpus: Cpus::try_from(0.5).ok(), memory_mib: Some(64), ..Update::default() }),
            Order::Update(Update {
                rates: Rates { device_read_iops: Some(9), ..Rates::default() },
                ..Update::default()
            }),
            Order::Unpause {},
            Order::Attach(Attach { stdin: true, terminal: Some(Size { rows: 1, columns: 2 }) }),
            Order::Exec(Exec { args: vec!["true".into()], ..Exec::default() }),
            Order::Exec(Exec { env: vec!["A=1".into()], cwd: Some("/".into()), user: Some("0".into()), ..exec }),
        ] {
            assert_eq!(Order::decode(order.encode().unwrap().as_bytes()), Ok(order));
        }
        for (line, word) in [
            ("", "JSON"),
            ("[]", "version"),
            (r#"{"order":"about"}"#, "version"),
            (r#"{"version":2,"order":"about"}"#, "version 2"),
            (r#"{"version":"1","order":"about"}"#, "version \"1\""),
            (r#"{"version":1,"order":"explode"}"#, "explode"),
            (r#"{"version":1,"order":"rollback"}"#, "to"),
            (r#"{"version":1,"order":"snapshot","path":"/etc"}"#, "path"),
            (r#"{"version":1,"order":"exec"}"#, "args"),
            (r#"{"version":1,"order":"update","cpus":1e9}"#, "1000000000"),
            (r#"{"version":1,"order":"update","swap":1}"#, "swap"),
            (r#"{"version":1,"order":"exec","helper":"Everything"}"#, "Everything"),
            (r#"{"version":1,"order":"exec","args":["ls"],"root":true}"#, "root"),
            (r#"{"version":1,"order":"exec","args":["ls"],"terminal":{"rows":1}}"#, "columns"),
        ] {
            let error = Order::decode(line.as_bytes()).unwrap_err();
            assert!(error.contains(word), "{line}: {error}");
        }
    }

    proptest! {
        #[test]
        fn no_line_is_more_than_refused(mut line in prop::collection::vec(any::<u8>(), 0..200), at in any::<prop::sample::Index>(), with in any::<u8>()) {
            let _ = Order::decode(&line);
            line = Order::Snapshot { name: Some("one".into()) }.encode().unwrap().into_bytes();
            let place = at.index(line.len());
            line[place] = with;
            let _ = Order::decode(&line);
        }
    }
}
