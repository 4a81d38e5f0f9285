//! What the program says that looks from inside. In a microVM that is the guest's word: it is bounded, and taken for no more.

use std::collections::BTreeMap;

use serde::Serialize;

/// What was found from inside.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub struct Inside {
    /// The kernel that answered is not this host's: it has another boot id.
    pub own_kernel: bool,
    /// What the process sees of itself: `kernel`, `boot_id`, `Uid`, `CapEff`, `CapBnd`, `NoNewPrivs`, `Seccomp`, `ns_*`, `processes`,
    /// `descriptors`, `devices`, `partitions`.
    pub facts: BTreeMap<String, String>,
    /// File systems that it sees.
    pub mounts: Vec<Mount>,
    /// Its attempts.
    pub probes: Vec<Tried>,
}

/// A file system.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Mount {
    /// Where.
    pub path: String,
    /// Its kind.
    pub kind: String,
}

/// An attempt.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Tried {
    /// With others like it.
    pub group: String,
    /// What was tried.
    pub what: String,
    /// `allowed`, `refused`, `absent`.
    pub outcome: String,
    /// The kernel's reason, if it gave one.
    pub error: Option<String>,
    /// Whose kernel answered, and would be reached: `own kernel`, `host kernel`.
    pub reaches: &'static str,
}

/// The text, once its last line is there.
pub(super) fn complete(said: &[u8]) -> Option<String> {
    said.ends_with(b"\nend\n").then(|| String::from_utf8_lossy(said).into_owned())
}

impl Inside {
    /// What the lines say; `host` is this host's boot id.
    pub(super) fn parse(text: &str, host: Option<&str>) -> Result<Self, String> {
        let mut inside = Inside::default();
        for line in text.lines().take_while(|line| *line != "end") {
            let words: Vec<&str> = line.split('\t').collect();
            match words[..] {
                ["fact", key, value] => {
                    inside.facts.insert(key.to_owned(), value.to_owned());
                }
                ["mount", path, kind] => inside.mounts.push(Mount { path: path.to_owned(), kind: kind.to_owned() }),
                ["probe", group, what, outcome @ ("allowed" | "refused" | "absent"), ref error @ ..] => {
                    let (group, what, outcome) = (group.to_owned(), what.to_owned(), outcome.to_owned());
                    let error = error.first().map(|number| reason(number));
                    inside.probes.push(Tried { group, what, outcome, error, reaches: "" });
                }
                _ => return Err(format!("it says what no program of ours does: {line:?}")),
            }
        }
        let (Some(boot), Some(host)) = (inside.facts.get("boot_id").filter(|id| !id.is_empty()), host) else {
            return Err("it cannot be told whose kernel answers: there is no /proc/sys/kernel/random/boot_id".into());
        };
        inside.own_kernel = boot != host;
        let reaches = if inside.own_kernel { "own kernel" } else { "host kernel" };
        inside.probes.iter_mut().for_each(|probe| probe.reaches = reaches);
        Ok(inside)
    }
}

/// The text of an error's number.
fn reason(number: &str) -> String {
    let Ok(number) = number.parse::<i32>() else { return number.to_owned() };
    let text = std::io::Error::from_raw_os_error(number).to_string();
    text.split(" (os error").next().unwrap_or_default().to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAID: &str =
        "fact\tboot_id\taaaa\nmount\t/\toverlay\nprobe\tmounts\tmake a tmpfs\trefused\t1\nprobe\tx\ty\tallowed\nend\n";

    #[test]
    fn whose_kernel_answers_is_told_by_its_boot() {
        let own = Inside::parse(SAID, Some("bbbb")).unwrap();
        assert_eq!((own.own_kernel, own.probes[0].reaches), (true, "own kernel"));
        assert_eq!(own.probes[0].error.as_deref(), Some("operation not permitted"));
        assert_eq!((own.probes[1].outcome.as_str(), &own.probes[1].error), ("allowed", &None));
        assert_eq!(own.mounts, [Mount { path: "/".into(), kind: "overlay".into() }]);
        let shared = Inside::parse(SAID, Some("aaaa")).unwrap();
        assert_eq!((shared.own_kernel, shared.probes[1].reaches), (false, "host kernel"));
        // Nothing is guessed where it matters.
        assert!(Inside::parse(SAID, None).is_err() && Inside::parse("fact\tboot_id\t\nend\n", Some("a")).is_err());
        assert!(Inside::parse("probe\ta\tb\tmaybe\nend\n", Some("a")).is_err());
        assert!(Inside::parse("\u{1b}[31m\nend\n", Some("a")).is_err());
    }

    #[test]
    fn it_is_complete_with_its_last_line() {
        assert!(complete(SAID.as_bytes()).is_some() && complete(&SAID.as_bytes()[..SAID.len() - 1]).is_none());
        assert!(complete(b"end\n").is_none() && complete(b"").is_none());
    }
}
