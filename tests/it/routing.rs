//! Which route serves a request, and what routes do besides naming a cluster.

use crate::harness::client::Client;
use crate::harness::gateway::ringfort;
use crate::harness::origin::Origin;
use crate::harness::setup::Setup;
use crate::harness::{Engine, on_both_engines};

on_both_engines!(
    the_most_specific_route_serves,
    routes_match_methods_and_fields,
    weighted_clusters_share_in_proportion,
    a_redirect_names_the_new_place,
    a_prefix_is_rewritten,
    fields_are_edited_both_ways,
    a_request_without_route_is_answered_404,
    the_path_is_matched_as_it_is_forwarded,
    a_redirect_names_the_rewritten_path,
    a_rewrite_that_makes_a_dot_segment_is_refused,
);

/// A route that answers with its own name.
fn named(name: &str, keys: &str) -> String {
    format!("{keys}\nrespond = {{ status = 200, body = \"{name}\" }}")
}

#[track_caller]
fn answer(client: &mut Client, method: &str, host: &str, path: &str, fields: &str) -> String {
    client.send(format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\n{fields}\r\n"));
    let response = client.read_response();
    if response.status == 200 { response.text() } else { response.status.to_string() }
}

fn the_most_specific_route_serves(engine: Engine) {
    let gateway = Setup::new(engine)
        .route(&named("everything", ""))
        .route(&named("regex", "path_regex = \"^/r/[0-9]+$\""))
        .route(&named("prefix", "path_prefix = \"/v1/\""))
        .route(&named("longer prefix", "path_prefix = \"/v1/users/\""))
        .route(&named("exact", "path = \"/v1/users/me\""))
        .route(&named("wildcard", "hosts = [\"*.api.test\"]"))
        .route(&named("longer wildcard", "hosts = [\"*.eu.api.test\"]"))
        .route(&named("host", "hosts = [\"x.api.test\"]"))
        .start();
    let mut client = gateway.client();
    for (host, path, wanted) in [
        ("a.test", "/", "everything"),
        ("a.test", "/r/12", "regex"),
        ("a.test", "/r/12x", "everything"),
        ("a.test", "/v1/", "prefix"),
        ("a.test", "/v1", "everything"),
        ("a.test", "/v1/users/", "longer prefix"),
        ("a.test", "/v1/users/me", "exact"),
        ("a.test", "/v1/users/me?x=1", "exact"),
        ("b.api.test", "/v1/users/me", "wildcard"),
        ("B.API.test:8080", "/", "wildcard"),
        ("b.eu.api.test", "/", "longer wildcard"),
        ("X.api.TEST", "/", "host"),
        ("api.test", "/", "everything"),
    ] {
        assert_eq!(answer(&mut client, "GET", host, path, ""), wanted, "{host} {path}");
    }
}

fn routes_match_methods_and_fields(engine: Engine) {
    let gateway = Setup::new(engine)
        .route(&named("write", "methods = [\"POST\", \"PUT\"]"))
        .route(&named("beta", "headers = [{ name = \"x-track\", exact = \"beta\" }]"))
        .route(&named("rest", ""))
        .start();
    let mut client = gateway.client();
    assert_eq!(answer(&mut client, "PUT", "a.test", "/", "Content-Length: 0\r\n"), "write");
    assert_eq!(answer(&mut client, "GET", "a.test", "/", "X-Track: beta\r\n"), "beta");
    assert_eq!(answer(&mut client, "GET", "a.test", "/", "X-Track: alpha\r\n"), "rest");
}

fn weighted_clusters_share_in_proportion(engine: Engine) {
    let (old, new) = (Origin::serving(), Origin::serving());
    let gateway = Setup::new(engine)
        .route("clusters = [{ name = \"old\", weight = 9 }, { name = \"new\", weight = 1 }]")
        .cluster("old", &[old.address()])
        .cluster("new", &[new.address()])
        .start();
    let mut client = gateway.client();
    for _ in 0..600 {
        assert_eq!(client.get("/").status, 200);
    }
    let (old, new) = (old.requests().len(), new.requests().len());
    assert_eq!(old + new, 600);
    assert!((20..=110).contains(&new), "{new} of 600 at a weight of one in ten");
}

fn a_redirect_names_the_new_place(engine: Engine) {
    let gateway = Setup::new(engine)
        .route("redirect = { status = 308, scheme = \"https\", host = \"www.a.test\" }")
        .start();
    let response = gateway.get("/x/y?z=1");
    assert_eq!(response.status, 308);
    assert_eq!(response.fields.get("location"), Some("https://www.a.test/x/y?z=1"));
}

fn a_prefix_is_rewritten(engine: Engine) {
    let origin = Origin::serving();
    let gateway = Setup::new(engine)
        .route("path_prefix = \"/old/\"\nrewrite_prefix = \"/new/\"\ncluster = \"site\"")
        .cluster("site", &[origin.address()])
        .start();
    assert_eq!(gateway.get("/old/a/b?c=/old/").status, 200);
    assert_eq!(origin.targets(), ["/new/a/b?c=/old/"]);
}

fn a_redirect_names_the_rewritten_path(engine: Engine) {
    let gateway = Setup::new(engine)
        .route("path_prefix = \"/old/\"\nrewrite_prefix = \"/new/\"\nredirect = { status = 308 }")
        .route(&named("arrived", "path_prefix = \"/new/\""))
        .start();
    let mut client = gateway.client();
    let response = client.get("/old/a/b?c=/old/");
    assert_eq!(response.status, 308);
    assert_eq!(response.fields.all("location"), ["http://a.test/new/a/b?c=/old/"]);
    assert_eq!(answer(&mut client, "GET", "a.test", "/new/a/b?c=/old/", ""), "arrived", "no loop");
}

/// Rules saw the path without the segment that the new prefix makes.
fn a_rewrite_that_makes_a_dot_segment_is_refused(engine: Engine) {
    let origin = Origin::serving();
    let mut gateway = Setup::new(engine)
        .route("path_prefix = \"/static\"\nrewrite_prefix = \"/assets/\"\ncluster = \"site\"")
        .route("path_prefix = \"/moved\"\nrewrite_prefix = \"/assets/\"\nredirect = { status = 308 }")
        .cluster("site", &[origin.address()])
        .start();
    gateway.expect_log("end both with");
    for path in ["/static../secret", "/static%2e%2E/secret", "/static./x", "/static..", "/moved../secret"] {
        let mut client = gateway.client();
        assert_eq!(answer(&mut client, "GET", "a.test", path, ""), "400", "{path}");
    }
    assert!(origin.raw_bytes().is_empty(), "{:?}", origin.targets());
    let mut client = gateway.client();
    assert!(answer(&mut client, "GET", "a.test", "/static..x/y", "").starts_with("GET "));
    assert_eq!(origin.targets(), ["/assets/..x/y"]);
}

fn fields_are_edited_both_ways(engine: Engine) {
    let origin = Origin::raw(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nServer: secret\r\nX-A: 1\r\n\r\n");
    let gateway = Setup::new(engine)
        .route(
            "cluster = \"site\"\n\
             request_headers = { set = { \"x-set\" = \"new\" }, add = { \"x-add\" = \"two\" }, remove = [\"x-gone\"] }\n\
             response_headers = { set = { \"x-a\" = \"2\" }, add = { \"x-b\" = \"3\" }, remove = [\"server\"] }",
        )
        .cluster("site", &[origin.address()])
        .start();
    let mut client = gateway.client();
    client.send("GET / HTTP/1.1\r\nHost: a.test\r\nX-Set: old\r\nX-Add: one\r\nX-Gone: 1\r\n\r\n");
    let response = client.read_response();
    assert_eq!((response.fields.all("x-a"), response.fields.all("x-b")), (vec!["2"], vec!["3"]));
    assert!(!response.fields.has("server"), "{:?}", response.fields);
    let request = &origin.requests()[0];
    assert_eq!((request.fields.all("x-set"), request.fields.all("x-add")), (vec!["new"], vec!["one", "two"]));
    assert!(!request.fields.has("x-gone"));
}

fn a_request_without_route_is_answered_404(engine: Engine) {
    let gateway = Setup::new(engine).route(&named("api", "hosts = [\"api.test\"]")).start();
    let mut client = gateway.client();
    assert_eq!(client.get("/").status, 404);
    assert_eq!(answer(&mut client, "GET", "api.test", "/", ""), "api", "the connection is kept");
}

fn the_path_is_matched_as_it_is_forwarded(engine: Engine) {
    let origin = Origin::serving();
    let gateway = Setup::new(engine)
        .route(&named("guarded", "path_prefix = \"/admin/\""))
        .route("cluster = \"site\"")
        .cluster("site", &[origin.address()])
        .start();
    let mut client = gateway.client();
    for path in
        ["/a/../admin/x", "/%61dmin/x", "//admin/x", "/a/%2e%2e/admin/x", "/./admin/x", "/%2E/admin/x"]
    {
        let text = answer(&mut client, "GET", "a.test", path, "");
        // Whatever is not answered by the guard must not look like the guarded path at the origin.
        if text != "guarded" && text != "400" {
            let seen = origin.targets().pop().unwrap_or_default();
            assert!(!seen.starts_with("/admin/"), "{path} reached the origin as {seen}");
        }
    }
}

#[test]
fn explain_tells_which_route_serves_and_why() {
    let setup = Setup::new(Engine::Epoll)
        .route("name = \"v1\"\nhosts = [\"api.test\"]\npath_prefix = \"/v1/\"\ncluster = \"site\"")
        .route("name = \"rest\"\ncluster = \"site\"")
        .cluster("site", &["127.0.0.1:9".into()]);
    let dir = crate::harness::gateway::TempDir::new();
    let file = dir.file("c.toml", &crate::harness::gateway::with_ports(&setup.text()).0);
    let output = ringfort()
        .args(["check", "--explain", "GET http://api.test/v1/x", "--config"])
        .arg(file)
        .output()
        .unwrap();
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{text}");
    assert!(text.contains("v1") && text.contains("/v1/") && text.contains("site"), "{text}");
}
