//! Addresses as grants and policies name them: which requests and connections a pattern lets pass, and whether one
//! pattern is within another. Pure. What is not on the public internet never passes by a name or by `*`: only by a
//! pattern that is that address, or a range that holds it.

use crate::app::Invalid;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Bytes of a host name (RFC 1035).
pub(crate) const HOST_BYTES_MAX: usize = 253;

/// `https://*.example.org:8443`, `10.0.0.0/8`, `127.0.0.1:8080`, `[fd00::/8]:53`, `*`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern {
    /// `None` is both.
    scheme: Option<Scheme>,
    host: Host,
    /// `None` is every port.
    port: Option<u16>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    Http,
    Https,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Host {
    /// `*`: whatever is on the public internet.
    Any,
    /// A name, in lower case.
    Name(String),
    /// `*.example.org`: any name that ends in `.example.org`.
    Below(String),
    /// One address, or a range of them.
    Net(IpNet),
}

/// Why a connection to an address is not made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Barred {
    /// No pattern names it.
    Unnamed,
    /// It is not on the public internet, and no pattern is that address.
    Private,
    /// It is the lattice's own bus, and no pattern is that address with that port.
    Bus,
}

impl fmt::Display for Barred {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unnamed => "nothing grants it",
            Self::Private => "it is a private, loopback or link-local address, which has to be granted as an address",
            Self::Bus => "it is the bus of the lattice, which has to be granted as address and port",
        })
    }
}

/// What no `*` and no name reaches, of IPv4 (IANA's special-purpose registry).
const NOT_PUBLIC_V4: &[(Ipv4Addr, u8)] = &[
    (Ipv4Addr::new(0, 0, 0, 0), 8),
    (Ipv4Addr::new(10, 0, 0, 0), 8),
    (Ipv4Addr::new(100, 64, 0, 0), 10),
    (Ipv4Addr::new(127, 0, 0, 0), 8),
    (Ipv4Addr::new(169, 254, 0, 0), 16),
    (Ipv4Addr::new(172, 16, 0, 0), 12),
    (Ipv4Addr::new(192, 0, 0, 0), 24),
    (Ipv4Addr::new(192, 0, 2, 0), 24),
    (Ipv4Addr::new(192, 88, 99, 0), 24),
    (Ipv4Addr::new(192, 168, 0, 0), 16),
    (Ipv4Addr::new(198, 18, 0, 0), 15),
    (Ipv4Addr::new(198, 51, 100, 0), 24),
    (Ipv4Addr::new(203, 0, 113, 0), 24),
    (Ipv4Addr::new(224, 0, 0, 0), 3),
];
/// Of IPv6 only this is public, without what follows it: documentation, and tunnels that lead to any IPv4 address.
const PUBLIC_V6: (Ipv6Addr, u8) = (Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 0), 3);
const NOT_PUBLIC_V6: &[(Ipv6Addr, u8)] = &[
    (Ipv6Addr::new(0x2001, 0, 0, 0, 0, 0, 0, 0), 23),
    (Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0), 32),
    (Ipv6Addr::new(0x2002, 0, 0, 0, 0, 0, 0, 0), 16),
    (Ipv6Addr::new(0x3fff, 0, 0, 0, 0, 0, 0, 0), 20),
];

/// Whether an address is on the public internet.
pub fn is_public(ip: IpAddr) -> bool {
    net_is_public(&IpNet::from(ip.to_canonical()))
}

/// Whether all of a range is.
fn net_is_public(net: &IpNet) -> bool {
    match net {
        IpNet::V4(net) => {
            let special = NOT_PUBLIC_V4.iter().filter_map(|(ip, len)| Ipv4Net::new(*ip, *len).ok());
            !special.into_iter().any(|special| special.contains(net) || net.contains(&special))
        }
        IpNet::V6(net) => {
            let special = NOT_PUBLIC_V6.iter().filter_map(|(ip, len)| Ipv6Net::new(*ip, *len).ok());
            Ipv6Net::new(PUBLIC_V6.0, PUBLIC_V6.1).is_ok_and(|public| public.contains(net))
                && !special.into_iter().any(|special| special.contains(net) || net.contains(&special))
        }
    }
}

impl Pattern {
    /// Of outgoing HTTP: scheme and port may be left out.
    pub fn http(text: &str) -> Result<Self, Invalid> {
        let bad = || {
            Invalid(
                "write https://api.example.org, *.example.org, 127.0.0.1:8080, 10.0.0.0/8 or *, without a path".into(),
            )
        };
        let lower = text.to_ascii_lowercase();
        let (scheme, rest) = match lower.split_once("://") {
            Some(("http", rest)) => (Some(Scheme::Http), rest),
            Some(("https", rest)) => (Some(Scheme::Https), rest),
            Some(_) => return Err(bad()),
            None => (None, lower.as_str()),
        };
        let (host, port) = host_and_port(rest).ok_or_else(bad)?;
        Ok(Self { scheme, host: Host::parse(host).ok_or_else(bad)?, port })
    }

