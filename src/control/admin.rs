//! The admin endpoints: one table, served over TCP (read-only, with the Host check) and over a Unix socket that only
//! this user may connect to (the same, and what changes state). Every answer is made from shards and facts at hand, but for
//! those of `views`, which wait a moment for the workers, and of a reload or an upgrade, which wait for its end.

use std::convert::Infallible;
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::sync::Arc;

use axum::Router;
use axum::extract::Request;
use axum::http::request::Parts;
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodFilter, on};
use tokio::sync::oneshot;
use tokio::task::AbortHandle;

use crate::control::data::reload::{Asked, Outcome};

pub mod bounded;
pub mod fresh;
pub mod host;
pub mod pages;
pub mod state;
pub mod views;

pub use state::{Phase, State};

use bounded::Bounded;

/// One row of the table.
pub struct Endpoint {
    pub method: Method,
    pub path: &'static str,
    pub help: &'static str,
    page: Page,
}

#[derive(Clone, Copy)]
enum Page {
    /// Made from what is at hand.
    Now(fn(&State, &Parts) -> Response),
    /// Answered when what was asked for has ended.
    Change(fn(oneshot::Sender<Outcome>) -> Asked),
    Connections,
    Clusters,
    /// Whether the endpoint drains from then on.
    DrainEndpoint(bool),
}

impl Endpoint {
    /// What changes state is answered over the Unix socket only.
    pub fn changes_state(&self) -> bool {
        self.method != Method::GET
    }
}

/// Every endpoint there is.
pub static ENDPOINTS: [Endpoint; 14] = [
    get("/", "This page.", pages::index),
    get("/healthz", "200 while the process answers at all.", pages::healthz),
    get(
        "/readyz",
        "200 while new work is taken, with what is wrong with certificates, the last reload or the last upgrade; 503 with the reason while starting or draining.",
        pages::readyz,
    ),
    get("/metrics", "Metrics in the Prometheus text format.", pages::metrics),
    get("/workers", "Each worker's CPU, engine, load and longest loop gap, as JSON.", pages::workers),
    get(
        "/steal",
        "CPU time that the hypervisor and others take: a page for browsers, else JSON; ?format=csv is the trace of 15 minutes.",
        pages::steal,
    ),
    asked(
        "/connections",
        "The oldest open connections: client, listener, age, what they are at, as JSON; ?max=1000.",
        Page::Connections,
    ),
    asked(
        "/clusters",
        "Endpoints with health, pools and what they are at, over all workers, as JSON.",
        Page::Clusters,
    ),
    get("/config", "The configuration in effect, defaults filled in, as JSON.", pages::config),
    Endpoint {
        method: Method::POST,
        path: "/drain",
        help: "Stop accepting, finish what was accepted, then exit.",
        page: Page::Now(pages::drain),
    },
    Endpoint {
        method: Method::POST,
        path: "/reload",
        help: "Read the configuration and its certificates anew; 422 with every problem if the old one stays.",
        page: Page::Change(Asked::Reload),
    },
    Endpoint {
        method: Method::POST,
        path: "/upgrade",
        help: "Have the binary that is installed now take over, without a pause; 422 with the reason if the present one goes on.",
        page: Page::Change(Asked::Upgrade),
    },
    Endpoint {
        method: Method::POST,
        path: "/clusters/{name}/endpoints/{address}/drain",
        help: "Give an endpoint no more requests; those it is at are finished. Until undrain, or a restart.",
        page: Page::DrainEndpoint(true),
    },
    Endpoint {
        method: Method::POST,
        path: "/clusters/{name}/endpoints/{address}/undrain",
        help: "Give it requests again.",
        page: Page::DrainEndpoint(false),
    },
];

/// Which door a request came through.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Door {
    Tcp,
    Unix,
}

/// The endpoints, served until they are stopped or the runtime ends.
pub struct Admin(Vec<AbortHandle>);

