//! The work on glommio: a ring per thread, with sockets by poll and try-first receive and send. Needs a
//! `memlock` limit of 512 KiB or more (`ulimit -l`).

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures_lite::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use glommio::net::{TcpListener, TcpStream};
use glommio::{LocalExecutorBuilder, Placement};

use crate::work::{BUFFER_BYTES, Job, Requests, Work, answer};

/// The thread is pinned already.
pub fn serve(job: Job) -> io::Result<()> {
    let executor = LocalExecutorBuilder::new(Placement::Unbound).make().map_err(io::Error::from)?;
    executor.run(async move {
        // It sets SO_REUSEPORT itself, and takes a descriptor only by unsafe code.
        let listener = TcpListener::bind(job.listen).map_err(io::Error::from)?;
        loop {
            let stream = listener.accept().await.map_err(io::Error::from)?;
            stream.set_nodelay(true).map_err(io::Error::from)?;
            // A connection that breaks shows at the load generator.
            glommio::spawn_local(async move {
                let _ = match job.work {
                    Work::Relay => relay(stream, job.upstream).await,
                    Work::Respond => respond(stream).await,
                };
            })
            .detach();
        }
    })
}

async fn relay(mut downstream: TcpStream, address: SocketAddr) -> io::Result<()> {
    let mut upstream = TcpStream::connect(address).await.map_err(io::Error::from)?;
    upstream.set_nodelay(true).map_err(io::Error::from)?;
    let (mut there, mut back) = (Pump::new(), Pump::new());
    // Halves of a stream would share it through a lock; one future that drives both directions needs none.
    poll_fn(|cx| {
        let there = there.poll(&mut downstream, &mut upstream, cx)?;
        let back = back.poll(&mut upstream, &mut downstream, cx)?;
        if there.is_ready() && back.is_ready() { Poll::Ready(Ok(())) } else { Poll::Pending }
    })
    .await
}

/// One direction of a relay.
struct Pump {
    buffer: Vec<u8>,
    sent: usize,
    filled: usize,
    ended: bool,
    closed: bool,
}

impl Pump {
    fn new() -> Self {
        Self { buffer: vec![0; BUFFER_BYTES], sent: 0, filled: 0, ended: false, closed: false }
    }

    fn poll(
        &mut self,
        from: &mut TcpStream,
        to: &mut TcpStream,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            if self.closed {
                return Poll::Ready(Ok(()));
            }
            if self.sent < self.filled {
                let rest = &self.buffer[self.sent..self.filled];
                self.sent += ready!(Pin::new(&mut *to).poll_write(cx, rest))?;
            } else if self.ended {
                ready!(Pin::new(&mut *to).poll_close(cx))?;
                self.closed = true;
            } else {
                self.filled = ready!(Pin::new(&mut *from).poll_read(cx, &mut self.buffer))?;
                self.sent = 0;
                self.ended = self.filled == 0;
            }
        }
    }
}

async fn respond(mut stream: TcpStream) -> io::Result<()> {
    let mut requests = Requests::default();
    let mut buffer = vec![0; BUFFER_BYTES];
    let answer = answer();
    loop {
        let count = stream.read(&mut buffer).await?;
        if count == 0 {
            return Ok(());
        }
        for _ in 0..requests.take(&buffer[..count])? {
            stream.write_all(&answer).await?;
        }
    }
}
