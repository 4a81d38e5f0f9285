//! The command line of the per-VM process, which other verbs write.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use anyhow::anyhow;
use clap::{ArgGroup, Parser, ValueEnum};
use vmm::api::controller::DEFAULT_ID;
use vmm::sandbox::Mode;

/// The process of one microVM. Its configuration comes from a file, a descriptor or the clients of its control socket.
#[derive(Debug, Clone, Parser)]
#[command(name = "bulkhead vmm")]
#[command(group = ArgGroup::new("source").args(["config_fd", "config_file", "api_sock"]).required(true).multiple(true))]
pub struct Vmm {
    /// Read the configuration from this file, in Firecracker's format, and boot at once
    #[arg(long, value_name = "FILE", conflicts_with = "config_fd")]
    pub config_file: Option<PathBuf>,
    /// Serve the control socket here, with Firecracker's API
    #[arg(long, value_name = "PATH")]
    pub api_sock: Option<PathBuf>,
    /// Serve no control socket, as is so without --api-sock
    #[arg(long, conflicts_with = "api_sock")]
    pub no_api: bool,
    /// What the control socket calls the microVM
    #[arg(long, value_name = "ID", default_value = DEFAULT_ID, value_parser = vm_id)]
    pub id: String,
    /// Read the configuration from this descriptor, up to the end of file, and boot at once
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(0..1024))]
    pub config_fd: Option<u32>,
    /// Write events to this descriptor, as JSON lines; 1 with --config-fd
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..1024))]
    pub events_fd: Option<u32>,
    /// End with this process, which must be the parent
    #[arg(long, value_name = "PID")]
    pub parent: Option<u32>,
    /// How to confine the process once the guest runs: `enforce` (as is so without it) ends it for what it must not do, `require` does
    /// not run a guest where the host cannot give all of that, `log` has the kernel's log tell of it, `off` does nothing
    #[arg(long, value_enum, value_name = "enforce|require|log|off", hide_possible_values = true)]
    pub sandbox: Option<Sandbox>,
    /// Let requests of the control socket name files only below this directory, of which there are none else then; may be repeated.
    /// Anywhere if not given
    #[arg(long, value_name = "DIR")]
    pub files: Vec<PathBuf>,
    /// Keep KVM's CPUID leaves in this file from one microVM to the next
    #[arg(long, value_name = "FILE")]
    pub cpuid_cache: Option<PathBuf>,
}

/// Variable that says what `--sandbox` is where that is not given.
pub const SANDBOX_VARIABLE: &str = "BULKHEAD_SANDBOX";

/// How the process is confined.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Sandbox {
    Enforce,
    Require,
    Log,
    Off,
}

impl Sandbox {
    /// As the monitor takes it.
    pub fn mode(self) -> Option<Mode> {
        match self {
            Sandbox::Enforce | Sandbox::Require => Some(Mode::Enforce),
            Sandbox::Log => Some(Mode::Log),
            Sandbox::Off => None,
        }
    }

    /// What the flag says, or else the environment.
    ///
    /// # Errors
    /// The environment says something else.
    pub fn wanted(flag: Option<Self>) -> anyhow::Result<Self> {
        match (flag, std::env::var_os(SANDBOX_VARIABLE).filter(|word| !word.is_empty())) {
            (Some(flag), _) => Ok(flag),
            (None, None) => Ok(Sandbox::Enforce),
            (None, Some(word)) => word
                .to_str()
                .and_then(|word| Sandbox::from_str(word, false).ok())
                .ok_or_else(|| anyhow!("{SANDBOX_VARIABLE} is {word:?}, and not one of enforce, require, log, off")),
        }
    }
}

fn vm_id(text: &str) -> Result<String, String> {
    let usual = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    if (1..=64).contains(&text.len()) && text.bytes().all(usual) {
        Ok(text.to_owned())
    } else {
        Err("an id has letters, digits, '-', '_' and '.', 1 to 64 in all".into())
    }
}

impl Vmm {
    /// Parses what other verbs write after the verb, flags with a value each, all of them right. `None` leaves it to clap,
    /// which takes 60 us to get ready, to say what is wrong, or means.
    pub fn quick(words: &[OsString]) -> Option<Self> {
        let (mut config_fd, mut events_fd, mut parent, mut cpuid_cache) = (None, None, None, None);
        let (mut api_sock, mut id, mut files) = (None, None, Vec::new());
        let path = |word: &OsStr| (!word.is_empty()).then(|| PathBuf::from(word));
        let number = |word: &OsStr| word.to_str()?.parse::<u32>().ok();
        let descriptor = |word: &OsStr| number(word).filter(|&fd| fd < 1024);
        for pair in words.chunks(2) {
            let [flag, value] = pair else { return None };
            match flag.to_str()? {
                "--config-fd" => config_fd = Some(descriptor(value)?),
                "--events-fd" => events_fd = Some(descriptor(value).filter(|&fd| fd > 0)?),
                "--parent" => parent = Some(number(value)?),
                "--cpuid-cache" => cpuid_cache = Some(path(value)?),
                "--api-sock" => api_sock = Some(path(value)?),
                "--files" => files.push(path(value)?),
                "--id" => id = Some(vm_id(value.to_str()?).ok()?),
                _ => return None,
            }
        }
        let config_fd = Some(config_fd?);
        let id = id.unwrap_or_else(|| DEFAULT_ID.to_owned());
        let (config_file, no_api, sandbox) = (None, false, None);
        Some(Vmm { config_file, api_sock, no_api, id, config_fd, events_fd, parent, sandbox, files, cpuid_cache })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<OsString> {
        line.split_ascii_whitespace().map(OsString::from).collect()
    }

    #[test]
    fn the_short_way_and_claps_agree() {
        for line in [
            "vmm --config-fd 0",
            "vmm --config-fd 7 --events-fd 1023 --parent 12 --cpuid-cache /run/bulkhead/.cpuid",
            "vmm --parent 12 --config-fd 1023",
            "vmm --config-fd 0 --api-sock /run/x --id a.b",
            "vmm --config-fd 0 --files /a --files b",
        ] {
            let words = words(line);
            let quick = Vmm::quick(&words[1..]).unwrap_or_else(|| panic!("{line}"));
            assert_eq!(format!("{quick:?}"), format!("{:?}", Vmm::try_parse_from(&words).unwrap()), "{line}");
        }
        assert_eq!(Vmm::try_parse_from(words("vmm --config-fd=3")).unwrap().config_fd, Some(3));
    }

    #[test]
    fn what_is_wrong_is_left_to_clap() {
        for line in [
            "vmm",
            "vmm --config-fd",
            "vmm --config-fd 1024",
            "vmm --config-fd 0 --events-fd 0",
            "vmm --config-fd -1",
            "vmm --config-fd 0 --parent x",
            "vmm --config-fd 0 --nope 1",
            "vmm --config-fd 0 --id a/b",
            "vmm --help",
        ] {
            let words = words(line);
            assert!(Vmm::quick(&words[1..]).is_none() && Vmm::try_parse_from(&words).is_err(), "{line}");
        }
    }
}
