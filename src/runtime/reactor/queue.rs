//! A queue that holds its usual zero or one element in place: an idle socket must not own a heap block.

use std::collections::VecDeque;

pub(super) enum Queue<T> {
    Empty,
    One(T),
    // Boxed, though it costs a second block: a queue of many is rare, and the slot of every socket holds two.
    #[allow(clippy::box_collection)]
    Many(Box<VecDeque<T>>),
}

impl<T> Queue<T> {
    pub(super) const fn new() -> Self {
        Self::Empty
    }

    pub(super) const fn is_empty(&self) -> bool {
        matches!(self, Self::Empty)
    }

    pub(super) fn len(&self) -> usize {
        match self {
            Self::Empty => 0,
            Self::One(_) => 1,
            Self::Many(queue) => queue.len(),
        }
    }

    pub(super) fn push(&mut self, value: T) {
        *self = match std::mem::replace(self, Self::Empty) {
            Self::Empty => Self::One(value),
            Self::One(first) => Self::Many(Box::new(VecDeque::from([first, value]))),
            Self::Many(mut queue) => {
                queue.push_back(value);
                Self::Many(queue)
            }
        };
    }

    /// Puts a value before the others.
    pub(super) fn push_front(&mut self, value: T) {
        match self {
            Self::Empty => *self = Self::One(value),
            Self::Many(queue) => queue.push_front(value),
            Self::One(_) => {
                let behind = self.pop();
                *self = Self::One(value);
                behind.into_iter().for_each(|behind| self.push(behind));
            }
        }
    }

    pub(super) fn pop(&mut self) -> Option<T> {
        match std::mem::replace(self, Self::Empty) {
            Self::Empty => None,
            Self::One(value) => Some(value),
            Self::Many(mut queue) => {
                let first = queue.pop_front();
                // Never left empty, so that `is_empty` is one comparison.
                if !queue.is_empty() {
                    *self = Self::Many(queue);
                }
                first
            }
        }
    }

    pub(super) fn front_mut(&mut self) -> Option<&mut T> {
        match self {
            Self::Empty => None,
            Self::One(value) => Some(value),
            Self::Many(queue) => queue.front_mut(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_in_first_out_and_empty_again() {
        let mut queue = Queue::new();
        for value in 0..5 {
            queue.push(value);
        }
        assert_eq!((queue.len(), queue.front_mut().copied()), (5, Some(0)));
        assert_eq!(std::iter::from_fn(|| queue.pop()).collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
        assert!(queue.is_empty());
        for value in 0..3 {
            queue.push_front(value);
        }
        assert_eq!(std::iter::from_fn(|| queue.pop()).collect::<Vec<_>>(), [2, 1, 0]);
    }
}
