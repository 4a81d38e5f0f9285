//! Every verb with what it cannot do: one line, the right code, and nothing lost.

use std::collections::BTreeSet;
use std::process::Command;

use tests::{Ended, Lab, Running};

use crate::lab;

/// What each verb says of a name that is nobody's: its words, docker's exit code, and what must be in its line. `DIR` is the test's directory.
const NOBODYS: &[(&str, i32, &str)] = &[
    ("run nobody", 125, "nobody"),
    ("run --network nobody made", 125, "nobody"),
    ("run --pod nobody made", 125, "nobody"),
    ("create nobody", 1, "nobody"),
    ("create --network nobody made", 1, "nobody"),
    ("create --pod nobody made", 1, "nobody"),
    ("start nobody", 1, "nobody"),
    ("start -a nobody", 1, "nobody"),
    ("stop nobody", 1, "nobody"),
    ("restart nobody", 1, "nobody"),
    ("kill nobody", 1, "nobody"),
    ("pause nobody", 1, "nobody"),
    ("unpause nobody", 1, "nobody"),
    ("wait nobody", 1, "nobody"),
    ("logs nobody", 1, "nobody"),
    ("why nobody", 1, "nobody"),
    ("port nobody", 1, "nobody"),
    ("inspect nobody", 1, "nobody"),
    ("inspect --type image nobody", 1, "nobody"),
    ("update --cpus 1 nobody", 1, "nobody"),
    ("rename nobody new", 1, "nobody"),
    ("rm nobody", 1, "nobody"),
    ("attach nobody", 1, "nobody"),
    ("exec nobody true", 1, "nobody"),
    ("exec -d nobody true", 1, "nobody"),
    ("top nobody", 1, "nobody"),
    ("stats --no-stream nobody", 1, "nobody"),
    ("cp nobody:/x -", 1, "nobody"),
    ("cp DIR nobody:/", 1, "nobody"),
    ("diff nobody", 1, "nobody"),
    ("commit nobody x", 1, "nobody"),
    ("commit --memory nobody x", 1, "nobody"),
    ("snapshot nobody", 1, "nobody"),
    ("snapshots rm nobody", 1, "nobody"),
    ("rollback nobody x", 1, "nobody"),
    ("restore nobody", 125, "nobody"),
    ("build DIR/nobody", 1, "nobody"),
    ("load DIR/nobody", 1, "nobody"),
    ("load -i DIR/nobody", 1, "nobody"),
    ("save nobody", 1, "nobody"),
    ("tag nobody x", 1, "nobody"),
    ("history nobody", 1, "nobody"),
    ("rmi nobody", 1, "nobody"),
    ("rmi nobody@warm", 1, "nobody"),
    ("pull 127.0.0.1:1/nobody", 1, "127.0.0.1:1"),
    ("push nobody", 1, "nobody"),
    ("volume inspect nobody", 1, "nobody"),
    ("volume rm nobody", 1, "nobody"),
    ("network inspect nobody", 1, "nobody"),
    ("network rm nobody", 1, "nobody"),
    ("network connect nobody made", 1, "network"),
    ("network disconnect nobody made", 1, "network"),
    ("pod inspect nobody", 1, "nobody"),
    ("pod start nobody", 1, "nobody"),
    ("pod stop nobody", 1, "nobody"),
    ("pod kill nobody", 1, "nobody"),
    ("pod rm nobody", 1, "nobody"),
    ("audit nobody", 125, "nobody"),
    ("conformance --with true nobody", 125, "nobody"),
    ("boot --kernel DIR/nobody", 125, "nobody"),
    ("vmm --config-file DIR/nobody", 125, "nobody"),
    ("bench run nobody", 125, "nobody"),
];

/// The verbs that are about no name of something.
const NAMELESS: &[&str] = &[
    "ps",
    "images",
    "events",
    "doctor",
    "system df",
    "system prune",
    "volume ls",
    "volume create",
    "volume prune",
    "network ls",
    "network create",
    "network prune",
    "pod ls",
    "pod create",
    "pod prune",
    "snapshots ls",
    "snapshots prune",
];

/// What cannot be done with a container that has been made and never ran, nor with what it has: the same table.
const NOT_NOW: &[(&str, i32, &str)] = &[
    ("create --name made made", 1, "in use"),
    ("run --name made made", 125, "in use"),
    ("kill made", 1, "not running"),
    ("kill -s HUP made", 1, "not running"),
    ("pause made", 1, "not running"),
    ("unpause made", 1, "not running"),
    ("attach made", 1, "does not run"),
    ("exec made true", 1, "not running"),
    ("commit --memory made x", 1, "not running"),
    ("snapshot made", 1, "not running"),
    ("rollback made x", 1, "not running"),
    ("rename made other", 1, "in use"),
    ("rename made ../x", 1, "../x"),
    ("rmi made", 1, "conflict"),
    ("volume rm kept", 1, "in use"),
    ("pod kill idle", 1, "not running"),
    ("network create shop", 1, "shop"),
    ("pod create idle", 125, "in use"),
    ("pause member", 1, "not running"),
    ("create --pod idle -p 80:80 made", 125, "-p"),
    ("create --isolation container --privileged made", 125, "--privileged"),
    ("run --isolation container made@warm", 125, "--isolation"),
];

