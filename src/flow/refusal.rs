//! Refusals: why a process of a cluster does not screen scans that it was given, or failed to.
//!
//! An error crosses a cluster as text. A refusal is written into that text behind a mark, so that the driver can tell what to do
//! with the scans: give them to another process, cut them into smaller chunks, or end the run. The engines around it add their
//! own words, which the driver leaves out. It is JSON in hexadecimal digits,
//! because engines quote texts, and escape what they quote.

use std::io;

use datafusion::error::DataFusionError;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result, Retry};
use crate::hex::{from_hexadecimal, hexadecimal};

/// Precedes the digits of a refusal.
const MARK: &str = "neurosieve-refusal:";

/// Who cannot do what.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// Two processes were lost while they screened these scans.
    Lost,
    /// This process cannot do the work: it ends, and another one may do it.
    Unfit,
    /// The work failed: it may succeed later, or elsewhere.
    Failed,
    /// No process can do this run's work, such as one whose tables lie in a folder of the driver's machine.
    Run,
}

/// A refusal with its reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// What is to be done with the scans.
    pub reason: Reason,
    /// What was found, and what to do.
    pub message: String,
}

impl Refusal {
    /// A refusal.
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into() }
    }

    /// The error of an operator that failed with one of our own, with its message behind the mark. What Ballista tries again, it
    /// still does.
    pub fn failed(own: &Error) -> DataFusionError {
        match (own.retry(), Self::new(Reason::Failed, own.text()).into()) {
            (Retry::Backoff, DataFusionError::Execution(text)) => DataFusionError::IoError(io::Error::other(text)),
            (_, error) => error,
        }
    }

    /// The refusal in the text of an error that came from another process.
    pub fn find(text: &str) -> Option<Self> {
        let (_, after) = text.split_once(MARK)?;
        let digits = after.split(|c: char| !c.is_ascii_hexdigit()).next()?;
        serde_json::from_slice(&from_hexadecimal(digits)?).ok()
    }
}

/// As an operator's error, which is not retried by itself.
impl From<Refusal> for DataFusionError {
    fn from(refusal: Refusal) -> Self {
        match serde_json::to_vec(&refusal) {
            // With the message, for anyone who reads the engine's log.
            Ok(json) => Self::Execution(format!("{MARK}{} {}", hexadecimal(&json), refusal.message)),
            Err(e) => Error::Bug(format!("a refusal as JSON: {e}")).into(),
        }
    }
}

/// How many processes were lost while they executed the task with this id, `TID job/stage.attempt/slot.failures`: an engine uses
/// a slot for each attempt, and counts as failures the attempts that were reported to have failed.
///
/// # Errors
/// [`Error::Bug`] where the id has another form.
pub(super) fn lost_processes(task_id: &str) -> Result<u64> {
    let numbers = || {
        let (slot, failures) = task_id.rsplit_once('/')?.1.split_once('.')?;
        Some((slot.parse::<u64>().ok()?, failures.parse::<u64>().ok()?))
    };
    match numbers() {
        Some((slot, failures)) => Ok(slot.saturating_sub(failures)),
        None => Err(Error::Bug(format!("the id of a task has an unknown form: {task_id}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_found_in_the_text_of_an_error_around_it() {
        let refusal = Refusal::new(Reason::Unfit, "the device {cuda:0} is gone: \"check\" it");
        let text = DataFusionError::from(refusal.clone()).to_string();
        let around = format!("Job abc failed: Job failed due to stage 1 failed: {text}. Task 3 (attempt 1) {{x}}");
        assert_eq!(Refusal::find(&around).as_ref(), Some(&refusal));
        // Quoted twice, as an engine does.
        assert_eq!(Refusal::find(&format!("{:?}", format!("{around:?}"))), Some(refusal));
        assert_eq!(Refusal::find("Job abc failed: disk"), None);
        assert_eq!(Refusal::find(&format!("{MARK}{}", hexadecimal(b"{\"reason\":\"other\"}"))), None);
        assert_eq!(Refusal::find(&format!("{MARK}abc")), None);
    }

    #[test]
    fn lost_processes_are_the_attempts_that_no_process_reported() {
        let lost = |id: &str| lost_processes(id).unwrap();
        assert_eq!((lost("TID job/1.0/0.0"), lost("TID job/1.0/2.0"), lost("TID job/1.0/3.2")), (0, 2, 1));
        assert!(lost_processes("TID job").unwrap_err().to_string().contains("TID job"));
    }
}
