//! The habits.
//!
//! `{image}` in a word is the image, `{name}` a name that nothing else has, `{dir}` a directory of the host with the files `in` and `env`.

/// What users do, and what they are used to come of it.
#[derive(Debug, Clone, Copy)]
pub struct Habit {
    /// In a few words.
    pub title: &'static str,
    pub(super) steps: &'static [Step],
    /// Why it comes to something else here, where that is meant.
    pub(super) differs: Option<&'static str>,
}

/// One command, and what of its answer is compared.
#[derive(Debug, Clone, Copy)]
pub(super) struct Step {
    pub words: &'static [&'static str],
    pub input: &'static str,
    pub told: Told,
    /// Of outputs, the order of lines says nothing.
    pub any_order: bool,
}

/// What an engine tells by a command that others are to tell as well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Told {
    /// Whether it could be done. Engines have codes of their own for why not.
    Success,
    /// Exit code.
    Code,
    /// That and stdout.
    Output,
    /// And stderr: where both are those of the container's process.
    All,
}

type Words = &'static [&'static str];

const fn step(words: Words, told: Told) -> Step {
    Step { words, input: "", told, any_order: false }
}
const fn done(words: Words) -> Step {
    step(words, Told::Success)
}
const fn code(words: Words) -> Step {
    step(words, Told::Code)
}
const fn out(words: Words) -> Step {
    step(words, Told::Output)
}
const fn all(words: Words) -> Step {
    step(words, Told::All)
}

impl Step {
    const fn fed(self, input: &'static str) -> Step {
        Step { input, ..self }
    }
    const fn any_order(self) -> Step {
        Step { any_order: true, ..self }
    }
}

const fn habit(title: &'static str, steps: &'static [Step]) -> Habit {
    Habit { title, steps, differs: None }
}

impl Habit {
    const fn differs(self, why: &'static str) -> Habit {
        Habit { differs: Some(why), ..self }
    }
}

/// Says that it is there, and waits to be ended.
const WAITS: &str = "echo up; touch /up; exec sleep 1000";
/// Until that one is.
const IS_UP: Step = done(&["exec", "{name}", "sh", "-c", "until test -e /up; do sleep 0.1; done"]);
const START: Step = out(&["run", "-d", "--name", "{name}", "{image}", "sh", "-c", WAITS]);

