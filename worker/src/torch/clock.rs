//! CPU time of this process.

use std::{fs, time::Duration};

/// Ticks a second in `/proc`: fixed at 100 in the kernel's interface on every platform that LibTorch is built for.
const TICKS_PER_SECOND: u64 = 100;

/// Returns the CPU time used so far by all threads, to 10 ms; zero where `/proc` is missing.
pub fn cpu_time() -> Duration {
    let ticks = fs::read_to_string("/proc/self/stat").ok().and_then(|text| ticks(&text)).unwrap_or(0);
    Duration::from_millis(ticks * 1000 / TICKS_PER_SECOND)
}

/// Returns user plus system time of a line of `/proc/PID/stat`, whose second field may hold spaces and brackets.
fn ticks(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    // The state is the third field; times are the fourteenth and fifteenth.
    let mut fields = rest.split_whitespace().skip(11);
    Some(fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_found_behind_a_name_with_brackets() {
        let stat = "7 (a) b) R 1 2 3 4 5 6 7 8 9 10 31 11 0 0 20 0";
        assert_eq!(ticks(stat), Some(42));
    }

    #[test]
    fn work_takes_cpu_time() {
        let before = cpu_time();
        let mut sum = 0_u64;
        while cpu_time() == before {
            sum = std::hint::black_box(sum.wrapping_add(1));
        }
        assert!(cpu_time() > before);
    }
}
