//! What a route does with a request. Never does it itself: it names the cluster, or holds the answer.

/// Cluster indices are those of the snapshot.
#[derive(Clone, Debug)]
pub enum Action {
    Cluster(u16),
    WeightedClusters(WeightedClusters),
    Respond(Respond),
    Redirect(Redirect),
}

impl Action {
    /// The cluster that a request goes to, for a random number uniform over `u32`; `None` where it is answered here.
    pub fn cluster(&self, random: u32) -> Option<u16> {
        match self {
            Self::Cluster(cluster) => Some(*cluster),
            Self::WeightedClusters(weighted) => weighted.choose(random),
            Self::Respond(_) | Self::Redirect(_) => None,
        }
    }
}

/// Clusters by share.
#[derive(Clone, Debug)]
pub struct WeightedClusters {
    /// Each cluster with the sum of the weights up to and including its own.
    cumulative: Vec<(u16, u64)>,
}

impl WeightedClusters {
    /// A weight of 0 keeps a cluster out. `None` where no weight is left.
    pub fn new(weights: &[(u16, u32)]) -> Option<Self> {
        let mut sum = 0;
        let mut cumulative = Vec::new();
        for &(cluster, weight) in weights.iter().filter(|(_, weight)| *weight > 0) {
            sum += u64::from(weight);
            cumulative.push((cluster, sum));
        }
        if cumulative.is_empty() { None } else { Some(Self { cumulative }) }
    }

    /// `random` is uniform over `u32`; each share is exact to one part in 2^32.
    pub fn choose(&self, random: u32) -> Option<u16> {
        let total = self.cumulative.last()?.1;
        // total < 2^16 clusters * 2^32, so the product needs 80 bits.
        let point = ((u128::from(random) * u128::from(total)) >> 32) as u64;
        let index = self.cumulative.partition_point(|(_, sum)| *sum <= point);
        self.cumulative.get(index).map(|(cluster, _)| *cluster)
    }

    /// The clusters with a share, each with its weight.
    pub fn weights(&self) -> impl Iterator<Item = (u16, u64)> {
        let before = std::iter::once(0).chain(self.cumulative.iter().map(|(_, sum)| *sum));
        self.cumulative.iter().zip(before).map(|((cluster, sum), before)| (*cluster, sum - before))
    }
}

/// An answer held in the configuration.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Respond {
    /// 200 to 599.
    pub status: u16,
    /// Without `Content-Length`: it follows from the body.
    pub fields: Vec<(Box<str>, Box<str>)>,
    pub body: Box<[u8]>,
}

/// An answer that sends the client elsewhere. What is `None` is taken from the request.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Redirect {
    /// 301, 302, 303, 307 or 308.
    pub status: u16,
    /// `http` or `https`. Where it is given and `authority` is not, the request's port is left out: it belonged to
    /// the other scheme.
    pub scheme: Option<Box<str>>,
    /// Host, or host and port.
    pub authority: Option<Box<str>>,
    /// Replaces the path; the query is kept unless this brings one.
    pub path: Option<Box<str>>,
}

impl Redirect {
    /// Appends the value of `Location`. `path` is the request's, after a prefix rewrite.
    pub fn write_location(
        &self,
        out: &mut String,
        scheme: &str,
        authority: &str,
        path: &str,
        query: Option<&str>,
    ) {
        let path = self.path.as_deref().unwrap_or(path);
        let authority = match (&self.authority, &self.scheme) {
            (Some(authority), _) => authority,
            (None, Some(_)) => without_port(authority),
            (None, None) => authority,
        };
        if authority.is_empty() {
            // RFC 3986 §4.2: a path that begins with two slashes would be read as an authority.
            if path.starts_with("//") {
                out.push_str("/.");
            }
        } else {
            out.push_str(self.scheme.as_deref().unwrap_or(scheme));
            out.push_str("://");
            out.push_str(authority);
        }
        // The asterisk-form names no resource below the authority.
        out.push_str(if path.starts_with('/') { path } else { "/" });
        if let Some(query) = query.filter(|_| !path.contains('?')) {
            out.push('?');
            out.push_str(query);
        }
    }
}

fn without_port(authority: &str) -> &str {
    match authority.rfind(':') {
        Some(colon) if !authority[colon..].contains(']') => &authority[..colon],
        _ => authority,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn location(redirect: &Redirect, authority: &str, path: &str, query: Option<&str>) -> String {
        let mut out = String::new();
        redirect.write_location(&mut out, "http", authority, path, query);
        out
    }

    const SAME: Redirect = Redirect { status: 308, scheme: None, authority: None, path: None };

    #[test]
    fn weights_share_the_whole_random_range() {
        let weighted = WeightedClusters::new(&[(7, 1), (8, 0), (9, 3)]).expect("weights");
        assert_eq!(weighted.choose(0), Some(7));
        assert_eq!(weighted.choose(u32::MAX / 4), Some(7));
        assert_eq!(weighted.choose(u32::MAX / 4 + 1), Some(9));
        assert_eq!(weighted.choose(u32::MAX), Some(9));
        assert_eq!(weighted.weights().collect::<Vec<_>>(), [(7, 1), (9, 3)]);
    }

    #[test]
    fn the_largest_weights_do_not_overflow() {
        let weighted = WeightedClusters::new(&[(0, u32::MAX), (1, u32::MAX)]).expect("weights");
        assert_eq!(weighted.choose(u32::MAX / 2), Some(0));
        assert_eq!(weighted.choose(u32::MAX), Some(1));
    }

    #[test]
    fn weights_of_zero_alone_are_no_choice() {
        assert!(WeightedClusters::new(&[(1, 0)]).is_none() && WeightedClusters::new(&[]).is_none());
    }

    #[test]
    fn a_redirect_to_https_drops_the_port_of_http_and_keeps_the_query() {
        let redirect = Redirect { scheme: Some("https".into()), ..SAME };
        assert_eq!(location(&redirect, "a.test:8080", "/x", Some("q=1")), "https://a.test/x?q=1");
        assert_eq!(location(&redirect, "[::1]:8080", "/x", None), "https://[::1]/x");
        assert_eq!(location(&redirect, "[::1]", "/x", None), "https://[::1]/x");
    }

    #[test]
    fn a_redirect_takes_what_it_does_not_name_from_the_request() {
        let redirect = Redirect { path: Some("/new?a=b".into()), ..SAME };
        assert_eq!(location(&redirect, "a.test:8080", "/x", Some("q=1")), "http://a.test:8080/new?a=b");
        let redirect = Redirect { authority: Some("b.test:81".into()), ..SAME };
        assert_eq!(location(&redirect, "a.test:8080", "/x", None), "http://b.test:81/x");
    }

    #[test]
    fn a_request_without_host_is_not_redirected_to_a_host_of_its_path() {
        assert_eq!(location(&SAME, "", "//evil.test/x", None), "/.//evil.test/x");
        assert_eq!(location(&SAME, "", "/x", None), "/x");
        assert_eq!(location(&SAME, "a.test", "*", None), "http://a.test/");
    }
}
