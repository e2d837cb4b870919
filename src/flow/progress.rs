//! How far a run is and where its scans are: for the progress line, the closing report and a monitor.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use serde::Serialize;

/// Where a scan in flight is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    /// It waits for its share of the memory budget, before its fetch and once more before its decoding.
    Memory,
    /// It is being read from the store.
    Fetch,
    /// It is being decoded, or waits for a core.
    Decode,
    /// It is being preprocessed, or waits for a core.
    Preprocess,
    /// It waits for the device.
    Queue,
    /// The networks look at it.
    Device,
    /// Its maps and rows are being made, or wait for a core.
    Assess,
    /// Its rows wait for their commit.
    Commit,
}

impl Place {
    /// All, in the order of a scan's way.
    pub const ALL: [Self; 8] = [
        Self::Memory,
        Self::Fetch,
        Self::Decode,
        Self::Preprocess,
        Self::Queue,
        Self::Device,
        Self::Assess,
        Self::Commit,
    ];
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Memory => "memory",
            Self::Fetch => "fetch",
            Self::Decode => "decode",
            Self::Preprocess => "preprocess",
            Self::Queue => "queue",
            Self::Device => "device",
            Self::Assess => "assess",
            Self::Commit => "commit",
        })
    }
}

/// Counters shared by all partitions of a run.
#[derive(Debug)]
pub struct Progress {
    started: Instant,
    done: AtomicU64,
    failed: AtomicU64,
    committed: AtomicU64,
    places: [PlaceCounters; Place::ALL.len()],
}

#[derive(Debug)]
struct PlaceCounters {
    /// How many scans may be worked on at once; none where they wait.
    lanes: Option<usize>,
    here: AtomicU64,
    passed: AtomicU64,
    busy_us: AtomicU64,
}

/// A place at one moment.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Seen {
    /// Which.
    pub place: Place,
    /// Scans that are there.
    pub scans: u64,
    /// Scans that went through.
    pub passed: u64,
    /// Seconds of work on them, summed over all that work there at the same time; of waiting, where they wait. A core that
    /// takes up another scan's work in between counts for both.
    pub seconds: f64,
    /// Share of the time that all that may work there were at work since the start, 0 to 1; none where scans wait.
    pub busy: Option<f64>,
}

/// The place that all others wait for: the one that was at work for the largest share of the time; memory, where that is
/// less than half and scans spent more time waiting for their share of the budget than anywhere else. None before
/// anything was done.
pub fn bottleneck(places: &[Seen]) -> Option<Seen> {
    let share = |seen: &Seen| seen.busy.unwrap_or(0.);
    let busiest = places.iter().filter(|seen| seen.seconds > 0.).max_by(|a, b| share(a).total_cmp(&share(b)))?;
    let longest = places.iter().max_by(|a, b| a.seconds.total_cmp(&b.seconds))?;
    let waits = share(busiest) < 0.5 && longest.place == Place::Memory;
    Some(if waits { *longest } else { *busiest })
}

/// The counters at one moment.
#[derive(Debug, Clone, Copy)]
pub struct Snapshot {
    /// Since the run was prepared.
    pub elapsed: Duration,
    /// Scans that went through.
    pub done: u64,
    /// Scans that became a row in `failures`.
    pub failed: u64,
    /// Every place, in the order of a scan's way.
    pub places: [Seen; Place::ALL.len()],
}

impl Snapshot {
    /// Scans being worked on.
    pub fn in_flight(&self) -> u64 {
        self.places.iter().filter(|seen| seen.place != Place::Commit).map(|seen| seen.scans).sum()
    }

    /// One place.
    pub fn at(&self, place: Place) -> Seen {
        self.places[place as usize]
    }
}

/// A scan's whereabouts: it counts where it is until it goes on or is dropped.
#[derive(Debug)]
pub(super) struct Here {
    progress: Arc<Progress>,
    place: Place,
}

impl Here {
    /// The scan goes on to another place; what was done on it took `spent`.
    pub(super) fn go_on(&mut self, to: Place, spent: Duration) {
        let from = &self.progress.places[self.place as usize];
        from.busy_us.fetch_add(spent.as_micros() as u64, Relaxed);
        from.passed.fetch_add(1, Relaxed);
        from.here.fetch_sub(1, Relaxed);
        self.progress.places[to as usize].here.fetch_add(1, Relaxed);
        self.place = to;
    }
}

impl Drop for Here {
    fn drop(&mut self) {
        self.progress.places[self.place as usize].here.fetch_sub(1, Relaxed);
    }
}

