//! The calls. Each is a check of its own, on one connection.

use std::error::Error;
use std::future::Future;
use std::time::{Duration, Instant};

use tokio_stream::{StreamExt, iter};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic::{Code, Request, Status};

use crate::Message;
use crate::echo::echo_client::EchoClient;
use crate::serve::MESSAGE_BYTES_MAX;

const MIB: usize = 1 << 20;
/// Longest that a check may take.
const SOON: Duration = Duration::from_secs(20);

type Client = EchoClient<Channel>;
type Checked = Result<(), Box<dyn Error>>;

/// Runs all checks; a line for each.
pub async fn run(uri: &str, ca: Option<String>) -> Result<(), Box<dyn Error>> {
    let mut endpoint = Endpoint::from_shared(uri.to_owned())?;
    if let Some(ca) = ca {
        let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(ca)).domain_name("localhost");
        endpoint = endpoint.tls_config(tls)?;
    }
    let client = EchoClient::new(endpoint.connect().await?)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    tell("unary", unary(client.clone())).await;
    tell("unary, 4 MiB each way", large(client.clone())).await;
    tell("client streaming", upload(client.clone())).await;
    tell("server streaming", download(client.clone())).await;
    tell("both streaming: 1,000 messages, each behind the answer to the last", ping_pong(client.clone()))
        .await;
    tell("200 calls at once", many(client.clone())).await;
    tell("trailers-only errors", errors(client.clone())).await;
    tell("an error behind messages", late_error(client.clone())).await;
    tell("a call that is given up is felt by the server", cancel(client.clone())).await;
    tell("metadata both ways", metadata(client.clone())).await;
    tell("an endpoint that is down is UNAVAILABLE, with the reason", unavailable(endpoint)).await;
    Ok(())
}

async fn tell(name: &str, check: impl Future<Output = Checked>) {
    match tokio::time::timeout(SOON, check).await {
        Ok(Ok(())) => println!("ok {name}"),
        Ok(Err(why)) => println!("FAILED {name}: {why}"),
        Err(_) => println!("FAILED {name}: it did not end within {SOON:?}"),
    }
}

fn message(body: impl Into<Vec<u8>>, order: &str, number: u64) -> Message {
    Message { body: body.into(), order: order.to_owned(), number }
}

fn ensure(good: bool, why: impl std::fmt::Debug) -> Checked {
    if good { Ok(()) } else { Err(format!("{why:?}").into()) }
}

/// The status of a call that must fail.
fn failure<T: std::fmt::Debug>(result: Result<T, Status>) -> Result<Status, Box<dyn Error>> {
    result.err().ok_or_else(|| "it succeeded".into())
}

/// Bytes that no compression or repetition hides mistakes in.
fn noise(len: usize) -> Vec<u8> {
    let mut state = 88_172_645_463_325_252_u64;
    let next = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..len).map(next).collect()
}

async fn unary(mut client: Client) -> Checked {
    let answer = client.unary(message("hello", "", 7)).await?.into_inner();
    ensure(answer == message("hello", "", 7), answer)
}

async fn large(mut client: Client) -> Checked {
    let body = noise(4 * MIB);
    let answer = client.unary(message(body.clone(), "", 1)).await?.into_inner();
    ensure(answer.body == body, answer.body.len())
}

async fn upload(mut client: Client) -> Checked {
    let body = noise(MIB);
    let last = body.clone();
    let messages = iter((0..20).map(move |number| message(body.clone(), "", number)));
    let answer = client.upload(messages).await?.into_inner();
    ensure(answer.number == 20 && answer.body == last, answer.number)
}

async fn download(mut client: Client) -> Checked {
    let body = noise(MIB);
    let mut messages = client.download(message(body.clone(), "", 20)).await?.into_inner();
    for number in 0..20 {
        let message = messages.next().await.ok_or("too few")??;
        ensure(message.number == number && message.body == body, message.number)?;
    }
    ensure(messages.next().await.is_none(), "too many")
}

/// What a proxy holds back until more comes would stop this.
async fn ping_pong(mut client: Client) -> Checked {
    let (send, receive) = tokio::sync::mpsc::channel(1);
    let mut answers = client.both(tokio_stream::wrappers::ReceiverStream::new(receive)).await?.into_inner();
    for number in 0..1_000 {
        send.send(message(noise(number as usize), "", number)).await?;
        let answer = answers.next().await.ok_or("too few")??;
        ensure(answer.number == number && answer.body.len() == number as usize, answer.number)?;
    }
    drop(send);
    ensure(answers.next().await.is_none(), "too many")
}

