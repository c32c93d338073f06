//! Which protocol two programs speak to each other.

use std::ops::RangeInclusive;

use plurality_common::limits::{PROTOCOL, PROTOCOL_MIN};
use thiserror::Error;

/// Two programs have no protocol version in common.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error(
    "worker {worker_version} speaks protocol {worker_min} to {worker_max}, coordinator {coordinator_version} speaks \
     {PROTOCOL_MIN} to {PROTOCOL}: install {remedy}"
)]
pub struct IncompatibleVersion {
    worker_version: String,
    worker_min: u32,
    worker_max: u32,
    coordinator_version: String,
    remedy: String,
}

/// Returns the newest protocol version that both sides speak.
///
/// # Errors
///
/// [`IncompatibleVersion`] if there is none; it names both programs and what to install.
pub fn negotiate(
    worker_min: u32,
    worker_max: u32,
    worker_version: &str,
    coordinator_version: &str,
) -> Result<u32, IncompatibleVersion> {
    if let Some(protocol) = newest_common(worker_min..=worker_max, PROTOCOL_MIN..=PROTOCOL) {
        return Ok(protocol);
    }
    let remedy = if worker_min > PROTOCOL {
        format!("coordinator {worker_version} or newer")
    } else {
        format!("worker {coordinator_version}")
    };
    Err(IncompatibleVersion {
        worker_version: worker_version.to_owned(),
        worker_min,
        worker_max,
        coordinator_version: coordinator_version.to_owned(),
        remedy,
    })
}

/// Returns the newest version in both ranges.
fn newest_common(theirs: RangeInclusive<u32>, ours: RangeInclusive<u32>) -> Option<u32> {
    let newest = *theirs.end().min(ours.end());
    (theirs.contains(&newest) && ours.contains(&newest)).then_some(newest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_and_the_one_before_it_are_served_and_no_others() {
        let served = |theirs| newest_common(theirs, 4..=5);
        assert_eq!(served(4..=5), Some(5));
        assert_eq!(served(5..=9), Some(5), "a newer one that still speaks ours");
        assert_eq!(served(1..=4), Some(4), "an older one");
        for refused in [1..=3, 6..=9, 0..=0] {
            assert_eq!(served(refused.clone()), None, "{refused:?}");
        }
        let (first, last) = (9, 5);
        assert_eq!(served(first..=last), None, "no range at all");
        assert!(PROTOCOL_MIN <= PROTOCOL.saturating_sub(1).max(1), "the version before this one must be served");
    }

    #[test]
    fn the_newest_common_version_is_spoken() {
        assert_eq!(negotiate(PROTOCOL_MIN, PROTOCOL, "0.1.0", "0.1.0"), Ok(PROTOCOL));
        assert_eq!(negotiate(PROTOCOL, PROTOCOL + 3, "0.4.0", "0.1.0"), Ok(PROTOCOL));
    }

    #[test]
    fn an_incompatible_worker_is_told_both_versions_and_what_to_install() {
        let newer = negotiate(PROTOCOL + 1, PROTOCOL + 2, "9.0.0", "0.1.0").unwrap_err();
        assert_eq!(
            newer.to_string(),
            "worker 9.0.0 speaks protocol 2 to 3, coordinator 0.1.0 speaks 1 to 1: install coordinator 9.0.0 or newer"
        );
        let older = negotiate(0, 0, "0.0.1", "0.1.0").unwrap_err();
        assert_eq!(
            older.to_string(),
            "worker 0.0.1 speaks protocol 0 to 0, coordinator 0.1.0 speaks 1 to 1: install worker 0.1.0"
        );
    }
}
