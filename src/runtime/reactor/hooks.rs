//! For tests: what goes on inside a reactor, and ways to make its life hard.

use std::os::fd::AsRawFd;

pub(in crate::runtime) use super::uring::faults::Fault;
use super::*;

/// Sums over all sockets.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(in crate::runtime) struct Inside {
    /// Sockets that exist, those included whose close waits for the kernel or for a turn to come.
    pub(in crate::runtime) sockets: usize,
    /// Sockets whose close waits for the kernel.
    pub(in crate::runtime) closing: usize,
    /// Receives, accepts and polls that the kernel holds.
    pub(in crate::runtime) receiving: usize,
    /// Sends that the kernel holds.
    pub(in crate::runtime) sending: usize,
    /// Elements in the longest inbox.
    pub(in crate::runtime) inbox_longest: usize,
}

impl Reactor {
    pub(in crate::runtime) fn inside(&self) -> Inside {
        let mut inside = Inside { sockets: self.slots.len() + self.closing.len(), ..Inside::default() };
        for (_, slot) in self.slots.iter() {
            inside.closing += usize::from(slot.closing);
            inside.receiving += usize::from(slot.receiving != Receiving::Idle);
            inside.sending += usize::from(slot.sending == Sending::InFlight);
            inside.inbox_longest = inside.inbox_longest.max(slot.inbox.len());
        }
        inside
    }

    /// On the `rung`th set-up of the ladder, counted from the best.
    pub(in crate::runtime) fn on_rung(sizes: RingSizes, rung: usize) -> io::Result<Self> {
        setup::on_uring(sizes, &setup::LADDER[rung..=rung]).map(|(reactor, _)| reactor)
    }

    pub(in crate::runtime) fn uring(&mut self) -> Option<&mut Uring> {
        match &mut self.backend {
            Backend::Epoll(_) => None,
            Backend::Uring(uring) => Some(uring),
        }
    }

    pub(in crate::runtime) fn buffers_of_all(&self) -> Rc<Buffers> {
        self.buffers.clone()
    }

    /// Of every socket.
    pub(in crate::runtime) fn descriptors(&self) -> Vec<i32> {
        self.slots.iter().map(|(_, slot)| slot.fd.as_raw_fd()).collect()
    }

    /// The descriptor of the ring or of epoll.
    pub(in crate::runtime) fn engine_fd(&self) -> i32 {
        match &self.backend {
            Backend::Epoll(epoll) => epoll.raw_fd(),
            Backend::Uring(uring) => uring.raw_fd(),
        }
    }
}

#[test]
fn an_idle_socket_costs_no_more_than_its_slot() {
    // Printed, so that whoever shrinks or grows one sees the figure: cargo test idle -- --nocapture
    eprintln!("slot of a socket: {} bytes in its slab", size_of::<Slot>() + 8);
    assert!(size_of::<Slot>() <= 168);
}
