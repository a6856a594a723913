//! A mailbox for a thread that takes everything waiting at once.
//!
//! Why not a channel: the sweep wants all that arrived meanwhile in one go, and a sender should make a
//! system call only when the receiver sleeps. Under load it never does.

use std::time::Duration;

use parking_lot::Condvar;
use parking_lot::Mutex;

/// Messages that wait for one receiving thread.
pub struct Mailbox<T> {
    inner: Mutex<Inner<T>>,
    arrived: Condvar,
}

struct Inner<T> {
    waiting: Vec<T>,
    receiver_sleeps: bool,
}

impl<T> Default for Mailbox<T> {
    fn default() -> Self {
        Mailbox {
            inner: Mutex::new(Inner { waiting: Vec::new(), receiver_sleeps: false }),
            arrived: Condvar::new(),
        }
    }
}

impl<T> Mailbox<T> {
    /// Puts a message in. Never waits; what bounds the mailbox is the senders' own protocol.
    pub fn send(&self, message: T) {
        let mut inner = self.inner.lock();
        inner.waiting.push(message);
        if inner.receiver_sleeps {
            inner.receiver_sleeps = false;
            drop(inner);
            self.arrived.notify_one();
        }
    }

    /// Puts a message in without waking the receiver. True when nothing waited before: then it is for this
    /// sender to see to it that somebody looks soon.
    pub fn post(&self, message: T) -> bool {
        let mut inner = self.inner.lock();
        inner.waiting.push(message);
        inner.waiting.len() == 1
    }

    /// How many messages wait.
    pub fn len(&self) -> usize {
        self.inner.lock().waiting.len()
    }

    /// True when nothing waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes everything that waits. `into` must be empty.
    pub fn take(&self, into: &mut Vec<T>) {
        std::mem::swap(&mut self.inner.lock().waiting, into);
    }

    /// Waits until something was sent, at most so long.
    pub fn wait(&self, at_most: Duration) {
        let mut inner = self.inner.lock();
        if inner.waiting.is_empty() {
            inner.receiver_sleeps = true;
            self.arrived.wait_for(&mut inner, at_most);
            inner.receiver_sleeps = false;
        }
    }

    /// Takes everything that waits, after waiting at most `at_most` for something to come.
    /// `into` must be empty; it stays empty when nothing came.
    pub fn receive(&self, into: &mut Vec<T>, at_most: Duration) {
        self.wait(at_most);
        self.take(into);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn everything_sent_is_received_in_order() {
        let mailbox = Arc::new(Mailbox::default());
        let sender = Arc::clone(&mailbox);
        let thread = std::thread::spawn(move || (0..1000).for_each(|n| sender.send(n)));
        let (mut all, mut some) = (Vec::new(), Vec::new());
        while all.len() < 1000 {
            mailbox.receive(&mut some, Duration::from_millis(100));
            all.append(&mut some);
        }
        thread.join().unwrap();
        assert_eq!(all, (0..1000).collect::<Vec<_>>());
    }
}
