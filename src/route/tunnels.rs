//! What a route lets a client turn its connection, or a stream of one, into. Opens nothing.

/// Protocols that are tunnelled: what follows the change is passed on and not looked at.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Tunnels {
    connect: bool,
    /// In lower case.
    protocols: Vec<Box<str>>,
}

impl Default for Tunnels {
    fn default() -> Self {
        Self::new(&["websocket"])
    }
}

impl Tunnels {
    /// The method CONNECT, as a name among those of protocols.
    pub const CONNECT: &str = "connect";

    pub fn new(names: &[&str]) -> Self {
        let is_connect = |name: &&str| name.eq_ignore_ascii_case(Self::CONNECT);
        let protocols = names.iter().filter(|name| !is_connect(name));
        Self {
            connect: names.iter().any(is_connect),
            protocols: protocols.map(|name| name.to_ascii_lowercase().into()).collect(),
        }
    }

    /// Whether `CONNECT` may open one.
    pub const fn connect(&self) -> bool {
        self.connect
    }

    /// Whether any protocol may be changed to.
    pub const fn any_upgrade(&self) -> bool {
        !self.protocols.is_empty()
    }

    /// Whether this protocol, in any case, may be changed to.
    pub fn upgrade(&self, protocol: &str) -> bool {
        self.protocols.iter().any(|allowed| allowed.eq_ignore_ascii_case(protocol))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_named_is_let_through() {
        let default = Tunnels::default();
        assert!(default.upgrade("WebSocket") && default.any_upgrade());
        assert!(!default.connect() && !default.upgrade("foo") && !default.upgrade("connect"));
        let named = Tunnels::new(&["connect", "Foo/1"]);
        assert!(named.connect() && named.upgrade("foo/1") && !named.upgrade("websocket"));
        assert!(!Tunnels::new(&[]).any_upgrade());
    }
}