/// `bulkhead LINE` in this lab.
fn tell(lab: &Lab, line: &str) -> Ended {
    let dir = lab.path("dir").display().to_string();
    let words = line.split(' ').map(|word| word.replace("DIR", &dir));
    Running::start(lab.keeping(words)).end(lab.patience(1))
}

fn done(lab: &Lab, line: &str) -> String {
    let ended = tell(lab, line);
    assert_eq!(ended.code, Some(0), "{line}: {ended:?}");
    ended.text().trim().to_owned()
}

/// Those whose answer is another one. All are told, whatever the first one says.
fn wrong_answers(lab: &Lab, table: &[(&str, i32, &str)]) -> Vec<String> {
    let is_right = |ended: &Ended, code: i32, word: &str| {
        let stdout = ended.text();
        ended.code == Some(code)
            && (stdout.is_empty() || stdout == "[]\n")
            && ended.stderr.starts_with("bulkhead: ")
            && ended.stderr.lines().count() == 1
            && ended.stderr.contains(word)
    };
    let answers = table.iter().map(|(line, code, word)| (line, code, word, tell(lab, line)));
    let wrong = answers.filter(|(_, code, word, ended)| !is_right(ended, **code, word));
    wrong.map(|(line, code, word, ended)| format!("{line}: not {code} with '{word}': {ended:?}\n")).collect()
}

/// The verbs that `bulkhead WORDS --help` names.
fn verbs(lab: &Lab, words: &[&str]) -> Vec<String> {
    let help = Running::start(lab.keeping([words, &["--help"]].concat())).end(lab.patience(1));
    let text = help.text().to_owned();
    let list = text.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.trim().is_empty());
    let names = list.filter_map(|line| line.strip_prefix("  ").filter(|rest| !rest.starts_with(' ')));
    names.filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect()
}

/// A store with an image of nothing, and containers that wait to be started.
fn furnished(lab: &Lab) {
    std::fs::create_dir_all(lab.path("dir")).unwrap();
    std::fs::write(lab.path("dir").join("Dockerfile"), "FROM scratch\nCOPY Dockerfile /\nCMD [\"/none\"]\n").unwrap();
    done(lab, "build -q -t made DIR");
    done(lab, "create --name made -v kept:/kept made");
    done(lab, "create --name other made");
    done(lab, "network create shop");
    done(lab, "pod create --network none idle");
    done(lab, "create --name member --pod idle made");
}

/// A word that is nobody's name, and a state in which something cannot be done: every verb says so. A new verb fails here until it is in
/// one of the tables.
#[test]
fn every_verb_refuses_in_a_line_with_dockers_code() {
    let lab = lab!("every_verb_refuses_in_a_line_with_dockers_code", on the machine).own_store();
    std::fs::create_dir_all(lab.path("dir")).unwrap();
    // In a store in which there is nothing, and in one in which there is.
    let empty = wrong_answers(&lab, NOBODYS);
    furnished(&lab);
    let before = (done(&lab, "ps -aq"), done(&lab, "images -q"), done(&lab, "volume ls -q"), done(&lab, "pod ls -q"));
    let wrong = [empty, wrong_answers(&lab, NOBODYS), wrong_answers(&lab, NOT_NOW)].concat();
    assert!(wrong.is_empty(), "{}", wrong.concat());
    let after = (done(&lab, "ps -aq"), done(&lab, "images -q"), done(&lab, "volume ls -q"), done(&lab, "pod ls -q"));
    assert_eq!(before, after);

    let several = ["volume", "network", "pod", "system", "snapshots"];
    let own = verbs(&lab, &[]).into_iter().filter(|verb| !several.contains(&verb.as_str()));
    let inner =
        several.iter().flat_map(|verb| verbs(&lab, &[verb]).into_iter().map(move |inner| format!("{verb} {inner}")));
    let all: BTreeSet<String> = own.chain(inner).collect();
    let first = |line: &str| {
        let words: Vec<&str> =
            line.split(' ').take(if several.iter().any(|verb| line.starts_with(verb)) { 2 } else { 1 }).collect();
        words.join(" ")
    };
    let told: BTreeSet<String> =
        NOBODYS.iter().map(|(line, ..)| first(line)).chain(NAMELESS.iter().map(|line| (*line).to_owned())).collect();
    assert_eq!(all.difference(&told).collect::<Vec<_>>(), Vec::<&String>::new(), "verbs that no table has");

    // Without what it is about, and with a flag that it has not. Some do without, or are refused whatever one says.
    let content = ["load", "stats", "inspect", "network connect", "network disconnect"];
    let is_refused = |verb: &&String| !NAMELESS.contains(&verb.as_str()) && !content.contains(&verb.as_str());
    let needy = told.iter().filter(is_refused);
    let flagged = all.iter().filter(|verb| !content[3..].contains(&verb.as_str()));
    let words = |verb: &String, more: &str| format!("{verb}{more}");
    let lines: Vec<String> =
        needy.map(|verb| words(verb, "")).chain(flagged.map(|verb| words(verb, " --no-such-flag"))).collect();
    let table: Vec<(&str, i32, &str)> = lines.iter().map(|line| (line.as_str(), 125, "--help")).collect();
    let wrong = wrong_answers(&lab, &table);
    assert!(wrong.is_empty(), "{}", wrong.concat());
    lab.assert_clean();
}