async fn many(client: Client) -> Checked {
    let calls: Vec<_> = (0..200)
        .map(|number| {
            let mut client = client.clone();
            tokio::spawn(async move { client.unary(message(noise(10_000), "", number)).await })
        })
        .collect();
    for (number, call) in calls.into_iter().enumerate() {
        let answer = call.await??.into_inner();
        ensure(answer.number == number as u64 && answer.body == noise(10_000), number)?;
    }
    Ok(())
}

async fn errors(mut client: Client) -> Checked {
    for code in 1..=16 {
        let status = failure(client.unary(message("", &format!("fail {code}"), 0)).await)?;
        ensure(status.code() == Code::from_i32(code), &status)?;
        ensure(status.message() == "as ordered: 100 % of ü", &status)?;
    }
    Ok(())
}

async fn late_error(mut client: Client) -> Checked {
    let mut messages = client.download(message("x", "fail 8", 3)).await?.into_inner();
    for _ in 0..3 {
        messages.next().await.ok_or("too few")??;
    }
    let status = failure(messages.next().await.ok_or("no status")?)?;
    ensure(status.code() == Code::ResourceExhausted, status)
}

/// The gateway routes `/hang/` to an endpoint that never answers. tonic's own channel would end the call by itself, as its
/// server would: here only the gateway can.
pub async fn deadline(uri: &str) -> Result<(), Box<dyn Error>> {
    let channel = hyper_util::client::legacy::Client::builder(hyper_util::rt::TokioExecutor::new())
        .http2_only(true)
        .build_http::<tonic::body::Body>();
    let mut client = EchoClient::with_origin(channel, format!("{uri}/hang").parse()?);
    let checked = async {
        for (value, least) in [("200m", 200), ("1S", 1_000)] {
            let mut request = Request::new(message("", "", 0));
            request.metadata_mut().insert("grpc-timeout", value.parse()?);
            let asked = Instant::now();
            let status = failure(client.unary(request).await)?;
            ensure(status.code() == Code::DeadlineExceeded, &status)?;
            let took = asked.elapsed();
            ensure(
                took >= Duration::from_millis(least - 5) && took < Duration::from_millis(least + 2_000),
                took,
            )?;
        }
        Ok(())
    };
    tell("a deadline that passes is DEADLINE_EXCEEDED", checked).await;
    Ok(())
}

async fn cancelled(client: &mut Client) -> Result<u64, Status> {
    Ok(client.unary(message("", "cancelled", 0)).await?.into_inner().number)
}

async fn cancel(mut client: Client) -> Checked {
    let before = cancelled(&mut client).await?;
    let mut waiting = client.clone();
    let call = tokio::spawn(async move { waiting.unary(message("", "wait", 0)).await });
    let mut messages = client.download(message("x", "endless", 0)).await?.into_inner();
    for _ in 0..100 {
        messages.next().await.ok_or("too few")??;
    }
    drop(messages);
    call.abort();
    let given_up = Instant::now();
    while cancelled(&mut client).await? < before + 2 {
        ensure(given_up.elapsed() < Duration::from_secs(5), "the server still works on it")?;
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    Ok(())
}

async fn metadata(mut client: Client) -> Checked {
    let mut request = Request::new(message("x", "", 0));
    request
        .metadata_mut()
        .insert_bin("x-own-bin", tonic::metadata::MetadataValue::from_bytes(&[0, 255, 10, 13]));
    let answer = client.unary(request).await?;
    ensure(
        answer.metadata().get("content-type").is_some_and(|value| value == "application/grpc"),
        answer.metadata(),
    )
}

/// The gateway routes `/dead/` to an endpoint that nobody listens at.
async fn unavailable(endpoint: Endpoint) -> Checked {
    let uri: tonic::transport::Uri = format!("{}dead", endpoint.uri()).parse()?;
    let mut client = EchoClient::with_origin(endpoint.connect().await?, uri);
    let status = failure(client.unary(message("", "", 0)).await)?;
    ensure(status.code() == Code::Unavailable && status.message().contains("refused"), status)
}
