//! Ages in a status.

use concordat_crds::Duration;
use concordat_protocol::Millis;

/// Where a shown age changes, in seconds; past the last one, every whole day.
const STEPS: [u64; 17] =
    [0, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1_200, 1_800, 3_600, 7_200, 18_000, 43_200];
const DAY: u64 = 86_400;

/// An age as it is shown, for an age of so many milliseconds: rounded down to one of a few lengths, so that time that
/// passes does not by itself make a status change every 2 s.
pub fn shown(age: Millis) -> Duration {
    let seconds = age / 1000;
    Duration::from_secs(if seconds >= DAY {
        seconds / DAY * DAY
    } else {
        STEPS.into_iter().rev().find(|step| *step <= seconds).unwrap_or(0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_age_is_never_shown_longer_than_it_is_and_changes_seldom() {
        for (age, text) in [
            (0, "0s"),
            (999, "0s"),
            (1_000, "1s"),
            (4_999, "2s"),
            (5_000, "5s"),
            (59_999, "30s"),
            (60_000, "1m"),
            (3_599_999, "30m"),
            (43_200_000, "12h"),
            (86_399_999, "12h"),
            (86_400_000, "24h"),
            (200_000_000, "48h"),
        ] {
            assert_eq!(shown(age).to_string(), text, "{age} ms");
        }
    }

    #[test]
    fn steps_rise() {
        assert!(STEPS.is_sorted());
    }
}