/// All of them.
pub const HABITS: &[Habit] = &[
    habit(
        "two streams and the exit code",
        &[
            all(&["run", "--rm", "{image}", "sh", "-c", "echo out; echo err >&2; exit 7"]),
            all(&["run", "--rm", "{image}", "true"]),
        ],
    ),
    habit(
        "what cannot be run",
        &[
            code(&["run", "--rm", "{image}", "no-such-command"]),
            code(&["run", "--rm", "{image}", "/etc/passwd"]),
            code(&["run", "--rm", "{image}", "/etc"]),
            code(&["run", "--rm", "--no-such-flag", "{image}", "true"]),
        ],
    ),
    habit(
        "a process that a signal ends",
        &[code(&["run", "--rm", "{image}", "sh", "-c", "kill -9 $$; sleep 1; exit 3"])],
    ),
    habit(
        "a terminal",
        &[out(&["run", "--rm", "-t", "{image}", "sh", "-c", "test -t 0 && test -t 1 && echo a terminal"])],
    ),
    habit(
        "input",
        &[
            out(&["run", "--rm", "-i", "{image}", "cat"]).fed("one\ntwo"),
            out(&["run", "--rm", "{image}", "cat"]).fed("nobody reads this"),
        ],
    ),
    habit(
        "the environment",
        &[
            out(&[
                "run",
                "--rm",
                "--hostname",
                "seven",
                "-e",
                "A=two words",
                "{image}",
                "sh",
                "-c",
                "env | grep -v ^container=",
            ])
            .any_order(),
            out(&["run", "--rm", "--env-file", "{dir}/env", "-e", "Y=3", "{image}", "sh", "-c", "echo $X, $Y"]),
        ],
    ),
    habit(
        "the working directory",
        &[
            out(&["run", "--rm", "-w", "/tmp", "{image}", "pwd"]),
            out(&["run", "--rm", "-w", "/made/for/it", "{image}", "sh", "-c", "pwd; stat -c %a:%u /made/for/it"]),
        ],
    ),
    habit(
        "the user",
        &[
            out(&["run", "--rm", "{image}", "id"]),
            out(&["run", "--rm", "-u", "daemon", "{image}", "sh", "-c", "id; echo $HOME"]),
            out(&["run", "--rm", "-u", "1234:4321", "{image}", "sh", "-c", "id -u; id -g; echo $HOME"]),
            done(&["run", "--rm", "-u", "nobody-knows-them", "{image}", "true"]),
        ],
    ),
    habit(
        "the entry point",
        &[
            out(&["run", "--rm", "--entrypoint", "echo", "{image}", "hello", "there"]),
            out(&["run", "--rm", "--entrypoint", "", "{image}", "echo", "plain"]),
        ],
    ),
    habit(
        "host names",
        &[
            out(&[
                "run",
                "--rm",
                "--hostname",
                "seven",
                "{image}",
                "sh",
                "-c",
                "cat /etc/hostname /proc/sys/kernel/hostname",
            ]),
            out(&["run", "--rm", "{image}", "sh", "-c", "wc -c < /etc/hostname"]),
            out(&["run", "--rm", "--add-host", "db:10.1.2.3", "{image}", "getent", "hosts", "db"]),
        ],
    ),
    habit(
        "its process is the first",
        &[
            out(&["run", "--rm", "{image}", "sh", "-c", "echo $$; ls -d /proc/[0-9]*"]),
            out(&[
                "run",
                "--rm",
                "{image}",
                "sh",
                "-c",
                "umask; grep -E '^(Uid|Groups|SigIgn|NoNewPrivs)' /proc/self/status",
            ]),
        ],
    ),
    habit(
        "capabilities",
        &[
            out(&["run", "--rm", "--cap-drop", "ALL", "{image}", "grep", "Cap", "/proc/self/status"]),
            out(&[
                "run",
                "--rm",
                "--cap-drop",
                "all",
                "--cap-add",
                "chown",
                "{image}",
                "grep",
                "Cap",
                "/proc/self/status",
            ]),
            out(&["run", "--rm", "-u", "daemon", "{image}", "grep", "CapEff", "/proc/self/status"]),
        ],
    ),
    habit("capabilities that all have", &[out(&["run", "--rm", "{image}", "grep", "CapEff", "/proc/self/status"])])
        .differs("they are docker's here; podman leaves out AUDIT_WRITE, MKNOD and NET_RAW"),
    habit(
        "files that cannot be written",
        &[
            out(&["run", "--rm", "--read-only", "{image}", "sh", "-c", "touch /x 2>/dev/null || echo no"]),
            out(&["run", "--rm", "{image}", "sh", "-c", "(echo 1 > /proc/sysrq-trigger) 2>/dev/null || echo no"]),
        ],
    ),
    habit(
        "file systems in memory",
        &[
            out(&[
                "run",
                "--rm",
                "--tmpfs",
                "/t:size=1m,mode=700",
                "{image}",
                "sh",
                "-c",
                "stat -f -c %T /t; stat -c %a /t; df -k /t | awk 'NR==2{print $2}'",
            ]),
            out(&["run", "--rm", "--shm-size", "1m", "{image}", "sh", "-c", "df -k /dev/shm | awk 'NR==2{print $2}'"]),
            out(&[
                "run",
                "--rm",
                "{image}",
                "sh",
                "-c",
                "df -k /dev/shm | awk 'NR==2{print $2}'; stat -c %a /dev/shm /tmp",
            ]),
        ],
    ),
    habit(
        "limits and parameters",
        &[
            out(&["run", "--rm", "--ulimit", "nofile=100:200", "{image}", "sh", "-c", "ulimit -Sn; ulimit -Hn"]),
            out(&[
                "run",
                "--rm",
                "--sysctl",
                "net.ipv4.ip_default_ttl=77",
                "{image}",
                "cat",
                "/proc/sys/net/ipv4/ip_default_ttl",
            ]),
        ],
    ),
    habit(
        "devices",
        &[out(&[
            "run",
            "--rm",
            "{image}",
            "sh",
            "-c",
            "cd /dev; stat -c '%n %a' full null random tty urandom zero; readlink fd stdin stdout stderr ptmx",
        ])],
    ),
    habit(
        "directories of the host",
        &[
            out(&["run", "--rm", "-v", "{dir}:/d", "{image}", "sh", "-c", "cat /d/in; echo back > /d/out; ls /d"]),
            out(&[
                "run",
                "--rm",
                "-v",
                "{dir}:/d:ro",
                "{image}",
                "sh",
                "-c",
                "cat /d/out; touch /d/x 2>/dev/null || echo no",
            ]),
            out(&["run", "--rm", "-v", "{dir}/in:/etc/in:ro", "{image}", "cat", "/etc/in"]),
        ],
    ),
    habit(
        "named volumes",
        &[
            out(&["volume", "create", "{name}"]),
            done(&["run", "--rm", "-v", "{name}:/v", "{image}", "sh", "-c", "echo kept > /v/f"]),
            out(&["run", "--rm", "-v", "{name}:/v:ro", "{image}", "cat", "/v/f"]),
            out(&["volume", "ls", "-q", "--filter", "name={name}"]),
            done(&["volume", "rm", "{name}"]),
            done(&["volume", "rm", "{name}"]),
        ],
    ),
    habit(
        "a file with the id",
        &[
            code(&["run", "--rm", "--cidfile", "{dir}/id", "{image}", "true"]),
            out(&["run", "--rm", "-v", "{dir}:/d", "{image}", "cat", "/d/id"]),
            done(&["run", "--rm", "--cidfile", "{dir}/id", "{image}", "true"]),
        ],
    ),
    habit(
        "a container's life",
        &[
            out(&["create", "--name", "{name}", "{image}", "sh", "-c", "echo one; exit 3"]),
            done(&["create", "--name", "{name}", "{image}", "true"]),
            out(&["inspect", "-f", "{{.State.Status}} {{.State.Running}}", "{name}"]),
            all(&["start", "-a", "{name}"]),
            out(&["inspect", "-f", "{{.State.Status}} {{.State.ExitCode}}", "{name}"]),
            code(&["start", "-a", "{name}"]),
            all(&["logs", "{name}"]),
            out(&["logs", "--tail", "1", "{name}"]),
            out(&["wait", "{name}"]),
            out(&["rm", "{name}"]),
            done(&["inspect", "{name}"]),
            done(&["logs", "{name}"]),
            done(&["start", "{name}"]),
        ],
    ),
    habit(
        "what is known of it",
        &[
            out(&[
                "create",
                "--name",
                "{name}",
                "--label",
                "a=b",
                "-w",
                "/tmp",
                "-u",
                "daemon",
                "-e",
                "X=1",
                "{image}",
                "echo",
                "two words",
            ]),
            out(&[
                "inspect",
                "-f",
                "{{.Path}} {{json .Args}} {{json .Config.Cmd}} {{.Config.User}} {{.Config.WorkingDir}}",
                "{name}",
            ]),
            out(&[
                "inspect",
                "-f",
                "{{.Config.Tty}} {{.Config.OpenStdin}} {{json .Config.Labels}} {{.HostConfig.NetworkMode}} {{.HostConfig.ReadonlyRootfs}}",
                "{name}",
            ]),
            out(&["ps", "-a", "--filter", "name={name}", "--format", "{{.Names}}"]),
            out(&["ps", "-aq", "--filter", "label=a=b", "--filter", "name={name}"]),
            out(&["ps", "-q", "--filter", "name={name}"]),
        ],
    ),
    habit(
        "in the background",
        &[
            START,
            IS_UP,
            out(&["inspect", "-f", "{{.State.Running}}", "{name}"]),
            out(&["ps", "--filter", "name={name}", "--filter", "status=running", "--format", "{{.Names}}"]),
            done(&["rm", "{name}"]),
            done(&["start", "{name}"]),
            out(&["logs", "{name}"]),
            code(&["stop", "-t", "1", "{name}"]),
            out(&["inspect", "-f", "{{.State.Status}} {{.State.ExitCode}}", "{name}"]),
            done(&["stop", "{name}"]),
            done(&["kill", "{name}"]),
            out(&["start", "{name}"]),
            out(&["inspect", "-f", "{{.State.Running}}", "{name}"]),
            done(&["rm", "-f", "{name}"]),
            done(&["rm", "{name}"]),
        ],
    ),
    habit(
        "commands in it",
        &[
            START,
            IS_UP,
            all(&["exec", "{name}", "sh", "-c", "echo in; echo err >&2; exit 5"]),
            out(&["exec", "-i", "{name}", "cat"]).fed("fed\n"),
            out(&["exec", "-e", "A=1", "-w", "/tmp", "-u", "daemon", "{name}", "sh", "-c", "echo $A; pwd; id -un"]),
            code(&["exec", "{name}", "no-such-command"]),
            out(&["exec", "{name}", "sh", "-c", "kill -0 1 && echo the first is there"]),
            code(&["exec", "-d", "{name}", "touch", "/left"]),
            done(&["stop", "-t", "0", "{name}"]),
            done(&["exec", "{name}", "true"]),
        ],
    ),
    habit(
        "signals",
        &[
            out(&[
                "run",
                "-d",
                "--name",
                "{name}",
                "{image}",
                "sh",
                "-c",
                "trap 'echo got it; exit 9' USR1; touch /up; while :; do sleep 0.1; done",
            ]),
            IS_UP,
            done(&["kill", "-s", "NOSUCH", "{name}"]),
            out(&["kill", "-s", "USR1", "{name}"]),
            out(&["wait", "{name}"]),
            out(&["logs", "{name}"]),
        ],
    ),
    habit(
        "the stop signal",
        &[
            out(&[
                "run",
                "-d",
                "--name",
                "{name}",
                "--stop-signal",
                "USR1",
                "{image}",
                "sh",
                "-c",
                "trap 'exit 4' USR1; touch /up; while :; do sleep 0.1; done",
            ]),
            IS_UP,
            out(&["stop", "{name}"]),
            out(&["inspect", "-f", "{{.State.ExitCode}}", "{name}"]),
        ],
    ),
    habit(
        "standing still",
        &[
            START,
            IS_UP,
            done(&["unpause", "{name}"]),
            out(&["pause", "{name}"]),
            out(&["inspect", "-f", "{{.State.Status}}", "{name}"]),
            done(&["pause", "{name}"]),
            out(&["unpause", "{name}"]),
            out(&["inspect", "-f", "{{.State.Status}}", "{name}"]),
        ],
    ),
    habit(
        "again, and by another name",
        &[
            START,
            IS_UP,
            out(&["restart", "-t", "0", "{name}"]),
            out(&["inspect", "-f", "{{.State.Running}}", "{name}"]),
            done(&["rename", "{name}", "{name}-2"]),
            out(&["inspect", "-f", "{{.State.Running}}", "{name}-2"]),
            done(&["inspect", "{name}"]),
        ],
    ),
    habit(
        "files in and out",
        &[
            START,
            IS_UP,
            code(&["cp", "{dir}/in", "{name}:/root/there"]),
            out(&["exec", "{name}", "cat", "/root/there"]),
            code(&["cp", "{name}:/root/there", "{dir}/back"]),
            out(&["run", "--rm", "-v", "{dir}:/d", "{image}", "cat", "/d/back"]),
            done(&["cp", "{name}:/nowhere", "{dir}/x"]),
            done(&["cp", "{dir}/nothing", "{name}:/x"]),
        ],
    ),
    habit(
        "what it has changed",
        &[
            code(&[
                "run",
                "--name",
                "{name}",
                "{image}",
                "sh",
                "-c",
                "echo new > /root/new; rm /etc/debian_version; mkdir /srv/d; chmod 700 /opt",
            ]),
            out(&["diff", "{name}"]).any_order(),
            done(&["commit", "{name}", "{name}"]),
            out(&[
                "run",
                "--rm",
                "{name}",
                "sh",
                "-c",
                "cat /root/new; ls /etc/debian_version 2>/dev/null; stat -c %a /opt /srv/d",
            ]),
            done(&["rmi", "{name}"]),
        ],
    ),
    habit(
        "several names at once",
        &[
            out(&["create", "--name", "{name}", "{image}", "true"]),
            out(&["create", "--name", "{name}-2", "{image}", "true"]),
            done(&["rm", "{name}", "{name}-none"]),
            done(&["inspect", "{name}"]),
            out(&["rm", "{name}-2"]),
        ],
    ),
    habit(
        "names of images",
        &[
            done(&["tag", "{image}", "{name}:one"]),
            out(&["run", "--rm", "{name}:one", "echo", "tagged"]),
            done(&["rmi", "{name}:one"]),
            done(&["run", "--rm", "{name}:one", "true"]),
            done(&["inspect", "--type", "image", "{image}"]),
            done(&["history", "{image}"]),
        ],
    ),
    habit(
        "archives of images",
        &[
            done(&["save", "-o", "{dir}/archive.tar", "{image}"]),
            done(&["load", "-i", "{dir}/archive.tar"]),
            done(&["load", "-i", "{dir}/in"]),
        ],
    ),
];
