//! Flags that mean something to a microVM only.

use anyhow::anyhow;

use crate::args::Run;
use crate::pods::member::is_of_ipc;

/// Refuses the first that is given.
pub fn check(args: &Run) -> anyhow::Result<()> {
    let refused = [
        (args.settings.privileged, "--privileged", "that would be over this host, and not over a kernel of its own"),
        (
            args.settings.sysctl.iter().any(|one| !is_of_ipc(&one.path) && !one.path.starts_with("net/")),
            "--sysctl",
            "but for those of networks, shared memory, messages and semaphores they are this host's",
        ),
        (args.require_jail, "--require-jail", "there is no process of a microVM"),
        (
            args.kernel.is_some() || !args.append.is_empty() || args.cold,
            "--kernel, --append and --cold",
            "it has this host's kernel",
        ),
    ];
    match refused.into_iter().find(|(given, ..)| *given) {
        None => Ok(()),
        Some((_, flag, why)) => Err(anyhow!("{flag}: not with --isolation container: {why}")),
    }
}

#[cfg(test)]
mod tests {
    use super::check as checked;
    use crate::args::{Cli, Verb};
    use clap::Parser as _;

    #[test]
    fn what_is_about_microvms_is_refused_by_its_name() {
        let check = |line: &[&str]| {
            let words = ["bulkhead", "run", "--isolation", "container"];
            let cli = Cli::parse_from(words.iter().chain(line).chain(&["image"]));
            let Verb::Run(run) = cli.verb else { panic!("not run") };
            checked(&run)
        };
        let flags = [
            "-i",
            "-t",
            "--rm",
            "-m",
            "64m",
            "--cpus",
            "0.5",
            "--device-read-bps",
            "1m",
            "--network",
            "none",
            "-v",
            "/a:/b",
            "--cap-add",
            "ALL",
            "--sysctl",
            "net.ipv4.ip_forward=1",
            "--sysctl",
            "kernel.shmmax=1",
        ];
        check(&flags).unwrap();
        for (line, word) in [
            (&["--privileged"][..], "--privileged"),
            (&["--cold"], "--cold"),
            (&["--sysctl", "kernel.panic=1"], "--sysctl"),
        ] {
            let error = check(line).unwrap_err().to_string();
            assert!(error.contains(word) && error.contains("--isolation container"), "{error}");
        }
    }
}
