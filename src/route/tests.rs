//! `find` by behaviour, and against the reference in `explain` over random tables.

use proptest::prelude::*;

use super::*;

fn spec(name: &str) -> Spec {
    Spec {
        name: name.into(),
        listeners: Vec::new(),
        hosts: Vec::new(),
        alpn: Vec::new(),
        path: PathMatch::Any,
        methods: Vec::new(),
        identities: Vec::new(),
        fields: Vec::new(),
        action: Action::Cluster(0),
        rate_limits: Vec::new(),
        tunnels: Tunnels::default(),
        prefix_rewrite: None,
        request_edits: FieldEdits::default(),
        response_edits: FieldEdits::default(),
    }
}

fn host(text: &str) -> HostPattern {
    match text.strip_prefix('*') {
        Some(suffix) => HostPattern::Wildcard(suffix.into()),
        None => HostPattern::Exact(text.into()),
    }
}

fn pattern(text: &str) -> Pattern {
    Pattern::new(text).expect("a pattern")
}

fn prefix(name: &str, path: &str) -> Spec {
    Spec { path: PathMatch::Prefix(path.into()), ..spec(name) }
}

fn on_host(name: &str, pattern: &str) -> Spec {
    Spec { hosts: vec![host(pattern)], ..spec(name) }
}

fn table(specs: Vec<Spec>) -> Table {
    Table::compile(specs).expect("a table")
}

fn get<'a>(host: &'a str, path: &'a str) -> Request<'a> {
    Request { listener: 0, method: "GET", host, path, identity: None }
}

fn chosen<'t>(table: &'t Table, request: &Request<'_>, fields: &[(&str, &str)]) -> Option<&'t str> {
    let lookup =
        |name: &str| fields.iter().find(|(field, _)| *field == name).map(|(_, value)| value.as_bytes());
    table.find(request, &lookup).map(|(_, route)| &*route.name)
}

#[test]
fn hosts_rank_exact_then_longest_wildcard_then_any() {
    let table = table(vec![
        spec("any"),
        on_host("test", "*.test"),
        on_host("api", "*.api.test"),
        on_host("exact", "x.api.test"),
    ]);
    let of = |host| chosen(&table, &get(host, "/"), &[]);
    assert_eq!(of("X.Api.TEST"), Some("exact"));
    assert_eq!(of("x.api.test."), Some("exact"));
    assert_eq!(of("a.b.api.test"), Some("api"));
    assert_eq!(of("api.test"), Some("test"), "a wildcard needs a label of its own");
    assert_eq!(of("test"), Some("any"));
    assert_eq!(of(".test"), Some("any"), "an empty label is none");
    assert_eq!(of(""), Some("any"));
}

#[test]
fn a_more_specific_host_without_a_matching_path_gives_way() {
    let api = Spec { hosts: vec![host("a.test")], ..prefix("api", "/v1/") };
    let table = table(vec![api, on_host("wild", "*.test"), spec("any")]);
    assert_eq!(chosen(&table, &get("a.test", "/v1/x"), &[]), Some("api"));
    assert_eq!(chosen(&table, &get("a.test", "/v2/x"), &[]), Some("wild"));
    assert_eq!(chosen(&table, &get("b.example", "/v1/x"), &[]), Some("any"));
}

#[test]
fn paths_rank_exact_then_longest_prefix_then_regex_then_any() {
    let table = table(vec![
        spec("any"),
        Spec { path: PathMatch::Regex(pattern("/[a-z]+/[0-9]+")), ..spec("regex") },
        prefix("short", "/a"),
        prefix("long", "/a/b"),
        Spec { path: PathMatch::Exact("/a/b/c".into()), ..spec("exact") },
    ]);
    let of = |path| chosen(&table, &get("", path), &[]);
    assert_eq!(of("/a/b/c"), Some("exact"));
    assert_eq!(of("/a/b/c/"), Some("long"));
    assert_eq!(of("/a/12"), Some("short"));
    assert_eq!(of("/ab"), Some("short"), "a prefix is a plain string");
    assert_eq!(of("/b/12"), Some("regex"));
    assert_eq!(of("/b/12/"), Some("any"));
    assert_eq!(of("*"), Some("any"));
}

