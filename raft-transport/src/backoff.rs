//! When to try again. Pure: time comes in, and so does the seed of the jitter.

use std::time::Duration;

use raft_proto::Time;

/// Doubles the pause from `min` to `max` with each failure, and draws each from its upper half.
#[derive(Debug)]
pub(crate) struct Backoff {
    min_nanos: u64,
    max_nanos: u64,
    /// The pause after the next failure, before jitter. Invariant: `min <= pause <= max`.
    pause_nanos: u64,
    connected_at: Option<Time>,
    random: u64,
}

impl Backoff {
    /// # Panics
    ///
    /// If `min` is zero or above `max`, which the configuration refuses.
    pub(crate) fn new(seed: u64, min: Duration, max: Duration) -> Self {
        let nanos = |pause: Duration| u64::try_from(pause.as_nanos()).unwrap_or(u64::MAX / 4);
        let (min_nanos, max_nanos) = (nanos(min), nanos(max));
        assert!(
            0 < min_nanos && min_nanos <= max_nanos,
            "{min:?} to {max:?}"
        );
        Self {
            min_nanos,
            max_nanos,
            pause_nanos: min_nanos,
            connected_at: None,
            random: seed,
        }
    }

    /// Notes that a connection stands.
    pub(crate) const fn on_connected(&mut self, now: Time) {
        self.connected_at = Some(now);
    }

    /// Notes a failed attempt or a lost connection, and says when to try again.
    ///
    /// Only a connection that outlived the longest pause starts the pauses anew: a peer that
    /// accepts and then refuses is not dialled in a loop.
    pub(crate) fn on_failure(&mut self, now: Time) -> Time {
        if let Some(connected_at) = self.connected_at.take()
            && now.since(connected_at) > self.max_nanos
        {
            self.pause_nanos = self.min_nanos;
        }
        let half = self.pause_nanos / 2;
        let pause = half + self.draw() % (self.pause_nanos - half + 1);
        self.pause_nanos = self.pause_nanos.saturating_mul(2).min(self.max_nanos);
        now.plus_nanos(pause)
    }

    /// Source: Vigna, splitmix64.
    const fn draw(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIN: Duration = Duration::from_millis(10);
    const MAX: Duration = Duration::from_millis(100);

    #[test]
    fn pauses_double_up_to_the_bound_and_keep_their_upper_half() {
        let mut backoff = Backoff::new(7, MIN, MAX);
        for expected_millis in [10, 20, 40, 80, 100, 100] {
            let pause = backoff.on_failure(Time(5)).since(Time(5));
            let whole = expected_millis * 1_000_000;
            assert!((whole / 2..=whole).contains(&pause), "{pause} of {whole}");
        }
    }

    #[test]
    fn only_a_lasting_connection_starts_anew() {
        let mut backoff = Backoff::new(7, MIN, MAX);
        for _ in 0..5 {
            backoff.on_failure(Time(0));
        }
        backoff.on_connected(Time(0));
        assert!(backoff.on_failure(Time(1)).since(Time(1)) >= 50_000_000);
        backoff.on_connected(Time(0));
        let later = Time(200_000_000);
        assert!(backoff.on_failure(later).since(later) <= 10_000_000);
    }

    #[test]
    fn the_seed_decides() {
        let pauses = |seed| {
            let mut backoff = Backoff::new(seed, MIN, MAX);
            [(); 4].map(|()| backoff.on_failure(Time(0)))
        };
        assert_eq!(pauses(1), pauses(1));
        assert_ne!(pauses(1), pauses(2));
    }
}
