//! Ranges of numbers in settings: a number outside is refused with its key, its value and the range.
//!
//! A type says with [`Validate`] which numbers it accepts. [`super::load()`] asks it, so that no setting out of range reaches
//! the code that it configures, and nothing is written before the settings are known to be good.

use std::fmt::Display;
use std::ops::RangeInclusive;

use crate::error::{Error, Result};

/// Settings that know which of their values have a meaning.
pub trait Validate {
    /// Checks every number.
    ///
    /// # Errors
    /// [`Error::Config`] for the first one out of range, with its key, its value and the range.
    fn validate(&self) -> Result<()>;
}

/// A section of a pipeline file, by the name that its keys begin with: `score`, `preprocess.bias`.
#[derive(Debug, Clone, Copy)]
pub struct Section<'a>(pub &'a str);

impl Section<'_> {
    /// Checks a number. NaN is in no range.
    ///
    /// # Errors
    /// [`Error::Config`] where it is out of range.
    pub fn within<T: PartialOrd + Display>(&self, key: &str, value: T, range: RangeInclusive<T>) -> Result<()> {
        if range.contains(&value) {
            return Ok(());
        }
        let (section, least, most) = (self.0, range.start(), range.end());
        Err(Error::Config(format!("{section}.{key} is {value}; expected a number from {least} to {most}")))
    }

    /// Checks several numbers that have the same range.
    ///
    /// # Errors
    /// As [`Section::within`].
    pub fn all_within<T: PartialOrd + Display + Copy>(
        &self,
        values: &[(&str, T)],
        range: RangeInclusive<T>,
    ) -> Result<()> {
        values.iter().try_for_each(|&(key, value)| self.within(key, value, range.clone()))
    }

    /// Checks the smallest and the largest number that a setting accepts.
    ///
    /// # Errors
    /// [`Error::Config`] where one is out of range, or the smallest is above the largest.
    pub fn bounds<T: PartialOrd + Display + Copy>(
        &self,
        key: &str,
        [least, most]: [T; 2],
        range: RangeInclusive<T>,
    ) -> Result<()> {
        self.within(key, least, range.clone())?;
        self.within(key, most, range)?;
        if least <= most {
            return Ok(());
        }
        Err(Error::Config(format!("{}.{key} is [{least}, {most}]; expected the smaller number first", self.0)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_out_of_range_is_refused_with_its_key_its_value_and_the_range() {
        let section = Section("score");
        section.within("steps", 1000, 1..=1000).unwrap();
        section.bounds("range", [0.1, 0.1], 0. ..=1.).unwrap();
        let refused = section.within("smooth_mm", 1e9, 0. ..=50.).unwrap_err();
        assert_eq!(refused.to_string(), "score.smooth_mm is 1000000000; expected a number from 0 to 50");
        assert_eq!(refused.kind(), "config");
        for value in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            assert!(section.within("smooth_mm", value, 0. ..=50.).is_err(), "{value}");
            assert!(section.bounds("range", [0., value], 0. ..=50.).is_err(), "{value}");
        }
        let turned = section.bounds("range", [0.9, 0.1], 0. ..=1.).unwrap_err().to_string();
        assert!(turned.contains("score.range is [0.9, 0.1]"), "{turned}");
    }
}