impl Progress {
    /// Of a run that reads so many scans at once, with so many cores and threads of the device.
    pub(super) fn new(in_flight: usize, cores: usize, device_threads: usize) -> Self {
        let [done, failed, committed] = [(); 3].map(|()| AtomicU64::new(0));
        let places = Place::ALL.map(|place| PlaceCounters {
            lanes: match place {
                Place::Memory | Place::Queue => None,
                Place::Fetch => Some(in_flight),
                Place::Decode | Place::Preprocess | Place::Assess => Some(cores),
                Place::Device => Some(device_threads),
                Place::Commit => Some(1),
            },
            here: AtomicU64::new(0),
            passed: AtomicU64::new(0),
            busy_us: AtomicU64::new(0),
        });
        Self { started: Instant::now(), done, failed, committed, places }
    }

    /// A scan begins its way.
    pub(super) fn begin(self: &Arc<Self>) -> Here {
        self.places[Place::Memory as usize].here.fetch_add(1, Relaxed);
        Here { progress: Arc::clone(self), place: Place::Memory }
    }

    /// A scan ended.
    pub(super) fn end(&self, failed: bool) {
        let counter = if failed { &self.failed } else { &self.done };
        counter.fetch_add(1, Relaxed);
    }

    /// So many scans that ended are in the tables now; that took `spent`.
    pub(super) fn commit(&self, scans: u64, spent: Duration) {
        self.committed.fetch_add(scans, Relaxed);
        self.places[Place::Commit as usize].busy_us.fetch_add(spent.as_micros() as u64, Relaxed);
    }

    /// The counters now.
    pub fn snapshot(&self) -> Snapshot {
        // Before those that they are taken from: what was committed had ended.
        let committed = self.committed.load(Relaxed);
        let (done, failed) = (self.done.load(Relaxed), self.failed.load(Relaxed));
        let elapsed = self.started.elapsed();
        let seen = |place: Place| {
            let counters = &self.places[place as usize];
            let (scans, passed) = match place {
                Place::Commit => ((done + failed).saturating_sub(committed), committed),
                _ => (counters.here.load(Relaxed), counters.passed.load(Relaxed)),
            };
            let seconds = counters.busy_us.load(Relaxed) as f64 / 1e6;
            let all = |lanes: usize| lanes as f64 * elapsed.as_secs_f64();
            Seen { place, scans, passed, seconds, busy: counters.lanes.map(|lanes| (seconds / all(lanes)).min(1.)) }
        };
        Snapshot { elapsed, done, failed, places: Place::ALL.map(seen) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scan_is_in_one_place_at_a_time_and_waits_for_its_commit_at_last() {
        let progress = Arc::new(Progress::new(6, 2, 2));
        let (mut first, second) = (progress.begin(), progress.begin());
        first.go_on(Place::Fetch, Duration::from_millis(20));
        let now = progress.snapshot();
        assert_eq!((now.at(Place::Memory).scans, now.at(Place::Fetch).scans, now.in_flight()), (1, 1, 2));
        assert_eq!((now.at(Place::Memory).passed, now.at(Place::Memory).seconds), (1, 0.02));
        drop(first);
        progress.end(false);
        drop(second);
        progress.end(true);
        let now = progress.snapshot();
        assert_eq!((now.done, now.failed, now.in_flight(), now.at(Place::Commit).scans), (1, 1, 0, 2));
        progress.commit(2, Duration::from_secs(1));
        let now = progress.snapshot();
        assert_eq!((now.at(Place::Commit).scans, now.at(Place::Commit).passed), (0, 2));
        assert!(now.at(Place::Commit).busy.is_some_and(|share| share > 0.) && now.at(Place::Queue).busy.is_none());
    }

    #[test]
    fn the_bottleneck_is_the_busiest_place_or_memory_where_none_is_busy() {
        let seen = |place, seconds, busy| Seen { place, scans: 0, passed: 0, seconds, busy };
        let places = |device, memory| {
            [
                seen(Place::Memory, memory, None),
                seen(Place::Fetch, 90., Some(0.1)),
                seen(Place::Queue, 200., None),
                seen(Place::Device, 20., Some(device)),
            ]
        };
        let at = |device, memory| bottleneck(&places(device, memory)).map(|seen| seen.place);
        assert_eq!(at(0.97, 500.), Some(Place::Device));
        assert_eq!(at(0.3, 500.), Some(Place::Memory));
        assert_eq!(at(0.3, 1.), Some(Place::Device));
        assert_eq!(bottleneck(&[seen(Place::Fetch, 0., Some(0.))]).map(|seen| seen.place), None);
    }
}
