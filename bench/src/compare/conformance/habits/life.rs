//! What can be done with a container that stays, and with images.

use super::{Habit, Step, all, code, done, habit, out};

/// Says that it is there, and waits to be ended.
const WAITS: &str = "echo up; touch /up; exec sleep 1000";
/// Until that one is.
const IS_UP: Step = done(&["exec", "{name}", "sh", "-c", "until test -e /up; do sleep 0.1; done"]);
const START: Step = out(&["run", "-d", "--name", "{name}", "{image}", "sh", "-c", WAITS]);

pub(super) const HABITS: &[Habit] = &[
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
            out(&["kill", "{name}"]),
            out(&["wait", "{name}"]),
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
        "a process that has no handler for the stop signal",
        &[START, IS_UP, out(&["stop", "-t", "1", "{name}"]), out(&["inspect", "-f", "{{.State.ExitCode}}", "{name}"])],
    )
    .differs("it is ended by that here, as if docker had been given --init; without, it is killed after the time-out"),
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
            out(&["rm", "{name}", "{name}-2"]),
        ],
    ),
    habit(
        "several names, one of which is nobody's",
        &[
            out(&["create", "--name", "{name}", "{image}", "true"]),
            done(&["rm", "{name}", "{name}-none"]),
            done(&["inspect", "{name}"]),
        ],
    )
    .differs("the others are removed here, as by docker; podman removes none"),
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
