//! A listener that admits a bounded count of connections at once, each for a bounded time, so that whoever connects
//! to the admin endpoints and dawdles takes nothing from the gateway. The rest wait in the kernel's queue.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::serve::Listener;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep};

use crate::limits::ADMIN_CONNECTIONS_MAX;

/// From accept to the last byte of an answer that is at hand.
pub const READ_TIMEOUT: Duration = Duration::from_secs(10);
/// The same where something may be changed first: a reload reads files, opens sockets and looks names up.
pub const CHANGE_TIMEOUT: Duration = Duration::from_secs(60);

/// Admission to all admin listeners of the process.
pub fn permits() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(ADMIN_CONNECTIONS_MAX))
}

pub struct Bounded<L> {
    listener: L,
    permits: Arc<Semaphore>,
    timeout: Duration,
}

impl<L> Bounded<L> {
    /// `timeout`: of a connection, from accept to its end.
    pub const fn new(listener: L, permits: Arc<Semaphore>, timeout: Duration) -> Self {
        Self { listener, permits, timeout }
    }
}

impl<L: Listener> Listener for Bounded<L> {
    type Addr = L::Addr;
    type Io = Timed<L::Io>;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        // The semaphore is never closed; should it be, connections are served uncounted.
        let permit = self.permits.clone().acquire_owned().await.ok();
        let (stream, address) = self.listener.accept().await;
        let deadline = Box::pin(tokio::time::sleep_until(Instant::now() + self.timeout));
        (Timed { stream, deadline, _permit: permit }, address)
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        self.listener.local_addr()
    }
}

/// A stream whose every operation fails once its time is up.
pub struct Timed<S> {
    stream: S,
    deadline: Pin<Box<Sleep>>,
    _permit: Option<OwnedSemaphorePermit>,
}

impl<S> Timed<S> {
    fn check(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        match self.deadline.as_mut().poll(context) {
            Poll::Ready(()) => Err(io::ErrorKind::TimedOut.into()),
            Poll::Pending => Ok(()),
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Timed<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check(context)?;
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Timed<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.check(context)?;
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check(context)?;
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.stream).poll_shutdown(context))?;
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    async fn listener(permits: usize, timeout: Duration) -> (Bounded<TcpListener>, std::net::SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        (Bounded { listener, permits: Arc::new(Semaphore::new(permits)), timeout }, address)
    }

    #[tokio::test]
    async fn one_connection_too_many_waits_until_another_is_done() {
        let (mut listener, address) = listener(1, READ_TIMEOUT).await;
        let _clients =
            (TcpStream::connect(address).await.unwrap(), TcpStream::connect(address).await.unwrap());
        let (first, _) = listener.accept().await;
        let permits = listener.permits.clone();
        assert_eq!(permits.available_permits(), 0);
        let mut second = Box::pin(listener.accept());
        assert!(futures_now(&mut second).await.is_none());
        drop(first);
        second.await;
    }

    #[tokio::test]
    async fn a_client_that_dawdles_is_cut() {
        let (mut listener, address) = listener(1, Duration::from_millis(20)).await;
        let mut client = TcpStream::connect(address).await.unwrap();
        client.write_all(b"G").await.unwrap();
        let (mut stream, _) = listener.accept().await;
        let mut bytes = Vec::new();
        let error = stream.read_to_end(&mut bytes).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert_eq!(stream.write_all(b"x").await.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }

    /// The output of `future` if it is ready now.
    async fn futures_now<F: Future + Unpin>(future: &mut F) -> Option<F::Output> {
        std::future::poll_fn(|context| match Pin::new(&mut *future).poll(context) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            Poll::Pending => Poll::Ready(None),
        })
        .await
    }
}
