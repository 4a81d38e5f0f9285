//! More requests than a ring's index can count.

use super::super::testing::{Part, RUNNING};
use super::each_queue;

#[test]
fn rings_wrap() {
    each_queue(|case, queue| {
        let driver = &mut case.driver;
        let parts = [Part::Read(&[0; 64]), Part::Write(513)];
        // As many as there is room for, always the same: what is tested is that they come back, often enough.
        let mut heads: Vec<u16> = std::iter::from_fn(|| driver.add(queue, &parts)).take(64).collect();
        heads.sort_unstable();
        for _ in 0..66_000 / heads.len() {
            driver.kick(queue);
            let mut back = Vec::new();
            driver.wait(|driver| {
                assert_eq!(driver.status(), RUNNING, "the device stopped");
                back.extend(std::iter::from_fn(|| driver.used(queue)).map(|done| done.head));
                back.len() >= heads.len()
            });
            back.sort_unstable();
            assert_eq!(back, heads);
            heads.iter().for_each(|&head| driver.offer(queue, head));
        }
    });
}
