//! A machine: a runtime of its own on paused time, which is switched off by being dropped.

use std::{
    cell::{Cell, RefCell},
    future::Future,
    io, panic,
    sync::Once,
    time::Duration,
};

use tokio::{
    runtime::{Builder, Runtime},
    task::JoinHandle,
    time::{Instant, advance, sleep_until},
};

use crate::clock::Clock;

thread_local! {
    /// Whether a machine runs on this thread.
    static IS_RUNNING: Cell<bool> = const { Cell::new(false) };
    /// Panics of programs on machines of this thread.
    static PANICS: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

/// Has panics of programs on machines noted instead of printed, from now on.
pub fn note_panics() {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let print = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if IS_RUNNING.get() {
                PANICS.with_borrow_mut(|panics| panics.push(info.to_string()));
            } else {
                print(info);
            }
        }));
    });
}

/// Returns what was noted on this thread since the last time.
pub fn take_panics() -> Vec<String> {
    PANICS.take()
}

/// A machine that runs one program, whose end is an `E`.
///
/// Between two calls of [`Machine::run_until`] everything on it stands still, so that it can be switched off between any
/// two steps of its program that take time.
pub struct Machine<E> {
    runtime: Runtime,
    clock: Clock,
    /// What its own clock said when it was switched on.
    switched_on: Instant,
    /// When that was.
    at: Duration,
    program: JoinHandle<E>,
}

impl<E: Send + 'static> Machine<E> {
    /// Switches a machine on that runs `program`.
    ///
    /// # Errors
    ///
    /// When the system has no room for a runtime.
    pub fn boot(clock: &Clock, at: Duration, program: impl Future<Output = E> + Send + 'static) -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_time().start_paused(true).build()?;
        let switched_on = {
            let _in_its_time = runtime.enter();
            Instant::now()
        };
        let program = runtime.spawn(program);
        Ok(Self { runtime, clock: clock.clone(), switched_on, at, program })
    }

    /// Lets it run until `moment`; what is due at that very moment may be left to the next time.
    pub fn run_until(&self, moment: Duration) {
        let until = self.switched_on + moment.saturating_sub(self.at);
        self.run(async { sleep_until(until).await });
    }

    /// Sets its clock to `moment` after it stood still, as a process finds that is continued after it was stopped: whatever
    /// was due meanwhile is due at once.
    pub fn wake(&self, moment: Duration) {
        let until = self.switched_on + moment.saturating_sub(self.at);
        self.run(async { advance(until.saturating_duration_since(Instant::now())).await });
    }

    fn run(&self, span: impl Future<Output = ()>) {
        self.clock.enter(self.switched_on, self.at);
        IS_RUNNING.set(true);
        self.runtime.block_on(span);
        IS_RUNNING.set(false);
        self.clock.leave();
    }

    /// Says whether its program has ended.
    pub fn has_ended(&self) -> bool {
        self.program.is_finished()
    }

    /// Returns what a program that has ended came to, and switches the machine off; none if it ended in a panic.
    pub fn outcome(self) -> Option<E> {
        self.runtime.block_on(self.program).ok()
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::sleep;

    use super::*;

    #[test]
    fn a_machine_runs_exactly_as_long_as_it_is_let() {
        let clock = Clock::default();
        let seen = clock.clone();
        let machine = Machine::boot(&clock, Duration::from_secs(5), async move {
            sleep(Duration::from_secs(2)).await;
            seen.now()
        });
        let machine = machine.unwrap();
        machine.run_until(Duration::from_millis(6_999));
        assert!(!machine.has_ended());
        machine.run_until(Duration::from_millis(7_001));
        assert!(machine.has_ended());
        assert_eq!(machine.outcome(), Some(Duration::from_secs(7)));
    }

    #[test]
    fn what_was_due_while_a_machine_stood_still_is_due_when_it_goes_on() {
        let clock = Clock::default();
        let seen = clock.clone();
        let machine = Machine::boot(&clock, Duration::ZERO, async move {
            sleep(Duration::from_secs(2)).await;
            seen.now()
        });
        let machine = machine.unwrap();
        machine.run_until(Duration::from_secs(1));
        machine.wake(Duration::from_secs(60));
        machine.run_until(Duration::from_millis(60_001));
        assert_eq!(machine.outcome(), Some(Duration::from_secs(60)));
    }
}
