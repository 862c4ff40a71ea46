//! Memory for one kind of large future, used again and again. An idle session keeps none of it: the state of an
//! exchange lives here only while there is an exchange.

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::Pin;
use std::ptr::NonNull;
use std::task::{Context, Poll};

/// Hands out blocks of `BYTES` bytes for futures. Keeps up to `kept_max` free ones.
pub struct Recycler<const BYTES: usize> {
    free: RefCell<Vec<NonNull<u8>>>,
    kept_max: usize,
    /// Blocks that exist, free ones included.
    blocks: Cell<usize>,
}

impl<const BYTES: usize> Recycler<BYTES> {
    const LAYOUT: Layout = match Layout::from_size_align(BYTES, 16) {
        Ok(layout) => layout,
        Err(_) => panic!("a block size that is a valid layout"),
    };

    pub const fn new(kept_max: usize) -> Self {
        Self { free: RefCell::new(Vec::new()), kept_max, blocks: Cell::new(0) }
    }

    /// Bytes of all blocks that exist.
    pub const fn bytes_allocated(&self) -> usize {
        self.blocks.get() * BYTES
    }

    /// Moves `future` into a block. A future that does not fit is a compile-time error.
    pub fn place<F: Future>(&self, future: F) -> Placed<'_, F, BYTES> {
        const {
            assert!(BYTES > 0, "memory of no size cannot be allocated");
            assert!(size_of::<F>() <= BYTES, "the future outgrew its block");
            assert!(align_of::<F>() <= 16, "the future needs a larger alignment");
        }
        let block = self.free.borrow_mut().pop().unwrap_or_else(|| {
            self.blocks.set(self.blocks.get() + 1);
            // SAFETY: LAYOUT has a non-zero size: asserted above.
            let block = unsafe { alloc(Self::LAYOUT) };
            NonNull::new(block).unwrap_or_else(|| handle_alloc_error(Self::LAYOUT))
        });
        let future_at = block.cast::<F>();
        // SAFETY: the block is ours alone (popped or fresh), large and aligned enough by the assertions above.
        unsafe { future_at.write(future) };
        Placed { future: future_at, home: self }
    }
}

impl<const BYTES: usize> Drop for Recycler<BYTES> {
    fn drop(&mut self) {
        for block in self.free.get_mut().drain(..) {
            // SAFETY: every block in `free` came from `alloc` with this layout and holds no future any more.
            unsafe { dealloc(block.as_ptr(), Self::LAYOUT) };
        }
    }
}

/// A future in a recycled block.
pub struct Placed<'r, F, const BYTES: usize> {
    future: NonNull<F>,
    home: &'r Recycler<BYTES>,
}

impl<F: Future, const BYTES: usize> Future for Placed<'_, F, BYTES> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        // SAFETY: `future` points to a live F that only this value names, and which never moves until it is
        // dropped in place: that is what pinning asks for.
        let future = unsafe { Pin::new_unchecked(self.get_mut().future.as_mut()) };
        future.poll(cx)
    }
}

impl<F, const BYTES: usize> Drop for Placed<'_, F, BYTES> {
    fn drop(&mut self) {
        // SAFETY: the future is live until here and nothing names it afterwards.
        unsafe { self.future.drop_in_place() };
        let mut free = self.home.free.borrow_mut();
        if free.len() < self.home.kept_max {
            free.push(self.future.cast());
        } else {
            self.home.blocks.set(self.home.blocks.get() - 1);
            // SAFETY: allocated in `place` with this layout, and empty now.
            unsafe { dealloc(self.future.as_ptr().cast(), Recycler::<BYTES>::LAYOUT) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::rc::Rc;
    use std::task::Waker;

    #[test]
    fn a_block_is_used_again_and_its_future_is_dropped() {
        let recycler: Recycler<256> = Recycler::new(1);
        let witness = Rc::new(());
        let mut blocks = Vec::new();
        for _ in 0..3 {
            let held = witness.clone();
            let mut placed = std::pin::pin!(recycler.place(async move { Rc::strong_count(&held) }));
            blocks.push(placed.future.as_ptr() as usize);
            let polled = placed.as_mut().poll(&mut Context::from_waker(Waker::noop()));
            assert_eq!(polled, Poll::Ready(2));
        }
        assert_eq!(Rc::strong_count(&witness), 1);
        assert!(blocks.windows(2).all(|pair| pair[0] == pair[1]), "{blocks:?}");
    }
}
