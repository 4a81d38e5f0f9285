//! A writable disk, used by a guest (`probe disk` in `tests/guest/probe.rs`) while the host looks at the file behind it.

use std::fs::OpenOptions;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};
use tests::control::Control;
use tests::{Running, cpio};

use crate::lab;

/// Bytes of the disk at first, and when it has grown.
const SIZES: [u64; 2] = [8 << 20, 12 << 20];
/// Where the host cuts the file off.
const CUT: u64 = 4 << 20;
/// Blocks that the guest writes in turn, and their bytes.
const BLOCKS: u64 = 16;
const BLOCK: u64 = 4096;

/// What the guest has done by now is in the disk's numbers, the error of the file that was cut off too.
fn assert_counted(control: &Control) {
    let disk = &control.get("/bulkhead/v1/metrics")["devices"][0];
    assert_eq!((&disk["kind"], &disk["id"], &disk["faults"]), (&json!("blk"), &json!("d"), &json!(0)));
    let sum = |key: &str| -> u64 { (0..2).map(|queue| disk["queues"][queue][key].as_u64().unwrap()).sum() };
    assert!(sum("operations") > 2 * BLOCKS && sum("errors") > 0 && sum("bytes_from_guest") > BLOCKS * BLOCK, "{disk}");
    // More kicks than operations can be: a kick may find its request taken, and what waits for a limit is kicked but not done.
    assert!(sum("kicks") > 0 && sum("interrupts") > 0, "{disk}");
    assert!(sum("throttled") > 0, "{disk}");
    assert_eq!(control.ask("GET", "/bulkhead/v1/metrics/prometheus", &Value::Null).0, 200);
}

/// Memory that the guest uses for a while in one of the rounds, and least of it that must come back, MiB. What comes back are pieces of
/// 2 MiB that are free as a whole, and elsewhere the guest begins to use memory meanwhile: a third as much was once too little.
const MEMORY: u64 = 24;
const BACK: u64 = 2;

/// Bytes of anonymous memory that a process has.
fn anonymous(process: &Running) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

/// Looks again and again, for nobody tells, until something is so.
fn until(what: &str, patience: Duration, is: impl Fn() -> bool) {
    let deadline = Instant::now() + patience;
    while !is() {
        assert!(Instant::now() < deadline, "{what}: not in {patience:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// What is discarded takes no place, zeros are zeros, a disk that has grown can be written to its new end, one that is cut off
/// beneath gives errors and goes on, and what the guest has flushed survives SIGKILL of the monitor. Memory that the guest does
/// not use any more is the host's again, and so is what it is asked for.
#[test]
fn group_12_a_disk_keeps_its_promises() {
    let lab = lab!("group_12_a_disk_keeps_its_promises", on hardware);
    for engine in ["Async", "Sync"] {
        let (socket, patience) = (lab.path("api.sock"), lab.patience(1));
        let (disk, initrd) = (lab.path("disk"), lab.path("initrd"));
        std::fs::write(&disk, vec![0xff; SIZES[0] as usize]).unwrap();
        std::fs::write(&initrd, cpio::initramfs(&std::fs::read(lab.guest_program()).unwrap())).unwrap();
        let file = lab.path("vm.json");
        let balloon = engine == "Sync";
        let config = json!({
            "boot-source": { "kernel_image_path": lab.kernel(), "initrd_path": initrd,
                             "boot_args": format!("console=ttyS0 quiet -- disk {}", if balloon { MEMORY } else { 0 }) },
            "machine-config": { "vcpu_count": 1, "mem_size_mib": 128 },
            "drives": [{ "drive_id": "d", "path_on_host": disk, "num_queues": 2, "io_engine": engine }],
            "balloon": balloon.then(|| json!({ "amount_mib": 0, "deflate_on_oom": true, "stats_polling_interval_s": 1,
                                               "free_page_reporting": true })),
        });
        std::fs::write(&file, config.to_string()).unwrap();
        let paths = [&file, &socket].map(|path| path.to_str().unwrap().to_owned());
        let mut running = Running::start(lab.bulkhead(["vmm", "--config-file", &paths[0], "--api-sock", &paths[1]]));
        let blocks = || std::fs::metadata(&disk).unwrap().blocks() * 512;
        running.wait_for("first 4 zeros [true, true, true]", patience);
        assert!(blocks() < SIZES[0] / 2 + (1 << 20), "{} bytes after a discard of half the disk", blocks());

        let control = Control::of(&running, socket, patience);
        let used = anonymous(&running);
        let disk = OpenOptions::new().read(true).write(true).open(&disk).unwrap();
        disk.set_len(SIZES[1]).unwrap();
        control.done("PATCH", "/drives/d", json!({ "drive_id": "d" }));
        running.wait_for(&format!("size {}", SIZES[1]), patience);
        let mut word = [0; 8];
        disk.read_exact_at(&mut word, SIZES[1] - 8).unwrap();
        assert_eq!(u64::from_le_bytes(word), 9);

        if balloon {
            until("memory comes back", patience, || anonymous(&running) + (BACK << 20) < used);
            for amount in [2, 0] {
                control.done("PATCH", "/balloon", json!({ "amount_mib": amount }));
                until("the balloon", patience, || control.get("/balloon/statistics")["actual_mib"] == amount);
            }
            assert!(control.get("/balloon/statistics")["total_memory"].as_u64().unwrap() > 64 << 20);
        }

        // From now on slower than the guest, whose disk goes on as it is.
        let limit = |what: &str, size: u32| json!({ "drive_id": "d", "rate_limiter": { what: { "size": size, "refill_time": 20 } } });
        control.done("PATCH", "/drives/d", limit("bandwidth", 1 << 30));
        control.done("PATCH", "/drives/d", limit("ops", 1));
        let limiter = &control.get("/vm/config")["drives"][0]["rate_limiter"];
        assert_eq!((&limiter["bandwidth"]["size"], &limiter["ops"]["size"]), (&json!(1 << 30), &json!(1)));

        disk.set_len(CUT).unwrap();
        running.wait_for("then 1 Err(", patience);
        running.wait_for(if engine == "Async" { "durable 21" } else { "durable 17" }, patience);
        assert_counted(&control);
        running.signal(Signal::KILL);
        let ended = running.end(patience);
        let text = String::from_utf8_lossy(&ended.stdout);
        // A line that was cut off may say less than there is.
        let said = text.rsplit_once('\n').unwrap().0.lines().rev();
        let last = said.filter_map(|line| line.trim().strip_prefix("durable ")).next().unwrap();
        let last: u64 = last.parse().unwrap();
        for version in last - (BLOCKS - 1)..=last {
            disk.read_exact_at(&mut word, (version % BLOCKS) * BLOCK).unwrap();
            let there = u64::from_le_bytes(word);
            // The next round may have begun.
            assert!(
                there == version || there == version + BLOCKS && there == last + 1,
                "{there} for {version}: {text}"
            );
        }
    }
    lab.assert_clean();
}
