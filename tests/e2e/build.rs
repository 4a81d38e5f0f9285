//! `bulkhead build`: RUN in guests, and what becomes of a build that fails or is ended.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use rustix::process::Signal;
use serde_json::Value;
use tests::{Ended, Lab, Running};

use crate::lab;

/// A lab whose store has Debian under this name, and what makes guests start warm.
fn with_debian(lab: Lab) -> Lab {
    let lab = lab.own_store_with(&["layers", "merged", "templates"]);
    let tar = lab.images("debian.tar").display().to_string();
    done(&lab, &["load", "-q", "-i", &tar, "--name", "debian"]);
    lab
}

fn done(lab: &Lab, arguments: &[&str]) -> String {
    let ended = lab.run(arguments);
    assert_eq!(ended.code, Some(0), "{arguments:?}: {ended:?}");
    ended.text().to_owned()
}

fn context(lab: &Lab, dockerfile: &str) -> String {
    let dir = lab.path("context");
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join("Dockerfile"), dockerfile).unwrap();
    dir.display().to_string()
}

fn build(lab: &Lab, flags: &[&str], context: &str) -> Ended {
    let command = lab.bulkhead([&["build"], flags, &[context]].concat());
    Running::start(command).end(lab.patience(3))
}

/// No container is left, and nothing of one.
fn assert_clean(lab: &Lab) {
    assert_eq!(done(lab, &["ps", "-a", "-q"]), "");
    lab.assert_clean();
}

/// Two stages with RUNs: the image has what was copied of the first one, and what the commands of the second have made.
#[test]
fn a_dockerfile_becomes_an_image_that_runs() {
    let lab = lab!("a_dockerfile_becomes_an_image_that_runs", on hardware);
    let lab = with_debian(lab);
    let dir = context(
        &lab,
        "ARG BASE=debian\nFROM ${BASE} AS tools\nARG WHO=nobody\nENV TIER=\"web $WHO\"\n\
         RUN echo \"$TIER for $WHO\" > /made && \\\n    # a comment\n    mkdir -m 700 /private && rm /etc/issue\n\
         FROM debian\nCOPY --from=tools /made /copied/\nWORKDIR /srv/app\nCOPY --chown=www-data . .\nRUN chown www-data . && rm README && mkdir -m 700 /private && (sleep 1000 &)\nUSER www-data\n\
         RUN [\"sh\", \"-c\", \"id -un > who; echo $PWD >> who; ls -A >> who; echo told; echo warned >&2\"]\n\
         CMD cat /copied/made who; ls -ld /private . | cut -d' ' -f1,3; ls /etc/issue /made README 2>/dev/null || true\n",
    );
    fs::write(Path::new(&dir).join(".dockerignore"), "*\n!README\n!keep\n").unwrap();
    for name in ["README", "keep", "secret"] {
        fs::write(Path::new(&dir).join(name), name).unwrap();
    }
    let flags = ["-t", "app:1", "-t", "example.org/app", "--build-arg", "WHO=me", "--label", "a=b"];
    let first = build(&lab, &flags, &dir);
    assert_eq!((first.code, first.text()), (Some(0), ""), "{first:?}");
    for words in ["told", "warned", "naming to example.org/app"] {
        assert!(first.stderr.lines().any(|line| line.starts_with('#') && line.ends_with(words)), "{words}: {first:?}");
    }
    let made = "web me for me\nwww-data\n/srv/app\nkeep\nwho\n";
    let there = "drwxr-xr-x www-data\ndrwx------ root\n/etc/issue\n";
    assert_eq!(done(&lab, &["run", "app:1"]), format!("{made}{there}"));
    assert_clean(&lab);
}

