//! What one seed is like: how many there are of each, and how badly things go.

use crate::dice::Dice;

/// Seats of schedulers in one run: those who leave and those who take their place.
pub(crate) const SEATS_MAX: usize = 12;
const MINUTE: u64 = 60_000;
const HOSTS_MANY: usize = 10;

#[derive(Debug, Clone)]
pub(crate) struct Params {
    pub(crate) seed: u64,
    pub(crate) hosts: usize,
    /// Schedulers at the beginning of the log.
    pub(crate) founders: usize,
    /// Those who join then, one after the other; more come in place of those who leave.
    pub(crate) joiners: usize,
    /// Whether schedulers are removed, wiped and replaced.
    pub(crate) changes: bool,
    pub(crate) apps: usize,
    pub(crate) loss: u64,
    pub(crate) doubled: u64,
    pub(crate) delay_ms: u64,
    pub(crate) faults_ms: u64,
    pub(crate) fault_every_ms: u64,
    pub(crate) request_every_ms: u64,
    pub(crate) log_bytes_max: u64,
    pub(crate) forget_ms: u64,
    pub(crate) start_ms: u64,
    pub(crate) start_fails: u64,
    pub(crate) bad_revisions: u64,
    /// Of a hundred workers so many are strict.
    pub(crate) strict: u64,
    pub(crate) store_crashes: u64,
    pub(crate) dispatch_crashes: u64,
    /// Of a hundred crashes of a scheduler so many happen in the middle of a sync.
    pub(crate) sync_crashes: u64,
    /// Of a hundred changes of schedulers so many cost their leader its life soon after it began them; thrice as many do when
    /// one is removed.
    pub(crate) change_crashes: u64,
    /// Clocks run too fast or too slow by up to so many thousandths.
    pub(crate) skew: u64,
}

impl Params {
    pub(crate) fn draw(seed: u64) -> Self {
        let mut dice = Dice::new(seed);
        let d = &mut dice;
        let (founders, joiners) = match d.below(100) {
            0..40 => (1, 0),
            40..60 => (3, 0),
            60..66 => (5, 0),
            66..88 => (1, 2),
            88..96 => (1, 4),
            _ => (1, 6),
        };
        Self {
            seed,
            // Where there are many, a rollout takes more than one at a time.
            hosts: if d.percent(8) { HOSTS_MANY + d.index(7) } else { 3 + d.index(6) },
            founders,
            joiners,
            changes: joiners > 0 && d.percent(75),
            apps: 1 + d.index(4),
            loss: *d.pick(&[0, 0, 2, 10, 30]),
            doubled: *d.pick(&[0, 0, 10, 50]),
            delay_ms: *d.pick(&[5, 50, 500, 3_000]),
            faults_ms: d.between(40, 150) * 1_000,
            fault_every_ms: *d.pick(&[1_000, 4_000, 12_000]),
            request_every_ms: *d.pick(&[300, 1_500, 6_000]),
            log_bytes_max: *d.pick(&[4_000, 9_000, 60_000]),
            forget_ms: *d.pick(&[20_000, 24 * 60 * MINUTE]),
            start_ms: *d.pick(&[50, 1_000, 8_000]),
            start_fails: *d.pick(&[0, 5, 30]),
            bad_revisions: *d.pick(&[0, 5, 25]),
            store_crashes: *d.pick(&[0, 2, 8]),
            dispatch_crashes: *d.pick(&[0, 3, 10]),
            sync_crashes: *d.pick(&[10, 50, 90]),
            change_crashes: *d.pick(&[0, 10, 30]),
            skew: *d.pick(&[0, 10, 30]),
            strict: *d.pick(&[0, 0, 0, 60]),
        }
    }

    /// Replicas that somebody asks for stay below this.
    pub(crate) fn replicas_below(&self) -> u64 {
        if self.hosts >= HOSTS_MANY { 4 * self.hosts as u64 } else { 13 }
    }

    /// Whether the log knows who the schedulers are: those of a founder that others join.
    pub(crate) fn joins(&self) -> bool {
        self.joiners > 0
    }
}