#[test]
fn further_conditions_decide_and_then_the_order() {
    let field = FieldMatch { name: "x-canary".into(), rule: FieldRule::Exact("yes".into()) };
    let table = table(vec![
        prefix("first", "/"),
        prefix("second", "/"),
        Spec { methods: vec!["GET".into(), "HEAD".into()], ..prefix("get", "/") },
        Spec { methods: vec!["GET".into()], fields: vec![field], ..prefix("canary", "/") },
    ]);
    assert_eq!(chosen(&table, &get("", "/"), &[("x-canary", "yes")]), Some("canary"));
    assert_eq!(chosen(&table, &get("", "/"), &[("x-canary", "no")]), Some("get"));
    assert_eq!(chosen(&table, &Request { method: "get", ..get("", "/") }, &[]), Some("first"));
}

fn identities(texts: &[&str]) -> Vec<IdentityPattern> {
    texts.iter().map(|text| IdentityPattern::parse(text).expect("a pattern")).collect()
}

#[test]
fn identities_match_one_of_theirs_and_never_nobody() {
    let get_only = Spec { methods: vec!["GET".into()], ..prefix("get", "/") };
    let table = table(vec![
        prefix("anybody", "/"),
        Spec { identities: identities(&["other/*", "spiffe://td/shop"]), ..prefix("shop", "/") },
        Spec { identities: identities(&["td/*"]), ..get_only },
    ]);
    let of = |method, identity| chosen(&table, &Request { method, identity, ..get("", "/") }, &[]);
    assert_eq!(of("PUT", Some("spiffe://td/shop")), Some("shop"));
    assert_eq!(of("PUT", Some("spiffe://other/x")), Some("shop"));
    assert_eq!(of("PUT", Some("spiffe://td/cart")), Some("anybody"));
    assert_eq!(of("GET", Some("spiffe://td/shop")), Some("get"), "two conditions against one");
    assert_eq!(of("GET", None), Some("anybody"));
}

#[test]
fn fields_match_by_presence_prefix_and_regex() {
    let with = |name: &str, rule| Spec {
        fields: vec![FieldMatch { name: "a".into(), rule }],
        path: PathMatch::Exact(format!("/{name}").into()),
        ..spec(name)
    };
    let table = table(vec![
        with("present", FieldRule::Present),
        with("absent", FieldRule::Absent),
        with("prefix", FieldRule::Prefix("v1".into())),
        with("regex", FieldRule::Regex(pattern("v[0-9]"))),
    ]);
    let of = |path: &str, value| chosen(&table, &get("", path), value).is_some();
    assert!(of("/present", &[("a", "")]) && !of("/present", &[("b", "")]));
    assert!(!of("/absent", &[("a", "")]) && of("/absent", &[("b", "")]));
    assert!(of("/prefix", &[("a", "v12")]) && !of("/prefix", &[("a", "v2")]));
    assert!(of("/regex", &[("a", "v2")]) && !of("/regex", &[("a", "v22")]));
}

