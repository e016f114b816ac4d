//! One finding: what was found, what is wanted, why, and how to change it.

use serde::Serialize;

/// How a finding is judged.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// Could not be looked up here.
    Unknown,
    /// Ringbolt runs, and would do better with another setting.
    Advice,
    /// Ringbolt does not run like this.
    Required,
}

/// One finding about this machine.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Check {
    /// What was looked at.
    pub name: String,
    /// What is there.
    pub found: String,
    /// What should be.
    pub wanted: String,
    /// False when something should be changed.
    pub ok: bool,
    /// How grave that is.
    pub verdict: Verdict,
    /// What it is to Ringbolt.
    pub why: String,
    /// How to change it.
    pub how: String,
}

impl Check {
    /// Starts one with its name and what is wanted; nothing is known yet.
    pub fn new(name: impl Into<String>, wanted: impl Into<String>) -> Self {
        Check {
            name: name.into(),
            found: "unknown".into(),
            wanted: wanted.into(),
            ok: true,
            verdict: Verdict::Unknown,
            why: String::new(),
            how: String::new(),
        }
    }

    /// What it is to Ringbolt.
    #[must_use]
    pub fn why(mut self, why: impl Into<String>) -> Self {
        self.why = why.into();
        self
    }

    /// How to change it.
    #[must_use]
    pub fn how(mut self, how: impl Into<String>) -> Self {
        self.how = how.into();
        self
    }

    /// What was found, and its judgement. Without a finding it stays unknown.
    #[must_use]
    pub fn found(mut self, found: Option<impl ToString>, verdict: Verdict) -> Self {
        if let Some(found) = found {
            self.found = found.to_string();
            self.verdict = verdict;
            self.ok = matches!(verdict, Verdict::Ok | Verdict::Unknown);
        }
        self
    }

    /// A number of which at least `wanted` is enough; less is advised against.
    pub fn at_least(name: impl Into<String>, found: Option<u64>, wanted: u64) -> Self {
        let enough = found.is_some_and(|found| found >= wanted);
        Check::new(name, format!("{wanted} or more")).found(found, Verdict::advice_unless(enough))
    }
}

impl Verdict {
    /// [`Verdict::Ok`] or [`Verdict::Advice`].
    pub fn advice_unless(good: bool) -> Self {
        if good { Verdict::Ok } else { Verdict::Advice }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_not_be_looked_up_is_no_complaint() {
        let check = Check::at_least("x", None, 10);
        assert_eq!((check.ok, check.verdict, check.found.as_str()), (true, Verdict::Unknown, "unknown"));
    }

    #[test]
    fn only_advice_and_required_are_complaints() {
        for (verdict, ok) in [
            (Verdict::Ok, true),
            (Verdict::Unknown, true),
            (Verdict::Advice, false),
            (Verdict::Required, false),
        ] {
            assert_eq!(Check::new("x", "y").found(Some(1), verdict).ok, ok);
        }
        assert!(!Check::at_least("x", Some(9), 10).ok);
        assert!(Check::at_least("x", Some(10), 10).ok);
    }
}
