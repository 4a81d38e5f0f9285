//! What a container is that is run, and goes.

use super::{Habit, all, code, done, habit, out};

pub(super) const HABITS: &[Habit] = &[
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
        "the first process cannot kill itself",
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
                "env | grep -vE '^(container|TERM)='",
            ])
            .any_order(),
            out(&["run", "--rm", "--env-file", "{dir}/env", "-e", "Y=3", "{image}", "sh", "-c", "echo $X, $Y"]),
        ],
    ),
    habit("the working directory", &[out(&["run", "--rm", "-w", "/tmp", "{image}", "pwd"])]),
    habit(
        "a working directory that is not there",
        &[out(&["run", "--rm", "-w", "/made/for/it", "{image}", "sh", "-c", "pwd; stat -c %a:%u /made/for/it"])],
    )
    .differs("it is made here, as by docker; podman refuses it"),
    habit(
        "the home of a user that the image does not know",
        &[out(&["run", "--rm", "-u", "1234:4321", "{image}", "sh", "-c", "echo $HOME"])],
    )
    .differs("it is / here, as with docker; podman's is the working directory"),
    habit(
        "the user",
        &[
            out(&["run", "--rm", "{image}", "id"]),
            out(&["run", "--rm", "-u", "daemon", "{image}", "sh", "-c", "id; echo $HOME"]),
            out(&["run", "--rm", "-u", "1234:4321", "{image}", "sh", "-c", "id -u; id -g"]),
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
                "echo $(cat /etc/hostname) $(cat /proc/sys/kernel/hostname)",
            ]),
            out(&["run", "--rm", "{image}", "sh", "-c", "echo $(cat /etc/hostname) | wc -c"]),
            out(&["run", "--rm", "--add-host", "db:10.1.2.3", "{image}", "getent", "hosts", "db"]),
        ],
    ),
    habit(
        "its process is the first",
        &[
            out(&["run", "--rm", "{image}", "sh", "-c", "echo $$; ls -d /proc/[0-9]*"]),
            out(&["run", "--rm", "{image}", "sh", "-c", "umask; grep -E '^(Uid|Gid|NoNewPrivs)' /proc/self/status"]),
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
            out(&["run", "--rm", "{image}", "sh", "-c", "stat -c %a /dev/shm /tmp"]),
        ],
    ),
    habit(
        "limits and parameters",
        &[
            out(&[
                "run",
                "--rm",
                "--ulimit",
                "nofile=100:200",
                "--ulimit",
                "nproc=300:400",
                "--ulimit",
                "cpu=500",
                "{image}",
                "sh",
                "-c",
                "ulimit -Sn; ulimit -Hn; ulimit -Sp; ulimit -Hp; ulimit -St; ulimit -Ht",
            ]),
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
];