    /// Of a raw socket: an address or a range, with or without a port.
    pub fn socket(text: &str) -> Result<Self, Invalid> {
        let bad =
            || Invalid("write an address, not a name: 10.0.0.5:5432, 10.0.0.0/8, [fd00::/8]:53, *:443 or *".into());
        let (host, port) = host_and_port(text).ok_or_else(bad)?;
        match Host::parse(host) {
            Some(host @ (Host::Any | Host::Net(_))) => Ok(Self { scheme: None, host, port }),
            _ => Err(bad()),
        }
    }

    /// Whether a request for this host, as it is written in the request, is meant.
    fn names(&self, scheme: Scheme, host: &str, port: u16) -> bool {
        let named = match &self.host {
            Host::Any => true,
            Host::Name(name) => host == name,
            Host::Below(parent) => is_below(host, parent),
            Host::Net(net) => literal(host).is_some_and(|ip| net.contains(&ip)),
        };
        named && self.fits(Some(scheme), port)
    }

    /// Whether this is the address itself, or a range that holds it. `localhost` is a name for two ranges.
    fn is_literally(&self, scheme: Option<Scheme>, ip: IpAddr, port: u16) -> bool {
        let holds = match &self.host {
            Host::Net(net) => net.contains(&ip),
            Host::Name(name) => name == "localhost" && ip.is_loopback(),
            Host::Any | Host::Below(_) => false,
        };
        holds && self.fits(scheme, port)
    }

    fn fits(&self, scheme: Option<Scheme>, port: u16) -> bool {
        let scheme_fits = self.scheme.is_none() || scheme.is_none() || self.scheme == scheme;
        scheme_fits && self.port.is_none_or(|p| p == port)
    }

    /// Whether this is one address and one port.
    fn is_exactly(&self, addr: SocketAddr) -> bool {
        let one =
            matches!(self.host, Host::Net(net) if net.prefix_len() == net.max_prefix_len() && net.addr() == addr.ip());
        one && self.port == Some(addr.port())
    }

    /// Whether all that `other` lets pass is within this.
    pub fn covers(&self, other: &Self) -> bool {
        let host = match (&self.host, &other.host) {
            (Host::Any, Host::Net(net)) => net_is_public(net),
            (Host::Any, Host::Name(name)) => name != "localhost",
            (Host::Any, Host::Any | Host::Below(_)) => true,
            (Host::Name(a), Host::Name(b)) => a == b,
            (Host::Below(parent), Host::Name(name)) => is_below(name, parent),
            (Host::Below(parent), Host::Below(other)) => parent == other || is_below(other, parent),
            (Host::Net(net), Host::Net(other)) => net.contains(other),
            _ => false,
        };
        host && (self.scheme.is_none() || self.scheme == other.scheme)
            && (self.port.is_none() || self.port == other.port)
    }
}

impl Host {
    fn parse(text: &str) -> Option<Self> {
        if text == "*" {
            return Some(Self::Any);
        }
        if let Some(ip) = literal(text) {
            return Some(Self::Net(ip.into()));
        }
        if text.contains('/') {
            return text.parse::<IpNet>().ok().map(|net| Self::Net(net.trunc()));
        }
        if let Some(parent) = text.strip_prefix("*.") {
            return is_name(parent).then(|| Self::Below(parent.to_owned()));
        }
        is_name(text).then(|| Self::Name(text.to_owned()))
    }
}

/// Host without brackets, and the port behind it; "*" is every port.
fn host_and_port(text: &str) -> Option<(&str, Option<u16>)> {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (host, behind) = rest.split_once(']')?;
            // Only IPv6 stands in brackets.
            host.contains(':').then_some(())?;
            (host, if behind.is_empty() { None } else { Some(behind.strip_prefix(':')?) })
        }
        None => match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    };
    let port = match port {
        None | Some("*") => None,
        Some(digits) if digits.bytes().all(|b| b.is_ascii_digit()) => Some(digits.parse().ok().filter(|p| *p > 0)?),
        Some(_) => return None,
    };
    Some((host, port))
}

/// The address that a host is, if it is one.
fn literal(host: &str) -> Option<IpAddr> {
    host.parse::<IpAddr>().ok().map(|ip| ip.to_canonical())
}

fn is_below(name: &str, parent: &str) -> bool {
    name.strip_suffix(parent).is_some_and(|rest| rest.len() > 1 && rest.ends_with('.'))
}

/// A DNS name; an IPv4 address is one as well.
pub(crate) fn is_name(host: &str) -> bool {
    let label_ok = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    host.len() <= HOST_BYTES_MAX && host.split('.').all(label_ok)
}

