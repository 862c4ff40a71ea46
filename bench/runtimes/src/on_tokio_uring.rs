//! The work on tokio-uring: completions for reads and writes, on tokio's current-thread runtime, which learns
//! of them by epoll on the ring's descriptor.

use std::io;
use std::net::{Shutdown, SocketAddr};
use std::rc::Rc;

use tokio_uring::buf::BoundedBuf;
use tokio_uring::net::{TcpListener, TcpStream};

use crate::work::{BUFFER_BYTES, Job, Requests, Work, answer};

pub fn serve(job: Job) -> io::Result<()> {
    let mut ring = tokio_uring::uring_builder();
    ring.setup_coop_taskrun().setup_single_issuer();
    tokio_uring::builder().entries(1024).uring_builder(&ring).start(async move {
        // A non-blocking listener would make the ring's accept fail instead of wait.
        let listener = TcpListener::from_std(job.listener(true)?);
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            // A connection that breaks shows at the load generator.
            tokio_uring::spawn(async move {
                let _ = match job.work {
                    Work::Relay => relay(stream, job.upstream).await,
                    Work::Respond => respond(stream).await,
                };
            });
        }
    })
}

async fn relay(downstream: TcpStream, address: SocketAddr) -> io::Result<()> {
    let upstream = Rc::new(TcpStream::connect(address).await?);
    upstream.set_nodelay(true)?;
    let downstream = Rc::new(downstream);
    tokio::try_join!(pump(&downstream, &upstream), pump(&upstream, &downstream)).map(|_| ())
}

async fn pump(from: &TcpStream, to: &TcpStream) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let (outcome, filled) = from.read(buffer).await;
        let count = outcome?;
        if count == 0 {
            return to.shutdown(Shutdown::Write);
        }
        let (outcome, sent) = to.write_all(filled.slice(..count)).await;
        outcome?;
        buffer = sent.into_inner();
    }
}

async fn respond(stream: TcpStream) -> io::Result<()> {
    let mut requests = Requests::default();
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut answer = answer();
    loop {
        let (outcome, filled) = stream.read(buffer).await;
        let count = outcome?;
        if count == 0 {
            return Ok(());
        }
        for _ in 0..requests.take(&filled[..count])? {
            let (outcome, sent) = stream.write_all(answer).await;
            outcome?;
            answer = sent;
        }
        buffer = filled;
    }
}
