//! Which arm has its turn when: in rounds, each in random order, and a slow arm in some of them only, spread evenly over all.

use std::time::Duration;

use fastrand::Rng;

use crate::report::estimate::ENOUGH;

/// Fewest samples of an arm, however slow: with fewer there would be no interval, and nothing to say of it.
const FEWEST: usize = ENOUGH;

/// How many samples an arm has, one of which takes `each`.
pub(super) fn share(samples: usize, budget: Duration, each: Duration) -> usize {
    let fit = budget.as_secs_f64() / each.as_secs_f64().max(1e-6);
    samples.min((fit as usize).max(FEWEST))
}

/// Turns of arms by their numbers, when arm `i` has `shares[i]` of them.
pub(super) fn turns(shares: &[usize], random: &mut Rng) -> Vec<usize> {
    let rounds = shares.iter().copied().max().unwrap_or(0);
    let mut all = Vec::new();
    for round in 0..rounds {
        let due = |share: usize| (round + 1) * share / rounds > round * share / rounds;
        let mut now: Vec<usize> = (0..shares.len()).filter(|arm| due(shares[*arm])).collect();
        random.shuffle(&mut now);
        all.extend(now);
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_has_its_share_all_over_and_in_another_order_each_time() {
        let all = turns(&[30, 7, 30], &mut Rng::with_seed(1));
        let count = |arm| all.iter().filter(|turn| **turn == arm).count();
        assert_eq!([count(0), count(1), count(2)], [30, 7, 30]);
        let places: Vec<usize> = (0..all.len()).filter(|at| all[*at] == 1).collect();
        assert!(places.windows(2).all(|pair| (6..=12).contains(&(pair[1] - pair[0]))), "{places:?}");
        assert!(all.windows(2).any(|pair| pair == [0, 2]) && all.windows(2).any(|pair| pair == [2, 0]));
        assert_eq!(all, turns(&[30, 7, 30], &mut Rng::with_seed(1)));
        assert_ne!(all, turns(&[30, 7, 30], &mut Rng::with_seed(2)));
        assert!(turns(&[], &mut Rng::with_seed(1)).is_empty());
    }

    #[test]
    fn a_slow_arm_has_what_fits_and_enough_for_an_interval() {
        let seconds = Duration::from_secs;
        assert_eq!(share(30, seconds(60), seconds(8)), 7);
        assert_eq!(share(30, seconds(60), Duration::from_millis(40)), 30);
        assert_eq!(share(30, seconds(60), seconds(100)), 6);
        assert_eq!(share(2, seconds(60), seconds(100)), 2);
        assert_eq!(share(30, seconds(60), Duration::ZERO), 30);
    }
}