impl Admin {
    /// Starts serving on the current runtime.
    ///
    /// # Errors
    /// Where the runtime cannot watch a socket.
    pub fn serve(tcp: TcpListener, unix: Option<UnixListener>, state: &Arc<State>) -> std::io::Result<Self> {
        let permits = bounded::permits();
        tcp.set_nonblocking(true)?;
        let tcp = tokio::net::TcpListener::from_std(tcp)?;
        let tcp = Bounded::new(tcp, permits.clone(), bounded::READ_TIMEOUT);
        let mut tasks = vec![tokio::spawn(run(tcp, router(Door::Tcp, state))).abort_handle()];
        if let Some(unix) = unix {
            unix.set_nonblocking(true)?;
            let unix = tokio::net::UnixListener::from_std(unix)?;
            let unix = Bounded::new(unix, permits, bounded::CHANGE_TIMEOUT);
            tasks.push(tokio::spawn(run(unix, router(Door::Unix, state))).abort_handle());
        }
        Ok(Self(tasks))
    }

    /// Takes no more connections. Those there are get their answers.
    pub fn stop(self) {
        self.0.iter().for_each(AbortHandle::abort);
    }
}

async fn run<L>(listener: Bounded<L>, router: Router)
where
    L: axum::serve::Listener<Addr: std::fmt::Debug>,
{
    // Serves for ever: the error type is there for a shutdown that is not asked for.
    let _ = axum::serve(listener, router).await;
}

/// The table as routes of one door.
fn router(door: Door, state: &Arc<State>) -> Router {
    let mut router = Router::new();
    for endpoint in &ENDPOINTS {
        let filter = if endpoint.changes_state() { MethodFilter::POST } else { MethodFilter::GET };
        let state = state.clone();
        let handler = move |request: Request| async move {
            if door == Door::Tcp && endpoint.changes_state() {
                let text = "what changes state is asked over the admin Unix socket (admin.socket) only\n";
                return (StatusCode::FORBIDDEN, text).into_response();
            }
            let asked = request.into_parts().0;
            match endpoint.page {
                Page::Now(page) => page(&state, &asked),
                Page::Change(what) => pages::change(&state, endpoint.path, what).await,
                Page::Connections => views::connections(&state, &asked).await,
                Page::Clusters => views::clusters(&state).await,
                Page::DrainEndpoint(drains) => views::drain_endpoint(&state, &asked, drains).await,
            }
        };
        router = router.route(endpoint.path, on(filter, handler));
    }
    router.fallback(|| async { (StatusCode::NOT_FOUND, pages::list()) }).layer(middleware::from_fn(
        move |request: Request, next: Next| async move { Ok::<_, Infallible>(guard(door, request, next).await) },
    ))
}

/// What holds for every answer of a door.
async fn guard(door: Door, request: Request, next: Next) -> Response {
    let refused = match door {
        Door::Unix => None,
        Door::Tcp if !host::names_loopback(request.uri(), request.headers()) => {
            Some("Host must name this machine's loopback (localhost, 127.0.0.1, [::1])\n")
        }
        Door::Tcp if host::comes_from_another_site(request.headers()) => Some(
            "pages of other sites get no answer: open the address in a window of its own, or ask with curl\n",
        ),
        Door::Tcp => None,
    };
    let mut response = match refused {
        Some(text) => (StatusCode::FORBIDDEN, text).into_response(),
        None => next.run(request).await,
    };
    let headers = response.headers_mut();
    // One request a connection, so that the deadline of the connection is that of the request.
    headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    let policy = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'";
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(policy));
    response
}

const fn get(path: &'static str, help: &'static str, page: fn(&State, &Parts) -> Response) -> Endpoint {
    asked(path, help, Page::Now(page))
}

const fn asked(path: &'static str, help: &'static str, page: Page) -> Endpoint {
    Endpoint { method: Method::GET, path, help, page }
}

#[cfg(test)]
mod tests;
