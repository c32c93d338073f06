//! One direction of a network line, as bad as a test wants it.
//!
//! It carries packets between two TUN devices. What happens to each is decided by `Course`, without devices.

use std::{sync::Arc, time::Duration};

use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::{Instant, sleep_until},
};
use tokio_tun::Tun;

/// Largest packet: the devices' MTU is the usual 1500.
const PACKET_BYTES_MAX: usize = 2048;
/// Packets under way at a time; more are lost. Some times what a second of the slowest line that is tested holds.
const PACKETS_MAX: usize = 4096;
/// How far a throttled line lags behind before it loses packets: what a router's buffer holds.
const LAG_MAX: Duration = Duration::from_secs(1);

/// What becomes of packets.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Quality {
    /// Share of packets that are lost, 0..=1.
    pub loss: f64,
    /// How long each takes.
    pub delay: Duration,
    /// How many bytes pass in a second; absent: as many as come.
    pub bytes_per_second: Option<u32>,
}

impl Quality {
    /// Everything arrives at once.
    pub const GOOD: Self = Self { loss: 0.0, delay: Duration::ZERO, bytes_per_second: None };
    /// Nothing arrives.
    pub const CUT: Self = Self { loss: 1.0, ..Self::GOOD };
}

/// One direction of a line; it carries packets until it is dropped.
pub struct Line {
    quality: watch::Sender<Quality>,
    lost: watch::Receiver<u64>,
    _carriers: JoinSet<()>,
}

impl Line {
    /// Carries what one device sends to the other, well at first. `seed` decides which packets are lost, by their number.
    pub fn open(from: Arc<Tun>, to: Arc<Tun>, seed: u64) -> Self {
        let (quality, wanted) = watch::channel(Quality::GOOD);
        let (counted, lost) = watch::channel(0);
        let (sent, under_way) = mpsc::channel(PACKETS_MAX);
        let course = Course { free_at: Instant::now(), dice: ChaCha8Rng::seed_from_u64(seed) };
        let mut carriers = JoinSet::new();
        carriers.spawn(take(from, course, wanted, sent, counted));
        carriers.spawn(deliver(under_way, to));
        Self { quality, lost, _carriers: carriers }
    }

    /// Makes the line better or worse, for packets that are sent from now on.
    pub fn set(&self, quality: Quality) {
        self.quality.send_replace(quality);
    }

    /// Returns how many packets were lost so far.
    pub fn lost(&self) -> u64 {
        *self.lost.borrow()
    }
}

/// A packet and when it arrives.
type UnderWay = (Instant, Vec<u8>);

async fn take(
    from: Arc<Tun>,
    mut course: Course,
    wanted: watch::Receiver<Quality>,
    sent: mpsc::Sender<UnderWay>,
    lost: watch::Sender<u64>,
) {
    let mut packet = [0; PACKET_BYTES_MAX];
    while let Ok(length) = from.recv(&mut packet).await {
        // The devices' own chatter about neighbours is IPv6, and nobody's loss.
        let is_ipv4 = packet[0] >> 4 == 4;
        if !is_ipv4 {
            continue;
        }
        let arrival = course.arrival(&wanted.borrow(), length, Instant::now());
        let is_carried = arrival.is_some_and(|at| sent.try_send((at, packet[..length].to_vec())).is_ok());
        if !is_carried {
            lost.send_modify(|count| *count += 1);
        }
    }
}

async fn deliver(mut under_way: mpsc::Receiver<UnderWay>, to: Arc<Tun>) {
    while let Some((arrival, packet)) = under_way.recv().await {
        // The clock of the runtime ticks in milliseconds: what is due must not wait for it.
        if arrival > Instant::now() {
            sleep_until(arrival).await;
        }
        // A device that takes no packet has lost it, as a network card would.
        let _ = to.send(&packet).await;
    }
}

/// Decides what becomes of each packet.
struct Course {
    /// When the line is done with all that was sent before.
    free_at: Instant,
    dice: ChaCha8Rng,
}

impl Course {
    /// Returns when a packet of `bytes` that is sent `now` arrives; `None` if it is lost.
    fn arrival(&mut self, quality: &Quality, bytes: usize, now: Instant) -> Option<Instant> {
        let is_lost = self.dice.random_bool(quality.loss);
        let starts_at = self.free_at.max(now);
        let lag = starts_at - now;
        if is_lost || lag > LAG_MAX {
            return None;
        }
        let takes = quality.bytes_per_second.map_or(0.0, |rate| bytes as f64 / f64::from(rate));
        self.free_at = starts_at + Duration::from_secs_f64(takes);
        Some(self.free_at + quality.delay)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sends `count` packets of 1,000 bytes at once and returns how long each takes, in milliseconds; none for a lost one.
    fn sent_at_once(quality: Quality, count: usize) -> Vec<Option<u128>> {
        let now = Instant::now();
        let mut course = Course { free_at: now, dice: ChaCha8Rng::seed_from_u64(1) };
        let arrivals = (0..count).map(|_| course.arrival(&quality, 1000, now));
        arrivals.map(|arrival| Some((arrival? - now).as_millis())).collect()
    }

    #[test]
    fn a_good_line_carries_everything_at_once_and_a_cut_one_nothing() {
        assert_eq!(sent_at_once(Quality::GOOD, 3), [Some(0); 3]);
        assert_eq!(sent_at_once(Quality::CUT, 3), [None; 3]);
    }

    #[test]
    fn delayed_packets_do_not_wait_for_one_another_and_throttled_ones_do() {
        let delayed = Quality { delay: Duration::from_millis(200), ..Quality::GOOD };
        assert_eq!(sent_at_once(delayed, 3), [Some(200); 3]);
        let throttled = Quality { bytes_per_second: Some(10_000), ..delayed };
        assert_eq!(sent_at_once(throttled, 3), [Some(300), Some(400), Some(500)]);
    }

    #[test]
    fn a_throttled_line_loses_what_its_buffer_does_not_hold() {
        let throttled = Quality { bytes_per_second: Some(10_000), ..Quality::GOOD };
        let arrivals = sent_at_once(throttled, 20);
        assert!(arrivals[10].is_some() && arrivals[11..].iter().all(Option::is_none), "{arrivals:?}");
    }

    #[test]
    fn the_share_of_lost_packets_is_the_one_asked_for() {
        let lossy = Quality { loss: 0.2, ..Quality::GOOD };
        let lost = sent_at_once(lossy, 10_000).iter().filter(|arrival| arrival.is_none()).count();
        assert!((1800..2200).contains(&lost), "{lost} of 10,000");
    }
}
