//! Word that something has happened.

use tokio::sync::broadcast::{self, error::RecvError};

/// News that may wait for who listens: there is no more to know than that there are some.
const NEWS_MAX: usize = 1;

/// Whoever waited will hear nothing more.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Closed;

/// Says that something has happened.
#[derive(Debug)]
pub(super) struct Announcer(broadcast::Sender<()>);

/// Hears that something has happened. Those who wait are woken in the order in which they began to; a watch wakes them in
/// random order, and a simulation has to take the same course for the same seed.
#[derive(Debug)]
pub struct Changes(broadcast::Receiver<()>);

/// Makes both ends.
pub(super) fn channel() -> (Announcer, Changes) {
    let (sender, receiver) = broadcast::channel(NEWS_MAX);
    (Announcer(sender), Changes(receiver))
}

impl Announcer {
    /// Wakes everybody who waits.
    pub(super) fn announce(&self) {
        // An error means that nobody listens.
        let _listeners = self.0.send(());
    }
}

impl Changes {
    /// Forgets what has happened until now.
    pub fn mark_unchanged(&mut self) {
        self.0 = self.0.resubscribe();
    }

    /// Waits until something happens, at once if something has since the last time. Nothing is lost when the returned future
    /// is dropped.
    ///
    /// # Errors
    ///
    /// When nothing will happen any more.
    pub async fn changed(&mut self) -> Result<(), Closed> {
        match self.0.recv().await {
            Ok(()) | Err(RecvError::Lagged(_)) => {
                self.mark_unchanged();
                Ok(())
            }
            Err(RecvError::Closed) => Err(Closed),
        }
    }

    /// Says whether something has happened since the last time.
    #[cfg(test)]
    pub(super) fn has_changed(&self) -> bool {
        !self.0.is_empty()
    }
}

impl Clone for Changes {
    fn clone(&self) -> Self {
        Self(self.0.resubscribe())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn much_news_is_heard_once() {
        let (announcer, mut changes) = channel();
        (0..10).for_each(|_| announcer.announce());
        assert_eq!(changes.changed().await, Ok(()));
        assert!(!changes.has_changed());
        announcer.announce();
        changes.mark_unchanged();
        assert!(!changes.has_changed());
    }

    #[tokio::test]
    async fn whoever_waits_hears_of_the_end() {
        let (announcer, mut changes) = channel();
        let mut clone = changes.clone();
        let ended = tokio::join!(changes.changed(), clone.changed(), async { drop(announcer) });
        assert_eq!((ended.0, ended.1), (Err(Closed), Err(Closed)));
    }
}
