//! How long things took, as the figures that people compare.

use std::time::Duration;

use serde_json::{Value, json};

/// Returns count, median, 99th percentile and longest of `times`, in milliseconds; no figures where there are no times.
pub fn figures(mut times: Vec<Duration>) -> Value {
    times.sort_unstable();
    let at = |percent: usize| {
        let place = (times.len() * percent).div_ceil(100).saturating_sub(1);
        times.get(place).map(|time| time.as_secs_f64() * 1000.0)
    };
    json!({ "count": times.len(), "p50_ms": at(50), "p99_ms": at(99), "max_ms": at(100) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_the_least_time_that_so_many_did_not_exceed() {
        let found = figures((1..=200).rev().map(Duration::from_millis).collect());
        assert_eq!(found, json!({ "count": 200, "p50_ms": 100.0, "p99_ms": 198.0, "max_ms": 200.0 }));
        let found = figures(vec![Duration::from_millis(7)]);
        assert_eq!(found, json!({ "count": 1, "p50_ms": 7.0, "p99_ms": 7.0, "max_ms": 7.0 }));
        assert_eq!(figures(Vec::new()), json!({ "count": 0, "p50_ms": null, "p99_ms": null, "max_ms": null }));
    }
}
