//! How many files and connections this process may have open at a time.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Has the system allow `wanted` open files where it allows fewer, or as many as it will. Returns how many it allows then.
///
/// No more than is wanted: where the system's own bound is a thousand million, whatever closes "all" files of a child process
/// would be at it for minutes.
pub fn raise(wanted: u64) -> u64 {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let allowed = current.unwrap_or(u64::MAX);
    let Some(target) = target(allowed, maximum, wanted) else { return allowed };
    match setrlimit(Resource::Nofile, Rlimit { current: Some(target), maximum }) {
        Ok(()) => target,
        Err(error) => {
            tracing::warn!("no more than {allowed} files can be open at a time: {error}");
            allowed
        }
    }
}

/// Returns what to ask the system for; `None` where it allows enough, or will not allow more.
fn target(allowed: u64, maximum: Option<u64>, wanted: u64) -> Option<u64> {
    let target = maximum.map_or(wanted, |maximum| wanted.min(maximum));
    (target > allowed).then_some(target)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_much_is_asked_for_as_is_wanted_and_to_be_had() {
        for (allowed, maximum, wanted, expected) in [
            (1024, Some(20_000), 8000, Some(8000)),
            (1024, Some(4096), 8000, Some(4096)),
            (1024, None, 8000, Some(8000)),
            (1024, Some(1024), 8000, None),
            (10_000, Some(20_000), 8000, None),
            (u64::MAX, None, 8000, None),
        ] {
            assert_eq!(target(allowed, maximum, wanted), expected, "{allowed} of {maximum:?} for {wanted}");
        }
    }

    #[test]
    fn what_was_raised_is_not_lowered() {
        let before = raise(0);
        assert!(raise(before) >= before);
        assert_eq!(raise(1), raise(0));
    }
}