/// Whether a request may be made at all, before any name is looked up. `host` is as in a URI: brackets, capitals and
/// the dot of a full name are allowed.
pub fn may_ask(patterns: &[Pattern], scheme: Scheme, host: &str, port: u16) -> bool {
    let lower = host.to_ascii_lowercase();
    let bare = lower.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(&lower);
    let bare = bare.strip_suffix('.').unwrap_or(bare);
    patterns.iter().any(|p| p.names(scheme, bare, port))
}

/// Whether the address that a permitted host name stands for may be connected to: this is asked of the very address
/// that is then used, so a name that changes its address gains nothing.
pub fn may_connect(
    patterns: &[Pattern],
    scheme: Option<Scheme>,
    addr: SocketAddr,
    bus: &[SocketAddr],
) -> Result<(), Barred> {
    let addr = SocketAddr::new(addr.ip().to_canonical(), addr.port());
    let is_bus = bus.iter().any(|b| (b.ip().to_canonical(), b.port()) == (addr.ip(), addr.port()));
    if is_bus && !patterns.iter().any(|p| p.is_exactly(addr)) {
        return Err(Barred::Bus);
    }
    let literally = patterns.iter().any(|p| p.is_literally(scheme, addr.ip(), addr.port()));
    if literally || is_public(addr.ip()) { Ok(()) } else { Err(Barred::Private) }
}

