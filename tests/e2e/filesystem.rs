//! A file system that a guest makes on its disk and uses, and a directory of the host's under a test program of others'.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tests::Running;

use crate::booted::{DATA, DISK};
use crate::lab;
use crate::scripted::Guest;

/// Bytes of what is copied to the disk until that is full.
const PIECE: u64 = DATA;
/// A moment between two writes of a guest, somewhere in so many.
const MOMENTS: Duration = Duration::from_millis(100);

/// Makes it, fills it, looks at it again, gives back what is not in use, and has it checked.
const USE: &str = r#"
    mkfs.ext4 -q /dev/vdb
    echo made; read go
    mount /dev/vdb /mnt
    n=0
    while cp /dev/vdc /mnt/$n 2>/run/full; do n=$((n + 1)); done
    grep -q 'No space left' /run/full
    umount /mnt
    echo filled $n; read go
    mount /dev/vdb /mnt
    for copy in $(seq 0 $((n - 1))); do cmp /dev/vdc /mnt/$copy; done
    rm /mnt/[0-9]*
    seq 200 >/run/numbers
    while read number; do echo $number >/mnt/small$number; done </run/numbers
    sync
    fstrim /mnt
    echo trimmed; read go
    umount /mnt
    fsck.ext4 -f -n /dev/vdb
    mount /dev/vdb /mnt
    cat /mnt/small* | sort -n | cmp - /run/numbers
    umount /mnt; rm /run/full
"#;

/// Tells what is there, has it checked, and counts on, in a file that is replaced by the next one, until the end.
const COUNT: &str = r#"
    mount /dev/vdb /mnt
    n=$(cat /mnt/count 2>/run/none || echo 0)
    umount /mnt
    fsck.ext4 -f -n /dev/vdb
    echo found $n; read go
    mount /dev/vdb /mnt
    while :; do
        n=$((n + 1)); echo $n >/mnt/new; sync /mnt/new; mv /mnt/new /mnt/count; sync /mnt
        echo durable $n
    done
"#;

/// The number behind a word.
fn number(line: &str) -> u64 {
    let number = line.split_once(' ').and_then(|(_, number)| number.parse().ok());
    number.unwrap_or_else(|| panic!("no number: '{line}'"))
}

/// Nobody's choice.
fn some_moment() -> Duration {
    let nanos = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().subsec_nanos();
    MOMENTS.mul_f64(f64::from(nanos % 1_000_003) / 1_000_003.0)
}

/// What a file has of the host's disk.
fn taken(file: &Path) -> u64 {
    fs::metadata(file).unwrap().blocks() * 512
}

/// What is written is what is read, in the guest and from outside; what is trimmed is the host's again; fsck finds nothing to mend;
/// and what has been synced is there whenever the monitor is killed. BULKHEAD_TEST_ROUNDS says how often it is.
#[test]
fn group_12_a_file_system_is_filled_verified_trimmed_and_checked() {
    let lab = lab!("group_12_a_file_system_is_filled_verified_trimmed_and_checked", on hardware);
    let (patience, disk, piece) = (lab.patience(10), lab.path("disk"), lab.path("piece"));
    fs::write(&disk, vec![0xff; DISK as usize]).unwrap();
    // No block of it is like another.
    let bytes: Vec<u8> = (0..PIECE as u32 / 4).flat_map(|n| n.wrapping_mul(0x9e37_79b9).to_le_bytes()).collect();
    fs::write(&piece, &bytes).unwrap();
    let start = |script: &str| Guest::start(&lab, patience, (&disk, Some(&piece)), script);

    let mut guest = start(&format!("{USE}{COUNT}"));
    guest.until("made");
    assert!(taken(&disk) < DISK / 4, "{} bytes with nothing in it", taken(&disk));
    guest.go_on();
    let copies = number(guest.until("filled").last().unwrap());
    assert!(copies >= 3 && taken(&disk) > copies * PIECE, "{copies} copies in {} bytes", taken(&disk));
    for copy in 0..copies {
        let seen = Command::new("debugfs").args(["-R", &format!("cat /{copy}")]).arg(&disk).output().unwrap();
        assert!(seen.stdout == bytes, "copy {copy} is another: {}", String::from_utf8_lossy(&seen.stderr));
    }
    guest.go_on();
    guest.until("trimmed");
    assert!(taken(&disk) < DISK / 4, "{} bytes with little in it", taken(&disk));
    guest.go_on();

    let rounds = std::env::var("BULKHEAD_TEST_ROUNDS").map_or(1, |rounds| rounds.parse().expect("a number"));
    let mut promised = 0;
    for round in 0..=rounds {
        let found = number(guest.until("found").last().unwrap());
        assert!(found >= promised, "round {round}: {found}, and {promised} was promised");
        if round == rounds {
            break;
        }
        guest.go_on();
        guest.until("durable");
        std::thread::sleep(some_moment());
        let said = guest.kill();
        promised = said.iter().filter(|line| line.starts_with("durable ")).map(|line| number(line)).max().unwrap();
        guest = start(COUNT);
    }
    drop(guest);
    lab.assert_clean();
}

/// A program that others wrote to test or load file systems finds no fault in a directory of the host's: what is in
/// BULKHEAD_TEST_PROGRAMS is /programs in the container, and its `run` is done with the directory as /share (docs/volumes.md).
#[test]
fn group_13_a_share_passes_a_test_program() {
    const NAME: &str = "group_13_a_share_passes_a_test_program";
    let lab = lab!(NAME, on hardware);
    let Some(programs) = std::env::var_os("BULKHEAD_TEST_PROGRAMS").filter(|path| !path.is_empty()) else {
        return tests::lab::skip(NAME, "BULKHEAD_TEST_PROGRAMS is not set");
    };
    let (patience, share) = (lab.patience(30), lab.path("share"));
    fs::create_dir(&share).unwrap();
    let [programs, share] = [(Path::new(&programs), "/programs:ro"), (&share, "/share")]
        .map(|(from, to)| format!("{}:{to}", from.display()));
    let image = lab.debian();
    let words = ["run", "-v", &programs, "-v", &share, &image, "sh", "/programs/run"];
    let ended = Running::start(lab.bulkhead(words)).end(patience);
    print!("{}", ended.text());
    assert_eq!(ended.code, Some(0), "{ended:?}");
    lab.assert_clean();
}