#[test]
fn a_passthrough_listener_is_served_by_routes_that_name_it_by_name_and_protocol() {
    let on = |name: &str, hosts: &[&str], alpn: &[&str]| Spec {
        listeners: vec![1],
        hosts: hosts.iter().map(|text| host(text)).collect(),
        alpn: alpn.iter().map(|protocol| (*protocol).into()).collect(),
        ..spec(name)
    };
    let table = table(vec![
        spec("http alone"),
        on("rest", &["a.test", "*.a.test"], &[]),
        on("h2", &["a.test"], &["h2", "h3"]),
        on("h2 again", &["a.test"], &["h3"]),
        on("any name", &[], &["acme-tls/1"]),
        Spec { listeners: vec![2], ..spec("elsewhere") },
    ]);
    let found = |listener, name: &str, offered: &[&str]| {
        let offers = |protocol: &[u8]| offered.iter().any(|one| one.as_bytes() == protocol);
        table.find_passthrough(listener, name, offers).map(|(_, route)| &*route.name)
    };
    assert_eq!(found(1, "a.test", &["http/1.1", "h2"]), Some("h2"));
    assert_eq!(found(1, "a.test", &["http/1.1"]), Some("rest"));
    assert_eq!(found(1, "x.a.test", &["h2"]), Some("rest"));
    assert_eq!(found(1, "a.test", &["h3"]), Some("h2"));
    assert_eq!(found(1, "b.test", &["acme-tls/1"]), Some("any name"));
    assert_eq!(found(1, "", &["acme-tls/1"]), Some("any name"));
    assert_eq!(found(1, "b.test", &["h2"]), None);
    assert_eq!(found(1, "", &[]), None);
    assert_eq!(found(0, "a.test", &["h2"]), None);
    assert_eq!(found(2, "a.test", &[]), Some("elsewhere"));
    assert_eq!(table.unreachable(), [(3, 2)]);
}

#[test]
fn a_route_without_listeners_serves_every_listener_and_others_only_theirs() {
    let table = table(vec![Spec { listeners: vec![1], ..prefix("one", "/") }, spec("every")]);
    let of = |listener| chosen(&table, &Request { listener, ..get("", "/") }, &[]);
    assert_eq!(
        [of(0), of(1), of(2), of(u16::MAX)],
        [Some("every"), Some("one"), Some("every"), Some("every")]
    );
}

#[test]
fn a_prefix_is_rewritten_and_other_paths_are_not_touched() {
    let rewriting = Spec { prefix_rewrite: Some("/new/".into()), ..prefix("a", "/old/") };
    let table = table(vec![rewriting, prefix("b", "/b")]);
    let mut scratch = String::from("left over");
    assert_eq!(table.routes()[0].rewrite_path("/old/x/old/", &mut scratch), "/new/x/old/");
    assert_eq!(table.routes()[1].rewrite_path("/b", &mut scratch), "/b");
}

#[test]
fn more_routes_than_can_be_counted_are_refused() {
    assert_eq!(Table::compile(vec![spec("x"); ROUTES_MAX + 1]).map(|_| ()), Err(TooManyRoutes));
}

#[test]
fn a_route_behind_one_that_takes_all_its_requests_is_unreachable() {
    let get_only = Spec { methods: vec!["GET".into()], ..prefix("get", "/a") };
    let table = table(vec![
        prefix("first", "/a"),
        prefix("again", "/a"),
        get_only,
        Spec { methods: vec!["GET".into()], ..prefix("get again", "/a") },
        Spec { hosts: vec![host("x.test"), host("y.test")], ..prefix("both", "/a") },
        Spec { hosts: vec![host("x.test")], ..prefix("one of both", "/a") },
        Spec { identities: identities(&["td/*"]), ..prefix("domain", "/c") },
        Spec { identities: identities(&["spiffe://td/a"]), ..prefix("one of the domain", "/c") },
        prefix("anybody", "/c"),
        Spec { listeners: vec![3], ..prefix("elsewhere first", "/b") },
        prefix("elsewhere too", "/b"),
    ]);
    assert_eq!(table.unreachable(), [(1, 0), (3, 2), (5, 4), (7, 6)]);
}

#[test]
fn an_explanation_names_what_each_candidate_lacked() {
    let table = table(vec![
        Spec { hosts: vec![host("api.test"), host("*.api.test")], ..prefix("api", "/v1/") },
        Spec {
            path: PathMatch::Exact("/target".into()),
            methods: vec!["POST".into()],
            identities: identities(&["td/*"]),
            ..spec("target")
        },
        spec("site"),
    ]);
    assert_eq!(
        table.explain(&get("API.test", "/v1/x"), &|_| None).to_string(),
        "route \"api\" is chosen: host api.test or *.api.test, path prefix /v1/\n\
         \x20 \"site\" matches too, but any host is less specific than host api.test or *.api.test\n\
         \x20 \"target\" does not match: path is not /target; method is not POST; client identity is not td/*\n"
    );
}