/// The layers of one build are there for the next, up to what has changed; the image goes through an archive.
#[test]
fn a_second_build_takes_what_the_first_one_made() {
    let lab = lab!("a_second_build_takes_what_the_first_one_made", on the machine);
    let lab = with_debian(lab);
    let dir = context(
        &lab,
        "FROM debian\nENV A=1\nRUN mkdir -m 1777 /shared; rm /etc/issue; date +%N > /once\nCOPY file /shared/\nCMD cat /once /shared/file\n",
    );
    let file = Path::new(&dir).join("file");
    fs::write(&file, "one\n").unwrap();
    let id = |ended: &Ended| {
        assert_eq!(ended.code, Some(0), "{ended:?}");
        ended.text().trim().to_owned()
    };
    let first = id(&build(&lab, &["-q", "-t", "app"], &dir));
    assert!(first.starts_with("sha256:"), "{first}");
    let once = done(&lab, &["run", "app"]);
    let again = build(&lab, &["-t", "app"], &dir);
    assert!(again.code == Some(0) && again.stderr.matches(" CACHED\n").count() == 2, "{again:?}");
    let inspected: Value = serde_json::from_str(&done(&lab, &["inspect", "--type", "image", "app"])).unwrap();
    assert_eq!(inspected[0]["Id"], first.as_str(), "the same steps on the same layers are the same image");
    // What is behind a change is made anew, and what is before it is not.
    fs::write(&file, "two\n").unwrap();
    let changed = build(&lab, &["-t", "app"], &dir);
    assert!(changed.code == Some(0) && changed.stderr.matches(" CACHED\n").count() == 1, "{changed:?}");
    let steps: Vec<Value> = done(&lab, &["history", "--format", "json", "--no-trunc", "app"])
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let by: Vec<&str> = steps.iter().take(4).map(|step| step["CreatedBy"].as_str().unwrap()).collect();
    let run = "RUN /bin/sh -c mkdir -m 1777 /shared; rm /etc/issue; date +%N > /once";
    assert_eq!(by, ["CMD cat /once /shared/file", "COPY file /shared/", run, "ENV A=1"]);
    // Through an archive, with nothing left of the first one.
    let archive = lab.path("app.tar").display().to_string();
    done(&lab, &["save", "-o", &archive, "app"]);
    let before = done(&lab, &["images", "-q"]);
    done(&lab, &["rmi", "app"]);
    done(&lab, &["rmi", "debian"]);
    let df: Value = serde_json::from_str(&done(&lab, &["system", "df", "--format", "json"])).unwrap();
    assert!(df["build_cache"]["count"].as_u64().is_some_and(|count| count >= 3), "{df}");
    done(&lab, &["system", "prune"]);
    let df: Value = serde_json::from_str(&done(&lab, &["system", "df", "--format", "json"])).unwrap();
    assert_eq!((&df["build_cache"]["count"], &df["images"]["blobs"]), (&0.into(), &0.into()), "{df}");
    lab.share(&["templates"]);
    done(&lab, &["load", "-q", "-i", &archive]);
    assert!(before.contains(done(&lab, &["images", "-q"]).trim()));
    let script = "cat /once /shared/file; stat -c %a /shared; ls /etc/issue 2>&1 | wc -l; ls /etc/debian_version";
    let there = "1777\n1\n/etc/debian_version\n";
    assert_eq!(done(&lab, &["run", "app", "sh", "-c", script]), once.replace("one", "two") + there);
    assert_clean(&lab);
}

#[test]
fn a_command_that_fails_ends_the_build_with_its_words_and_nothing_else() {
    let lab = lab!("a_command_that_fails_ends_the_build_with_its_words_and_nothing_else", on the machine);
    let lab = with_debian(lab);
    let dir = context(&lab, "FROM debian\nRUN echo out; echo err >&2; exit 3\n");
    let quiet = build(&lab, &["-q", "-t", "app"], &dir);
    assert_eq!((quiet.code, quiet.text()), (Some(1), ""), "{quiet:?}");
    for words in [" out\n", " err\n", "bulkhead: Dockerfile:2: RUN echo out; echo err >&2; exit 3: ", "exit code 3\n"] {
        assert!(quiet.stderr.contains(words), "{words}: {quiet:?}");
    }
    context(&lab, "FROM debian\nRUN [\"/no/such/program\"]\n");
    let missing = build(&lab, &["-t", "app"], &dir);
    assert!(missing.code == Some(1) && missing.stderr.contains("/no/such/program"), "{missing:?}");
    context(&lab, "FROM debian\nUSER nobody-knows\nRUN true\n");
    let nobody = build(&lab, &["-t", "app"], &dir);
    assert!(nobody.code == Some(1) && nobody.stderr.contains("nobody-knows"), "{nobody:?}");
    assert!(!done(&lab, &["images"]).contains("app"));
    assert_clean(&lab);
}