/// What a full disk keeps from being done, and what can be done all the same: space is made by removing.
const FULL: &[(&str, i32)] = &[
    ("load -q -i ARCHIVE", 1),
    ("pull 127.0.0.1:1/none", 1),
    ("create --name more made", 1),
    ("run --network none made", 125),
    ("build -q -t more DIR2", 1),
    ("volume create more", 1),
    ("network create more", 1),
    ("pod create --network none more", 125),
    ("tag made more", 1),
    ("commit made more", 1),
    ("save -o STORE/archive made", 1),
    ("ps -a", 0),
    ("images", 0),
    ("inspect made", 0),
    ("volume ls", 0),
    ("network ls", 0),
    ("pod ls", 0),
    ("system df", 0),
    ("logs made", 0),
    ("events --since 1 --until 2", 0),
];

#[test]
fn every_verb_on_a_full_disk() {
    const TEST: &str = "every_verb_on_a_full_disk";
    let lab = lab!(TEST, on the machine).own_store();
    if !rustix::process::geteuid().is_root() {
        return tests::lab::skip(TEST, "mounting a small disk takes root");
    }
    // In a mount namespace, the store is a disk of a few MiB: what is in it is made before the rest is taken away.
    std::fs::create_dir_all(lab.store()).unwrap();
    std::fs::create_dir_all(lab.path("dir2")).unwrap();
    std::fs::write(lab.path("dir2").join("Dockerfile"), "FROM scratch\nCOPY . /\n").unwrap();
    std::fs::write(lab.path("dir2").join("much"), vec![b'x'; 1 << 20]).unwrap();
    let paths = [
        ("ARCHIVE", lab.images("debian.tar")),
        ("STORE", lab.store().to_owned()),
        ("DIR2", lab.path("dir2")),
        ("DIR", lab.path("dir")),
    ];
    let own = lab.keeping::<&str>([]);
    let told = |line: &str| {
        let words = line.split(' ').map(|word| {
            paths.iter().fold(word.to_owned(), |word, (name, path)| word.replace(name, &path.display().to_string()))
        });
        words.map(|word| format!("'{word}'")).collect::<Vec<_>>().join(" ")
    };
    std::fs::create_dir_all(lab.path("dir")).unwrap();
    std::fs::write(lab.path("dir").join("Dockerfile"), "FROM scratch\nCOPY Dockerfile /\nCMD [\"/none\"]\n").unwrap();
    let before = ["build -q -t made DIR", "create --name made -v kept:/kept made", "create --name other made"];
    let census = "for v in 'ps -aq' 'images' 'volume ls' 'network ls' 'pod ls'; do \"$0\" $v; done";
    let mut script = format!("set -e; mount -t tmpfs -o size=24m none '{}'; ", lab.store().display());
    before.iter().for_each(|line| script += &format!("\"$0\" {} >&2; ", told(line)));
    script += &format!("{census} >'{}'; set +e; ", lab.path("before").display());
    script += &format!("dd if=/dev/zero of='{}/full' bs=4k 2>/dev/null; ", lab.store().display());
    for (line, _) in FULL {
        script += &format!("echo '== {line}'; \"$0\" {} 2>&1 >/dev/null; echo \"code $?\"; ", told(line));
    }
    script += &format!("{census} >'{}'; ", lab.path("after").display());
    script +=
        "echo '== rm'; \"$0\" rm made other >&2 && \"$0\" rmi made >&2 && \"$0\" volume rm kept >&2; echo \"code $?\"";
    let mut command = Command::new("unshare");
    command.args(["-m", "sh", "-c", &script]).arg(own.get_program()).stdin(std::process::Stdio::null());
    command.envs(own.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let ended = Running::start(command).end(lab.patience(1));
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let answers: Vec<&str> = ended.text().split("== ").skip(1).collect();
    let wanted = FULL.iter().copied().chain([("rm", 0)]);
    let mut wrong = String::new();
    for (answer, (line, code)) in answers.iter().zip(wanted) {
        let said: Vec<&str> = answer.lines().skip(1).collect();
        let is_right = said.last() == Some(&format!("code {code}").as_str())
            && match code {
                0 => said.len() == 1,
                _ => {
                    said.len() == 2
                        && said[0].starts_with("bulkhead: ")
                        && (line.starts_with("pull") || said[0].contains("pace"))
                }
            };
        if !is_right {
            wrong += &format!("{line}, not {code}: {said:?}\n");
        }
    }
    assert!(wrong.is_empty() && answers.len() == FULL.len() + 1, "{wrong}{}", ended.stderr);
    let read = |name: &str| std::fs::read_to_string(lab.path(name)).unwrap();
    assert_eq!(read("before"), read("after"));
    lab.assert_clean();
}
