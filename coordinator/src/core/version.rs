//! Which protocol two programs speak to each other.

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
    let protocol = worker_max.min(PROTOCOL);
    if worker_min <= protocol && protocol >= PROTOCOL_MIN && worker_min <= worker_max {
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

#[cfg(test)]
mod tests {
    use super::*;

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