/// The same for a raw socket, where no name is asked for first.
pub fn may_use(patterns: &[Pattern], addr: SocketAddr, bus: &[SocketAddr]) -> Result<(), Barred> {
    let ip = addr.ip().to_canonical();
    let named = patterns.iter().any(|p| {
        p.is_literally(None, ip, addr.port()) || (p.host == Host::Any && p.fits(None, addr.port()) && is_public(ip))
    });
    if named {
        return may_connect(patterns, None, addr, bus);
    }
    let any = patterns.iter().any(|p| p.host == Host::Any && p.fits(None, addr.port()));
    Err(if any && !is_public(ip) { Barred::Private } else { Barred::Unnamed })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn patterns(texts: &[&str]) -> Vec<Pattern> {
        texts.iter().map(|t| Pattern::http(t).unwrap_or_else(|e| panic!("{t}: {e}"))).collect()
    }

    #[test]
    fn requests_pass_by_scheme_name_and_port() {
        let granted = patterns(&[
            "API.example.org",
            "*.example.net",
            "127.0.0.1:8080",
            "[::1]:9000",
            "https://secure.example",
            "10.1.0.0/16:80",
        ]);
        for (scheme, host, port, expect) in [
            (Scheme::Https, "api.example.org", 443, true),
            (Scheme::Http, "API.example.org.", 81, true),
            (Scheme::Https, "xapi.example.org", 443, false),
            (Scheme::Https, "example.org", 443, false),
            (Scheme::Https, "a.b.example.net", 443, true),
            (Scheme::Https, "example.net", 443, false),
            (Scheme::Https, "evilexample.net", 443, false),
            (Scheme::Http, "127.0.0.1", 8080, true),
            (Scheme::Http, "127.0.0.1", 80, false),
            (Scheme::Http, "[::1]", 9000, true),
            (Scheme::Http, "[::ffff:127.0.0.1]", 8080, true),
            (Scheme::Https, "secure.example", 443, true),
            (Scheme::Http, "secure.example", 443, false),
            (Scheme::Http, "10.1.2.3", 80, true),
            (Scheme::Http, "10.2.2.3", 80, false),
        ] {
            assert_eq!(may_ask(&granted, scheme, host, port), expect, "{scheme:?} {host} {port}");
        }
        assert!(may_ask(&patterns(&["*"]), Scheme::Http, "anything", 1));
        assert!(!may_ask(&[], Scheme::Http, "anything", 1));
    }

    #[test]
    fn a_name_never_reaches_what_is_not_public() {
        let bus = ["203.0.114.9:4222".parse().unwrap(), "10.0.0.5:4222".parse().unwrap()];
        let check = |texts: &[&str], addr: &str, expect: Result<(), Barred>| {
            let got = may_connect(&patterns(texts), Some(Scheme::Http), addr.parse().unwrap(), &bus);
            assert_eq!(got, expect, "{texts:?} {addr}");
        };
        for private in [
            "127.0.0.1:80",
            "127.9.9.9:80",
            "0.0.0.0:80",
            "10.0.0.1:80",
            "172.31.255.255:80",
            "192.168.1.1:80",
            "169.254.169.254:80",
            "100.64.0.1:80",
            "224.0.0.1:80",
            "255.255.255.255:80",
            "[::1]:80",
            "[::]:80",
            "[fe80::1]:80",
            "[fd00::1]:80",
            "[::ffff:10.0.0.1]:80",
            "[64:ff9b::a00:1]:80",
            "[2002:a00:1::]:80",
            "[2001:db8::1]:80",
            "[2001::1]:80",
            "198.18.0.1:80",
        ] {
            check(&["*", "rebinding.example"], private, Err(Barred::Private));
        }
        for public in ["1.1.1.1:80", "172.32.0.1:80", "[2606:4700::1111]:443", "100.128.0.1:80", "223.255.255.255:80"] {
            check(&["*"], public, Ok(()));
        }
        check(&["10.0.0.1"], "10.0.0.1:80", Ok(()));
        check(&["10.0.0.0/8"], "[::ffff:10.0.0.1]:80", Ok(()));
        check(&["10.0.0.0/8:81"], "10.0.0.1:80", Err(Barred::Private));
        check(&["https://10.0.0.1"], "10.0.0.1:80", Err(Barred::Private));
        check(&["localhost:80"], "127.0.0.1:80", Ok(()));
        check(&["localhost:80"], "10.0.0.1:80", Err(Barred::Private));
        // The bus: neither by `*` nor by a range, only as address and port.
        check(&["*"], "203.0.114.9:4222", Err(Barred::Bus));
        check(&["*"], "203.0.114.9:80", Ok(()));
        check(&["10.0.0.0/8", "10.0.0.5"], "10.0.0.5:4222", Err(Barred::Bus));
        check(&["10.0.0.5:4222"], "10.0.0.5:4222", Ok(()));
    }

    #[test]
    fn sockets_pass_by_address_and_port() {
        let bus = ["10.0.0.5:4222".parse().unwrap()];
        let check = |texts: &[&str], addr: &str, expect: Result<(), Barred>| {
            let granted: Vec<_> = texts.iter().map(|t| Pattern::socket(t).unwrap()).collect();
            assert_eq!(may_use(&granted, addr.parse().unwrap(), &bus), expect, "{texts:?} {addr}");
        };
        check(&[], "1.1.1.1:53", Err(Barred::Unnamed));
        check(&["*:53"], "1.1.1.1:53", Ok(()));
        check(&["*:53"], "1.1.1.1:54", Err(Barred::Unnamed));
        check(&["*:53"], "127.0.0.53:53", Err(Barred::Private));
        check(&["10.0.0.0/24:5432"], "10.0.0.7:5432", Ok(()));
        check(&["10.0.0.0/24:5432"], "10.0.1.7:5432", Err(Barred::Unnamed));
        check(&["10.0.0.0/24"], "10.0.0.5:4222", Err(Barred::Bus));
        check(&["[fd00::/8]:53"], "[fd00::1]:53", Ok(()));
    }

    #[test]
    fn a_policy_holds_only_what_is_within_it() {
        let covers = |a: &str, b: &str| Pattern::http(a).unwrap().covers(&Pattern::http(b).unwrap());
        for (policy, grant) in [
            ("*", "api.example.org:80"),
            ("*", "*"),
            ("*", "*.example.org"),
            ("*", "1.1.1.1"),
            ("*.example.org", "a.example.org"),
            ("*.example.org", "*.b.example.org"),
            ("10.0.0.0/8", "10.1.0.0/16"),
            ("10.0.0.0/8", "10.0.0.1:80"),
            ("https://*", "https://a.example"),
            ("a.example:443", "https://a.example:443"),
            ("127.0.0.0/8", "127.0.0.1"),
        ] {
            assert!(covers(policy, grant), "{policy} {grant}");
        }
        for (policy, grant) in [
            ("*", "127.0.0.1"),
            ("*", "localhost"),
            ("*", "10.0.0.0/8"),
            ("*", "8.0.0.0/6"),
            ("*", "0.0.0.0/0"),
            ("*.example.org", "example.org"),
            ("*.example.org", "*"),
            ("*.example.org", "*.org"),
            ("a.example", "b.example"),
            ("https://*", "a.example"),
            ("a.example:443", "a.example"),
            ("10.0.0.0/16", "10.0.0.0/8"),
            ("a.example", "1.1.1.1"),
        ] {
            assert!(!covers(policy, grant), "{policy} {grant}");
        }
    }

    #[test]
    fn what_names_no_address_is_refused() {
        for text in [
            "",
            "**",
            "*.",
            "a b",
            "ftp://x",
            "a@b",
            "x:",
            "x:99999",
            "x:0",
            "a.*.b",
            "http://x/y",
            "10.0.0.0/33",
            "::1",
            "[::1",
            "[a]:1",
            "x:+1",
            "https://",
        ] {
            assert!(Pattern::http(text).is_err(), "{text:?}");
        }
        for text in ["example.org:80", "http://1.1.1.1", "*.example.org", ""] {
            assert!(Pattern::socket(text).is_err(), "{text:?}");
        }
    }
}
