//! Whether the nights of a schedule go well: what `/healthz` and the metrics of the last run say.
//!
//! Takes the outcome of each run, the time of the next one and a sign of life of the loop; gives the reason why somebody
//! should look, or none. A program that runs once has no schedule and is never overdue.

use chrono::{DateTime, TimeDelta, Utc};

use super::report::{RunOutcome, RunReport};
use crate::error::Error;

/// How late a run may begin, for example because the same cohort is being screened by another schedule.
const GRACE: TimeDelta = TimeDelta::hours(1);

/// How long the loop may give no sign of life. It gives one every ten seconds.
const SILENCE: TimeDelta = TimeDelta::minutes(5);

/// How a run ended, or a night that failed before its run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Night {
    /// How it ended.
    pub outcome: RunOutcome,
    /// No scan was selected.
    pub cohort_empty: bool,
    /// No selected scan has a result.
    pub all_failed: bool,
}

impl Night {
    /// A run that ended.
    pub fn of(report: &RunReport) -> Self {
        let cohort_empty = report.run.as_ref().is_some_and(|run| run.n_selected == 0);
        Self { outcome: report.outcome, cohort_empty, all_failed: report.all_failed() }
    }

    /// A run that ended in this error.
    pub fn failed(error: &Error) -> Self {
        let cohort_empty = matches!(error, Error::NothingSelected(_));
        Self { outcome: RunOutcome::Failed, cohort_empty, all_failed: false }
    }

    /// Why it is no success; none for a run that did its work, and for one that was stopped from outside.
    fn fault(self) -> Option<&'static str> {
        match self {
            // A run that ends without an error was allowed to find none (`run.allow_empty`), or its shard has none.
            Self { cohort_empty: true, outcome: RunOutcome::Failed, .. } => {
                Some("the last run found no scan to select")
            }
            Self { all_failed: true, .. } => Some("no scan of the last run has a result"),
            Self { outcome: RunOutcome::Failed, .. } => Some("the last run failed"),
            Self { outcome: RunOutcome::GaveUp, .. } => Some("the last run gave up after too many failures"),
            _ => None,
        }
    }

    fn is_success(self) -> bool {
        use RunOutcome::{Done, DoneWithFailures, NothingToDo};
        self.fault().is_none() && matches!(self.outcome, NothingToDo | Done | DoneWithFailures)
    }
}

/// What is known of the nights.
#[derive(Debug, Default)]
pub(super) struct Health {
    /// When the last run ended, and how.
    pub(super) last: Option<(DateTime<Utc>, Night)>,
    /// When the last successful run ended, or began where only the tables know of it.
    pub(super) last_success: Option<DateTime<Utc>>,
    /// When the next run is due; in the past while it waits or works.
    pub(super) next_run: Option<DateTime<Utc>>,
    /// The last sign of life of the schedule's loop.
    alive_at: Option<DateTime<Utc>>,
}

impl Health {
    pub(super) fn alive(&mut self, now: DateTime<Utc>, next_run: Option<DateTime<Utc>>) {
        (self.alive_at, self.next_run) = (Some(now), next_run);
    }

    pub(super) fn ended(&mut self, now: DateTime<Utc>, night: Night) {
        self.last = Some((now, night));
        if night.is_success() {
            self.last_success = Some(now);
        }
    }

    pub(super) fn succeeded_before(&mut self, time: DateTime<Utc>) {
        self.last_success = self.last_success.max(Some(time));
    }

    /// Why the schedule's loop no longer works.
    pub(super) fn lifeless(&self, now: DateTime<Utc>) -> Option<String> {
        let silence = self.alive_at.map(|at| now - at).filter(|silence| *silence > SILENCE)?;
        Some(format!("the schedule has given no sign of life for {} s", silence.num_seconds()))
    }

    /// Why somebody should look at the schedule.
    pub(super) fn fault(&self, now: DateTime<Utc>) -> Option<String> {
        let overdue = || {
            let late = self.next_run.map(|due| now - due).filter(|late| *late > GRACE)?;
            Some(format!("a run has been due for {} min and has not begun", late.num_minutes()))
        };
        let last = || self.last.and_then(|(_, night)| night.fault()).map(str::to_owned);
        self.lifeless(now).or_else(overdue).or_else(last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_schedule_is_healthy_until_a_night_fails_is_overdue_or_the_loop_stands_still() {
        let now = Utc::now();
        let mut health = Health::default();
        assert_eq!((health.fault(now), health.lifeless(now)), (None, None), "a single run has no schedule");
        health.alive(now, Some(now + GRACE));
        assert_eq!(health.fault(now + SILENCE), None);
        assert!(health.fault(now + SILENCE + SILENCE).unwrap().contains("no sign of life"));
        health.alive(now, Some(now - GRACE - TimeDelta::minutes(1)));
        assert!(health.fault(now).unwrap().contains("due for 61 min"));

        health.alive(now, None);
        let done = Night { outcome: RunOutcome::Done, cohort_empty: false, all_failed: false };
        health.ended(now, done);
        assert_eq!((health.fault(now), health.last_success), (None, Some(now)));
        for (night, said) in [
            (Night::failed(&Error::NothingSelected("none".into())), "no scan to select"),
            (Night::failed(&Error::Bug("none".into())), "failed"),
            (Night { all_failed: true, outcome: RunOutcome::DoneWithFailures, ..done }, "has a result"),
            (Night { outcome: RunOutcome::GaveUp, ..done }, "gave up"),
        ] {
            health.ended(now + GRACE, night);
            assert!(health.fault(now).unwrap().contains(said), "{night:?}");
            assert_eq!(health.last_success, Some(now));
        }
        // An empty cohort that was allowed.
        let allowed = Night { outcome: RunOutcome::NothingToDo, cohort_empty: true, all_failed: false };
        health.ended(now + GRACE, allowed);
        assert_eq!((health.fault(now), health.last_success), (None, Some(now + GRACE)));
        // A run that an operator stopped is neither a fault nor a success.
        health.ended(now + GRACE, Night { outcome: RunOutcome::Stopped, ..done });
        assert_eq!((health.fault(now), health.last_success), (None, Some(now + GRACE)));
    }
}
