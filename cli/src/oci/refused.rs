//! Flags that mean something to a microVM only.

use anyhow::anyhow;

use crate::args::{Network, Place, Run};
use crate::rates::Rates;
use crate::restart::Policy;

/// Refuses the first that is given.
pub fn check(args: &Run) -> anyhow::Result<()> {
    let network = !matches!(args.network, None | Some(Network::None))
        || !args.publish.is_empty()
        || !args.egress.is_empty()
        || args.place != Place::default();
    let refused = [
        (args.detach, "-d", "nobody would look after it; leave it out, or run it in a microVM"),
        (args.restart != Policy::No, "--restart", "nobody would look after it"),
        (network, "--network, -p and --egress", "it has a loopback interface only"),
        (args.rates != Rates::default(), "rates", "they are those of a microVM's devices"),
        (args.settings.privileged, "--privileged", "that would be over this host, and not over a kernel of its own"),
        (args.require_jail, "--require-jail", "there is no process of a microVM"),
        (
            args.kernel.is_some() || !args.append.is_empty() || args.cold,
            "--kernel, --append and --cold",
            "it has this host's kernel",
        ),
        (args.volume.iter().any(|volume| volume.is_anonymous()), "-v DST", "write NAME:DST for a volume"),
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
        let flags =
            ["-i", "-t", "--rm", "-m", "64m", "--cpus", "0.5", "--network", "none", "-v", "/a:/b", "--cap-add", "ALL"];
        check(&flags).unwrap();
        for (line, word) in [
            (&["-d"][..], "-d"),
            (&["-p", "80:80"], "-p"),
            (&["--network", "user"], "--network"),
            (&["--device-read-bps", "1m"], "rates"),
            (&["--privileged"], "--privileged"),
            (&["--cold"], "--cold"),
            (&["-v", "/data"], "-v DST"),
        ] {
            let error = check(line).unwrap_err().to_string();
            assert!(error.contains(word) && error.contains("--isolation container"), "{error}");
        }
    }
}