const HOSTS: [&str; 7] = ["", "a.test", "b.a.test", "c.b.a.test", "test", "A.TEST", "a.test."];
const PATTERNS: [&str; 5] = ["a.test", "*.test", "*.a.test", "b.a.test", "*.b.a.test"];
const PATHS: [&str; 6] = ["/", "/a", "/a/", "/a/b", "/ab", "*"];
const METHODS: [&str; 3] = ["GET", "POST", "PUT"];
const NAMES: [&str; 2] = ["x-a", "x-b"];
const IDENTITIES: [Option<&str>; 4] =
    [None, Some("spiffe://td/a"), Some("spiffe://td/b"), Some("spiffe://tdx/a")];

fn any_path() -> impl Strategy<Value = PathMatch> {
    let text = || prop::sample::select(&PATHS[..5]);
    prop_oneof![
        Just(PathMatch::Any),
        text().prop_map(|path| PathMatch::Exact(path.into())),
        text().prop_map(|path| PathMatch::Prefix(path.into())),
        prop::sample::select(&["/.*", "/a/?", "/(a|b)*"][..])
            .prop_map(|path| PathMatch::Regex(pattern(path))),
    ]
}

fn any_field() -> impl Strategy<Value = FieldMatch> {
    let rule = prop_oneof![
        Just(FieldRule::Present),
        Just(FieldRule::Absent),
        Just(FieldRule::Exact("1".into())),
        Just(FieldRule::Prefix("1".into())),
        Just(FieldRule::Regex(pattern("[12]"))),
    ];
    (prop::sample::select(&NAMES[..]), rule).prop_map(|(name, rule)| FieldMatch { name: name.into(), rule })
}

fn any_spec() -> impl Strategy<Value = Spec> {
    (
        prop::collection::vec(0..3u16, 0..2),
        prop::collection::vec(prop::sample::select(&PATTERNS[..]), 0..3),
        any_path(),
        prop::collection::vec(prop::sample::select(&METHODS[..]), 0..3),
        prop::collection::vec(prop::sample::select(&["td/*", "spiffe://td/a", "tdx/*"][..]), 0..2),
        prop::collection::vec(any_field(), 0..2),
    )
        .prop_map(|(listeners, hosts, path, methods, ids, fields)| Spec {
            listeners,
            hosts: hosts.into_iter().map(host).collect(),
            path,
            methods: methods.into_iter().map(Into::into).collect(),
            identities: identities(&ids),
            fields,
            ..spec("any")
        })
}

proptest! {
    #[test]
    fn find_agrees_with_judging_every_route(
        specs in prop::collection::vec(any_spec(), 0..20),
        requests in prop::collection::vec(
            (0..4u16, 0..METHODS.len(), 0..HOSTS.len(), 0..PATHS.len(), 0..IDENTITIES.len(), prop::collection::vec("[123]{0,2}", 0..3)),
            1..20,
        ),
    ) {
        let table = table(specs);
        let unreachable: Vec<u16> = table.unreachable().into_iter().map(|(index, _)| index).collect();
        for (listener, method, host, path, identity, values) in requests {
            let (host, path, identity) = (HOSTS[host], PATHS[path], IDENTITIES[identity]);
            let request = Request { listener, method: METHODS[method], host, path, identity };
            let lookup = |name: &str| {
                NAMES.iter().zip(&values).find(|(field, _)| **field == name).map(|(_, value)| value.as_bytes())
            };
            let found = table.find(&request, &lookup).map(|(index, _)| index);
            prop_assert_eq!(found, table.explain(&request, &lookup).chosen());
            prop_assert!(found.is_none_or(|index| !unreachable.contains(&index)));
        }
    }

    #[test]
    fn a_pattern_is_compiled_or_refused_but_never_panics(text in ".{0,40}", input: Vec<u8>) {
        if let Ok(pattern) = Pattern::new(&text) {
            pattern.matches(&input);
        }
    }
}
