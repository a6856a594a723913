//! A bounded number of places for those of whom nobody knows yet what they want. Pure.
//!
//! Why the newest is let in and not turned away: whoever means well says at once what he wants, and needs his place
//! for a moment. If the places were kept by those who came first, a few silent ones would keep everybody else out.

use std::collections::VecDeque;

/// The places. `T` is what it takes to put a guest out.
#[derive(Debug)]
pub struct WaitingRoom<T> {
    places: usize,
    last: u64,
    /// In the order in which they came.
    guests: VecDeque<Guest<T>>,
}

#[derive(Debug)]
struct Guest<T> {
    number: u64,
    has_spoken: bool,
    inside: T,
}

impl<T> WaitingRoom<T> {
    /// An empty room with at least one place.
    #[must_use]
    pub fn new(places: usize) -> WaitingRoom<T> {
        WaitingRoom { places: places.max(1), last: 0, guests: VecDeque::new() }
    }

    /// Lets a guest in and gives him a number. If there is no place, whoever came first goes, silent ones before others.
    pub fn enter(&mut self, inside: T) -> (u64, Option<T>) {
        let mut displaced = None;
        if self.guests.len() >= self.places {
            let at = self.guests.iter().position(|guest| !guest.has_spoken).unwrap_or(0);
            displaced = self.guests.remove(at).map(|guest| guest.inside);
        }
        self.last += 1;
        self.guests.push_back(Guest { number: self.last, has_spoken: false, inside });
        (self.last, displaced)
    }

    /// The guest has said something, if he is still there.
    pub fn speak(&mut self, number: u64) {
        if let Some(guest) = self.guests.iter_mut().find(|guest| guest.number == number) {
            guest.has_spoken = true;
        }
    }

    /// True when nobody is there.
    #[cfg(test)]
    pub fn is_empty(&self) -> bool {
        self.guests.is_empty()
    }

    /// The guest goes. `None`: he had to before.
    pub fn leave(&mut self, number: u64) -> Option<T> {
        let at = self.guests.iter().position(|guest| guest.number == number)?;
        self.guests.remove(at).map(|guest| guest.inside)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_takes_the_place_of_who_has_been_silent_longest() {
        let mut room = WaitingRoom::new(3);
        let numbers = ["a", "b", "c"].map(|name| room.enter(name).0);
        room.speak(numbers[0]);
        assert_eq!(room.enter("d").1, Some("b"));
        assert_eq!(room.leave(numbers[1]), None);
        assert_eq!(room.leave(numbers[2]), Some("c"));
        assert_eq!(room.enter("e").1, None);
    }

    #[test]
    fn when_all_have_spoken_the_first_goes() {
        let mut room = WaitingRoom::new(2);
        for name in ["a", "b"] {
            let (number, _) = room.enter(name);
            room.speak(number);
        }
        assert_eq!(room.enter("c").1, Some("a"));
    }
}