/// `bulkhead build` with all that it tells on stdout, where it can be waited for.
fn building(lab: &Lab, dir: &str) -> Running {
    let own = lab.keeping(["build", "-t", "app", dir]);
    let mut command = Command::new("sh");
    command.args(["-c", "exec \"$0\" \"$@\" 2>&1"]).arg(own.get_program()).args(own.get_args());
    command.envs(own.get_envs().filter_map(|(key, value)| Some((key, value?)))).stdin(std::process::Stdio::null());
    Running::start(command)
}

#[test]
fn a_build_that_is_ended_leaves_nothing() {
    let lab = lab!("a_build_that_is_ended_leaves_nothing", on the machine);
    let patience = lab.patience(3);
    let lab = with_debian(lab);
    let dir = context(&lab, "FROM debian\nRUN trap '' INT TERM; echo waiting; while :; do sleep 1000; done\n");
    let mut running = building(&lab, &dir);
    running.wait_for(" waiting\n", patience);
    running.signal(Signal::INT);
    let ended = running.end(patience);
    assert_eq!(ended.code, Some(130), "{ended:?}");
    assert_clean(&lab);
    // After SIGKILL the next command cleans up.
    let mut running = building(&lab, &dir);
    running.wait_for(" waiting\n", patience);
    running.signal(Signal::KILL);
    running.end(patience);
    assert_clean(&lab);
}

#[test]
fn group_13_a_hostile_context_gives_nothing_of_the_host_away() {
    let lab = lab!("group_13_a_hostile_context_gives_nothing_of_the_host_away");
    let lab = lab.own_store();
    let dir = context(&lab, "");
    fs::write(lab.path("secret"), "secret").unwrap();
    symlink("../secret", Path::new(&dir).join("out")).unwrap();
    symlink("/etc", Path::new(&dir).join("etc")).unwrap();
    for (lines, words) in [
        ("COPY ../secret /", &["out of the build context"][..]),
        ("COPY out /", &["out of the context"]),
        ("COPY etc/passwd /", &["out of the context"]),
        ("ADD etc/* /", &["out of the context"]),
        ("COPY /etc/passwd /", &["out of the context"]),
    ] {
        context(&lab, &format!("FROM scratch\n{lines}\n"));
        build(&lab, &["-q"], &dir).assert_failed(1, words);
    }
    context(&lab, "FROM scratch\nCOPY . /\n");
    fs::remove_file(Path::new(&dir).join("etc")).unwrap();
    // A link goes as it is: it leads to the image's own files, if anywhere.
    let id = build(&lab, &["-q"], &dir).text().to_owned();
    assert!(done(&lab, &["images"]).contains("build"), "{id}");
    build(&lab, &["--nope"], &dir).assert_failed(125, &["--nope"]);
    build(&lab, &[], &lab.path("nowhere").display().to_string()).assert_failed(1, &["nowhere"]);
    lab.assert_clean();
}

/// Two at once, that make the same layers in one store.
#[test]
fn two_builds_at_once_are_two_images() {
    let lab = lab!("two_builds_at_once_are_two_images");
    let patience = lab.patience(4);
    let lab = with_debian(lab);
    let dir = context(&lab, "FROM debian\nARG N=0\nCOPY Dockerfile /shared\nENV OWN=$N\nCOPY Dockerfile /own/$N/\n");
    let start = |name: &str| {
        let (tag, arg) = (format!("two:{name}"), format!("N={name}"));
        Running::start(lab.bulkhead(["build", "-q", "-t", &tag, "--build-arg", &arg, &dir]))
    };
    for running in ["1", "2"].map(start) {
        let ended = running.end(patience);
        assert_eq!(ended.code, Some(0), "{ended:?}");
    }
    for name in ["1", "2"] {
        let image: Value = serde_json::from_str(&done(&lab, &["inspect", &format!("two:{name}")])).unwrap();
        let layers = image[0]["RootFS"]["Layers"].as_array().unwrap().len();
        let own = format!("OWN={name}");
        assert!(image[0]["Config"]["Env"].to_string().contains(&own) && layers >= 3, "{image}");
    }
    assert_clean(&lab);
}
