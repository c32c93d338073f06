//! A value that several tasks watch, like [`tokio::sync::watch`], whose waiters are woken in the order in which they
//! began to wait.
//!
//! Tokio's own wakes them in random order. Which of them acts first decides which call is sent first, and a simulation has
//! to take the same course for the same seed.

use std::sync::Arc;

use tokio::sync::{Notify, watch};

/// Changes the value. When it is dropped, nobody waits any longer.
#[derive(Debug)]
pub struct Sender<T> {
    // Dropped in this order: whoever is woken last finds the value closed.
    value: watch::Sender<T>,
    bell: Bell,
}

/// Looks at the value.
#[derive(Clone, Debug)]
pub struct Receiver<T> {
    value: watch::Receiver<T>,
    bell: Arc<Notify>,
}

/// The value changes no more.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Closed;

/// Wakes whoever waits, also when it is dropped.
#[derive(Debug)]
struct Bell(Arc<Notify>);

/// Makes both ends of a watched value.
pub fn channel<T>(value: T) -> (Sender<T>, Receiver<T>) {
    let (sender, receiver) = watch::channel(value);
    let bell = Arc::new(Notify::new());
    (Sender { value: sender, bell: Bell(Arc::clone(&bell)) }, Receiver { value: receiver, bell })
}

impl<T> Sender<T> {
    /// Replaces the value.
    pub fn send_replace(&self, value: T) {
        self.value.send_replace(value);
        self.bell.0.notify_waiters();
    }

    /// Changes the value; nobody is woken if `change` says that it did not.
    pub fn send_if_modified(&self, change: impl FnOnce(&mut T) -> bool) {
        if self.value.send_if_modified(change) {
            self.bell.0.notify_waiters();
        }
    }
}

impl<T> Receiver<T> {
    /// Looks at the value.
    pub fn borrow(&self) -> watch::Ref<'_, T> {
        self.value.borrow()
    }

    /// Looks at the value, which is then no longer new.
    pub fn borrow_and_update(&mut self) -> watch::Ref<'_, T> {
        self.value.borrow_and_update()
    }

    /// Waits until there is a new value. Nothing is lost when the returned future is dropped.
    ///
    /// # Errors
    ///
    /// When there will be none.
    pub async fn changed(&mut self) -> Result<(), Closed> {
        let bell = Arc::clone(&self.bell);
        loop {
            // Before the look, so that no change between look and wait is missed.
            let mut rung = std::pin::pin!(bell.notified());
            rung.as_mut().enable();
            if self.value.has_changed().map_err(|_| Closed)? {
                self.value.mark_unchanged();
                return Ok(());
            }
            rung.await;
        }
    }

    /// Waits until the value, as it is or becomes, is as wanted.
    ///
    /// # Errors
    ///
    /// When it changes no more.
    pub async fn wait_for(&mut self, mut is_wanted: impl FnMut(&T) -> bool) -> Result<(), Closed> {
        while !is_wanted(&self.value.borrow_and_update()) {
            self.changed().await?;
        }
        Ok(())
    }
}

impl Drop for Bell {
    fn drop(&mut self) {
        self.0.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use tokio::task::JoinSet;

    use super::*;

    #[tokio::test]
    async fn those_who_wait_are_woken_in_the_order_in_which_they_came() {
        let (sender, receiver) = channel(0);
        let woken = Arc::new(Mutex::new(Vec::new()));
        let mut waiting = JoinSet::new();
        for place in 0..20 {
            let (mut receiver, woken) = (receiver.clone(), Arc::clone(&woken));
            waiting.spawn(async move {
                receiver.changed().await.unwrap();
                woken.lock().unwrap().push(place);
            });
        }
        tokio::task::yield_now().await;
        sender.send_replace(1);
        waiting.join_all().await;
        assert_eq!(*woken.lock().unwrap(), (0..20).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn whoever_waits_learns_that_there_is_nothing_to_wait_for() {
        let (sender, receiver) = channel(0);
        let (mut one, mut other) = (receiver.clone(), receiver);
        let waiting = tokio::join!(one.changed(), other.wait_for(|value| *value == 7), async { drop(sender) });
        assert_eq!((waiting.0, waiting.1), (Err(Closed), Err(Closed)));
    }

    #[tokio::test]
    async fn a_value_is_new_once_and_a_wanted_value_is_found_at_once() {
        let (sender, mut receiver) = channel(0);
        sender.send_replace(1);
        assert_eq!(receiver.changed().await, Ok(()));
        sender.send_if_modified(|_| false);
        assert!(!receiver.value.has_changed().unwrap());
        assert_eq!(receiver.wait_for(|value| *value == 1).await, Ok(()));
    }
}
